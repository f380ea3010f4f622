import pickle
from dataclasses import fields

import numpy as np
import pytest
import torch

from segue import media
from segue.errors import DataError
from segue.geometry.masks import track
from segue.media import open_media
from segue.prepare import IGNORED
from segue.train.examples import RowMaker, Truth, collate
from segue.types import Message, Region, Sample

SIDE = 256


@pytest.fixture
def make(engine):
    return lambda **options: RowMaker(processor=engine.processor, side=SIDE, max_tiles=1, **options)


@pytest.fixture
def dialogue(picture):
    """Turns about a still of 60 x 80 pixels, each of which points at a square of its own."""

    def build(turns, answer="It is [SEG]."):
        masks = np.zeros((turns, 1, 60, 80), bool)
        for number in range(turns):
            masks[number, 0, 10:30, 20 * number : 20 * number + 10] = True
        regions = tuple(
            Region(f"thing {n}", box=np.array([20.0 * n, 10, 20 * n + 10, 30]), masks=track(masks[n], np.zeros(1, int)))
            for n in range(turns)
        )
        first = Message.user("Where is thing 0?", open_media(picture(60, 80)))
        asked = [first, *(Message.user(f"And thing {n}?") for n in range(1, turns))]
        messages = tuple(turn for one in asked for turn in (one, Message("assistant", (answer,))))
        return Sample(id="d", task="segment", messages=messages, regions=regions, frames=(0,))

    return build


