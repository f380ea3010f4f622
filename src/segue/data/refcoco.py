"""Referring segmentation on COCO's images: RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO.

Below the data root:

    ref_seg/refcoco/    instances.json, refs(unc).p      also refcoco+/ and grefcoco/ (grefs(unc).json)
    ref_seg/refcocog/   instances.json, refs(umd).p
    ref_seg/refcoco/coco2014/train2014/ or glamm_data/images/coco2014/train2014/    the images

`instances.json` is COCO's. The refs are a list of {"ref_id", "ann_id", "image_id", "split", "sentences": [{"raw",
"sent"}]}; in gRefCOCO `ann_id` is a list, [-1] where the sentence fits nothing in the image. They are read from the
official pickled files, without unpickling them, or from JSON of the same content beside them (`refs(unc).json`).

Source: Yu et al. 2016, Mao et al. 2016 (refer), Liu et al. 2023 (GRES); Sa2VA's `Sa2VA01RefSeg`. Sa2VA adds the
polygons of an object up, so that overlaps count twice; here they are united. It keeps only the last of several refs
to one object; here their sentences are put together. The name of gRefCOCO's folder is our choice.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    select,
    stated_size,
)
from segue.data.base import Rows, error_context, spread_draw
from segue.data.dialogue import MaskQuestion, mask_question, query, segmentation
from segue.data.prompts import clean_phrase
from segue.errors import ConfigError, DataError
from segue.types import MaskTrack, Media, Sample

VARIANTS = {"refcoco": "refs(unc)", "refcoco+": "refs(unc)", "refcocog": "refs(umd)", "grefcoco": "grefs(unc)"}
SHARED_IMAGES = "glamm_data/images/coco2014/train2014"
LAYOUT = (
    f"instances.json and the refs of the variant there, and COCO's images of 2014 beside them or in {SHARED_IMAGES}"
)


@dataclass(frozen=True, slots=True)
class Referent:
    """What a group of sentences means: the union of some objects' segmentations, or of none."""

    sentences: tuple[Mapping[str, Any], ...]
    segmentations: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class ReferredImage:
    """One row: an image and all that is referred to in it."""

    name: str
    size: tuple[int, int] | None
    referents: tuple[Referent, ...]


@dataclass(frozen=True, slots=True)
class SentenceQuery:
    """One row of an evaluation: a sentence about an image, with its number among those."""

    picture: ReferredImage
    referent: Referent
    sentence: str
    number: int


def load(
    root: Path, split: str, *, variant: str = "refcoco", referents: int | None = 5, prompt: str | None = None
) -> Rows:
    """A row per image; its sample asks for some of the image's referents, one turn each.

    `referents` is how many turns a sample has, drawn by chance: no referent comes twice before each has come once. The
    sentence is drawn anew each time. None asks for every sentence of every referent, in the file's order, as an
    evaluation does. `split` is train, val, test, testA or testB; test takes testA and testB together.

    With a `prompt`, every sentence is a row of its own, as it is written, in the place of the prompt's `{phrase}`.

    Raises: ConfigError, DataError.
    """
    refs = select(VARIANTS, variant, "variant of refcoco")
    home = f"ref_seg/{variant}"
    refs = first_of(root, [f"{home}/{refs}{suffix}" for suffix in (".p", ".json")])
    images = first_of(root, [f"{home}/coco2014/train2014", SHARED_IMAGES])
    require(root, [f"{home}/instances.json", refs, images], LAYOUT)
    with checked_format(home):
        rows = _pictures(root / home / "instances.json", root / refs, split)
    name = f"{variant}/{split}"
    if prompt is not None:
        ask_for = partial(_query, source=name, images=root / images, prompt=prompt)
        return Rows(name, [one for row in rows for one in _queries(row)], ask_for, _medium)
    make = partial(_sample, source=name, images=root / images, referents=referents)
    return Rows(name, rows, make)


def _queries(row: ReferredImage) -> list[SentenceQuery]:
    said = [(one, _text(sentence, "sent")) for one in row.referents for sentence in one.sentences]
    return [SentenceQuery(row, referent, text, number) for number, (referent, text) in enumerate(said)]


def _medium(row: SentenceQuery) -> str:
    return row.picture.name


