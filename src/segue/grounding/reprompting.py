"""Asking for an object again where following it has become uncertain.

A tracker that lost its object looks for it in the last frames, where it was lost already. The prompt by which the
object was found first is still there, and finds it on the new frame alone, without memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from segue.grounding.sam2 import Decoded, Encoded, LanguageSam2
from segue.grounding.tracking import VideoMemory, memory_maps


def confidence(decoded: Decoded) -> Float[Tensor, " n"]:
    """How sure the model is of each object's mask, in [0, 1]: the lesser of its presence and its estimated IoU."""
    return torch.minimum(decoded.presence.sigmoid(), decoded.iou.clamp(0, 1))


def reprompt(
    grounder: LanguageSam2,
    encoded: Encoded,
    followed: tuple[Decoded, VideoMemory],
    prompts: Float[Tensor, "n d"],
    ask: Callable[[Tensor], Decoded],
    *,
    below: float,
) -> tuple[Decoded, VideoMemory]:
    """What `segue.grounding.tracking.step` found on a frame, with objects of a confidence `below` this asked for again.

    `ask` finds objects on the frame by their prompts. The new answer counts where it is more certain than the old one;
    it takes the place of the old one in memory too, so that the frames to come follow it. Memory grows by nothing, and
    objects do not depend on each other.
    """
    decoded, memory = followed
    weak = (confidence(decoded) < below).nonzero()[:, 0]
    if not len(weak):
        return followed
    found = ask(prompts[weak])
    better = confidence(found) > confidence(decoded)[weak]
    rows = weak[better]
    if not len(rows):
        return followed
    fields = ("logits", "iou", "presence", "pointer")
    new = {name: getattr(found, name)[better] for name in fields}
    corrected = Decoded(**{name: getattr(decoded, name).index_copy(0, rows, new[name]) for name in fields})
    latest = memory.recent[-1]
    assert latest.maps is not None
    maps = memory_maps(grounder, encoded, new["logits"], pooled=memory.pooled)
    latest = replace(
        latest,
        maps=latest.maps.index_copy(0, rows, maps),
        pointers=latest.pointers.index_copy(0, rows, new["pointer"]),
    )
    return corrected, replace(memory, recent=(*memory.recent[:-1], latest))
