from dataclasses import replace

import pytest
import torch
from torch.nn.functional import interpolate

from segue.grounding.sam2 import Decoded, frame_pixels
from segue.grounding.tracking import Memory, VideoMemory, attend_to_memory, conditioning, step

pytestmark = pytest.mark.usefixtures("without_gradients")

LENGTH = 24


@pytest.fixture(scope="module")
def encoded(grounder, clip):
    """24 encoded frames."""
    with torch.no_grad():
        whole = grounder.encode(torch.stack([frame_pixels(image, 256) for image in clip(LENGTH)]))
    return [whole.frame(number) for number in range(LENGTH)]


@pytest.fixture
def prompts():
    return torch.randn(10, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def follow(grounder, encoded):
    """Mask logits of all objects on every frame of a clip whose first frames are conditioning frames."""

    def run(prompts, length, seen, *, consistent=False):
        found = [grounder.prompted(encoded[frame], prompts) for frame in range(seen)]
        memory = VideoMemory(tuple(conditioning(grounder, t, encoded[t], decoded) for t, decoded in enumerate(found)))
        logits = [decoded.logits for decoded in found]
        for frame in range(seen, length):
            decoded, memory = step(grounder, frame, encoded[frame], memory, consistent=consistent)
            logits.append(decoded.logits)
        return torch.stack(logits)

    return run


def as_upstream(grounder, encoded, prompt, length, seen):
    """Mask logits of one object, remembered as the original code does: everything for ever, by frame number."""
    model, maps, places, pointers, logits = grounder.sam2, {}, {}, {}, []
    time = model.memory_temporal_positional_encoding[:, 0]  # 7 rows
    for t in range(length):
        top = encoded[t].top
        if t < seen:
            decoded = grounder.prompted(encoded[t], prompt)
        else:
            read = [(c, 6) for c in range(seen)] + [(t - r, r - 1) for r in range(6, 0, -1) if t - r >= seen]
            keys = [maps[frame] for frame, _ in read]
            where = [places[frame] + time[row] for frame, row in read]
            behind = [frame for frame in range(t - 1, max(t - 16, seen - 1), -1)]
            tokens = [pointers[frame].view(-1, 1, 8) for frame in [*range(seen), *behind]]
            attended = model.memory_attention(
                current_vision_features=top.flatten(2).permute(2, 0, 1),
                current_vision_position_embeddings=encoded[t].position.flatten(2).permute(2, 0, 1),
                memory=torch.cat([*keys, *tokens]),
                memory_posision_embeddings=torch.cat([*where, torch.zeros(4 * len(tokens), 1, 8)]),
                num_object_pointer_tokens=4 * len(tokens),
            )
            decoded = grounder.tracked(encoded[t], attended[0].transpose(1, 2).view(1, 32, 16, 16), consistent=False)
        whole = interpolate(decoded.logits[:, None], (256, 256), mode="bilinear", align_corners=False)
        map_, place = model.memory_encoder(top, 20 * whole.sigmoid() - 10)
        maps[t] = map_.to(torch.bfloat16).float().flatten(2).permute(2, 0, 1)
        places[t], pointers[t] = place.flatten(2).permute(2, 0, 1), decoded.pointer
        logits.append(decoded.logits)
    return torch.stack(logits)


@pytest.mark.parametrize(("length", "seen"), [(1, 1), (3, 3), (5, 5), (6, 5), (24, 5), (20, 1)])
@pytest.mark.parametrize("presence", [5.0, -8.0])
def test_a_clip_is_followed_as_with_a_memory_that_forgets_nothing(
    grounder, encoded, prompts, follow, force_presence, length, seen, presence
):
    force_presence(grounder.sam2.mask_decoder, presence)
    expected = as_upstream(grounder, encoded, prompts[:1], length, seen)
    found = follow(prompts[:1], length, seen)
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()))
    assert expected.std() > 0.1


def test_ten_objects_followed_together_equal_each_followed_alone(prompts, follow):
    together = follow(prompts, 4, 1)
    for number in (0, 7, 9):
        alone = follow(prompts[number : number + 1], 4, 1)
        # rounding memory to bfloat16 can turn the last bit of a sum into the last bit of a bfloat16
        assert (together[:, number] - alone[:, 0]).abs().max() < 2e-3 * alone.abs().max()
        assert (together[:, number] > 0).eq(alone[:, 0] > 0).float().mean() > 0.999


@pytest.fixture
def bank(grounder):
    """Memories of frames that never were, for one object: numbers -> random maps and pointers."""

    def remember(frames, seed=0):
        draws = torch.Generator().manual_seed(seed)
        return tuple(
            Memory(
                frame,
                torch.randn(1, 8, 16, 16, generator=draws).to(torch.bfloat16),
                torch.randn(1, 32, generator=draws),
            )
            for frame in frames
        )

    return remember


@pytest.fixture
def reads(grounder, encoded, bank):
    """Frames of a memory whose map, or whose pointer, changes what is found on frame `now`."""

    def find(memory, now, field):
        def features(memory):
            return attend_to_memory(grounder, now, encoded[0], memory, slice(0, 8))

        before, changed = features(memory), []
        for group in ("conditioning", "recent"):
            entries = getattr(memory, group)
            for place, entry in enumerate(entries):
                other = replace(entry, **{field: getattr(bank([entry.frame], seed=99)[0], field)})
                disturbed = replace(memory, **{group: (*entries[:place], other, *entries[place + 1 :])})
                if not torch.equal(features(disturbed), before):
                    changed.append(entry.frame)
        return changed

    return find


