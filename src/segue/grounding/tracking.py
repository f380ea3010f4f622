"""Following objects through a video: memory goes in and comes out, nothing stays behind on a module.

A video is followed in frame order. Conditioning frames have masks of their own and stay in memory for ever; of the
frames between, the last few maps and a few more pointers are kept, so memory does not grow with the video.

Letters in shapes: n objects, d prompt width, m width of a memory map, k keys.

Source: SAM 2 (arXiv 2408.00714), with Sa2VA's several conditioning frames and untouched masks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from segue.grounding.sam2 import Decoded, Encoded, LanguageSam2

MAX_POINTERS = 16
OBJECTS_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Memory:
    """What is remembered of one frame: its number, a map per object (dropped once it is too old), and pointers."""

    frame: int
    maps: Float[Tensor, "n m h w"] | None
    pointers: Float[Tensor, "n d"]


@dataclass(frozen=True, slots=True)
class VideoMemory:
    """What is remembered of a video: every conditioning frame, and the latest of the frames tracked since."""

    conditioning: tuple[Memory, ...]
    recent: tuple[Memory, ...] = ()

    def after(self, memory: Memory, keep_maps: int) -> VideoMemory:
        """The memory with one more tracked frame in it; what is too old to be read again is let go."""
        kept = [old for old in self.recent if memory.frame - old.frame < MAX_POINTERS - 1]
        recent = [
            old if memory.frame - old.frame < keep_maps else Memory(old.frame, None, old.pointers) for old in kept
        ]
        return VideoMemory(self.conditioning, (*recent, memory))


def conditioning(
    grounder: LanguageSam2, frame: int, encoded: Encoded, decoded: Decoded, *, at_once: int = OBJECTS_AT_ONCE
) -> Memory:
    """The memory of a frame whose masks are known; goes into `VideoMemory.conditioning`."""
    maps = [grounder.encode_memory(encoded, part) for part in decoded.logits.split(at_once)]
    return Memory(frame, torch.cat(maps), decoded.pointer)


def step(
    grounder: LanguageSam2,
    frame: int,
    encoded: Encoded,
    memory: VideoMemory,
    *,
    consistent: bool,
    at_once: int = OBJECTS_AT_ONCE,
) -> tuple[Decoded, VideoMemory]:
    """The objects on the next frame, and the memory that includes it.

    Objects are followed together, `at_once` at a time so that the peak does not grow with their number. Where all are
    followed at once, `encoded` may hold a frame for each object in place of one for all: objects of several videos.
    `consistent` is `segue.grounding.sam2.LanguageSam2.tracked`'s.
    """
    parts, maps = [], []
    for start in range(0, len(memory.conditioning[0].pointers), at_once):
        objects = slice(start, start + at_once)
        top = attend_to_memory(grounder, frame, encoded, memory, objects)
        decoded = grounder.tracked(encoded, top, consistent=consistent)
        parts.append(decoded)
        maps.append(grounder.encode_memory(encoded, decoded.logits))
    whole = Decoded.joined(parts)
    newest = Memory(frame, torch.cat(maps), whole.pointer)
    return whole, memory.after(newest, keep_maps=grounder.config.num_maskmem - 1)


def attend_to_memory(
    grounder: LanguageSam2, frame: int, encoded: Encoded, memory: VideoMemory, objects: slice
) -> Float[Tensor, "n d h w"]:
    """A frame's features after they have attended to what is remembered of these objects; one map per object."""
    keys, places, pointer_tokens = _keys(grounder, frame, memory, objects)
    count, (height, width) = keys.shape[1], encoded.top.shape[-2:]
    output = grounder.sam2.memory_attention(
        current_vision_features=encoded.top.flatten(2).permute(2, 0, 1).expand(-1, count, -1),
        current_vision_position_embeddings=encoded.position.to(encoded.top).flatten(2).permute(2, 0, 1),
        memory=keys.to(encoded.top),
        memory_posision_embeddings=places.to(encoded.top),
        num_object_pointer_tokens=pointer_tokens,
    )
    return output[0].transpose(1, 2).unflatten(2, (height, width))


def _keys(
    grounder: LanguageSam2, frame: int, memory: VideoMemory, objects: slice
) -> tuple[Float[Tensor, "k n m"], Float[Tensor, "k n m"], int]:
    window = grounder.config.num_maskmem
    aged = [(memory_frame, 0) for memory_frame in memory.conditioning]
    aged += [(past, frame - past.frame) for past in memory.recent if frame - past.frame < window]
    keys, places = [], []
    for remembered, age in aged:
        if remembered.maps is None:
            continue
        maps = remembered.maps[objects].flatten(2).permute(2, 0, 1)
        place = grounder.memory_position(remembered.maps, grounder.sam2.no_memory_embedding.dtype)
        # PARITY(conditioning_time_row): conditioning frames take the last row of the time table, whatever their age
        time = grounder.sam2.memory_temporal_positional_encoding[age - 1]
        keys.append(maps.to(time))
        places.append((place.flatten(1).T[:, None] + time).expand_as(maps))
    pointers = _pointers(frame, memory, objects)
    if not pointers:
        return torch.cat(keys), torch.cat(places), 0
    width = keys[0].shape[-1]
    # a pointer is wider than a memory map: it is cut into tokens of a map's width, which have no place
    tokens = torch.stack(pointers).unflatten(-1, (-1, width)).permute(0, 2, 1, 3).flatten(0, 1)
    return torch.cat([*keys, tokens.to(keys[0])]), torch.cat([*places, torch.zeros_like(tokens)]), len(tokens)


def _pointers(frame: int, memory: VideoMemory, objects: slice) -> list[Float[Tensor, "n d"]]:
    # PARITY(pointers_from_past): of conditioning frames that are still to come only the maps are read
    found = [past.pointers[objects] for past in memory.conditioning if past.frame <= frame]
    recent = [past.pointers[objects] for past in reversed(memory.recent) if 0 < frame - past.frame < MAX_POINTERS]
    return [*found, *recent]
