"""Attention to memory: as the library's, in a way of our own; and to memory that is averaged."""

import pytest
import torch
from torch.nn.functional import avg_pool2d

from segue.grounding.following import Following, VideoFrame, follow
from segue.grounding.memory_attention import attend
from segue.grounding.tracking import VideoMemory, attend_to_memory, conditioning, memory_maps

pytestmark = pytest.mark.usefixtures("without_gradients")

CELLS, WIDTH, NARROW, POINTERS = 16 * 16, 32, 8, 8


@pytest.fixture
def draw():
    draws = torch.Generator().manual_seed(4)
    return lambda *shape: torch.randn(*shape, generator=draws)


@pytest.mark.parametrize("num_pointers", [0, POINTERS])
@pytest.mark.parametrize("frames", [1, 3])
def test_a_frame_attends_as_in_the_library(grounder, draw, frames, num_pointers):
    attention = grounder.sam2.memory_attention
    states, memory = draw(frames, CELLS, WIDTH), draw(3, 2 * CELLS + num_pointers, NARROW)
    places = draw(1, memory.shape[1], NARROW)
    expected = attention(
        current_vision_features=states.transpose(0, 1).expand(-1, 3, -1),
        memory=memory.transpose(0, 1),
        memory_posision_embeddings=places.expand_as(memory).transpose(0, 1),
        num_object_pointer_tokens=num_pointers,
    )[0]
    found = attend(attention, states, memory, places, num_pointers)
    assert torch.allclose(found, expected, atol=1e-5) and expected.std() > 0.1


@pytest.mark.parametrize("objects", [1, 3])
def test_what_a_frame_is_to_itself_in_the_first_layer_is_computed_once_for_all_objects(grounder, draw, objects):
    rows, layers = [], grounder.sam2.memory_attention.layers
    hooks = [
        layer.self_attn.q_proj.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
        for layer in layers
    ]
    memory = draw(objects, CELLS, NARROW)
    found = attend(grounder.sam2.memory_attention, draw(1, CELLS, WIDTH), memory, 0 * memory[:1], 0)
    for hook in hooks:
        hook.remove()
    assert len(found) == objects and rows == [1, *[objects] * (len(layers) - 1)]


def test_averages_weigh_as_much_as_the_cells_that_they_stand_for_and_stand_in_their_middle(grounder, draw, monkeypatch):
    """Where squares of cells hold the same, and stand in their middle already, averages are all there is to know."""
    attention = grounder.sam2.memory_attention
    grid = attention.position_ids.T.unflatten(1, (16, 16)).float()
    middles = avg_pool2d(grid, 2).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert ((middles - grid).abs() == 0.5).all()
    monkeypatch.setitem(attention._buffers, "position_ids", middles.flatten(1).T)
    small, pointers, states = draw(2, NARROW, 8, 8), draw(2, POINTERS, NARROW), draw(1, CELLS, WIDTH)
    whole = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    found = {}
    for pool, maps in ((1, whole), (2, small)):
        memory = torch.cat([maps.flatten(2).transpose(1, 2), pointers], dim=1)
        found[pool] = attend(attention, states, memory, 0 * memory[:1], POINTERS, pool)
    assert torch.allclose(found[1], found[2], atol=1e-5)


@pytest.fixture
def followed(engine_i, clip):
    """Mask logits of two objects on six frames, the first of which is shown."""

    def run(how):
        frames = clip(6)
        shots = (VideoFrame(number, 0.0, frame) for number, frame in enumerate(frames))
        prompts = torch.randn(2, 32, generator=torch.Generator().manual_seed(5))
        found = follow(engine_i.model.grounder, prompts, {0: frames[0]}, shots, how)
        return torch.stack([decoded.logits for _, decoded in found])

    return run


@pytest.mark.parametrize("reprompt", [0.0, 0.9])
def test_pooled_memory_changes_the_frames_that_are_followed_alone(followed, reprompt):
    exact, pooled = (
        followed(Following(policy="upstream", pooled=pooled, reprompt=reprompt)) for pooled in (False, True)
    )
    assert torch.equal(exact[0], pooled[0]) and not torch.equal(exact[1], pooled[1])
    assert torch.isfinite(pooled).all()


def test_pooled_memory_is_a_quarter_and_is_the_average_of_the_whole(grounder, clip):
    from segue.grounding.following import decode_prompts, encode

    encoded = encode(grounder, clip(1))
    decoded = decode_prompts(grounder, encoded, torch.ones(2, 32))
    whole, pooled = (memory_maps(grounder, encoded, decoded.logits, pooled=pooled) for pooled in (False, True))
    assert (pooled.shape, pooled.dtype) == ((2, NARROW, 8, 8), torch.bfloat16)
    assert torch.allclose(pooled.float(), avg_pool2d(whole.float(), 2), atol=1e-2 * float(whole.abs().max()))
    memory = VideoMemory((conditioning(grounder, 0, encoded, decoded, pooled=True),), pooled=True)
    assert attend_to_memory(grounder, 1, encoded, memory, slice(0, 8)).shape == (2, WIDTH, 16, 16)


def test_the_lineage_says_which_memory_was_used(engine, clip):
    from segue.media import open_media
    from segue.options import Options

    frames = open_media(clip(3))
    answers = [
        engine.ask(frames, "Please segment it.", options=Options(memory=memory, frames="0", prefill="[SEG]"))
        for memory in ("exact", "pooled")
    ]
    assert [answer.lineage["request"]["memory"] for answer in answers] == ["exact", "pooled"]
