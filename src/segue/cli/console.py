"""What a person reads while a command works: plain lines, logs and a progress bar, all on stderr.

On a terminal there is a bar with the time left; elsewhere only plain lines, so that logs stay readable.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from types import TracebackType

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """Text with what would steer the terminal, turn its direction, or is no character at all, made visible.

    Names of files and tensors, phrases, categories and answers are written by others.
    """
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


class VisibleConsole(Console):
    """A console on which nothing that others wrote steers the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is printed, with its text made visible."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


STDERR = VisibleConsole(stderr=True)


def say(text: str, *, style: str | None = None) -> None:
    """Print one line for people, never wrapped and never read as markup."""
    STDERR.print(Text(text, style=style or ""), soft_wrap=True)


def error(text: str) -> None:
    """Print one line that says what went wrong."""
    STDERR.print(Text.assemble(("error: ", "bold red"), text), soft_wrap=True)


class LogHandler(logging.Handler):
    """Logs as plain lines above whatever progress bar is showing."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record."""
        say(f"{record.levelname.lower()}: {self.format(record)}", style="dim")


class Bar:
    """Progress over inputs, and over the frames of the one at work, each with the time left; a context manager.

    Shows from the first `start` on, only where stderr is a terminal, and not where `hidden`. Failures are counted
    beside the inputs.
    """

    def __init__(self, inputs: int, *, hidden: bool = False):
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=STDERR,
            disable=hidden or not STDERR.is_terminal,
            redirect_stdout=False,
            transient=True,
        )
        self._failures = 0
        self._inputs = self._progress.add_task("inputs", total=inputs, visible=inputs > 1)
        self._frames = self._progress.add_task("frames", total=None, visible=False)

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def start(self, name: str, frames: int) -> None:
        """An input of that many frames is at work."""
        self._progress.start()
        self._progress.reset(self._frames, total=frames, description=name, visible=True)

    def step(self) -> None:
        """One more frame of it is done."""
        self._progress.advance(self._frames)

    def done(self, *, failed: bool = False) -> None:
        """The input is done with."""
        self._failures += failed
        description = f"inputs, {self._failures} failed" if self._failures else "inputs"
        self._progress.update(self._frames, visible=False)
        self._progress.update(self._inputs, advance=1, description=description)
