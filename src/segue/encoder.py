"""Media as a language model sees them: their features taken from where they are kept, else computed and kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from segue.errors import ConfigError, LimitError
from segue.features import FeatureCache, Features, FeatureStore, Identity, MemoryStore, Sources, Store, fingerprint
from segue.features.formats import CODES
from segue.features.keys import identity_of
from segue.grounding.model import VisionLanguageConfig, VisionLanguageModel
from segue.grounding.sam2 import Encoded
from segue.media.sampling import choose
from segue.models.protocol import PUBLISHED_TILES, Point, Processor, VisionInput
from segue.prepare import MediaInput, preprocess_media
from segue.types import Media

Key = tuple[str, str]
"""What a medium is and how it is shown: the hash of its content, and the rule that chose its frames or tiles."""


@dataclass(slots=True)
class MediaCache:
    """What the engine remembers of the medium asked about last, beside its features: its frames, and SAM 2's features
    of an image. `key` is its content and how it was shown.
    """

    key: Key
    shown: MediaInput
    encoded: Encoded | None = None


class MediaEncoder:
    """Decodes, preprocesses and encodes media for one model, and keeps their features in `features`."""

    def __init__(self, model: VisionLanguageModel, processor: Processor, features: FeatureStore | None = None):
        self.model, self.processor = model, processor
        self.features: FeatureStore = features or MemoryStore()
        self._sources = Sources()

    def use_cache(self, store: Store, *, form: str = "lossless", point: Point = "tower") -> FeatureCache:
        """Take features from a store, and keep there what is computed. `forget` when weights have changed.

        Raises: ConfigError, for an unknown format, or weights in a type that is not kept.
        """
        # a fingerprint is taken of floating weights alone
        bits = any(one.dtype in (torch.int8, torch.uint8) for one in self.model.mllm.state_dict().values())
        if bits or self.model.dtype not in CODES:
            kind = "8 or 4 bits" if bits else str(self.model.dtype)
            raise ConfigError(f"features of a model in {kind} are not kept; load it in fp32, fp16 or bf16")
        cache = FeatureCache(store, self.identity(point), form)
        self.features, self._sources = cache, cache.sources
        return cache

    def identity(self, point: Point) -> Identity:
        """What features at this point depend on, beside the medium: weights, sizes, preprocessing."""
        return identity_of(self.model.config, self.fingerprint(point), self.model.dtype, point)

    def fingerprint(self, point: Point) -> str:
        """A hash of the weights that features at this point depend on."""
        return fingerprint(self.model.mllm.below(point), self.model.dtype)

    def forget(self) -> None:
        """Let go of features in memory, and look at the weights anew."""
        if isinstance(self.features, MemoryStore):
            self.features.clear()
        elif isinstance(self.features, FeatureCache):
            self.use_cache(self.features.store, form=self.features.form.name, point=self.features.point)

    def key(self, media: Media, *, frames: str, max_tiles: int) -> Key:
        """The key of a medium; a file that was hashed before is not read.

        Raises: MediaError, if it cannot be read.
        """
        return self._sources.hash(media), sampling(media, frames=frames, max_tiles=max_tiles)

    def preprocess(self, media: Media, *, frames: str, max_tiles: int) -> MediaInput:
        """A medium as it is shown, from kept features where there are some. A video that is too long for the model is
        refused before it is decoded.

        Raises: MediaError, LimitError and ConfigError, as `preprocess_media` does.
        """
        if media.kind == "video":
            bound = num_frames(media, frames) * self.model.config.mllm_config.largest_frame()[1]
            if bound > most_tokens(self.model.config):  # how many they are costs a frame
                check_length(self.num_visual_tokens(media, frames=frames), self.model.config, media.name)
        key = self.key(media, frames=frames, max_tiles=max_tiles)
        features = self._kept(key)
        return preprocess_media(media, self.processor, frames=frames, max_tiles=max_tiles, key=key, features=features)

    def num_visual_tokens(self, video: Media, *, frames: str) -> int:
        """How many visual tokens a video comes to. Nothing of it is decoded."""
        return num_frames(video, frames) * len(self.black(video).vision.rows)

    def black(self, media: Media, *, max_tiles: int = PUBLISHED_TILES) -> MediaInput:
        """A black picture of a medium's size, or a video of one frame: laid out as any of that size is."""
        pixels = np.zeros((*media.size, 3), np.uint8)
        like = Media(pixels if media.kind == "image" else pixels[None], media.kind, media.size)
        return preprocess_media(like, self.processor, frames="first:1", max_tiles=max_tiles)

    def _kept(self, key: Key) -> Features | None:
        """Projected features that are kept of a medium, or that become of its tower states that are."""
        found = self.features.get(*key)
        if found is None:
            return None
        values = found.values.to(self.model.device)
        if self.features.point == "tower":
            values = self.model.mllm.project(values, found.beside.get("grids"))
        return replace(found, values=values)

    def encode(self, media: Sequence[MediaInput]) -> None:
        """Put features in the place of pixels. What has none yet goes through the tower, and is kept.

        All of it goes in one batch, unless it is kept for long: that must not depend on what happened to be beside it.
        """
        fresh = {one.key: one.vision for one in media if one.key is not None and one.vision.features is None}
        if not fresh:
            return
        is_apart = not isinstance(self.features, MemoryStore)
        parts: dict[Key, Tensor] = {}
        for group in [{key: vision} for key, vision in fresh.items()] if is_apart else [fresh]:
            parts |= self._encode_together(group)
        for one in media:
            if one.key is not None and one.vision.features is None:
                one.vision = replace(one.vision, pixels=None, features=parts[one.key])

    def _encode_together(self, fresh: Mapping[Key, VisionInput]) -> dict[Key, Tensor]:
        began, known = perf_counter(), list(fresh.values())
        pixels = torch.cat([vision.pixels for vision in known if vision.pixels is not None]).to(self.model.device)
        grids = [vision.grids for vision in known if vision.grids is not None]
        together = torch.cat(grids) if grids else None
        states = self.model.mllm.tower(pixels, together)
        features = self.model.mllm.project(states, together)
        split = features.split([vision.num_features for vision in known])
        # a part of a larger tensor would keep all of it in memory
        parts = dict(zip(fresh, (part.clone() for part in split) if split[1:] else split, strict=True))
        for key, vision in fresh.items():
            beside = {} if vision.grids is None else {"grids": vision.grids}
            kept = states if self.features.point == "tower" else parts[key]
            self.features.put(*key, Features(kept, beside), seconds=perf_counter() - began)
        return parts

    @torch.no_grad()
    def computed(self, vision: VisionInput, point: Point) -> Float[Tensor, "*t c"]:
        """What is kept of pixels at a point, computed now."""
        assert vision.pixels is not None
        states: Tensor = self.model.mllm.tower(vision.pixels.to(self.model.device), vision.grids)
        return states if point == "tower" else self.model.mllm.project(states, vision.grids)


