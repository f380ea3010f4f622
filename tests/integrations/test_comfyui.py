"""The nodes in a ComfyUI that has what they use of its V3 schema; the real one is no package that can be installed."""

import asyncio
import inspect
import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from segue import loading
from segue.errors import DataError
from segue.output.answers import Answer
from segue.types import Region


class Kind:
    """A type of value: makes a socket of it."""

    def __init__(self, name):
        self.name = name

    def Input(self, id, **options):  # noqa: N802  ComfyUI's own name
        return SimpleNamespace(kind=self.name, id=id, **options)

    Output = Input


@dataclass
class Schema:
    node_id: str
    display_name: str
    category: str
    inputs: list = field(default_factory=list)
    outputs: list = field(default_factory=list)


class NodeOutput(tuple):
    def __new__(cls, *values):
        return super().__new__(cls, values)


@pytest.fixture(scope="module")
def engine(official_folder):
    """Answers every question with one object."""
    return loading.load(official_folder, device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def comfyui(engine):
    """The module, loaded where `comfy_api.latest` is, with the tiny engine as every model."""
    kinds = {name: Kind(name) for name in ("Image", "Mask", "String", "Float", "BoundingBox")}
    latest = ModuleType("comfy_api.latest")
    latest.io = SimpleNamespace(ComfyNode=object, Schema=Schema, NodeOutput=NodeOutput, **kinds)
    latest.ComfyExtension = object
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "comfy_api", ModuleType("comfy_api"))
        patch.setitem(sys.modules, "comfy_api.latest", latest)
        patch.delitem(sys.modules, "segue.integrations.comfyui", raising=False)
        from segue.integrations import comfyui

        patch.setattr(comfyui, "loaded", lambda model: engine)
        yield comfyui
        sys.modules.pop("segue.integrations.comfyui", None)


@pytest.fixture(scope="module")
def images(picture):
    return torch.from_numpy(np.stack([picture(48, 64)] * 2)).float() / 255


def test_the_nodes_take_what_their_schema_says_and_give_as_much(comfyui):
    nodes = asyncio.run(asyncio.run(comfyui.comfy_entrypoint()).get_node_list())
    assert len({node.define_schema().node_id for node in nodes}) == len(nodes) == 2
    for node in nodes:
        schema = node.define_schema()
        assert [one.id for one in schema.inputs] == list(inspect.signature(node.execute).parameters)
        assert [one.kind for one in schema.outputs] == ["Mask", "BoundingBox", "String"]


def test_every_object_of_every_picture_has_a_mask_and_a_box(comfyui, engine, images, picture):
    masks, boxes, text = comfyui.SegueSegment.execute(images, "the ball\n\nthe cup\n", "demo", 0.5, 0.0)
    answer = engine.segment(picture(48, 64), ["the ball", "the cup"])
    assert len(text.splitlines()) == 2 * len(answer.regions) and len(boxes) == 2 and boxes[0] == boxes[1]
    assert masks.dtype == torch.float32 and boxes[0] and masks.shape == (2 * len(boxes[0]), 48, 64)
    for mask, box in zip(masks, boxes[0], strict=False):
        rows, columns = np.nonzero(mask.numpy())
        assert (box["x"], box["y"]) == (columns.min(), rows.min()) and box["width"] == np.ptp(columns) + 1
        assert box["label"] in ("the ball", "the cup") and 0 <= box["score"] <= 1


def test_what_scores_less_is_left_out_and_one_empty_mask_stays(comfyui, images):
    masks, boxes, _ = comfyui.SegueSegment.execute(images[:1], "the ball", "demo", 0.5, 1.0)
    assert masks.shape == (1, 48, 64) and not masks.any() and boxes == [[]]


def test_a_place_that_is_said_in_words_is_a_box_without_a_mask(comfyui, images):
    answer = Answer("The sign.", (Region(phrase="The sign", box=np.array([0.0, 1.6, 32.4, 48.0])),), "The sign.")
    masks, (boxes,) = comfyui._drawn([answer], images[:1], 0.0)
    assert boxes == [{"x": 0, "y": 2, "width": 32, "height": 46, "label": "The sign", "score": None}]
    assert masks.shape == (1, 48, 64) and not masks.any()


def test_no_phrase_is_told(comfyui, images):
    with pytest.raises(DataError, match="a thing to find on each line"):
        comfyui.SegueSegment.execute(images, " \n", "demo", 0.5, 0.0)
