import math

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from segue.grounding.following import Following, TrackBuilder, VideoFrame, decode_prompts, encode, follow, frame_masks
from segue.grounding.sam2 import ABSENT, Decoded
from segue.types import FrameMasks, Region

pytestmark = pytest.mark.usefixtures("without_gradients")


@pytest.fixture(scope="module")
def two(engine_i):
    return engine_i.model.grounder


@pytest.fixture(scope="module")
def prompts():
    return torch.randn(10, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def run(clip):
    """Follows objects through a clip; frame number -> what was found there."""

    def go(grounder, prompts, length, shown, policy="upstream"):
        frames = clip(length)
        shots = (VideoFrame(number, 0.1 * number, frame) for number, frame in enumerate(frames))
        images = {number: frames[number] for number in shown}
        return {
            shot.number: decoded for shot, decoded in follow(grounder, prompts, images, shots, Following(policy=policy))
        }

    return go


@pytest.fixture
def count_frames():
    """Counts the frames that go through a grounder's image encoder."""
    hooks, counts = [], []

    def watch(grounder):
        seen = []
        hooks.append(grounder.sam2.vision_encoder.register_forward_pre_hook(lambda _, a: seen.append(len(a[0]))))
        counts.append(seen)
        return seen

    yield watch
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("policy", ["upstream", "consistent"])
@pytest.mark.parametrize("objects", [1, 5])
def test_every_frame_is_encoded_once_however_many_objects_there_are(two, prompts, run, count_frames, policy, objects):
    seen = count_frames(two)
    found = run(two, prompts[:objects], 6, [0, 2, 4], policy)
    assert sum(seen) == 6
    assert list(found) == [0, 1, 2, 3, 4, 5]
    assert {len(decoded.logits) for decoded in found.values()} == {objects}


def test_frames_that_were_shown_have_the_masks_of_the_prompt_itself(grounder, prompts, run, clip):
    found = run(grounder, prompts[:2], 5, [0, 1, 3])
    frames = clip(5)
    for frame in (0, 1, 3):
        alone = decode_prompts(grounder, encode(grounder, [frames[frame]]), prompts[:2])
        assert torch.allclose(found[frame].logits, alone.logits, atol=1e-5)
    followed = decode_prompts(grounder, encode(grounder, [frames[2]]), prompts[:2])
    assert not torch.allclose(found[2].logits, followed.logits, atol=0.1)


def test_a_video_of_one_frame_is_an_image(grounder, prompts, run, clip):
    found = run(grounder, prompts[:2], 1, [0])
    alone = decode_prompts(grounder, encode(grounder, clip(1)), prompts[:2])
    assert torch.equal(found[0].logits, alone.logits)
    assert torch.equal(found[0].presence, alone.presence)


@pytest.mark.parametrize("policy", ["upstream", "consistent"])
@pytest.mark.parametrize("shown", [[3], [2, 4], [4]])
def test_frames_before_the_first_that_was_shown_are_followed_too(two, prompts, run, shown, policy):
    found = run(two, prompts[:2], 5, shown, policy)
    assert list(found) == [0, 1, 2, 3, 4]
    assert all(torch.isfinite(decoded.logits).all() for decoded in found.values())


def test_what_is_shown_later_decides_what_is_found_before(grounder, prompts, run):
    assert not torch.equal(run(grounder, prompts[:1], 4, [2])[0].logits, run(grounder, prompts[:1], 4, [3])[0].logits)


def test_more_objects_than_fit_at_once_equal_each_on_its_own(grounder, prompts, run, clip):
    encoded = encode(grounder, clip(1))
    together = decode_prompts(grounder, encoded, prompts)
    for number in (0, 8, 9):
        alone = decode_prompts(grounder, encoded, prompts[number : number + 1])
        assert torch.allclose(together.logits[number], alone.logits[0], atol=1e-4)
        assert torch.allclose(together.pointer[number], alone.pointer[0], atol=1e-5)
    assert [len(decoded.logits) for decoded in run(grounder, prompts, 2, [0]).values()] == [10, 10]


def test_frames_are_read_only_as_they_are_asked_for(grounder, prompts, clip):
    read = []

    def shots():
        for number, frame in enumerate(clip(6)):
            read.append(number)
            yield VideoFrame(number, 0.0, frame)

    found = follow(grounder, prompts[:1], {0: clip(1)[0]}, shots(), Following(policy="upstream"))
    assert read == []
    for expected in range(1, 4):
        next(found)
        assert read == list(range(expected))
    found.close()


def test_a_clip_cut_short_is_followed_as_the_whole_clip_was(grounder, prompts, run):
    whole, part = run(grounder, prompts[:2], 7, [0, 1]), run(grounder, prompts[:2], 4, [0, 1])
    assert all(torch.equal(whole[frame].logits, part[frame].logits) for frame in part)


def test_the_policies_track_with_different_decoders(two, prompts, run):
    upstream, consistent = (run(two, prompts[:2], 3, [0], policy) for policy in ("upstream", "consistent"))
    assert not torch.allclose(upstream[2].logits, consistent[2].logits, atol=0.1)


def test_the_original_decoder_alone_tracks_under_the_consistent_policy(two, prompts, run, force_presence):
    force_presence(two.sam2.mask_decoder, -8.0)
    consistent, upstream = (run(two, prompts[:2], 3, [0], policy) for policy in ("consistent", "upstream"))
    assert [consistent[frame].logits.unique().tolist() for frame in (1, 2)] == [[ABSENT], [ABSENT]]
    assert upstream[2].logits.std() > 0.1


def test_under_the_consistent_policy_found_masks_come_back_as_mask_prompts(two, prompts, run, clip):
    given = []
    original = two.decode_with_masks
    two.decode_with_masks = lambda encoded, masks: given.append(masks) or original(encoded, masks)
    try:
        found = run(two, prompts[:2], 3, [0, 2], "consistent")
    finally:
        del two.decode_with_masks
    assert len(given) == 2
    for frame, masks in zip((0, 2), given, strict=True):
        encoded = encode(two, [clip(3)[frame]])
        again = original(encoded, masks)
        language = decode_prompts(two, encoded, prompts[:2])
        assert torch.equal(found[frame].logits, again.logits)
        assert torch.equal(found[frame].pointer, again.pointer)
        # the estimates are those of the decoder that found the object
        assert torch.equal(found[frame].iou, language.iou)
        assert torch.equal(found[frame].presence, language.presence)


def test_parity_first_masks_direct_resize_to_the_frame_in_one_step(two, prompts, run, clip):
    given = []
    original = two.decode_with_masks
    two.decode_with_masks = lambda encoded, masks: given.append(masks) or original(encoded, masks)
    try:
        run(two, prompts, 1, [0], "consistent")
    finally:
        del two.decode_with_masks
    logits = decode_prompts(two, encode(two, clip(1)), prompts).logits[:, None]
    direct = interpolate(logits, (60, 80), mode="bilinear", align_corners=False)[:, 0] > 0
    square = interpolate(logits, (256, 256), mode="bilinear", align_corners=False)
    by_square = interpolate(square, (60, 80), mode="bilinear", align_corners=False)[:, 0] > 0
    assert torch.equal(torch.cat(given), direct)
    assert not torch.equal(direct, by_square)


def decoded(logits, iou=0.5, presence=0.0):
    count = len(logits)
    return Decoded(logits, torch.full((count,), iou), torch.full((count,), presence), torch.zeros(count, 32))


@pytest.mark.parametrize("size", [(60, 80), (1, 1), (300, 17)])
@pytest.mark.parametrize("threshold", [0.5, 0.2, 0.9])
def test_parity_two_step_resize_and_threshold_make_a_frames_masks(picture, size, threshold):
    logits = 3 * torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(2))
    masks = frame_masks(
        VideoFrame(4, 0.5, picture(*size) if min(size) > 1 else np.zeros((1, 1, 3), np.uint8)),
        decoded(logits),
        threshold=threshold,
    )
    square = interpolate(logits[:, None], (256, 256), mode="bilinear", align_corners=False)
    whole = interpolate(square, size, mode="bilinear", align_corners=False)[:, 0]
    assert np.array_equal(masks.masks, (whole > math.log(threshold / (1 - threshold))).numpy())
    assert (masks.index, masks.seconds, masks.masks.dtype) == (4, 0.5, bool)