def _query(row: SentenceQuery, rng: np.random.Generator, *, source: str, images: Path, prompt: str) -> Sample:
    picture = row.picture
    media = open_sized(find_file([images], picture.name), picture.size)
    messages, regions = query(media, row.sentence, prompt, _masks(media, row.referent, row.sentence))
    return Sample(f"{picture.name}-{row.number}", "segment", messages, regions, (0,), source, picture.name)


def _pictures(instances: Path, refs: Path, split: str) -> list[ReferredImage]:
    coco = read_annotations(instances)
    annotations = by_id(field(coco, "annotations", list, instances.name), "annotation")
    images = by_id(field(coco, "images", list, instances.name), "image")
    by_image: dict[int, dict[tuple[int, ...], list[Mapping[str, Any]]]] = {}
    splits = set()
    for number, ref in enumerate(read_annotations(refs)):
        where = f"{refs.name}, ref {number}"
        splits.add(field(ref, "split", str, where))
        if _is_in(ref["split"], split):
            objects = by_image.setdefault(field(ref, "image_id", int, where), {})
            if not (sentences := field(ref, "sentences", list, where)):
                raise DataError(f"{where} has no sentence; give it one or take it out")
            objects.setdefault(_objects(ref, where), []).extend(sentences)
    if not by_image:
        raise ConfigError(f"{refs} has no split {split!r}; it has {', '.join(sorted(splits))}")
    return [_picture(lookup(images, image, "image"), objects, annotations) for image, objects in by_image.items()]


def _picture(
    image: Mapping[str, Any],
    objects: Mapping[tuple[int, ...], list[Mapping[str, Any]]],
    annotations: Mapping[int | str, Mapping[str, Any]],
) -> ReferredImage:
    referents = []
    for ids, sentences in objects.items():
        parts = [lookup(annotations, number, "annotation") for number in ids]
        # a crowd is drawn around many things at once, and no sentence means those
        parts = [part for part in parts if not part.get("iscrowd")] or parts
        referents.append(
            Referent(
                tuple(sentences), tuple(field(part, "segmentation", list | dict, "an annotation") for part in parts)
            )
        )
    return ReferredImage(field(image, "file_name", str, f"image {image['id']}"), stated_size(image), tuple(referents))


def _is_in(official: str, split: str) -> bool:
    """Whether a ref's split belongs to the split asked for; RefClef's testAB belongs to testA and to testB."""
    if split.startswith("test") and official.startswith("test"):
        return split == "test" or split[4:] in official[4:]
    return official == split


def _objects(ref: Mapping[str, Any], where: str) -> tuple[int, ...]:
    ids = field(ref, "ann_id", int | list, where)
    return tuple(number for number in (ids if isinstance(ids, list) else [ids]) if number != -1)


def _sample(
    row: ReferredImage, rng: np.random.Generator, *, source: str, images: Path, referents: int | None
) -> Sample:
    media = open_sized(find_file([images], row.name), row.size)
    asked: list[MaskQuestion] = []
    if referents is None:
        asked = [
            _asked(media, one, _text(sentence, "sent"), rng) for one in row.referents for sentence in one.sentences
        ]
    else:
        for number in spread_draw(rng, len(row.referents), referents):
            one = row.referents[number]
            sentence = one.sentences[int(rng.integers(len(one.sentences)))]
            asked.append(_asked(media, one, _text(sentence, "raw", "sent"), rng))
    messages, regions = segmentation(media, asked, rng)
    return Sample(row.name, "segment", messages, regions, (0,), source, group=row.name)


def _text(sentence: Mapping[str, Any], *names: str) -> str:
    """The first of these wordings that a sentence has."""
    with checked_format("a sentence"):
        name = next((name for name in names if name in sentence), names[-1])
    text: str = field(sentence, name, str, "a sentence")
    return text


def _asked(media: Media, referent: Referent, sentence: str, rng: np.random.Generator) -> MaskQuestion:
    phrase = clean_phrase(sentence)
    return mask_question(phrase, _masks(media, referent, phrase), rng)


def _masks(media: Media, referent: Referent, phrase: str) -> MaskTrack | None:
    """The union of what a sentence means, or None if it means nothing in the image."""
    if not referent.segmentations:
        return None
    with error_context(f"the object called {phrase!r}"):
        parts = [shapes.segmentation_mask(part, media.size) for part in referent.segmentations]
    return shapes.track([shapes.united(parts, media.size)], (0,), media.size)
