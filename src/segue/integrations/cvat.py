"""CVAT's automatic annotation: a detection function for `cvat-cli task auto-annotate`.

    cvat-cli task auto-annotate 7 --function-module segue.integrations.cvat \
        -p model=str:demo -p "labels=str:dog=the brown dog on the left;cat"

Needs the package `cvat-sdk`, which `cvat-cli` brings along.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from cvat_sdk import auto_annotation
from cvat_sdk.masks import encode_mask
from jaxtyping import Bool
from PIL import Image

from segue.engine import Engine
from segue.errors import ConfigError
from segue.geometry.polygons import polygons
from segue.integrations.forms import seen
from segue.loading import load


def create(model: str = "demo", labels: str = "", device: str = "auto") -> Detector:
    """The function that `cvat-cli` calls. `labels` are the task's labels that are looked for, with semicolons between;
    behind a label may stand `=` and what it asks for, which is else its own name.

    Raises: ConfigError, without labels; and as `segue.load` does.
    """
    phrases = parse_labels(labels)
    return Detector(load(model, device=device), phrases)


def parse_labels(text: str) -> dict[str, str]:
    """What each label asks for.

    Raises: ConfigError, for no label, one without a name, or one that is there twice.
    """
    pairs = [(name.strip(), phrase.strip()) for name, _, phrase in (one.partition("=") for one in text.split(";"))]
    phrases = {name: phrase or name for name, phrase in pairs}
    if not text.strip() or "" in phrases or len(phrases) < len(pairs):
        raise ConfigError(
            f"labels is {text!r}; expected the labels of the task, each once, such as: dog=the brown dog;cat"
        )
    return phrases


class Detector:
    """Finds what each label asks for, as masks, or as polygons where CVAT asks for those."""

    def __init__(self, engine: Engine, phrases: Mapping[str, str]):
        self._engine, self._phrases = engine, dict(phrases)
        self.spec = auto_annotation.DetectionFunctionSpec(
            labels=[auto_annotation.label_spec(name, number, type="mask") for number, name in enumerate(self._phrases)]
        )

    def detect(self, context: Any, image: Image.Image) -> list[Any]:
        """The objects on an image. Those that are less sure than `context.conf_threshold` are left out; sure is the
        lesser of the mask's own estimate and the probability that the object is there at all.
        """
        asked = list(dict.fromkeys(self._phrases.values()))
        answer = self._engine.segment(image.convert("RGB"), asked)
        least = context.conf_threshold or 0.0
        found = []
        for _, region, mask in seen(("image", answer), 0):
            sure = min(region.score or 0.0, 1.0 if region.presence is None else float(region.presence.max()))
            for number, phrase in enumerate(self._phrases.values()):
                if phrase == region.phrase and sure >= least:
                    found += _shapes(mask, number, sure, as_polygons=context.conv_mask_to_poly)
        return found


def _shapes(mask: Bool[np.ndarray, "h w"], label: int, score: float, *, as_polygons: bool) -> list[Any]:
    """A mask, or a polygon for each of its parts, whose holes are filled."""
    if not as_polygons:
        return [auto_annotation.mask(label, encode_mask(mask), score=score)]
    return [auto_annotation.polygon(label, one.ravel().tolist(), score=score) for one in polygons(mask)]
