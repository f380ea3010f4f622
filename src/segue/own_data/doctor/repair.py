"""A corrected copy of data in the form for fine-tuning; the original is never touched.

What can be mended is (`segue.own_data.doctor.fixes`), what cannot is left out, and `repairs.jsonl` says of each
why. Rows of one image become one, objects of one text become one thing, and groups or images that are in several splits
move into the split that has most of their rows, of equal ones into the smaller set: test, then val.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from segue.data import shapes
from segue.data.prompts import clean_phrase
from segue.errors import DataError, SegueError
from segue.files import atomic_folder
from segue.media import open_media, read_frames
from segue.output.export import write_png
from segue.own_data.doctor import Examined, Report, cross_row_checks, examine
from segue.own_data.doctor.fixes import Mask, mended, united
from segue.own_data.doctor.rows import Size, annotated, listed, on_annotated
from segue.own_data.finding import locate
from segue.own_data.folder import Row
from segue.own_data.formats import finetune
from segue.own_data.formats.entries import Drawn
from segue.progress import UNWATCHED, Progress
from segue.types import Media

_WRITTEN = ("annotations.json", "images", "repairs.jsonl")
_DONE = {
    "refused": "dropped",
    "left_out": "left out",
    "flat_polygon": "wrapped the polygon of",
    "crowd": "kept as one object",
    "passed_over": "left out",
    "disagreement": "took the first of",
    "several_splits": "kept in one split",
    "unsure_mask": "took as it was read",
}
_TIES = ("test", "val", "train", "")


@dataclass(frozen=True, slots=True)
class Note:
    """A line of `repairs.jsonl`: what was done, to which object of which row; "dropped ..." where it was left out."""

    row: int | None
    file: str
    done: str
    object: int | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Repaired:
    """What became of the data: the copy's own report, which has no error, the notes, and how many rows it left out."""

    report: Report
    notes: tuple[Note, ...]
    dropped: int


@dataclass(slots=True)
class _Item:
    """One image of the copy while it is put together; masks by text, and texts that fit nothing."""

    image: str
    size: Size
    group: str
    split: str
    masks: dict[str, list[Mask]] = field(default_factory=dict)
    absent: dict[str, None] = field(default_factory=dict)

    def plain(self) -> Iterator[dict[str, Any]]:
        """The item as it is written, and a negative one beside it, if some texts fit nothing."""
        about: dict[str, Any] = {"image": self.image, "size": list(self.size), "group": self.group}
        if self.split:
            about["split"] = self.split
        if self.masks:
            several = [united(masks, self.size) for masks in self.masks.values()]
            yield {**about, "text": list(self.masks), "mask": several}
        if absent := [text for text in self.absent if text not in self.masks]:
            yield {**about, "text": absent, "mask": [], "negative": True}


