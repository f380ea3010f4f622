"""Media as a model sees them: their features taken from where they are kept, else computed and kept."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from segue.errors import ConfigError, LimitError
from segue.features import FeatureCache, Features, Identity, Sources, Store, fingerprint
from segue.features.formats import CODES
from segue.features.keys import identity_of
from segue.grounding.following import encode
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
    """What is remembered of the medium asked about last, beside its features: its frames, and SAM 2's features of an
    image. `key` is its content and how it was shown.
    """

    key: Key
    shown: MediaInput
    encoded: Encoded | None = None


@runtime_checkable
class FeatureStore(Protocol):
    """Features of media under the hash of their content and the rule by which they are shown.

    `point` says where they are taken: after the tower, or projected.
    """

    @property
    def point(self) -> Literal["tower", "projected"]:
        """Where features are taken."""
        ...

    def get(self, source: str, sampling: str) -> Features | None:
        """What was kept, or `None`."""
        ...

    def put(self, source: str, sampling: str, features: Features, *, seconds: float = 0.0) -> object:
        """Keep features of a medium that took so many seconds, if there is room."""
        ...


class MemoryStore:
    """Features of the media that were put or found last, on the device where they were computed."""

    point: Literal["tower", "projected"] = "projected"

    def __init__(self, count: int = 1):
        self.count = count
        self._kept: OrderedDict[tuple[str, str], Features] = OrderedDict()

    def get(self, source: str, sampling: str) -> Features | None:
        """What was kept, or `None`."""
        if (source, sampling) in self._kept:
            self._kept.move_to_end((source, sampling))
        return self._kept.get((source, sampling))

    def put(self, source: str, sampling: str, features: Features, *, seconds: float = 0.0) -> None:
        """Keep features of a medium; those used longest ago go."""
        self._kept[source, sampling] = features
        self._kept.move_to_end((source, sampling))
        while len(self._kept) > self.count:
            self._kept.popitem(last=False)

    def clear(self) -> None:
        """Let go of all of them."""
        self._kept.clear()


class MediaEncoder:
    """Decodes, preprocesses and encodes media for one model, and keeps their features in `features`.

    Of the medium seen last it remembers more (`MediaCache`).
    """

    def __init__(self, model: VisionLanguageModel, processor: Processor, features: FeatureStore | None = None):
        self.model, self.processor = model, processor
        self.features: FeatureStore = features or MemoryStore()
        self._sources = Sources()
        self._seen: MediaCache | None = None

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
        self.features, self._sources, self._seen = cache, cache.sources, None
        return cache

    def identity(self, point: Point) -> Identity:
        """What features at this point depend on, beside the medium: weights, sizes, preprocessing."""
        return identity_of(self.model.config, self.fingerprint(point), self.model.dtype, point)

    def fingerprint(self, point: Point) -> str:
        """A hash of the weights that features at this point depend on."""
        return fingerprint(self.model.mllm.below(point), self.model.dtype)

    def forget(self) -> None:
        """Let go of features in memory, and look at the weights anew."""
        self._seen = None
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
        shown = preprocess_media(media, self.processor, frames=frames, max_tiles=max_tiles, key=key, features=features)
        if self._seen is not None and self._seen.key == key:
            shown.decoded = shown.decoded or self._seen.shown.decoded
            self._seen.shown = shown
        else:
            self._seen = MediaCache(key, shown)
        return shown

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

    def encode_images(self, media: Sequence[MediaInput]) -> dict[Key, Encoded]:
        """SAM 2's features of some images, by key: those of the image seen last are remembered, and all others go
        through its encoder in one batch.
        """
        wanted = {one.key: one for one in media if one.key is not None}
        seen = self._seen if self._seen is not None and self._seen.key in wanted else None
        found: dict[Key, Encoded] = {}
        if seen is not None and seen.encoded is not None:
            found[seen.key] = seen.encoded
        fresh = {key: one for key, one in wanted.items() if key not in found}
        if fresh:
            encoded = encode(self.model.grounder, [one.shown.pixels[0] for one in fresh.values()])
            found |= {key: encoded.frame(number) for number, key in enumerate(fresh)}
        if seen is not None and seen.key in fresh:
            seen.encoded = found[seen.key].copied() if len(fresh) > 1 else found[seen.key]
        return found

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