def test_a_row_holds_masks_in_the_order_of_their_segs_with_phrases_and_centres(make, dialogue, engine):
    row = make()(dialogue(3))
    assert int((row.example.labels == engine.processor.seg_id).sum()) == len(row.truth.masks) == 3
    assert row.truth.phrases == ("thing 0", "thing 1", "thing 2")
    wanted = torch.tensor([[[5 / 80, 1 / 3]], [[25 / 80, 1 / 3]], [[45 / 80, 1 / 3]]])
    torch.testing.assert_close(row.truth.centres, wanted)
    lefts = [int(mask[0].any(0).nonzero()[0]) for mask in row.truth.masks]
    assert lefts == [0, 20 * SIDE // 80, 40 * SIDE // 80]
    assert row.truth.frames.shape == (1, 3, SIDE, SIDE)


def test_turns_are_dropped_from_the_end_together_with_their_masks(make, dialogue):
    lengths = [len(make()(dialogue(turns)).example.ids) for turns in (1, 2, 3)]
    for kept in (2, 1):
        row = make(max_tokens=lengths[kept] - 1)(dialogue(3))
        assert (len(row.example.ids), len(row.truth.masks), row.truth.phrases[-1]) == (
            lengths[kept - 1],
            kept,
            f"thing {kept - 1}",
        )


def test_a_first_turn_that_is_too_long_is_a_bad_sample(make, dialogue):
    with pytest.raises(DataError, match="d has more than 20 tokens before its first answer ends; allow more tokens"):
        make(max_tokens=20)(dialogue(2))


def test_a_missing_seg_is_never_learned_as_an_answer_without_a_mask(make, dialogue):
    """Where only turns that point at nothing would be left of a sample with regions, it is refused."""
    sample = dialogue(2)
    silent = Message("assistant", ("I do not know.",))
    messages = (sample.messages[0], silent, *sample.messages[2:])
    cut = Sample(id="cut", task="segment", messages=messages, regions=sample.regions[1:], frames=(0,))
    whole = len(make()(cut).example.ids)
    with pytest.raises(DataError, match=f"cut has more than {whole - 1} tokens before it points at anything"):
        make(max_tokens=whole - 1)(cut)


def test_a_sample_that_points_at_nothing_has_no_truth(make, dialogue):
    sample = dialogue(1, answer="Nothing is there.")
    row = make()(Sample(id="n", task="chat", messages=sample.messages, frames=(0,)))
    assert row.truth is None and bool((row.example.labels != IGNORED).any())


def clip_sample(pixels, frames):
    masks = np.zeros((len(frames), *pixels.shape[1:3]), bool)
    masks[:, 10:30, 20:40] = True
    region = Region("it", box=np.array([20.0, 10, 40, 30]), masks=track(masks, np.array(frames)))
    messages = (Message.user("Where?", open_media(pixels)), Message("assistant", ("It is [SEG].",)))
    return Sample(id="v", task="segment", messages=messages, regions=(region,), frames=frames)


@pytest.mark.parametrize(
    ("plan", "asked"), [(None, (0, 1, 2, 3)), ("first:2", (0, 1)), ("uniform:2", None), ("first:9", (0, 1, 2, 3))]
)
def test_a_plan_says_which_frames_the_language_model_is_shown_and_the_rest_is_followed(make, clip, engine, plan, asked):
    row = make(frames=plan)(clip_sample(clip(8), (1, 3, 4, 6)))
    truth = row.truth
    assert truth.numbers == (1, 3, 4, 6) and truth.masks.shape[:2] == (1, 4)
    assert asked is None or truth.prompted == asked
    shown = [truth.numbers[place] for place in truth.prompted]
    assert list(row.example.media[-1].plan) == shown and len(row.example.media[-1].vision.pixels) == len(shown)


@pytest.fixture
def decoded(monkeypatch):
    """The numbers of all frames that are decoded, in order."""
    numbers, read = [], media._decoded

    def counted(*given, **named):
        for number, seconds, pixels in read(*given, **named):
            numbers.append(number)
            yield number, seconds, pixels

    monkeypatch.setattr(media, "_decoded", counted)
    return numbers


@pytest.mark.parametrize("plan", [None, "first:2", "uniform:3"])
def test_a_medium_is_decoded_once_for_the_language_model_and_the_grounder(make, dialogue, clip, decoded, plan):
    row = make(frames=plan)(clip_sample(clip(8), (1, 3, 4, 6)))
    assert [number for number in decoded if number in (1, 3, 4, 6)] == [1, 3, 4, 6]
    assert row.truth.numbers == (1, 3, 4, 6) and len(set(decoded)) == len(decoded)
    decoded.clear()
    make(frames=plan, max_tokens=len(make()(dialogue(2)).example.ids) - 1)(dialogue(2))
    assert decoded == [0, 0]


def test_frames_that_nothing_is_marked_on_are_decoded_only_if_they_are_shown(make, clip, decoded):
    messages = (Message.user("What is it?", open_media(clip(8))), Message("assistant", ("A square.",)))
    make(frames="first:2")(Sample(id="q", task="chat", messages=messages, frames=(1, 3, 4, 6)))
    assert [number for number in decoded if number in (4, 6)] == []


def test_targets_are_soft_so_that_thin_things_keep_their_place(make, picture):
    """A line of one pixel in 1024 becomes a quarter of a pixel of the square; the nearest pixel would miss it."""
    mask = np.zeros((1, 1024, 1024), bool)
    mask[0, :, 513] = True
    region = Region("line", box=np.array([513.0, 0, 514, 1024]), masks=track(mask, np.zeros(1, int)))
    messages = (Message.user("Where?", open_media(picture(1024, 1024))), Message("assistant", ("[SEG].",)))
    row = make()(Sample(id="t", task="segment", messages=messages, regions=(region,), frames=(0,)))
    column = row.truth.masks[0, 0, 0]
    assert column.nonzero().flatten().tolist() == [128] and int(column[128]) == 64
    assert not mask[0, ::4, ::4].any()


def test_rows_become_a_batch_that_knows_who_points(make, dialogue, engine):
    quiet = Sample(id="n", task="chat", messages=dialogue(1, answer="No.").messages, frames=(0,))
    batch = collate([make()(dialogue(2)), make()(quiet)], engine.processor)
    assert [truth is not None for truth in batch.truths] == [True, False]
    assert batch.tokens == int((batch.batch.labels != IGNORED).sum()) > 0
    assert batch.to(torch.device("cpu")).truths[0].phrases == ("thing 0", "thing 1")


def test_a_batch_comes_through_another_process_whole_with_views_of_few_tensors(make, dialogue, engine):
    words = Sample("w", "chat", (Message.user("Who?"), Message("assistant", ("Me.",))))
    rows = [make()(dialogue(3)), make()(words), make()(dialogue(1))]
    batch = collate(rows, engine.processor)
    again = pickle.loads(pickle.dumps(batch))
    assert torch.equal(again.batch.input_ids, batch.batch.input_ids)
    assert [truth is None for truth in again.truths] == [False, True, False]
    for one, other in zip(batch.truths, again.truths, strict=True):
        for field in fields(Truth) if one is not None else ():
            value, same = getattr(one, field.name), getattr(other, field.name)
            assert torch.equal(value, same) if isinstance(value, torch.Tensor) else value == same
    first, last = again.truths[0], again.truths[2]
    assert first.masks.untyped_storage().data_ptr() == last.masks.untyped_storage().data_ptr()
    assert pickle.loads(pickle.dumps(collate([rows[1]], engine.processor))).truths == (None,)
