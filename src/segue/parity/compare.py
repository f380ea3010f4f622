"""What we compute beside what was recorded: the one place that says how near is near enough."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from segue.geometry.masks import iou
from segue.grounding.sam2 import ABSENT
from segue.parity.recording import Recording, seam_of

TOLERANCE = 1e-4
"""Largest difference allowed, relative to the largest recorded value; for float32."""

FEW = 32
"""Tensors of fewer numbers (scores) are measured against the largest value of their seam instead of their own, and so
is what is read from memory maps: those are rounded to bfloat16, which makes 1e-7 into 1e-2 now and then."""

UNDECIDED = 1e-5
"""Logits at most this far from 0, relative to the mask's largest, say nothing: float32 alone moves them across, with
the order of a summation. With the recorded kernel and threads no pixel turns here; on another processor one may."""

FLIPPED = 0.01
"""Largest share of memory values that may fall to the other side of a bfloat16 rounding."""

_ROUNDED, _FROM_ROUNDED = "maskmem_features", "pix_feat_with_mem"
_BFLOAT16_BITS = 8
_PART = re.compile(r"_(?:(every|tail|last|first|cls_and_first)(\d+)|rows)$")
_STRIDE = re.compile(r"\bevery (\d+)[a-z]{2} (?:of\b|patch row)")
_PLACES = re.compile(r"(?:rows|columns|tokens|positions|frames) (\d+),\s*(\d+),")

Verdict = Literal["pass", "fail", "skipped", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was recorded and how ours compares. `skipped` and `unknown` were not compared; `note` says why.

    `difference` is the largest absolute one, `relative` the same over the largest recorded value, `iou` the least
    mask IoU over frames, `identical` is for ids, hashes and text.
    """

    name: str
    verdict: Verdict
    difference: float | None = None
    relative: float | None = None
    cosine: float | None = None
    iou: float | None = None
    identical: bool | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Ours:
    """A value of ours, whole: strides are taken off where the recording has them.

    `where` marks the positions that mean anything. `logits` are what a mask was cut from, of the mask's own shape.
    """

    value: Tensor
    where: Bool[Tensor, "*shape"] | None = None
    logits: Float[Tensor, "*shape"] | None = None


Values = dict[str, Ours | Tensor]
"""Values of ours by recorded name, without the ending that says which part was recorded."""


@dataclass(slots=True)
class Replay:
    """What replaying a seam brings: values by recorded name without stride, facts already judged, reasons why some
    recorded tensors have no counterpart, and what a reader should know of how it was done.
    """

    values: Values = field(default_factory=dict)
    facts: list[Check] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def fact(name: str, ours: object, recorded: object) -> Check:
    """The check of something that must be equal: ids, hashes, sizes, text."""
    same = ours == recorded
    note = "" if same else f"ours is {_short(ours)}, recorded is {_short(recorded)}"
    return Check(name=name, verdict="pass" if same else "fail", identical=same, note=note)


def judge(recording: Recording, seam: str, found: Replay) -> list[Check]:
    """A check for every tensor recorded of a seam, and the facts about it."""
    names = [name for name in recording.outputs if seam_of(name) == seam]
    largest = max((_largest(recording.outputs[name]) for name in names), default=0.0)
    checks = [fact for fact in found.facts if seam_of(fact.name) == seam]
    judged = {check.name for check in checks}
    for name in (name for name in names if name not in judged):
        ours = found.values.get(name, found.values.get(_PART.sub("", name)))
        if ours is not None:
            checks.append(_compare(recording, name, ours if isinstance(ours, Ours) else Ours(ours), largest))
        elif reason := found.skipped.get(name):
            checks.append(Check(name=name, verdict="skipped", note=reason))
        else:
            checks.append(Check(name=name, verdict="unknown", note="nothing here computes this"))
    return checks


def _compare(recording: Recording, name: str, ours: Ours, largest: float) -> Check:
    recorded, what = recording.outputs[name], recording.what(name)
    value = like_recorded(ours.value.detach().cpu(), recorded.shape, name, what)
    if value is None:
        return Check(
            name=name, verdict="fail", note=f"ours is {list(ours.value.shape)}, recorded is {list(recorded.shape)}"
        )
    if is_mask(name, recorded):
        return compare_masks(name, value.bool(), recorded.bool(), None if ours.logits is None else ours.logits.cpu())
    if not recorded.is_floating_point() and recorded.dtype != torch.uint8:
        return fact(name, value.flatten().tolist(), recorded.flatten().tolist())
    if ours.where is not None:
        value, recorded = value[ours.where], recorded[ours.where]
    if _ROUNDED in name:
        return compare_rounded(name, value, recorded)
    is_few = recorded.numel() < FEW or _FROM_ROUNDED in name
    return compare_numbers(name, value, recorded, largest if is_few else _largest(recorded))


def is_mask(name: str, recorded: Tensor) -> bool:
    """Whether a recorded tensor holds masks of yes and no, as opposed to their logits or the pixels of an image."""
    return recorded.dtype in (torch.uint8, torch.bool) and _PART.sub("", name).endswith("masks")


def compare_numbers(name: str, ours: Tensor, recorded: Tensor, scale: float) -> Check:
    """Numbers of one shape; `scale` is the value that their differences are measured against."""
    first, second = ours.double().flatten(), recorded.double().flatten()
    difference = float((first - second).abs().max()) if len(first) else 0.0
    relative = difference / scale if scale else math.inf if difference else 0.0
    # written so that a NaN fails
    verdict: Verdict = "pass" if relative <= TOLERANCE else "fail"
    return Check(name=name, verdict=verdict, difference=difference, relative=relative, cosine=_cosine(first, second))


