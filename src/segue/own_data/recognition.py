"""What a folder of one's own data is: the form of its annotations, told from what lies there, and what they hold."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from segue.data.annotation_io import checked_format, read_annotations
from segue.errors import DataError
from segue.media.folder import is_hidden
from segue.own_data.formats import coco, cvat, finetune, label_studio, labelme, pictures, supervisely, via, voc, yolo
from segue.own_data.formats.entries import Entry, Remark, Source, split_named

LOOKED_FOR = (
    "annotations.json with images/ (a list of image, mask, text); COCO JSON (images, annotations, categories); "
    "a Label Studio export or a VIA file (*.json); a CVAT export (*.xml); LabelMe's files (*.json, one an image); "
    "Supervisely's ann/ beside img/; YOLO's labels/ beside images/; VOC's SegmentationClass/ beside JPEGImages/; "
    "or masks/ beside images/ or videos/; each here, in annotations/, or in train/, val/ and test/"
)
_FORMS = (finetune, coco, label_studio, via)
_FOLDER_FORMS = (supervisely, voc, yolo, labelme)
_NO_ANNOTATIONS = ("labels.json", "splits.json")
_PACKED = (".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar")
_BESIDE = ("captions", "person", "stuff", "panoptic", "image")
"""How files begin that COCO publishes beside its `instances_*`."""


class NotRecognisedError(DataError):
    """A folder holds no annotations of a known form."""


def sources_of(root: Path, phrase: str | None, *, below: int = 3) -> list[Source]:
    """The annotations of a folder, or of its split folders; `phrase` as in `segue.own_data.folder.load`.

    A folder that holds nothing but one folder, as unpacking leaves it, is that one, to a depth of `below`.

    Raises: NotRecognisedError, if there are none of a known form; DataError, if several could count, or one cannot be
    read.
    """
    parts = [path for path in sorted(root.iterdir()) if path.is_dir() and split_named(path.name)]
    has_own = {path: _recognised(path, phrase) for path in parts}
    if any(has_own.values()):
        if missing := [path.name for path, sources in has_own.items() if not sources]:
            raise DataError(
                f"{root} has annotations in some splits but none in {', '.join(missing)}; put them there, or move that "
                f"folder away. Looked for: {LOOKED_FOR}"
            )
        if len({split_named(path.name) for path in parts}) < len(parts):
            raise DataError(
                f"{root} has several folders for one split among {', '.join(path.name for path in parts)}; put what "
                "belongs together into one folder"
            )
        first, *others = (
            _in_split(_only(_main(sources), path), split_named(path.name)) for path, sources in has_own.items()
        )
        return [replace(first, remarks=(*first.remarks, *_above(root))), *others]
    sources = _main(_recognised(root, phrase))
    by_split = {_split_of(source.path): source for source in sources}
    if len(sources) > 1 and len(by_split) == len(sources) and "" not in by_split:
        return [_in_split(source, name) for name, source in by_split.items()]
    inner = [path for path in root.iterdir() if not is_hidden(path.name)]
    if below and not sources and len(inner) == 1 and inner[0].is_dir():
        with suppress(NotRecognisedError):
            return sources_of(inner[0], phrase, below=below - 1)
    return [_only(sources, root)]


def _recognised(base: Path, phrase: str | None) -> list[Source]:
    """Every annotation file of a known form; where there is none, folders of one, mask pictures among them.

    A file that cannot be read is passed over where another one tells what the data are, and refused alone where each
    image has a file of its own.
    """
    faults: list[tuple[Path, DataError]] = []
    others: list[Remark] = []
    if sources := [*_of_json(base, faults, others), *_of_cvat(base, faults)]:
        passed = [*others, *(Remark("passed_over", path.name, str(fault)) for path, fault in faults)]
        return [replace(sources[0], remarks=(*sources[0].remarks, *passed)), *sources[1:]]
    sources = list(_of_folders(base, phrase))
    told = {remark.place for source in sources for remark in source.remarks}
    for path, fault in faults:
        if str(path.relative_to(base)) not in told:
            raise fault
    return sources


def _of_folders(base: Path, phrase: str | None) -> Iterator[Source]:
    """What is told from folders; mask pictures last, to which other forms may refer."""
    remarks: list[Remark] = []
    form = next((form for form in _FOLDER_FORMS if form.recognises(base)), None)
    if form is not None:
        listed: tuple[Entry, ...] = tuple(form.entries(base, remarks))
        there = base / form.FOLDER
        yield Source(form.NAME, there, listed, form.things, form.objects, (base / form.MEDIA,), tuple(remarks))
    if pictures.recognises(base) and (form is None or (base / "masks").is_dir()):
        remarks = []
        listed, places = tuple(pictures.entries(base, phrase, remarks)), (pictures.images_of(base), base / "videos")
        masks = pictures.masks_of(base)
        yield Source(pictures.NAME, masks, listed, pictures.things, pictures.objects, places, tuple(remarks))


def _annotation_files(base: Path, suffix: str) -> list[Path]:
    found = (path for place in (base, base / "annotations") for path in place.glob("*"))
    return sorted(path for path in found if path.name.lower().endswith(suffix) and not is_hidden(path.name))


def _of_json(base: Path, faults: list[tuple[Path, DataError]], others: list[Remark]) -> Iterator[Source]:
    """What JSON files hold; `faults` get those that cannot be read, `others` those that are of no known form."""
    folders = [base, *(base / name for name in ("images", "videos", "data"))]
    for path in _annotation_files(base, ".json"):
        if path.name in _NO_ANNOTATIONS:
            continue
        try:
            content = read_annotations(path)
        except DataError as fault:
            faults.append((path, fault))
            continue
        form = next((form for form in _FORMS if form.recognises(content)), None)
        if form is None:
            others.append(Remark("passed_over", path.name, f"it is {_other_form(content)}"))
        else:
            remarks: list[Remark] = []
            with checked_format(path.name):
                entries = tuple(form.entries(content, path, remarks))
            split = _split_of(path)
            near = [place for place in _folders(base, base / "images") if split and _split_of(place) == split]
            # a picture of the same name may lie in each split's folder, so its own comes first
            near = [inner for place in near for inner in (place, place / "images")]
            yield Source(
                form.NAME, path, entries, form.things, form.objects, (*near, *folders, path.parent), tuple(remarks)
            )


def _of_cvat(base: Path, faults: list[tuple[Path, DataError]]) -> Iterator[Source]:
    folders = (base, *(base / name for name in ("images", "videos", "data")))
    for path in _annotation_files(base, ".xml"):
        try:
            tree = cvat.read(path)
        except DataError as fault:
            faults.append((path, fault))
            continue
        if tree is not None:
            remarks: list[Remark] = []
            listed = tuple(cvat.entries(tree, path, remarks))
            yield Source(cvat.NAME, path, listed, cvat.things, cvat.objects, (*folders, path.parent), tuple(remarks))


def _above(root: Path) -> Iterator[Remark]:
    """What is said of annotations that lie beside split folders with their own, such as those of all splits."""
    with suppress(DataError):
        for source in (*_of_json(root, [], []), *_of_cvat(root, [])):
            text = "it lies beside folders of splits that have their own annotations, which count"
            yield Remark("passed_over", source.path.name, text)


def _main(sources: list[Source]) -> list[Source]:
    """The sources, without what COCO publishes beside its `instances_*`, of which remarks tell."""
    kept = [source for source in sources if source.path.stem.startswith("instances")]
    beside = [source for source in sources if source.path.stem.startswith(_BESIDE)]
    if not kept or not beside:
        return sources
    told = tuple(
        Remark("passed_over", source.path.name, "it lies beside the instances, which count") for source in beside
    )
    others = [source for source in sources if source not in beside]
    return [replace(others[0], remarks=(*others[0].remarks, *told)), *others[1:]]


def _only(sources: list[Source], base: Path) -> Source:
    if not sources:
        names = sorted(path.name for path in base.iterdir())
        packed = [name for name in names if name.lower().endswith(_PACKED)]
        raise NotRecognisedError(
            f"{base} holds no annotations of a known form. Looked for: {LOOKED_FOR}. There is: "
            f"{', '.join(names[:12]) or 'nothing'}{_other_json(base)}"
            + (f"; {packed[0]} is not looked into: unpack it" if packed else "")
        )
    if len(sources) > 1:
        several = ", ".join(str(source.path.relative_to(base)) for source in sources)
        raise DataError(
            f"{base} holds several annotations ({several}), and nothing tells which one counts; leave only one, or "
            "one for each split, such as train.json and val.json"
        )
    return sources[0]


def _other_json(base: Path) -> str:
    """What the first JSON file holds that is of no known form, as a part of a sentence."""
    for path in _annotation_files(base, ".json"):
        return f"; {path.name} is {_other_form(read_annotations(path))}"
    return ""


def _other_form(content: Any) -> str:
    content = content[0] if isinstance(content, list) and content else content
    keys = ", ".join(list(content)[:8]) if isinstance(content, dict) else str(content)
    return f"JSON of another form (with {keys[:100]})"


def _folders(*places: Path) -> list[Path]:
    return [path for place in places if place.is_dir() for path in sorted(place.iterdir()) if path.is_dir()]


def _split_of(path: Path) -> str:
    """The split that the name of a file or folder speaks of, as in `instances_train2017.json`."""
    words = re.findall(r"[a-zA-Z]+", path.stem)
    return next((split for word in words if (split := split_named(word))), "")


def _in_split(source: Source, split: str) -> Source:
    return replace(source, entries=tuple(replace(entry, split=split) for entry in source.entries))