class _Copy:
    """The copy while it is made: items by the image's bytes and frame, names that are taken, and notes."""

    def __init__(self, examined: Examined, folder: Path):
        self.examined = examined
        self.folder = folder
        self.items: dict[tuple[str, int], _Item] = {}
        self.notes: list[Note] = []
        self.dropped = 0
        self._taken: set[str] = set()
        self._drawn_on = {row: frame.size for _, frame in cross_row_checks.frames(examined.seen) for row in frame.rows}
        self._groups, self._splits = _kept_together(examined)

    def add(self, number: int) -> None:
        """Take over a row, as far as it can be used."""
        row, seen = self.examined.survey.rows[number], self.examined.seen[number]
        if seen.size is None:
            self._drop(number, seen.findings[0].value)
            return
        path = locate(row.folders, *row.entry.names)
        media = open_media(path)
        row = self._with_one_text_for_all(number, row)
        frames = [frame for frame in annotated(row) if frame < media.count]
        drawn, fault = listed(row, on_annotated(row, media), frames)
        if fault is not None and (size := getattr(fault, "found", None)):
            drawn, fault = listed(row, replace(media, size=size), frames)
        marked = {} if fault else self._marked(number, row, media, drawn)
        absent = [*_absent(row), *self._not_there(row, media, drawn)]
        if not marked and not absent:
            self._drop(number, str(fault) if fault else "no object is left")
            return
        for frame in sorted(marked) or [0]:
            item = self._item(number, row, path, media, frame=frame)
            for text, mask in marked.get(frame, ()):
                item.masks.setdefault(text, []).append(mask)
            item.absent.update(dict.fromkeys(absent))

    def _marked(self, number: int, row: Row, media: Media, drawn: list[Drawn]) -> Mapping[int, list[tuple[str, Mask]]]:
        """What can be used of a row's objects, by frame."""
        kept: dict[int, list[tuple[str, Mask]]] = {}
        for one in drawn:
            about = {"object": one.number, "text": str(one.phrase)[:80]}
            try:
                if row.empty_is_absent and self._not_there(row, media, [one]):
                    self._note(number, "kept as not there, for its mask is all black", **about)
                    continue
                text = clean_phrase(one.phrase) if isinstance(one.phrase, str) else ""
                if not text:
                    raise DataError("its words cannot be asked for")
                good = mended(one, row, media, self._drawn_on.get(number))
            except SegueError as error:
                self._note(number, f"dropped the object: {error}", **about)
                continue
            for done in good.done:
                self._note(number, done, **about)
            if any(text == other for other, _ in kept.get(one.frame, ())):
                self._note(number, f"united with the other objects called {text!r}", **about)
            kept.setdefault(one.frame, []).append((text, good.mask))
        return kept

    def _not_there(self, row: Row, media: Media, drawn: list[Drawn]) -> list[str]:
        """The phrases whose mask pictures are all black: they are not there."""
        if not row.empty_is_absent or media.kind != "image":
            return []
        found = []
        for one in drawn:
            try:
                if isinstance(one.phrase, str) and shapes.is_empty(one.counts(), media.size):
                    found.append(clean_phrase(one.phrase))
            except SegueError:
                continue  # what is wrong with it is noted where it is dropped
        return found

    def _item(self, number: int, row: Row, path: Path, media: Media, *, frame: int) -> _Item:
        """The item of an image, whose file is copied when it comes first."""
        key = self.examined.seen[number].digest, frame
        if key in self.items:
            self._note(number, f"put into the row of {self.items[key].image}, which is the same image")
            return self.items[key]
        name = _relative(row, path)
        if media.kind == "video":
            name = Path(name).with_suffix("").as_posix() + f"/{frame:05d}.png"
        free = (name, f"{self._splits[number] or 'all'}/{name}", f"{number:06d}/{name}")
        name = next(one for one in free if one not in self._taken)
        self._taken.add(name)
        target = self.folder / "images" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if media.kind == "video":
            write_png(target, read_frames(media, [frame]).pixels[0])
        else:
            shutil.copyfile(path, target)
        split = self._splits[number]
        if split != self.examined.splits[number]:
            self._note(number, f"moved from {self.examined.splits[number]} to {split}, where its group or image is")
        self.items[key] = _Item(name, media.size, self._groups[number], split)
        return self.items[key]

    def _with_one_text_for_all(self, number: int, row: Row) -> Row:
        """A row with one text and several masks says that all of them are what the text means."""
        record = row.entry.record
        if not isinstance(record, dict):
            return row
        texts, masks = record.get("text"), record.get("mask")
        if not (isinstance(texts, list) and isinstance(masks, list) and len(texts) == 1 < len(masks)):
            return row
        self._note(number, f"took the one text for all {len(masks)} masks")
        return replace(row, entry=replace(row.entry, record={**record, "text": texts * len(masks)}))

    def _drop(self, number: int, why: str) -> None:
        self.dropped += 1
        self._note(number, f"dropped the row: {why}")

    def _note(self, number: int, done: str, **about: Any) -> None:
        self.notes.append(Note(number, self.examined.survey.rows[number].entry.names[0], done, **about))


