"""CVAT's functions as `cvat-cli` loads and checks them, without a server."""

import logging
from dataclasses import dataclass

import pytest
import torch
from PIL import Image

from segue.errors import ConfigError
from segue.options import Options

pytest.importorskip("cvat_sdk")

from cvat_sdk import auto_annotation, models
from cvat_sdk.auto_annotation import driver
from cvat_sdk.masks import decode_mask, encode_mask

from segue.integrations import cvat, cvat_tracker

LABELS = "dog=the brown dog; cat"


@dataclass
class Context:
    """What CVAT says of a frame."""

    conf_threshold: float | None = None
    conv_mask_to_poly: bool = False
    frame_name: str = "a.png"


@pytest.fixture(scope="module")
def detector(official_folder):
    return cvat.create(model=str(official_folder), labels=LABELS, device="cpu")


@pytest.fixture(scope="module")
def image(picture):
    return Image.fromarray(picture(60, 80))


def accepted(detector, shapes, context):
    """The shapes as the driver gives them to a task with labels of these names, which checks every rule it has."""
    of_task = [
        models.Label(id=10 + number, name=name, type="any", attributes=[], sublabels=[])
        for number, name in enumerate(("dog", "cat", "bird"))
    ]
    mapper = driver._AnnotationMapper(
        logging.getLogger(), detector.spec.labels, of_task,
        allow_unmatched_labels=False, conv_mask_to_poly=context.conv_mask_to_poly,
    )  # fmt: skip
    mapper.validate_and_remap(shapes, 3)
    return shapes


def test_masks_are_those_of_the_engine_under_the_labels_of_the_task(detector, image):
    shapes = accepted(detector, detector.detect(Context(), image), Context())
    answer = detector._engine.segment(image, ["the brown dog", "cat"])
    assert [(shape.label_id, shape.frame, shape.type.value) for shape in shapes] == [(10, 3, "mask"), (11, 3, "mask")]
    for shape, region in zip(shapes, answer.regions, strict=True):
        assert (decode_mask(shape.points, image_width=80, image_height=60) == region.masks.dense()).all()


def test_polygons_are_given_where_they_are_asked_for(detector, image):
    context = Context(conv_mask_to_poly=True)
    shapes = accepted(detector, detector.detect(context, image), context)
    assert shapes and {shape.type.value for shape in shapes} == {"polygon"}
    assert all(len(shape.points) >= 6 and min(shape.points) >= 0 and max(shape.points) <= 80 for shape in shapes)


def test_what_is_less_sure_than_the_threshold_is_left_out(detector, image):
    assert detector.detect(Context(conf_threshold=0.0), image)
    assert detector.detect(Context(conf_threshold=1.0), image) == []


@pytest.mark.parametrize("labels", ["", " ", "dog;;cat", "=a dog", "dog;dog=again"])
def test_labels_that_cannot_be_meant_are_refused(labels):
    with pytest.raises(ConfigError, match="expected the labels of the task"):
        cvat.parse_labels(labels)


def test_a_label_asks_for_its_words_or_else_for_its_name():
    assert cvat.parse_labels("dog=the brown dog = mine; cat") == {"dog": "the brown dog = mine", "cat": "cat"}


@pytest.fixture
def sure_engine(engine_i):
    """An engine whose objects are always there; with weights drawn by chance they are not after the first frame."""
    head = engine_i.model.grounder.sam2.mask_decoder.pred_obj_score_head
    hook = head.register_forward_hook(lambda module, given, score: score + 50)
    yield engine_i
    hook.remove()


def test_a_mask_that_was_drawn_is_followed_as_one_that_the_engine_found(sure_engine, clip):
    """Given the mask that the engine begins with, the tracker gives its masks on all frames after."""
    frames, options = clip(4), Options(frames="first:1", keep_logits=True, prefill="It is [SEG].")
    (region,) = sure_engine.segment(frames, ["the ball"], options).regions
    logits = torch.from_numpy(region.masks.logits[:1])[None]
    size = region.masks.size
    begun = torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)[0, 0] > 0
    tracker = cvat_tracker.Tracker(sure_engine.model.grounder)
    prepared = [tracker.preprocess_image(None, Image.fromarray(frame)) for frame in frames]
    shape = auto_annotation.TrackableShape(type="mask", points=encode_mask(begun.numpy()))
    state, other = (tracker.init_tracking_state(None, prepared[0], shape) for _ in range(2))
    found = [tracker.track(None, one, state) for one in prepared[1:]]
    for number, one in enumerate(found, start=1):
        truth = region.masks.dense(number)
        assert (one is None) == (not truth.any())
        assert one is None or (decode_mask(one.points, image_width=size[1], image_height=size[0]) == truth).all()
    assert any(one is not None for one in found)
    assert tracker.track(None, prepared[1], other) == found[0], "a shape's state is its own"
