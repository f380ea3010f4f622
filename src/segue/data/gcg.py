"""Grounded captions: an image described in words, with a mask behind every phrase that names a thing.

Below the data root, as `PARTS` lists: an annotation file in `glamm_data/annotations/` and images in
`glamm_data/images/`. The four parts have three forms:

    grandf, openpsg   [{"file_name", "height", "width", "caption",
                        "groundings": {phrase: {"token_positives": [start, end], "rle_masks": [RLE, ...]} or null}}]
    refcocog          [{image id: {"img_file_name", "caption", "refs": [{"sentence", "segmentation": polygons}]}}]
    flickr            COCO's, whose images have a "caption" and whose annotations have "tokens_positive":
                      [[start, end], ...], "sam_mask": RLE, "bbox", "area" and perhaps "ignore"

The splits val and test of GranD-f have a form of their own, COCO's, in `gcg_val_test/` (below the root or in
`glamm_data/annotations/`): `{split}_gcg_coco_mask_gt.json` with the images and an annotation for each mask, and
`{split}_gcg_coco_caption_gt.json` with {"image_id", "caption", "labels": [phrase, ...]} for each image; images lie in
`glamm_data/images/grandf/val_test/`.

Positions are characters of the caption, the end exclusive. A sample's answer is the caption with each such phrase
written as `<p> phrase </p> [SEG]`.

Source: Rasheed et al. 2024 (GLaMM, GranD-f); Sa2VA's `Sa2VA05GCG`. Its overlapping phrases garble the text; here the
longer one stays. Its rule for Flickr is kept: captions of three words or more, images of at least 32 pixels, no
annotation that is ignored, without area, thinner than a pixel, or wholly outside the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from segue.data import shapes
from segue.data.annotation_io import (
    by_id,
    checked_format,
    field,
    find_file,
    first_of,
    lookup,
    open_sized,
    read_annotations,
    require,
    require_train,
    select,
    stated_size,
)
from segue.data.base import Rows, error_context
from segue.data.dialogue import dialogue
from segue.data.prompts import sample_wording
from segue.errors import DataError
from segue.geometry.notation import parse_grounded
from segue.types import Message, Sample

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class GroundedPhrase:
    """A stretch [start, stop) of a caption, and the segmentations whose union it names."""

    start: int
    stop: int
    segmentations: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class GroundedCaption:
    """One row: an image, the size it was annotated at, its caption, and what the caption names."""

    image: str
    size: Size | None
    text: str
    things: tuple[GroundedPhrase, ...]


def load(root: Path, split: str, *, variant: str, prompt: str | None = None) -> Rows:
    """A row per caption that names at least one thing with a mask.

    `variant` is one of the four parts; the split is train. Only the wording of the question is left to chance. With a
    `prompt`, which needs grandf and val or test, a row is an image that is to be described; `target` then holds
    references, what people wrote, with the labels in it, and masks as COCO RLEs.

    Raises: ConfigError, DataError.
    """
    if prompt is not None:
        select({"grandf": None}, variant, "variant of gcg with a prompt")
        return _described(root, split, prompt)
    read, annotations, images = select(PARTS, variant, "variant of gcg")
    require_train(split, "gcg")
    annotations, images = f"glamm_data/annotations/{annotations}", f"glamm_data/images/{images}"
    require(root, [annotations, images], "the annotations and images of GranD-f there")
    with error_context(annotations), checked_format("it"):
        captions = [_in_order(caption) for caption in read(read_annotations(root / annotations))]
    rows = [row for row in enumerate(captions) if row[1].things]
    name = f"gcg_{variant}/{split}"
    return Rows(name, rows, partial(_sample, source=name, images=root / images))


def _grandf(records: Any) -> Iterator[GroundedCaption]:
    for number, record in enumerate(records):
        where = f"caption {number}"
        text = field(record, "caption", str, where).strip('" ')
        things = []
        for phrase, grounding in field(record, "groundings", dict, where).items():
            if not grounding:
                continue
            start, stop = map(int, field(grounding, "token_positives", list, f"{where}, {phrase!r}"))
            if text[start:stop] != phrase and phrase in text:
                # positions may count in the caption before the quotation marks around it were taken off
                start = text.index(phrase)
                stop = start + len(phrase)
            things.append(
                GroundedPhrase(start, stop, tuple(field(grounding, "rle_masks", list, f"{where}, {phrase!r}")))
            )
        yield GroundedCaption(field(record, "file_name", str, where), stated_size(record), text, tuple(things))


def _refcocog(records: Any) -> Iterator[GroundedCaption]:
    for number, record in enumerate(record for group in records for record in group.values()):
        where = f"caption {number}"
        text = field(record, "caption", str, where).strip('" ').lower()
        things = []
        for ref in field(record, "refs", list, where):
            phrase = field(ref, "sentence", str, where).strip().lower()
            start = text.find(phrase)
            if phrase and start >= 0:
                things.append(
                    GroundedPhrase(start, start + len(phrase), (field(ref, "segmentation", list | dict, where),))
                )
        yield GroundedCaption(field(record, "img_file_name", str, where), None, text, tuple(things))


def _flickr(coco: Any) -> Iterator[GroundedCaption]:
    things: dict[Any, list[GroundedPhrase]] = {}
    images = by_id(field(coco, "images", list, "the file"), "image")
    for number, annotation in enumerate(field(coco, "annotations", list, "the file")):
        where = f"annotation {number}"
        image = lookup(images, field(annotation, "image_id", int | str, where), "image")
        if _is_usable(annotation, stated_size(image) or (0, 0), where) and annotation.get("tokens_positive"):
            start, stop = map(int, annotation["tokens_positive"][0])
            mask = field(annotation, "sam_mask", dict, where)
            things.setdefault(image["id"], []).append(GroundedPhrase(start, stop, (mask,)))
    for key, image in images.items():
        text = field(image, "caption", str, f"image {key}").strip('" ')
        size = stated_size(image) or (0, 0)
        if len(text.split()) >= 3 and min(size) >= 32:
            name = field(image, "file_name", str, f"image {key}")
            yield GroundedCaption(name, size, text, tuple(things.get(key, ())))


def _is_usable(annotation: Mapping[str, Any], size: Size, where: str) -> bool:
    left, top, width, height = field(annotation, "bbox", list, where)
    is_inside = left < size[1] and top < size[0] and left + width > 0 and top + height > 0
    area = field(annotation, "area", int | float, where)
    return not annotation.get("ignore") and area > 0 and min(width, height) >= 1 and is_inside


PARTS: dict[str, tuple[Callable[[Any], Iterator[GroundedCaption]], str, str]] = {
    "refcocog": (_refcocog, "RefCOCOg_GCG_train.json", "coco2014/train2014"),
    "grandf": (_grandf, "GranDf_HA_GCG_train.json", "grandf/train"),
    "flickr": (_flickr, "flickr_mergedGT_GCG_train.json", "flickr30k/Flickr30K"),
    "openpsg": (_grandf, "OpenPsgGCG_train.json", "coco2017"),
}


def _in_order(caption: GroundedCaption) -> GroundedCaption:
    """The caption with its things in reading order; of two that overlap the longer stays."""
    kept: list[GroundedPhrase] = []
    for thing in sorted(caption.things, key=lambda thing: thing.start - thing.stop):
        is_clear = all(thing.stop <= other.start or other.stop <= thing.start for other in kept)
        if is_clear and thing.segmentations and caption.text[max(thing.start, 0) : thing.stop].strip():
            kept.append(thing)
    return GroundedCaption(
        caption.image, caption.size, caption.text, tuple(sorted(kept, key=lambda thing: thing.start))
    )


def _sample(row: tuple[int, GroundedCaption], rng: np.random.Generator, *, source: str, images: Path) -> Sample:
    number, caption = row
    media = open_sized(find_file([images], caption.image), caption.size)
    pieces, tracks, done = [], [], 0
    for thing in caption.things:
        phrase = caption.text[thing.start : thing.stop]
        if thing.stop > len(caption.text):
            raise DataError(f"a phrase ends at {thing.stop}, behind the caption's {len(caption.text)} characters")
        pieces += [caption.text[done : thing.start], f"<p> {phrase.strip()} </p> [SEG]"]
        done = thing.stop
        with error_context(f"the thing called {phrase!r}"):
            parts = [shapes.segmentation_mask(part, media.size) for part in thing.segmentations]
        tracks.append(shapes.track([shapes.united(parts, media.size)], (0,), media.size))
    answer = "".join([*pieces, caption.text[done:]])
    named = zip(parse_grounded(answer)[1], tracks, strict=True)
    regions = tuple(shapes.region(region.phrase, masks, region.span) for region, masks in named)
    messages = dialogue([(sample_wording("caption_questions", rng), answer)], media)
    return Sample(f"{number}-{caption.image}", "caption", messages, regions, (0,), source, group=caption.image)


def _described(root: Path, split: str, prompt: str) -> Rows:
    select(dict.fromkeys(("val", "test")), split, "split of gcg with a prompt")
    home = first_of(root, ["gcg_val_test", "glamm_data/annotations/gcg_val_test"])
    masks, captions = (f"{home}/{split}_gcg_coco_{what}_gt.json" for what in ("mask", "caption"))
    images = "glamm_data/images/grandf/val_test"
    require(root, [masks, captions, images], "the truth of GranD-f's val and test splits, and their images")
    coco = read_annotations(root / masks)
    records = by_id(field(coco, "images", list, masks), "image")
    truth: dict[int | str, dict[str, list[Any]]] = {
        name: {"references": [], "labels": [], "masks": []} for name in records
    }
    for number, one in enumerate(field(coco, "annotations", list, masks)):
        if not one.get("iscrowd"):
            image = lookup(truth, field(one, "image_id", int | str, f"annotation {number}"), "image")
            image["masks"].append(field(one, "segmentation", dict | list, f"annotation {number}"))
    for number, one in enumerate(field(read_annotations(root / captions), "annotations", list, captions)):
        image = lookup(truth, field(one, "image_id", int | str, f"caption {number}"), "image")
        image["references"].append(field(one, "caption", str, f"caption {number}"))
        image["labels"] += field(one, "labels", list, f"caption {number}")
    rows = [(records[name], told) for name, told in truth.items() if told["references"]]
    make = partial(_to_describe, source=f"gcg_grandf/{split}", images=root / images, prompt=prompt)
    return Rows(f"gcg_grandf/{split}", rows, make)


def _to_describe(
    row: tuple[Mapping[str, Any], Mapping[str, list[Any]]],
    rng: np.random.Generator,
    *,
    source: str,
    images: Path,
    prompt: str,
) -> Sample:
    record, told = row
    name = str(record["id"])
    names = [str(record["file_name"])] if "file_name" in record else [f"{name}.jpg", f"{name}.png"]
    media = open_sized(find_file([images], *names), stated_size(record))
    with error_context(f"a mask of image {name}"):
        masks = [
            {"size": list(media.size), "counts": shapes.segmentation_mask(one, media.size)} for one in told["masks"]
        ]
    messages = (Message.user(prompt, media), Message("assistant", (told["references"][0],)))
    target = {"references": told["references"], "labels": told["labels"], "masks": masks}
    return Sample(name, "caption", messages, (), (0,), source, name, target)
