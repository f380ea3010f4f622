"""Asking for an object again where following it has become uncertain."""

import numpy as np
import pytest
import torch

from segue.grounding import following, reprompting
from segue.grounding.following import Following, VideoFrame, follow
from segue.grounding.sam2 import Decoded
from segue.grounding.tracking import VideoMemory


@pytest.fixture
def prompts():
    return torch.randn(2, 32, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def shots(clip):
    """Six shots of a clip."""
    frames = clip(6)
    return lambda: (VideoFrame(number, number / 10, frame) for number, frame in enumerate(frames))


def followed(engine, prompts, shots, clip, **options):
    shown = {0: clip(6)[0]}
    return [decoded for _, decoded in follow(engine.model.grounder, prompts, shown, shots(), Following(**options))]


def test_confidence_is_the_lesser_of_presence_and_estimated_iou():
    decoded = Decoded(
        torch.zeros(3, 2, 2), torch.tensor([0.9, 0.2, 1.4]), torch.tensor([0.0, 9.0, 9.0]), torch.zeros(3, 4)
    )
    assert reprompting.confidence(decoded).tolist() == pytest.approx([0.5, 0.2, 1.0], abs=1e-3)


@pytest.mark.parametrize("policy", ["upstream", "consistent"])
def test_without_doubt_nothing_is_asked_again(engine_i, prompts, shots, clip, policy):
    never = followed(engine_i, prompts, shots, clip, policy=policy)
    with_sure = followed(engine_i, prompts, shots, clip, policy=policy, reprompt=1e-9)
    assert all(torch.equal(one.logits, other.logits) for one, other in zip(never, with_sure, strict=True))


class Lost:
    """A tracker that loses every object from its first tracked frame on, around the real one."""

    def __init__(self, step):
        self.step = step

    def __call__(self, grounder, frame, encoded, memory, *, consistent):
        decoded, memory = self.step(grounder, frame, encoded, memory, consistent=consistent)
        gone = Decoded(decoded.logits * 0 - 10, decoded.iou * 0, decoded.presence * 0 - 10, decoded.pointer)
        return gone, memory


@pytest.mark.parametrize("policy", ["upstream", "consistent"])
def test_an_object_that_was_lost_is_found_again_by_its_prompt(engine_i, prompts, shots, clip, monkeypatch, policy):
    monkeypatch.setattr(following, "step", Lost(following.step))
    lost = followed(engine_i, prompts, shots, clip, policy=policy)
    found = followed(engine_i, prompts, shots, clip, policy=policy, reprompt=0.5)
    shown = {number: frame for number, frame in enumerate(clip(6))}
    asked = [
        decoded for _, decoded in follow(engine_i.model.grounder, prompts, shown, shots(), Following(policy=policy))
    ]
    for before, after, right in zip(lost[1:], found[1:], asked[1:], strict=True):
        assert not (before.logits > 0).any()
        assert torch.allclose(after.logits, right.logits) and torch.allclose(after.iou, right.iou)


def test_frames_to_come_follow_the_object_that_was_found_again(engine_i, prompts, clip):
    """The memory of a frame that was asked for again is the one that the new mask makes."""
    grounder = engine_i.model.grounder
    encoded = following.encode(grounder, [clip(2)[0]])
    first = following.decode_prompts(grounder, encoded, prompts)
    memory = VideoMemory((following.conditioning(grounder, 0, encoded, first),))
    now = following.encode(grounder, [clip(2)[1]])
    decoded, memory = following.step(grounder, 1, now, memory, consistent=False)
    weak = Decoded(decoded.logits, torch.tensor([0.0, 1.0]), torch.tensor([-9.0, 9.0]), decoded.pointer)
    ask = lambda wanted: following.decode_prompts(grounder, now, wanted)  # noqa: E731
    after, corrected = reprompting.reprompt(grounder, now, (weak, memory), prompts, ask, below=0.5)
    right = ask(prompts[:1])
    assert torch.allclose(after.logits[0], right.logits[0]) and torch.equal(after.logits[1], decoded.logits[1])
    latest, old = corrected.recent[-1], memory.recent[-1]
    assert torch.allclose(latest.maps[:1].float(), grounder.encode_memory(now, right.logits).float(), atol=1e-2)
    assert torch.equal(latest.maps[1], old.maps[1]) and torch.equal(latest.pointers[1], old.pointers[1])
    assert len(corrected.recent) == len(memory.recent) and corrected.conditioning == memory.conditioning


def test_a_new_answer_that_is_less_certain_still_is_not_taken(engine_i, prompts, clip):
    grounder = engine_i.model.grounder
    encoded = following.encode(grounder, [clip(2)[0]])
    decoded = following.decode_prompts(grounder, encoded, prompts)
    memory = VideoMemory((following.conditioning(grounder, 0, encoded, decoded),))
    worse = lambda wanted: Decoded(decoded.logits + 1, decoded.iou - 1, decoded.presence - 9, decoded.pointer)  # noqa: E731
    after, kept = reprompting.reprompt(grounder, encoded, (decoded, memory), prompts, worse, below=1.0)
    assert after is decoded and kept is memory


def test_memory_does_not_grow_with_the_frames_that_were_asked_again(engine_i, prompts, clip, monkeypatch):
    monkeypatch.setattr(following, "step", Lost(following.step))
    sizes = []
    real = reprompting.reprompt

    def watched(*arguments, **options):
        decoded, memory = real(*arguments, **options)
        sizes.append((len(memory.conditioning), sum(past.maps is not None for past in memory.recent)))
        return decoded, memory

    monkeypatch.setattr(reprompting, "reprompt", watched)
    frames = clip(24)
    shots = (VideoFrame(number, 0.0, frame) for number, frame in enumerate(frames))
    list(
        follow(engine_i.model.grounder, prompts[:1], {0: frames[0]}, shots, Following(policy="upstream", reprompt=0.9))
    )
    assert sizes[-1] == (1, 6) and len(sizes) == 23


def test_the_engine_asks_again_only_if_told(engine_i, clip, monkeypatch):
    from segue.options import Options

    asked = []
    monkeypatch.setattr(reprompting, "reprompt", lambda *arguments, **options: asked.append(options) or arguments[2])
    for reprompt in (0.0, 0.4):
        options = Options(prefill="[SEG]", frames="0", reprompt=reprompt)
        answer = engine_i.ask(np.stack(list(clip(3))), "Where?", options=options)
        assert answer.lineage["request"]["reprompt"] == reprompt
    assert asked == [{"below": 0.4}, {"below": 0.4}]