@pytest.mark.parametrize(
    ("iou", "presence", "score", "is_there"),
    [(0.75, 0.0, 0.75, 0.5), (1.2, 30.0, 1.0, 1.0), (-0.1, -30.0, 0.0, 0.0)],
)
def test_scores_and_presence_are_between_0_and_1(picture, iou, presence, score, is_there):
    masks = frame_masks(VideoFrame(0, 0.0, picture()), decoded(torch.zeros(1, 8, 8), iou, presence), threshold=0.5)
    assert masks.scores.tolist() == pytest.approx([score])
    assert masks.presence.tolist() == pytest.approx([is_there], abs=1e-6)


def test_a_frame_without_objects_has_no_masks(picture):
    masks = frame_masks(VideoFrame(0, 0.0, picture(20, 30)), decoded(torch.zeros(0, 8, 8)), threshold=0.5)
    assert masks.masks.shape == (0, 20, 30)


@pytest.fixture
def seen(picture):
    """A frame's masks of one object: a square from (top, left), empty without one."""

    def make(number, top=None, left=0, score=0.5):
        masks = np.zeros((1, 20, 30), bool)
        if top is not None:
            masks[0, top : top + 4, left : left + 5] = True
        return FrameMasks(number, 0.0, picture(20, 30), masks, np.array([score]), np.array([0.25]))

    return make


def test_a_track_takes_its_box_from_the_first_frame_with_a_mask_and_its_score_from_all(seen):
    track = TrackBuilder()
    for frame in (seen(3, score=0.2), seen(5, top=6, left=7, score=0.4), seen(6, top=1, score=0.9)):
        track.add(frame, 0, None)
    region = track.region(Region(phrase="a dog", span=(0, 5)), (20, 30))
    assert (region.phrase, region.span, region.box.tolist()) == ("a dog", (0, 5), [7, 6, 12, 10])
    assert region.score == pytest.approx(0.5)
    assert region.scores.tolist() == pytest.approx([0.2, 0.4, 0.9])
    assert region.presence.tolist() == [0.25] * 3
    assert region.masks.index.tolist() == [3, 5, 6]
    assert [int(region.masks.dense(place).sum()) for place in range(3)] == [0, 20, 20]
    assert region.masks.logits is None


def test_a_track_of_an_object_that_is_nowhere_has_no_box(seen):
    track = TrackBuilder()
    track.add(seen(0), 0, None)
    assert track.region(Region(), (20, 30)).box is None


def test_a_track_keeps_logits_where_they_are_given(seen):
    track, logits = TrackBuilder(), torch.randn(1, 8, 8)
    for number in range(3):
        track.add(seen(number), 0, logits)
    kept = track.region(Region(), (20, 30)).masks.logits
    assert (kept.shape, kept.dtype) == ((3, 8, 8), np.float32)
    assert np.array_equal(kept[2], logits[0].numpy())
