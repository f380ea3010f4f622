"""Replaying a recording of the original code, seam by seam, and saying how near ours comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from segue.errors import ConfigError
from segue.parity import longva, qwen_vl, sa2va
from segue.parity.compare import TOLERANCE, Check, Seam, judge
from segue.parity.recording import Recording

__all__ = ["TOLERANCE", "Check", "Recording", "Report", "Seam", "load", "replay", "wanted_seams"]

_KINDS: Mapping[str, Any] = {"sa2va": sa2va, "qwen_vl": qwen_vl, "longva": longva}
"""Kinds of recordings, and the module that loads and replays each: `load(recording, dtype=, device=)`, and
`replay(recording, seam, model)`, which gives what was `Replay`."""


@dataclass(frozen=True, slots=True)
class Report:
    """How a recording compares: its seams in the order of the data's flow, and notes on how it was done."""

    recording: str
    seams: tuple[Seam, ...]
    notes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether something was compared and nothing fails."""
        verdicts = {seam.verdict for seam in self.seams}
        return "fail" not in verdicts and "pass" in verdicts


def load(recording: Recording, *, dtype: str = "fp32", device: str = "cpu") -> Any:
    """What a recording is replayed on: the recorded model, or its preprocessing alone if its weights were left out.

    Raises: ConfigError, if no family here claims it; CheckpointError, if its weights do not fit.
    """
    return _KINDS[recording.kind].load(recording, dtype=dtype, device=device)


def wanted_seams(recording: Recording, only: Sequence[str] = ()) -> tuple[str, ...]:
    """The recording's seams, or those of them that are named in `only` in full or by their first parts.

    Raises: ConfigError, naming the seams there are, for a name that is none.
    """
    for name in only:
        if not any(f"{seam}.".startswith(f"{name}.") for seam in recording.seams):
            raise ConfigError(f"{recording.folder} has no seam {name!r}; it has {', '.join(recording.seams)}")
    return tuple(
        seam for seam in recording.seams if not only or any(f"{seam}.".startswith(f"{name}.") for name in only)
    )


@torch.no_grad()
def replay(
    recording: Recording, model: Any, seams: Sequence[str], say: Callable[[str], None] = lambda _: None
) -> Report:
    """Replay these seams of a recording, on as many threads as it was made; `say` hears each before its turn."""
    done, notes = [], []
    with _threads(recording.threads):
        for seam in seams:
            say(f"{recording.folder.name}: {seam}")
            found = _KINDS[recording.kind].replay(recording, seam, model)
            done.append(Seam(seam, tuple(judge(recording, seam, found))))
            notes += found.notes
    return Report(recording.folder.name, tuple(done), tuple(notes))


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """So many threads for sums on a CPU, which are split among them, while the context lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