def write(examined: Examined, target: Path, *, overwrite: bool = False, progress: Progress = UNWATCHED) -> Repaired:
    """Write the corrected copy as a new folder, whole or not at all. Progress is told in rows.

    With `overwrite` an older copy, in a folder that holds nothing else, is replaced.

    Raises: MediaError, if the folder is there already or cannot be written; DataError, if nothing is left of the data,
        or something is wrong with the copy still.
    """
    with atomic_folder(target, replaces=_WRITTEN if overwrite else None) as folder:
        copy = _Copy(examined, folder)
        progress.start(len(examined.survey.rows))
        for number in range(len(examined.survey.rows)):
            copy.add(number)
            progress.step()
        items = [plain for item in copy.items.values() for plain in item.plain()]
        if not items:
            raise DataError("nothing is left of the data when all that is wrong is taken out; the findings say why")
        for remark in examined.survey.remarks:
            copy.notes.append(Note(None, remark.place, f"{_DONE[remark.kind]}: {remark.text}"))
        doubts = examined.report.by_kind().get("maybe_other_frame", [])
        copy.notes += [Note(None, "", f"left as it is: {doubt.value}; {doubt.expected}") for doubt in doubts]
        (folder / "annotations.json").write_text(
            json.dumps(items, ensure_ascii=False), encoding="utf-8", errors="backslashreplace"
        )
        lines = [
            json.dumps({name: getattr(note, name) for name in Note.__slots__}, ensure_ascii=False)
            for note in copy.notes
        ]
        (folder / "repairs.jsonl").write_text(
            "".join(f"{line}\n" for line in lines), encoding="utf-8", errors="backslashreplace"
        )
        report = examine(folder).report
        if not report.is_clean:
            first = next(finding for finding in report.findings if finding.severity == "error")
            raise DataError(f"the copy still has errors, so it was not kept; the first: {first.file}: {first.value}")
    return Repaired(report, tuple(copy.notes), copy.dropped)


def _absent(row: Row) -> list[str]:
    """The texts that a row says to fit nothing."""
    if not isinstance(row.entry.record, dict) or not finetune.is_negative(row.entry):
        return []
    texts = row.entry.record.get("text")
    said = [text for text in texts if isinstance(text, str)] if isinstance(texts, list) else []
    return [clean_phrase(text) for text in said if text.strip(" .")]


def _relative(row: Row, path: Path) -> str:
    """The name of a file below the folder where it was looked for."""
    near = [path.relative_to(folder) for folder in row.folders if path.is_relative_to(folder)]
    return min(near, key=lambda name: len(name.parts)).as_posix()


def _kept_together(examined: Examined) -> tuple[list[str], list[str]]:
    """Group and split of each row, so that nothing that belongs together is in two splits.

    A folder that is in several splits is no group: there, images are split by something else.
    """
    rows, seen, splits = examined.survey.rows, examined.seen, examined.splits
    where: dict[str, set[str]] = {}
    for row, split in zip(rows, splits, strict=True):
        where.setdefault(row.entry.group, set()).add(split)
    groups = [
        row.entry.group if row.is_grouped or len(where[row.entry.group]) == 1 else f"{split}/{row.entry.group}"
        for row, split in zip(rows, splits, strict=True)
    ]
    cluster = _Clusters(len(rows))
    first: dict[tuple[str, str], int] = {}
    for number, (group, one) in enumerate(zip(groups, seen, strict=True)):
        for key in (("group", group), ("image", one.digest)):
            if key[1]:
                cluster.join(first.setdefault(key, number), number)
    votes: dict[int, Counter[str]] = {}
    for number, split in enumerate(splits):
        votes.setdefault(cluster.of(number), Counter())[split] += 1
    chosen = {key: min(counts, key=lambda split: (-counts[split], _TIES.index(split))) for key, counts in votes.items()}
    return groups, [chosen[cluster.of(number)] for number in range(len(rows))]


class _Clusters:
    """Numbers that belong together, directly or through others."""

    def __init__(self, count: int):
        self._parent = list(range(count))

    def of(self, number: int) -> int:
        """The number that stands for all that this one belongs to."""
        while self._parent[number] != number:
            self._parent[number] = number = self._parent[self._parent[number]]
        return number

    def join(self, one: int, other: int) -> None:
        """Say that two belong together."""
        self._parent[self.of(other)] = self.of(one)
