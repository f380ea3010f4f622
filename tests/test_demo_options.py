"""The model that ships, through every way of running it, against its own plain answers, whatever it has learned."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from segue import demo
from segue.geometry.masks import iou
from segue.loading import load
from segue.media import open_media
from segue.options import Options
from segue.types import Finished, FrameMasks, Message, TextDelta

SCENE = 7
PLAIN = Options(max_new_tokens=24)


@pytest.fixture(scope="module")
def plain():
    return load("demo", device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def packed():
    return load("demo", device="cpu", dtype="fp32", quantize="int8")


@pytest.fixture(scope="module")
def both(plain, tmp_path_factory):
    """The demo model with SAM 2 beside it: its own, in the layout in which SAM 2 was published."""
    from segue import weights
    from segue.grounding import sam2

    path = tmp_path_factory.mktemp("sam2") / "sam2.pt"
    table = sam2.key_table("", "", "language_decoder.")
    state = plain.model.grounder.sam2.state_dict()
    names = weights.upstream_shapes({name: tuple(tensor.shape) for name, tensor in state.items()}, table)
    torch.save({"model": weights.to_upstream(state, table, names)}, path)
    return load("demo", device="cpu", dtype="fp32", sam2=path)


@pytest.fixture(scope="module")
def asked():
    """A scene and a short clip, each with a question about one thing in it."""

    scene, clip = demo.challenges(SCENE)
    still, moving = scene.scene.frames[0], clip.scene.frames[:4]
    named = scene.phrases[1].words["en"], clip.phrases[0].words["en"]
    return {"image": (open_media(still), named[0]), "video": (open_media(moving), named[1])}


def question(engine, asked, kind):
    media, words = asked[kind]
    return [Message.user(engine.model.family.prompts[f"segment_{kind}"].replace("{phrase}", words), media)]


def dense(answer):
    return [region.masks.dense(number) for region in answer.regions for number in range(len(region.masks))]


def mean_iou(answer, other):
    """Over all masks of an answer; two empty ones agree."""
    pairs = list(zip(dense(answer), dense(other), strict=True))
    return np.mean([1.0 if not (one.any() or two.any()) else iou(one, two) for one, two in pairs]) if pairs else 1.0


@pytest.mark.parametrize("kind", ["image", "video"])
def test_eight_bits_find_the_same(plain, packed, asked, kind):
    one, other = (engine.answer(question(engine, asked, kind), PLAIN) for engine in (plain, packed))
    assert len(other.regions) == len(one.regions) == 1  # "Sure." and "Sure, it is." are equally likely words
    assert mean_iou(one, other) >= 0.95


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_stream_is_its_answer(plain, asked, kind):
    answer = plain.answer(question(plain, asked, kind), PLAIN)
    events = list(plain.stream_answer(question(plain, asked, kind), PLAIN))
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    frames = [event.masks for event in events if isinstance(event, FrameMasks)]
    assert isinstance(events[-1], Finished) and text.strip() == answer.raw_text
    streamed = [mask for masks in zip(*frames, strict=True) for mask in masks]
    assert all(np.array_equal(mask, other) for mask, other in zip(streamed, dense(answer), strict=True))


def test_a_batch_gives_the_answers_of_one_at_a_time(plain, asked):
    media, _ = asked["image"]
    scene, _ = demo.challenges(SCENE)
    words = [phrase.words["en"] for phrase in scene.phrases]
    prompt = plain.model.family.prompts["segment_image"]
    dialogues = [[Message.user(prompt.replace("{phrase}", phrase), media)] for phrase in words]
    together = plain.answer_all(dialogues, PLAIN)
    for answer, messages in zip(together, dialogues, strict=True):
        alone = plain.answer(messages, PLAIN)
        assert answer.text == alone.text and len(answer.regions) == len(alone.regions)
        assert mean_iou(answer, alone) > 0.99


def test_both_policies_answer_images_alike(plain, both, asked):
    one, other = (engine.answer(question(engine, asked, "image"), PLAIN) for engine in (plain, both))
    assert other.raw_text == one.raw_text and mean_iou(one, other) == 1.0


def test_both_policies_find_the_same_where_every_frame_is_shown(both, asked):
    """Nothing is followed then; the consistent policy hands each mask to SAM 2 and back, which moves a few pixels."""
    shown = replace(PLAIN, frames="uniform:4")
    one, other = (
        both.answer(question(both, asked, "video"), replace(shown, policy=policy))
        for policy in ("upstream", "consistent")
    )
    assert other.raw_text == one.raw_text and other.lineage["request"]["policy"] == "consistent"
    larger = [(first, second) for first, second in zip(dense(one), dense(other), strict=True) if first.sum() > 200]
    assert all(iou(first, second) > 0.85 for first, second in larger)


def test_asking_again_is_no_less_certain_on_the_first_frame_that_is_followed(plain, asked):
    often = plain.answer(question(plain, asked, "video"), replace(PLAIN, frames="0", reprompt=1.0))
    never = plain.answer(question(plain, asked, "video"), replace(PLAIN, frames="0"))
    assert often.text == never.text and len(dense(often)) == len(dense(never))
    for again, once in zip(often.regions, never.regions, strict=True):
        sure, before = (min(region.scores[1], region.presence[1]) for region in (again, once))
        assert sure >= before - 1e-6
