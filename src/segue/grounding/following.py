"""From prompts to masks on every frame of an image or video, frame by frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from segue.geometry.masks import box_of, logit, upscale
from segue.geometry.masks import encode as encode_mask
from segue.grounding import reprompting
from segue.grounding.sam2 import Decoded, Encoded, LanguageSam2, frame_pixels
from segue.grounding.tracking import OBJECTS_AT_ONCE, Memory, VideoMemory, conditioning, step
from segue.media import VideoFrame
from segue.types import FrameMasks, MaskTrack, Region

Policy = Literal["upstream", "consistent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Following:
    """How objects are followed.

    `upstream` does as Sa2VA; `consistent` as Sa2VA-i: what was found becomes a mask prompt for the original SAM 2
    decoder, which was trained to follow. With `reprompt` above 0, an object whose confidence falls below it on a frame
    is looked for there by its prompt again (`segue.grounding.reprompting`). `pooled` remembers maps at half their width
    and height, which is no longer the original's result (`segue.grounding.tracking.VideoMemory`).

    Source: Sa2VA (arXiv 2501.04001), Sa2VA-i (arXiv 2509.19082).
    """

    policy: Policy
    reprompt: float = 0.0
    pooled: bool = False


def encode(grounder: LanguageSam2, images: Iterable[UInt8[np.ndarray, "_ _ 3"]]) -> Encoded:
    """Images through SAM 2's image encoder in one batch; they may differ in size."""
    device = grounder.sam2.no_memory_embedding.device
    return grounder.encode(torch.stack([frame_pixels(image, grounder.side) for image in images]).to(device))


@torch.no_grad()
def follow(
    grounder: LanguageSam2,
    prompts: Float[Tensor, "n d"],
    shown: Mapping[int, UInt8[np.ndarray, "h w 3"]],
    frames: Iterator[VideoFrame],
    how: Following,
) -> Iterator[tuple[VideoFrame, Decoded]]:
    """The objects on each frame of a video, in order; every frame is encoded once, and forgotten once it is yielded.

    `shown` are the frames that the language model saw: there each object is found by its prompt. On all others it is
    followed.
    """
    consistent = how.policy == "consistent"

    def ask(encoded: Encoded, image: UInt8[np.ndarray, "h w 3"], wanted: Float[Tensor, "m d"]) -> Decoded:
        decoded = decode_prompts(grounder, encoded, wanted)
        return _as_mask_prompts(grounder, encoded, decoded, image.shape[:2]) if consistent else decoded

    found: dict[int, Decoded] = {}
    remembered: list[Memory] = []
    for number, image in sorted(shown.items()):
        encoded = encode(grounder, [image])
        found[number] = ask(encoded, image, prompts)
        remembered.append(conditioning(grounder, number, encoded, found[number], pooled=how.pooled))
    memory = VideoMemory(tuple(remembered), pooled=how.pooled)
    for frame in frames:
        if frame.number in found:
            yield frame, found.pop(frame.number)
            continue
        encoded = encode(grounder, [frame.image])
        decoded, memory = step(grounder, frame.number, encoded, memory, consistent=consistent)
        if how.reprompt:
            again = partial(ask, encoded, frame.image)
            decoded, memory = reprompting.reprompt(
                grounder, encoded, (decoded, memory), prompts, again, below=how.reprompt
            )
        yield frame, decoded


def decode_prompts(grounder: LanguageSam2, encoded: Encoded, prompts: Float[Tensor, "n d"]) -> Decoded:
    """All objects on one frame by their prompts, a few at a time so that the peak does not grow with their number."""
    return Decoded.joined([grounder.prompted(encoded, part) for part in prompts.split(OBJECTS_AT_ONCE)])


def _as_mask_prompts(grounder: LanguageSam2, encoded: Encoded, decoded: Decoded, size: tuple[int, ...]) -> Decoded:
    parts = []
    for logits in decoded.logits.split(OBJECTS_AT_ONCE):
        # PARITY(first_masks_direct_resize): Sa2VA-i enlarges the first masks in one step, all later ones in two
        whole = torch.nn.functional.interpolate(logits[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        parts.append(grounder.decode_with_masks(encoded, whole > 0))
    # the estimates of the decoder that found the object stay: a given mask is certain of itself
    known = Decoded.joined(parts)
    return replace(decoded, logits=known.logits, pointer=known.pointer)


def frame_masks(frame: VideoFrame, decoded: Decoded, *, threshold: float) -> FrameMasks:
    """What a frame's logits mean in its own pixels: masks where the probability is above `threshold`, in (0, 1)."""
    size = frame.image.shape[:2]
    cut = logit(threshold)
    masks: list[Bool[np.ndarray, "h w"]] = [
        (upscale(one[None], (size[0], size[1]))[0] > cut).cpu().numpy() for one in decoded.logits
    ]
    return FrameMasks(
        frame.number,
        frame.seconds,
        frame.image,
        np.stack(masks) if masks else np.zeros((0, *size), bool),
        decoded.iou.clamp(0, 1).cpu().numpy(),
        decoded.presence.sigmoid().cpu().numpy(),
    )


@dataclass(slots=True)
class TrackBuilder:
    """One object's masks as they come in, coded at once so that a long video stays small, or not kept at all."""

    is_kept: bool = True
    index: list[int] = field(default_factory=list)
    rles: list[str] = field(default_factory=list)
    logits: list[Float[np.ndarray, "s s"]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    presence: list[float] = field(default_factory=list)
    box: Float[np.ndarray, " 4"] | None = None

    def add(self, frame: FrameMasks, number: int, logits: Float[Tensor, "n s s"] | None) -> None:
        """Take in object `number` of the next frame, with its low-resolution logits if they are to be kept."""
        mask = frame.masks[number]
        self.index.append(frame.index)
        if self.is_kept:
            self.rles.append(encode_mask(mask))
        self.scores.append(float(frame.scores[number]))
        self.presence.append(float(frame.presence[number]))
        if logits is not None:
            self.logits.append(logits[number].cpu().numpy())
        if self.box is None:
            self.box = box_of(mask)

    def region(self, region: Region, size: tuple[int, int]) -> Region:
        """The region with all that came in; `size` is (height, width) of the medium."""
        logits = np.stack(self.logits) if self.logits else None
        return replace(
            region,
            box=self.box,
            masks=MaskTrack(size, np.array(self.index), tuple(self.rles), logits) if self.is_kept else None,
            score=float(np.mean(self.scores)),
            scores=np.array(self.scores),
            presence=np.array(self.presence),
        )
