"""Nodes for ComfyUI (its V3 schema): find things by long phrases, several at once, and ask about a picture.

A folder in `custom_nodes` needs one line, `from segue.integrations.comfyui import comfy_entrypoint`, as in
`examples/comfyui`. Pictures come as `Float[b h w 3]` in [0, 1], masks go as `Float[m h w]`, one for each object, and
boxes as a list for each picture, of x, y, width, height, label and score.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from comfy_api.latest import ComfyExtension, io
from jaxtyping import Float, Shaped
from torch import Tensor

from segue.engine import Engine
from segue.errors import DataError
from segue.geometry.masks import box_of
from segue.integrations.forms import seen
from segue.loading import load
from segue.options import Options
from segue.output.answers import Answer
from segue.types import Region

CATEGORY = "Segue"


class SegueSegment(io.ComfyNode):
    """Masks of what is named in words."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What goes in and comes out."""
        words = io.String.Input("phrases", multiline=True, default="", tooltip="What to find, a thing on each line.")
        return _schema("SegueSegment", "Segue: find what is named", words)

    @classmethod
    def execute(cls, image: Tensor, phrases: str, model: str, threshold: float, least_score: float) -> io.NodeOutput:
        """The objects of all pictures, which are asked about one by one; one empty mask, if there are none.

        Raises: DataError, without a phrase.
        """
        asked = [line.strip() for line in phrases.splitlines() if line.strip()]
        if not asked:
            raise DataError("there is no phrase; write a thing to find on each line")
        options = Options(threshold=threshold)
        answers = [loaded(model).segment(_pixels(one), asked, options) for one in image]
        lines = [
            f"{number}: {region.phrase} ({region.score or 0:.2f})"
            for number, answer in enumerate(answers)
            for region in answer.regions
        ]
        return io.NodeOutput(*_drawn(answers, image, least_score), "\n".join(lines))


class SegueAsk(io.ComfyNode):
    """An answer in words, and masks of what it points at."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What goes in and comes out."""
        return _schema(
            "SegueAsk", "Segue: ask about a picture", io.String.Input("question", multiline=True, default="")
        )

    @classmethod
    def execute(cls, image: Tensor, question: str, model: str, threshold: float, least_score: float) -> io.NodeOutput:
        """The answers about all pictures, a line each, with their objects."""
        answers = [loaded(model).ask(_pixels(one), question, options=Options(threshold=threshold)) for one in image]
        return io.NodeOutput(*_drawn(answers, image, least_score), "\n".join(answer.text for answer in answers))


class SegueExtension(ComfyExtension):
    """What ComfyUI lists."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The nodes."""
        return [SegueSegment, SegueAsk]


async def comfy_entrypoint() -> SegueExtension:
    """What ComfyUI calls."""
    return SegueExtension()


@lru_cache(maxsize=1)
def loaded(model: str) -> Engine:
    """The model of that name; the one used last stays in memory."""
    return load(model)


def _schema(node: str, title: str, words: Any) -> io.Schema:
    return io.Schema(
        node_id=node,
        display_name=title,
        category=CATEGORY,
        inputs=[
            io.Image.Input("image"),
            words,
            io.String.Input("model", default="demo", tooltip="A model folder, or a name on the hub."),
            io.Float.Input("threshold", default=0.5, min=0.01, max=0.99, step=0.01, tooltip="Of the pixels of a mask."),
            io.Float.Input("least_score", default=0.0, min=0.0, max=1.0, step=0.01, tooltip="Of an object."),
        ],
        outputs=[
            io.Mask.Output("masks", display_name="masks"),
            io.BoundingBox.Output("boxes", display_name="boxes"),
            io.String.Output("text", display_name="text"),
        ],
    )


def _pixels(image: Float[Tensor, "h w c"]) -> np.ndarray:
    return (image[..., :3].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def _drawn(
    answers: Sequence[Answer], image: Float[Tensor, "b h w c"], least_score: float
) -> tuple[Float[Tensor, "m h w"], list[list[dict[str, Any]]]]:
    """The masks of all objects with their boxes, and behind these, of each answer, the boxes that are said in words."""
    masks: list[Tensor] = []
    boxes: list[list[dict[str, Any]]] = []
    for answer in answers:
        boxes.append([])
        for _, region, mask in seen(("image", answer), 0):
            if (region.score or 0.0) >= least_score:
                masks.append(torch.from_numpy(mask).float())
                box = box_of(mask)
                assert box is not None, "what is seen has pixels"
                boxes[-1].append(_box(box, region))
        for region in answer.regions:
            # a model without a grounder says places in words
            if region.masks is None and region.box is not None and (region.score or 0.0) >= least_score:
                boxes[-1].append(_box(region.box, region))
    return torch.stack(masks) if masks else torch.zeros(1, *image.shape[1:3]), boxes


def _box(box: Shaped[np.ndarray, " 4"], region: Region) -> dict[str, Any]:
    left, top, right, bottom = np.rint(box).astype(int).tolist()
    about = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    return about | {"label": region.phrase, "score": region.score}