def sampling(media: Media, *, frames: str, max_tiles: int) -> str:
    """The rule by which a medium is shown, as keys have it."""
    rule = frames if media.kind == "video" else f"tiles:{max_tiles}"
    return rule if media.window is None else f"{rule} window:{media.window[0]}:{media.window[1]}"


def most_tokens(config: VisionLanguageConfig) -> int | float:
    """The longest prompt that a language model has positions for."""
    text = config.get_text_config()
    # other kinds of rotary angles are made to go beyond the length that was trained
    is_bounded = (getattr(text, "rope_parameters", None) or {}).get("rope_type", "default") == "default"
    return text.max_position_embeddings if is_bounded and not getattr(text, "use_dynamic_ntk", False) else math.inf


def check_length(tokens: int, config: VisionLanguageConfig, what: str) -> None:
    """Refuse what has more tokens than the model has positions.

    Raises: LimitError.
    """
    if tokens > (most := most_tokens(config)):
        raise LimitError(
            f"{what} has {tokens:,} tokens and the model {most:,} positions; shorten it, or show fewer frames"
        )


def num_frames(media: Media, frames: str) -> int:
    """How many different pictures of a medium are shown by a plan of frames."""
    return 1 if media.kind == "image" else len(set(choose(frames, media.count, media.fps)))
