"""Questions about marked regions of an image, in the form of Osprey-724K.

Below the data root:

    osprey-724k/Osprey-724K/osprey_*.json     one file for each variant, as `VARIANTS` lists
    osprey-724k/coco/                         train2014/, val2014/, train2017/ and val2017/, where images are looked for

A file is a list of {"file_name", "height", "width", "annotation": [{"segmentation": polygons or RLE}, ...]} with either
"conversations" in LLaVA's form or "description", a list of one text per region, which may begin with its name
("<region1>: ..."). Regions are called region1, region2 ... in the order of "annotation"; angle brackets are taken out.

For evaluation there is RefCOCOg's validation split as GLaMM prepared it, a region an image, in
`region_caption/refcocog/finetune_refcocog_val_with_mask.json` (COCO's form; an annotation has the id of its image),
what people wrote in `mdetr_annotations/finetune_refcocog_val_captions.json` ({"annotations": [{"image_id",
"caption"}]}), and images in `glamm_data/images/coco2014/train2014/`.

Source: Yuan et al. 2024 (Osprey); Sa2VA's `Sa2VA06VP`. It leaves out rows with a region that covers fewer than four of
the 16 x 16 cells that its model sees; which cells are seen is for a model to say, so no row is left out here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from segue.data import shapes
from segue.data.annotation_io import (
    by_id,
    field,
    find_file,
    lookup,
    open_sized,
    read_annotations,
    read_list,
    require,
    require_train,
    select,
    stated_size,
)
from segue.data.base import Rows, error_context
from segue.data.dialogue import dialogue, recorded_turns
from segue.data.prompts import sample_wording
from segue.errors import DataError
from segue.types import Message, Region, Sample

VARIANTS = {
    "conversation": "osprey_conversation.json",
    "description": "osprey_detail_description.json",
    "short": "osprey_short_form.json",
    "part": "osprey_part_level.json",
    "positive_negative": "osprey_lvis_positive_negative.json",
}
IMAGES = ("train2014", "val2014", "train2017", "val2017")

_NAMED = re.compile(r"\s*<?region\s*(\d+)>?\s*:\s*", re.IGNORECASE)


EVALUATED = (
    "region_caption/refcocog/finetune_refcocog_val_with_mask.json",
    "mdetr_annotations/finetune_refcocog_val_captions.json",
    "glamm_data/images/coco2014/train2014",
)


def load(root: Path, split: str, *, variant: str, prompt: str | None = None) -> Rows:
    """A row per image with its regions; the split is train.

    Descriptions become one turn for each region, with the wording of the question left to chance. The questions of the
    short form end with a request for a word or a short phrase.

    With a `prompt`, which needs the variant refcocog and its split val, a row is one region; `target` has its
    references, which people wrote.

    Raises: ConfigError, DataError.
    """
    if prompt is not None:
        select({"refcocog/val": None}, f"{variant}/{split}", "variant and split of region_caption with a prompt")
        return _described_regions(root, prompt)
    require_train(split, "region_caption")
    annotations = f"osprey-724k/Osprey-724K/{select(VARIANTS, variant, 'variant of region_caption')}"
    require(root, [annotations, "osprey-724k/coco"], "Osprey-724K and COCO's images there")
    folders = [root / "osprey-724k/coco" / name for name in IMAGES]
    rows = list(enumerate(read_list(root / annotations)))
    name = f"region_{variant}/{split}"
    return Rows(name, rows, partial(_sample, source=name, folders=folders, is_short=variant == "short"))


def _sample(
    row: tuple[int, Any], rng: np.random.Generator, *, source: str, folders: list[Path], is_short: bool
) -> Sample:
    number, record = row
    image = field(record, "file_name", str, "the row")
    media = open_sized(find_file(folders, image), stated_size(record))
    regions = []
    for place, annotation in enumerate(field(record, "annotation", list, "the row"), start=1):
        with error_context(f"region{place}"):
            mask = shapes.segmentation_mask(field(annotation, "segmentation", list | dict, "it"), media.size)
        regions.append(shapes.region("", shapes.track([mask], (0,), media.size)))
    turns = _described(record, regions, rng) if "conversations" not in record else _told(record, is_short, rng)
    messages = dialogue(turns, media, tuple(regions))
    return Sample(f"{number}-{image}", "region", messages, (), (0,), source, group=image)


def _told(record: Mapping[str, Any], is_short: bool, rng: np.random.Generator) -> list[tuple[str, str]]:
    turns = recorded_turns(record["conversations"], _plain)
    return [
        (f"{question} {sample_wording('short_requests', rng)}", answer) if is_short else (question, answer)
        for question, answer in turns
    ]


def _described(record: Mapping[str, Any], regions: list[Region], rng: np.random.Generator) -> list[tuple[str, str]]:
    texts = field(record, "description" if "description" in record else "descriptions", list, "the row")
    turns = []
    for place, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise DataError(f"description {place} is {text!r}; expected text")
        named = _NAMED.match(text)
        number = int(named[1]) if named else place
        if not 1 <= number <= len(regions):
            raise DataError(f"region{number} is described, but {len(regions)} regions are marked")
        answer = _plain(text[named.end() :] if named else text).strip()
        turns.append((sample_wording("region_questions", rng, region=f"region{number}"), answer))
    return turns


def _plain(text: str) -> str:
    return text.replace("<image>", "").replace("<", "").replace(">", "")


def _described_regions(root: Path, prompt: str) -> Rows:
    regions, captions, images = EVALUATED
    require(root, EVALUATED, "the regions of RefCOCOg's validation split, their captions, and COCO's images of 2014")
    coco = read_annotations(root / regions)
    annotations = by_id(field(coco, "annotations", list, regions), "annotation")
    written: dict[int | str, list[str]] = {}
    for number, one in enumerate(field(read_annotations(root / captions), "annotations", list, captions)):
        where = f"caption {number}"
        written.setdefault(field(one, "image_id", int | str, where), []).append(field(one, "caption", str, where))
    # PARITY(region_by_image_id): the region of an image is the annotation that has the image's id
    rows = [
        (image, lookup(annotations, name, "annotation"), lookup(written, name, "caption of image"))
        for name, image in by_id(field(coco, "images", list, regions), "image").items()
    ]
    make = partial(_region, source="region_refcocog/val", images=root / images, prompt=prompt)
    return Rows("region_refcocog/val", rows, make)


def _region(
    row: tuple[Mapping[str, Any], Mapping[str, Any], list[str]],
    rng: np.random.Generator,
    *,
    source: str,
    images: Path,
    prompt: str,
) -> Sample:
    image, annotation, captions = row
    name = field(image, "file_name", str, "an image")
    # names may begin with the split: train2014/COCO_train2014_...
    media = open_sized(find_file([images, images.parent], name), stated_size(image))
    with error_context("region1"):
        mask = shapes.segmentation_mask(field(annotation, "segmentation", list | dict, "it"), media.size)
    region = shapes.region("", shapes.track([mask], (0,), media.size))
    messages = (Message.user(prompt, media, (region,)), Message("assistant", (captions[0],)))
    return Sample(str(image["id"]), "region", messages, (), (0,), source, name, {"references": captions})
