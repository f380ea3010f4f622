"""How much is computed and kept is a matter of the medium, not of how many objects are in it or how long it is."""

import gc
import threading
import weakref

import pytest
import torch

from segue import answering
from segue.bench.stages import counting
from segue.engine import Engine
from segue.media import open_media
from segue.media.ahead import AHEAD
from segue.options import Options
from segue.types import Finished, FrameMasks

ENGINES = {"upstream": "engine", "consistent": "engine_i"}


@pytest.fixture(autouse=True)
def no_gradients():
    """Shape checks hide from torch which functions are generators, and `no_grad` leaves those alone."""
    with torch.no_grad():
        yield


@pytest.fixture
def asked(request):
    """Has an engine of a policy speak of some objects; the answer, and frames encoded, tiles seen, rows read."""

    def ask(policy, source, objects, **options):
        shared = request.getfixturevalue(ENGINES[policy])
        # an engine of its own: one that has seen the medium before has nothing to compute
        engine = Engine(shared.model, shared.processor, shared.lineage)
        chosen = Options(policy=policy, prefill=" ".join(["[SEG]"] * objects), **options)
        model = engine.model
        parts = (model.grounder.sam2.vision_encoder, model.mllm.vision_tower, model.mllm.language_model.model.norm)
        with counting(parts[0]) as frames, counting(parts[1]) as tiles, counting(parts[2]) as rows:
            answer = engine.ask(open_media(source), "What is there?", options=chosen)
        return answer, sum(frames), len(tiles), len(rows)

    return ask


@pytest.mark.parametrize("objects", [1, 5])
@pytest.mark.parametrize("policy", ENGINES)
def test_an_image_costs_one_pass_of_each_part_for_any_number_of_objects(asked, picture, policy, objects):
    answer, *passes = asked(policy, picture(), objects)
    assert (len(answer.regions), passes) == (objects, [1, 1, 1])


@pytest.mark.parametrize("objects", [1, 5])
@pytest.mark.parametrize("policy", ENGINES)
@pytest.mark.parametrize("frames", ["first:2", "uniform:3", "3,1"])
def test_a_clip_has_each_frame_encoded_once_for_any_number_of_objects(asked, clip, policy, objects, frames):
    answer, *passes = asked(policy, clip(5), objects, frames=frames)
    assert {len(region.masks) for region in answer.regions} == {5}
    assert (len(answer.regions), passes) == (objects, [5, 1, 1])


@pytest.mark.parametrize("policy", ENGINES)
def test_phrases_asked_one_by_one_share_the_frames(request, clip, policy):
    engine = request.getfixturevalue(ENGINES[policy])
    options = Options(policy=policy, prefill="[SEG]", frames="first:2")
    model = engine.model
    with counting(model.grounder.sam2.vision_encoder) as frames, counting(model.mllm.vision_tower) as tiles:
        *_, last = engine.stream_segment(open_media(clip(4)), ["a cat", "a dog", "a hat"], options)
    assert isinstance(last, Finished)
    assert (len(last.answer.regions), sum(frames), len(tiles)) == (3, 4, 1)


def test_a_second_question_about_an_image_encodes_nothing_again(engine, picture):
    media, options = open_media(picture(seed=3)), Options(prefill="[SEG]")
    model = engine.model
    with counting(model.grounder.sam2.vision_encoder) as frames, counting(model.mllm.vision_tower) as tiles:
        for question in ("What is there?", "What else?"):
            engine.ask(media, question, options=options)
    assert (sum(frames), len(tiles)) == (1, 1)


@pytest.fixture
def live_bytes(engine):
    """Bytes of all tensors that Python code holds on to and did not when the test began."""

    def count() -> int:
        tensors = [kept for kept in gc.get_objects() if type(kept) is torch.Tensor]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
        return sum(storage.nbytes() for storage in storages.values())

    gc.collect()
    gc.freeze()
    yield count
    gc.unfreeze()


def test_tensors_held_while_a_video_streams_stop_growing(engine, clip, live_bytes):
    held = {}
    for event in engine.stream_segment(
        open_media(clip(19)), ["a cat"], Options(prefill="[SEG] [SEG]", frames="first:1")
    ):
        if isinstance(event, FrameMasks) and event.index in (3, 16, 18):
            held[event.index] = live_bytes()
    assert 0 < held[3] < held[16] == held[18]


def test_masks_of_a_frame_are_let_go_when_the_next_one_comes(engine, clip):
    seen, alive = [], []
    for event in engine.stream_segment(open_media(clip(9)), ["a cat"], Options(prefill="[SEG]", frames="first:2")):
        if isinstance(event, FrameMasks):
            seen.append(weakref.ref(event.masks))
        del event
        alive.append(sum(reference() is not None for reference in seen))
    assert (len(seen), max(alive)) == (9, 1)


def test_a_video_is_decoded_a_few_frames_ahead_in_a_thread_that_ends_with_the_stream(engine, clip, monkeypatch):
    decoded, threads = [], threading.active_count()
    frames = answering.iter_frames

    def watched(media):
        for shot in frames(media):
            decoded.append((shot[0], threading.current_thread() is threading.main_thread()))
            yield shot

    monkeypatch.setattr(answering, "iter_frames", watched)
    events = engine.stream_segment(open_media(clip(12)), ["a cat"], Options(prefill="[SEG]", frames="first:1"))
    for event in events:
        if isinstance(event, FrameMasks):
            assert event.index < len(decoded) <= event.index + 1 + AHEAD
            if event.index == 5:
                break
    events.close()
    assert not any(is_main for _, is_main in decoded)
    assert threading.active_count() == threads
