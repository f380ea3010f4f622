"""CVAT's tracking: a mask that somebody drew on one frame is followed through the next ones.

    cvat-cli function create-native Segue --function-module segue.integrations.cvat_tracker -p model=str:demo

which servers with agents take (CVAT Online and Enterprise). Needs the package `cvat-sdk`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from cvat_sdk import auto_annotation
from cvat_sdk.masks import decode_mask, encode_mask
from PIL import Image

from segue.errors import ConfigError
from segue.geometry.masks import upscale
from segue.grounding.following import encode
from segue.grounding.sam2 import Encoded, LanguageSam2
from segue.grounding.tracking import VideoMemory, conditioning, step
from segue.loading import load


@dataclass(frozen=True, slots=True)
class Prepared:
    """A frame that has been encoded, for all shapes on it; `size` is its (height, width)."""

    encoded: Encoded
    size: tuple[int, int]


@dataclass(slots=True)
class State:
    """What is remembered of one shape, and how many frames it has been followed through."""

    memory: VideoMemory
    frame: int = 0


def create(model: str = "demo", device: str = "auto") -> Tracker:
    """The function that CVAT's agents call.

    Raises: ConfigError, for a model without a grounder; and as `segue.load` does.
    """
    grounder = load(model, device=device).model.grounder
    if grounder is None:
        raise ConfigError(f"{model} has no grounder, so that it cannot follow anything; take a Sa2VA")
    return Tracker(grounder)


class Tracker:
    """Follows masks with SAM 2's memory, as `segue segment` follows what it has found."""

    spec = auto_annotation.TrackingFunctionSpec(supported_shape_types=["mask"])

    def __init__(self, grounder: LanguageSam2):
        self._grounder = grounder

    @torch.no_grad()
    def preprocess_image(self, context: Any, image: Image.Image) -> Prepared:
        """A frame, encoded once."""
        return Prepared(encode(self._grounder, [np.asarray(image.convert("RGB"))]), (image.height, image.width))

    @torch.no_grad()
    def init_tracking_state(self, context: Any, pp_image: Prepared, shape: Any) -> State:
        """What there is to remember of a mask on its frame."""
        height, width = pp_image.size
        mask = torch.from_numpy(decode_mask(shape.points, image_width=width, image_height=height))
        top = pp_image.encoded.top
        decoded = self._grounder.decode_with_masks(pp_image.encoded, mask[None].to(top.device))
        return State(VideoMemory((conditioning(self._grounder, 0, pp_image.encoded, decoded),)))

    @torch.no_grad()
    def track(self, context: Any, pp_image: Prepared, state: State) -> Any:
        """The mask on the next frame, or None where the object is not to be seen."""
        state.frame += 1
        is_consistent = self._grounder.language_decoder is not None
        decoded, state.memory = step(
            self._grounder, state.frame, pp_image.encoded, state.memory, consistent=is_consistent
        )
        mask = (upscale(decoded.logits, pp_image.size)[0] > 0).cpu().numpy()
        if float(decoded.presence) <= 0 or not mask.any():
            return None
        return auto_annotation.TrackableShape(type="mask", points=encode_mask(mask))
