"""Following objects through a video: memory goes in and comes out, nothing stays behind on a module.

A video is followed in frame order. Conditioning frames have masks of their own and stay in memory for ever; of the
frames between, the last few maps and a few more pointers are kept, so memory does not grow with the video.

Letters in shapes: n objects, d prompt width, m width of a memory map, k keys.

Source: SAM 2 (arXiv 2408.00714), with Sa2VA's several conditioning frames and untouched masks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from segue.grounding.memory_attention import attend
from segue.grounding.sam2 import Decoded, Encoded, LanguageSam2

MAX_POINTERS = 16
OBJECTS_AT_ONCE = 8
POOL = 2


@dataclass(frozen=True, slots=True)
class Memory:
    """What is remembered of one frame: its number, a map per object (dropped once it is too old), and pointers."""

    frame: int
    maps: Float[Tensor, "n m h w"] | None
    pointers: Float[Tensor, "n d"]


@dataclass(frozen=True, slots=True)
class VideoMemory:
    """What is remembered of a video: every conditioning frame, and the latest of the frames tracked since.

    `pooled` says that maps are kept, and read, at half their width and height.
    """

    conditioning: tuple[Memory, ...]
    recent: tuple[Memory, ...] = ()
    pooled: bool = False

    def after(self, memory: Memory, keep_maps: int) -> VideoMemory:
        """The memory with one more tracked frame in it; what is too old to be read again is let go."""
        kept = [old for old in self.recent if memory.frame - old.frame < MAX_POINTERS - 1]
        recent = [
            old if memory.frame - old.frame < keep_maps else Memory(old.frame, None, old.pointers) for old in kept
        ]
        return replace(self, recent=(*recent, memory))


def conditioning(
    grounder: LanguageSam2,
    frame: int,
    encoded: Encoded,
    decoded: Decoded,
    *,
    pooled: bool = False,
    at_once: int = OBJECTS_AT_ONCE,
) -> Memory:
    """The memory of a frame whose masks are known; goes into `VideoMemory.conditioning`."""
    return Memory(
        frame, memory_maps(grounder, encoded, decoded.logits, pooled=pooled, at_once=at_once), decoded.pointer
    )


def memory_maps(
    grounder: LanguageSam2,
    encoded: Encoded,
    logits: Float[Tensor, "n s s"],
    *,
    pooled: bool,
    at_once: int = OBJECTS_AT_ONCE,
) -> Float[Tensor, "n m h w"]:
    """What is remembered of the objects' masks on a frame; `pooled` as in `VideoMemory`."""
    maps = torch.cat([grounder.encode_memory(encoded, part) for part in logits.split(at_once)])
    return functional.avg_pool2d(maps.float(), POOL).to(maps) if pooled else maps


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
        maps.append(memory_maps(grounder, encoded, decoded.logits, pooled=memory.pooled, at_once=at_once))
    whole = Decoded.joined(parts)
    newest = Memory(frame, torch.cat(maps), whole.pointer)
    return whole, memory.after(newest, keep_maps=grounder.config.num_maskmem - 1)


def attend_to_memory(
    grounder: LanguageSam2, frame: int, encoded: Encoded, memory: VideoMemory, objects: slice
) -> Float[Tensor, "n d h w"]:
    """A frame's features after they have attended to what is remembered of these objects; one map per object."""
    keys, places, pointer_tokens = _keys(grounder, frame, encoded, memory, objects)
    states = (encoded.top + 0.1 * encoded.position.to(encoded.top)).flatten(2).transpose(1, 2)
    keys, places = keys.to(encoded.top), places.to(encoded.top)
    pool = POOL if memory.pooled else 1
    output = attend(grounder.sam2.memory_attention, states, keys, places, pointer_tokens, pool)
    return output.transpose(1, 2).unflatten(2, encoded.top.shape[-2:])


def _keys(
    grounder: LanguageSam2, frame: int, encoded: Encoded, memory: VideoMemory, objects: slice
) -> tuple[Float[Tensor, "n k m"], Float[Tensor, "1 k m"], int]:
    window = grounder.config.num_maskmem
    aged = [(memory_frame, 0) for memory_frame in memory.conditioning]
    aged += [(past, frame - past.frame) for past in memory.recent if frame - past.frame < window]
    place = grounder.memory_position(encoded.top.shape[-2:], grounder.sam2.no_memory_embedding)
    if memory.pooled:
        place = functional.avg_pool2d(place, POOL)
    keys, places = [], []
    for remembered, age in aged:
        if remembered.maps is None:
            continue
        # PARITY(conditioning_time_row): conditioning frames take the last row of the time table, whatever their age
        time = grounder.sam2.memory_temporal_positional_encoding[age - 1]
        keys.append(remembered.maps[objects].flatten(2).transpose(1, 2).to(time))
        places.append(place.flatten(1).T[None] + time)
    pointers = _pointers(frame, memory, objects)
    if not pointers:
        return torch.cat(keys, dim=1), torch.cat(places, dim=1), 0
    width = keys[0].shape[-1]
    # a pointer is wider than a memory map: it is cut into tokens of a map's width, which have no place
    tokens = torch.stack(pointers, dim=1).unflatten(-1, (-1, width)).flatten(1, 2)
    nowhere = torch.zeros_like(places[0][:, :1]).expand(-1, tokens.shape[1], -1)
    return torch.cat([*keys, tokens.to(keys[0])], dim=1), torch.cat([*places, nowhere], dim=1), tokens.shape[1]


def _pointers(frame: int, memory: VideoMemory, objects: slice) -> list[Float[Tensor, "n d"]]:
    # PARITY(pointers_from_past): of conditioning frames that are still to come only the maps are read
    found = [past.pointers[objects] for past in memory.conditioning if past.frame <= frame]
    recent = [past.pointers[objects] for past in reversed(memory.recent) if 0 < frame - past.frame < MAX_POINTERS]
    return [*found, *recent]
