"""Images to be described, with what people wrote: Nocaps and Flickr30k.

Below the data root:

    data/nocaps/nocaps_val.json, or the official nocaps_val_4500_captions.json with the images in data/nocaps/val/
    data/flickr30k/flickr30k_karpathy_test.json

A file is {"images": [{"id", "image": path below the root, or "file_name": name in the folder}], "annotations":
[{"image_id", "caption"}]}.

Source: Agrawal et al. 2019, Young et al. 2014 with Karpathy's split, in the converted form of Qwen-VL's evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from segue.data.annotation_io import by_id, field, find_file, first_of, open_sized, read_annotations, require, select
from segue.data.base import Rows
from segue.data.questions import make_sample
from segue.errors import DataError
from segue.types import Sample

PROMPT = "Describe the image in English:"

_FILES = {
    "nocaps/val": ("data/nocaps/nocaps_val.json", "data/nocaps/nocaps_val_4500_captions.json"),
    "flickr30k/test": ("data/flickr30k/flickr30k_karpathy_test.json",),
}
_FOLDERS = ("", "val", "images", "flickr30k-images")


def load(root: Path, split: str, *, variant: str, prompt: str = PROMPT) -> Rows:
    """A row per image; the image stands before the prompt, with nothing in between.

    `target` holds image_id and references, what people wrote.

    Raises: ConfigError, DataError.
    """
    name = f"{variant}/{split}"
    file = first_of(root, select(_FILES, name, "variant and split of captions"))
    require(root, [file], "the images' names and captions there")
    content = read_annotations(root / file)
    images = by_id(field(content, "images", list, file), f"image of {file}")
    written: dict[int | str, list[str]] = {name: [] for name in images}
    for number, annotation in enumerate(field(content, "annotations", list, file)):
        where = f"annotation {number}"
        image = field(annotation, "image_id", int | str, where)
        if image not in written:
            raise DataError(f"{where} of {file} describes image {image!r}, which the file does not list")
        written[image].append(field(annotation, "caption", str, where))
    home = (root / file).parent
    folders = [root, *(home / folder for folder in _FOLDERS)]
    make = partial(_sample, captions=written, folders=folders, prompt=prompt, source=name)
    return Rows(name, list(images.values()), make)


def _sample(
    record: Mapping[str, Any],
    rng: np.random.Generator,
    *,
    captions: Mapping[int | str, list[str]],
    folders: list[Path],
    prompt: str,
    source: str,
) -> Sample:
    name = record["id"]
    image = field(record, "image" if "image" in record else "file_name", str, "the row")
    if not captions[name]:
        raise DataError(f"image {name!r} has no caption; nothing can be compared with it")
    target = {"image_id": name, "references": captions[name]}
    parts = (open_sized(find_file(folders, image)), prompt)
    return make_sample(
        str(name), parts, target, answer=captions[name][0], task="caption", source=source, group=image, frames=(0,)
    )
