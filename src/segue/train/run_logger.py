"""What a run tells while it goes on: `log.jsonl`, TensorBoard where it is installed, and whoever watches."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from segue.errors import CheckpointError

log = logging.getLogger(__name__)

LOG = "log.jsonl"


@runtime_checkable
class Watcher(Protocol):
    """Somebody who watches a run: the command line, or a test."""

    def say(self, text: str) -> None:
        """A line, or several, for people."""
        ...

    def start(self, stage: str, steps: int, done: int) -> None:
        """A stage of so many steps begins, of which some were done before."""
        ...

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """A step of the stage is over; `values` are empty between two lines of the log."""
        ...


class RunLogger:
    """Lines of `log.jsonl`, and the same numbers as TensorBoard scalars. Silent in all processes but the first."""

    def __init__(self, run: Path, watcher: Watcher, *, is_main: bool):
        self.watcher = watcher
        self.is_main = is_main
        self._path = run / LOG
        self._board: Any = None

    def say(self, text: str) -> None:
        """A line for people."""
        if self.is_main:
            self.watcher.say(text)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """A line of the log.

        Raises: CheckpointError, if it cannot be written.
        """
        if not self.is_main:
            return
        line = json.dumps({"kind": kind, "step": step, **values}, ensure_ascii=False)
        try:
            with self._path.open("a", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(line + "\n")
            if self._board is not None:
                for name, value in values.items():
                    if isinstance(value, int | float):
                        self._board.add_scalar(f"{kind}/{name}", value, step)
        except OSError as error:
            raise _full(self._path, error) from error

    def begin(self, step: int) -> None:
        """Open the log, and forget what stands in it after a step: a resumed run will say it again.

        Raises: CheckpointError, if it cannot be written.
        """
        if not self.is_main:
            return
        self.close()
        try:
            self._board = _board(self._path.parent, step)
        except OSError as error:
            raise _full(self._path, error) from error
        if self._path.is_file():
            # a stage says of itself after which step it begins
            kept = [line for line in lines(self._path) if line["step"] + (line["kind"] == "stage") <= step]
            write_text(self._path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))

    def close(self) -> None:
        """Write what TensorBoard still holds back; whether that works or not, for the run is over."""
        if self._board is not None:
            try:
                self._board.close()
            except OSError as error:
                log.warning("the last figures are not in TensorBoard (%s); %s has them", error, self._path)


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; one that a killed process left half written, or a disk has damaged, is left out."""
    if not path.is_file():
        return []
    found = []
    for line in filter(None, path.read_text(encoding="utf-8", errors="replace").split("\n")):
        try:
            read = json.loads(line)
            is_sound = isinstance(read["kind"], str) and isinstance(read["step"], int)
            if not is_sound or (read["kind"] == "stage" and not isinstance(read["text"], str)):
                raise ValueError("none of ours")
        except (ValueError, TypeError, KeyError, RecursionError):
            log.warning("%s has a damaged line, which is left out", path)
        else:
            found.append(read)
    return found


def write_text(path: Path, text: str) -> None:
    """Write a small file of a run whole or not at all.

    Raises: CheckpointError, if it cannot be written; an older file of that name stays as it was.
    """
    part = path.with_name(f".{path.name}")
    try:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise _full(path, error) from error


def _full(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"cannot write {path}: {error.strerror}; free space and go on with --resume")


def _board(run: Path, step: int) -> Any:
    """A writer of scalars; TensorBoard then hides what older files of the run say of later steps."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("no TensorBoard here (extra `train`); %s holds the same numbers", LOG)
        return None
    return SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