def compare_rounded(name: str, ours: Tensor, recorded: Tensor) -> Check:
    """Numbers that both sides round to bfloat16: some few fall to the other side and are then one step apart.

    `difference` counts these too, `relative` only what goes beyond a step.
    """
    first, second = ours.double().flatten(), recorded.double().flatten()
    _, exponent = torch.maximum(first.abs(), second.abs()).frexp()
    step = torch.ldexp(torch.ones_like(first), exponent - _BFLOAT16_BITS)
    apart = (first - second).abs()
    check = compare_numbers(name, torch.where(apart <= step, second, first), second, _largest(recorded))
    flipped = int((apart > 0).sum())
    note = f"{flipped} of {len(first)} bfloat16 values rounded the other way" if flipped else ""
    verdict: Verdict = check.verdict if flipped <= FLIPPED * len(first) else "fail"
    difference = float(apart.max()) if len(first) else 0.0
    return replace(check, verdict=verdict, difference=difference, cosine=_cosine(first, second), note=note)


def compare_masks(
    name: str,
    ours: Bool[Tensor, "t h w"],
    recorded: Bool[Tensor, "t h w"],
    logits: Float[Tensor, "t h w"] | None = None,
) -> Check:
    """Masks frame by frame: every pixel must agree whose logit is not `UNDECIDED`.

    `iou` counts all pixels. Where any differ, the note says how many and how near to 0 their logits were.
    """
    least = min((iou(a.numpy(), b.numpy()) for a, b in zip(ours, recorded, strict=True)), default=1.0)
    differing = ours != recorded
    count, nearness = int(differing.sum()), math.inf
    note = f"{count} of {differing.numel()} pixels differ" if count else ""
    if count and logits is not None:
        nearness = float(logits[differing].abs().max())
        note += f", at logits of at most {nearness:.1e} where the largest is {_largest(logits):.1e}"
    agrees = not count or (logits is not None and nearness <= UNDECIDED * _largest(logits))
    return Check(name=name, verdict="pass" if agrees else "fail", iou=least, note=note)


def like_recorded(ours: Tensor, shape: torch.Size, name: str, what: str) -> Tensor | None:
    """The part of a value that was recorded; `None` if no such part has the recorded shape.

    The name's ending says which part (`_every4`, `_tail16`, `_last8`, `_first8`), the recorded shape which axes it is
    taken of, and the manifest's words the stride of `_rows` ("every 88th of 2116") and where a stride does not begin at
    0 ("rows 3,59,115,...").
    """
    if ours.ndim != len(shape):
        return None
    found = _PART.search(name)
    kind, number = (found[1], int(found[2])) if found and found[1] else ("every", 0)
    if found and not found[1] and (stride := _STRIDE.search(what)):
        number = int(stride[1])
    for axis, (have, want) in enumerate(zip(ours.shape, shape, strict=True)):
        if have != want:
            ours = ours.index_select(axis, _positions(kind, number, have, want, what))
    return ours if ours.shape == shape else None


def _positions(kind: str, number: int, have: int, want: int, what: str) -> Tensor:
    if kind in ("tail", "last"):
        return torch.arange(max(have - number, 0), have)
    if kind == "first":
        return torch.arange(min(number, have))
    if kind == "cls_and_first":
        return torch.arange(min(number + 1, have))
    step = number or max(math.ceil(have / max(want, 1)), 1)
    places = _PLACES.search(what)
    offset = int(places[1]) if places and int(places[2]) - int(places[1]) == step else 0
    return torch.arange(offset, have, step)


def _largest(recorded: Tensor) -> float:
    # "nowhere" is a mark, not a size: it would hide any difference beside it
    values = recorded.double().abs().flatten()
    values = values[(values != -ABSENT) & values.isfinite()]
    return float(values.max()) if len(values) else 0.0


def _cosine(first: Tensor, second: Tensor) -> float:
    if torch.equal(first, second):
        return 1.0
    return float(first @ second / (first.norm() * second.norm()))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:60]} ... {text[-40:]}"


@dataclass(frozen=True, slots=True)
class Seam:
    """All checks of one seam."""

    name: str
    checks: tuple[Check, ...]

    @property
    def verdict(self) -> Verdict:
        """`fail` if any check fails; `pass` if something was compared and all of it agrees."""
        verdicts = {check.verdict for check in self.checks}
        order: tuple[Verdict, ...] = ("fail", "pass", "unknown")
        return next((verdict for verdict in order if verdict in verdicts), "skipped")

    def count(self, *verdicts: Verdict) -> int:
        """How many of its checks ended so."""
        return sum(check.verdict in verdicts for check in self.checks)

    def summary(self) -> Check:
        """All checks as one: the largest differences, the least cosine and IoU, whether all ids are identical."""
        compared = [check for check in self.checks if check.verdict in ("pass", "fail")]
        same = [check.identical for check in compared if check.identical is not None]
        return Check(
            name=self.name,
            verdict=self.verdict,
            difference=_extreme(max, [check.difference for check in compared]),
            relative=_extreme(max, [check.relative for check in compared]),
            cosine=_extreme(min, [check.cosine for check in compared]),
            iou=_extreme(min, [check.iou for check in compared]),
            identical=all(same) if same else None,
        )


def _extreme(choose: Callable[[list[float]], float], values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    if not known or any(math.isnan(value) for value in known):
        return math.nan if known else None
    return choose(known)
