"""What can be wrong with data: the kinds of findings, what to do about each, and a report of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of finding: how grave it is, what it is called, and what to do about it.

    An error is what cannot be loaded, or misleads whoever learns from it or measures with it. A warning is what loads
    and may be meant.
    """

    severity: Severity
    title: str
    advice: str


KINDS: Mapping[str, Kind] = {
    "refused": Kind("error", "annotation that cannot be read", "mend the annotation, or take it out"),
    "missing_file": Kind("error", "missing file", "put the file there, or take the annotation out"),
    "unreadable_file": Kind("error", "unreadable file", "copy or save the file again, or take it out"),
    "other_frame": Kind(
        "error", "drawn on an image of another size", 'scale the coordinates, or state the "size" they were drawn on'
    ),
    "other_size": Kind("error", "annotation of another size than the image", "scale the annotation or the image"),
    "outside": Kind("error", "coordinates outside the image", "draw the polygon inside the image"),
    "few_points": Kind("error", "polygon of fewer than three points", "take the polygon out, or draw it again"),
    "bad_coordinate": Kind("error", "coordinate that is no number of pixels", "take the polygon out, or draw it again"),
    "bad_mask": Kind("error", "mask that cannot be used", "draw or export the mask again"),
    "empty_mask": Kind("error", "empty mask", "mark the object, or say that it is not there"),
    "count_mismatch": Kind("error", "more or fewer masks than texts", "give one text for each mask"),
    "no_text": Kind("error", "object without words", "say what the object is called"),
    "no_object": Kind("error", "nothing is marked", "mark something, or take the image out"),
    "unusable": Kind("error", "sample that cannot be drawn", "see what it says, or take the row out"),
    "group_leak": Kind("error", "group in several splits", "move the whole group into one split"),
    "image_leak": Kind("error", "same image in several splits", "keep it in one split"),
    "maybe_other_frame": Kind("warning", "perhaps drawn on an image of another size", "look at the pictures"),
    "folder_leak": Kind("warning", "folder in several splits", "if a folder is a patient or a video, split by folders"),
    "flat_polygon": Kind("warning", "polygon without a list around it", "put it into a list; it is taken for one"),
    "crowd": Kind("warning", "crowd in one mask, taken as one object", "take it out, if single things are meant"),
    "same_text": Kind("warning", "several objects with one text", "tell them apart; they are taken as one thing"),
    "same_image": Kind("warning", "same image in several rows", "put its objects into one row"),
    "thin_mask": Kind("warning", "mask that is lost at 256x256", "learn from the mask at full size, or from crops"),
    "inverted": Kind("warning", "perhaps what is around the thing", "invert the mask, if 0 or black is the thing"),
    "left_out": Kind("warning", "image without a mask, left out", "mark something, if something is there"),
    "passed_over": Kind("warning", "file that is not read", "convert it, or take it away, if it belongs to the data"),
    "disagreement": Kind("warning", "annotators who disagree", "decide, and leave one annotation"),
    "unsure_mask": Kind("warning", "mask that is taken for more than it says", "see what it says"),
    "absent": Kind("warning", "mask of nothing, learned as 'not there'", "mark the object, if it is there"),
    "media_note": Kind("warning", "image or video not taken as it stands", "see what it says"),
    "turned_size": Kind("warning", "stated size of the image before EXIF turned it", "state the size as it is shown"),
    "no_split": Kind("warning", "in no split, learned from", "name its split, or take it out"),
    "several_splits": Kind("warning", "image named for several splits", "name it for one of them"),
    "few_groups": Kind("warning", "too few groups to deal out splits", "add data, or say the splits"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found: in which row and file, on which object, what is there and what was expected.

    `row` counts as the rows of all splits do, from 0, and is None for what belongs to no row; `object` is the place of
    the object in its annotation.
    """

    kind: str
    row: int | None
    file: str
    value: str
    expected: str
    split: str = ""
    object: int | None = None
    text: str = ""

    @property
    def severity(self) -> Severity:
        """How grave it is."""
        return KINDS[self.kind].severity

    @property
    def advice(self) -> str:
        """What to do about it."""
        return KINDS[self.kind].advice

    def plain(self) -> dict[str, Any]:
        """Everything as JSON takes it."""
        return {"severity": self.severity, **asdict(self), "advice": self.advice}


@dataclass(frozen=True, slots=True)
class Report:
    """What was examined and what was found, errors first, of each kind in the order of rows.

    `splits` is how many rows each split has, "" where nothing says splits and the groups are too few to deal out.
    """

    rows: int
    objects: int
    splits: Mapping[str, int]
    findings: tuple[Finding, ...]

    @property
    def is_clean(self) -> bool:
        """Whether there is no error."""
        return all(finding.severity != "error" for finding in self.findings)

    def by_kind(self) -> dict[str, list[Finding]]:
        """The findings by kind, in the order of `KINDS`; kinds of which there is none are left out."""
        found: dict[str, list[Finding]] = {kind: [] for kind in KINDS}
        for finding in self.findings:
            found[finding.kind].append(finding)
        return {kind: several for kind, several in found.items() if several}


def in_order(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The findings by kind as `KINDS` lists them, and of each kind by row; those of no row come first."""
    order = list(KINDS)
    return tuple(sorted(findings, key=lambda one: (order.index(one.kind), -1 if one.row is None else one.row)))