def test_a_frame_reads_all_conditioning_maps_and_the_last_six(bank, reads):
    memory = VideoMemory(bank(range(5)), bank(range(5, 30)))
    assert reads(memory, 30, "maps") == [0, 1, 2, 3, 4, 24, 25, 26, 27, 28, 29]


def test_a_frame_reads_all_conditioning_pointers_and_the_last_fifteen(bank, reads):
    memory = VideoMemory(bank(range(5)), bank(range(5, 30)))
    assert reads(memory, 30, "pointers") == [0, 1, 2, 3, 4, *range(15, 30)]


def test_frames_between_conditioning_frames_read_both_sides(bank, reads):
    memory = VideoMemory(bank([0, 10, 20]), bank([1, 2, 3, 11, 12]))
    assert reads(memory, 13, "maps") == [0, 10, 20, 11, 12]


def test_parity_pointers_from_past_conditioning_frames_alone_are_read(bank, reads):
    memory = VideoMemory(bank([2, 8]), bank([3]))
    assert reads(memory, 4, "pointers") == [2, 3]
    assert reads(memory, 4, "maps") == [2, 8, 3]


def test_parity_pointers_from_past_frames_may_be_none_before_the_first_conditioning_frame(bank, reads):
    memory = VideoMemory(bank([6, 8]))
    assert reads(memory, 0, "pointers") == []
    assert reads(memory, 0, "maps") == [6, 8]


@pytest.mark.parametrize(
    ("conditioning_frames", "recent_frames", "rows"),
    [([0], [], [6]), ([0, 3, 200], [], [6]), ([0], [29], [0, 6]), ([0], [24, 26, 29], [0, 3, 5, 6])],
)
def test_parity_conditioning_time_row_is_the_last_whatever_the_age(
    grounder, encoded, bank, conditioning_frames, recent_frames, rows
):
    table = grounder.sam2.memory_temporal_positional_encoding
    memory = VideoMemory(bank(conditioning_frames), bank(recent_frames))
    features = attend_to_memory(grounder, 30, encoded[0], memory, slice(0, 8))
    used = []
    for row in range(7):
        before = table[row].clone()
        table[row] += 1
        if not torch.equal(attend_to_memory(grounder, 30, encoded[0], memory, slice(0, 8)), features):
            used.append(row)
        table[row] = before
    assert used == rows


def test_memory_does_not_grow_over_a_hundred_frames(bank):
    memory, sizes = VideoMemory(bank([0])), []
    for frame in range(1, 101):
        memory = memory.after(bank([frame])[0], keep_maps=6)
        maps = [entry.frame for entry in memory.recent if entry.maps is not None]
        sizes.append((len(memory.recent), len(maps)))
    assert max(sizes) == sizes[-1] == (15, 6)
    assert [entry.frame for entry in memory.recent] == list(range(86, 101))
    assert maps == list(range(95, 101))
    assert len(memory.conditioning) == 1


def test_what_is_let_go_is_what_the_next_frame_would_not_read(bank, reads):
    memory = full = VideoMemory(bank([0]))
    for frame in range(1, 25):
        entry = bank([frame])[0]
        memory, full = memory.after(entry, keep_maps=6), replace(full, recent=(*full.recent, entry))
    kept = [entry.frame for entry in memory.recent if entry.maps is not None]
    assert [0, *kept] == reads(full, 25, "maps")
    assert [0, *(entry.frame for entry in memory.recent)] == reads(full, 25, "pointers")


def test_memory_goes_in_and_comes_out_and_nothing_stays_behind(grounder, encoded, prompts):
    found = grounder.prompted(encoded[0], prompts[:2])
    before = VideoMemory((conditioning(grounder, 0, encoded[0], found),))
    state = {name: tensor.clone() for name, tensor in (*grounder.named_parameters(), *grounder.named_buffers())}
    first, after = step(grounder, 1, encoded[1], before, consistent=False)
    again, _ = step(grounder, 1, encoded[1], before, consistent=False)
    assert torch.equal(first.logits, again.logits)
    assert (len(before.recent), len(after.recent)) == (0, 1)
    now = (*grounder.named_parameters(), *grounder.named_buffers())
    assert all(torch.equal(tensor, state[name]) for name, tensor in now)


def test_a_conditioning_memory_holds_the_frames_map_and_pointer(grounder, encoded, prompts):
    found = grounder.prompted(encoded[0], prompts)
    memory = conditioning(grounder, 4, encoded[0], found)
    assert (memory.frame, memory.maps.shape, memory.maps.dtype) == (4, (10, 8, 16, 16), torch.bfloat16)
    assert torch.equal(memory.pointers, found.pointer)
    assert torch.equal(memory.maps[:8], grounder.encode_memory(encoded[0], found.logits[:8]))


def test_an_object_judged_invisible_hands_on_the_pointer_of_no_object(grounder, encoded, prompts, force_presence):
    force_presence(grounder.sam2.mask_decoder, -8.0)
    memory = VideoMemory((conditioning(grounder, 0, encoded[0], grounder.prompted(encoded[0], prompts[:2])),))
    decoded, after = step(grounder, 1, encoded[1], memory, consistent=False)
    nowhere = grounder.sam2.no_object_pointer.expand(2, -1)
    assert torch.equal(after.recent[0].pointers, nowhere)
    assert torch.equal(memory.conditioning[0].pointers, nowhere)
    assert isinstance(decoded, Decoded)
    assert decoded.logits.min() > -1000
