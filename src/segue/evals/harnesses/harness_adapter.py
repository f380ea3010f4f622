"""What a foreign evaluation harness asks, put to an engine: texts, and images or videos in whatever form it holds them.

What is shown stands before the text, as in training. Several images become the frames of a clip, all of which are
shown, brought to the size of the first; where a video is among them, each is shown as itself.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segue.errors import ConfigError, DataError
from segue.evals.base import EvaluatedModel
from segue.features import FeatureCache, Store
from segue.geometry.qwen_notation import bare_places
from segue.loading import load
from segue.media import open_media, read_image, remembering
from segue.options import Options
from segue.types import Media, Message

log = logging.getLogger(__name__)

Showable = str | Path | bytes | Image.Image | np.ndarray

_PLACEHOLDERS = re.compile(r"<(?:image|video)>[ \t]*\n?")
_KNOWN = {"max_new_tokens", "temperature", "top_p", "do_sample", "until", "num_beams", "seed"}


@dataclass(frozen=True, slots=True)
class HarnessRequest:
    """One thing to be asked: a text, what it is about (nothing, images, videos), and how to answer.

    The answer ends before the first of `until` in it.
    """

    text: str
    sources: tuple[object, ...] = ()
    options: Options = Options()
    until: tuple[str, ...] = ()


class HarnessAdapter:
    """A model that answers a harness's requests in words.

    The media of the last request are kept, so that requests in a row about one video decode and encode it once.
    """

    def __init__(self, model: EvaluatedModel):
        self.model = model
        self._last: tuple[tuple[str, ...], tuple[Media, ...]] = ((), ())

    @classmethod
    def load(
        cls,
        model: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        cache_dir: str | None = None,
        enable_cache: bool | None = None,
    ) -> HarnessAdapter:
        """An adapter of a model, named as for `segue.load`. Features are taken from the feature cache in `cache_dir`
        and kept there, unless `enable_cache` is false.

        Raises: ConfigError, for a cache without a folder; what `segue.load` raises.
        """
        if enable_cache and cache_dir is None:
            raise ConfigError("enable_cache is true and cache_dir is not given; say where the feature cache is")
        engine = load(model, device=device, dtype=dtype)
        if cache_dir is not None and enable_cache is not False:
            engine.use_cache(Store(cache_dir))
        return cls(engine)

    def answer(self, request: HarnessRequest) -> str:
        """What the model answers, without special tokens; places in words stay in it.

        Raises: DataError, MediaError and LimitError, for what cannot be asked.
        """
        return next(self.answer_all([request]))

    def answer_all(self, requests: Sequence[HarnessRequest], *, batch: int = 1) -> Iterator[str]:
        """Answers in the order of the requests, up to `batch` neighbours with the same options computed together."""
        cache = getattr(self.model, "features", None)
        cache = cache if isinstance(cache, FeatureCache) else None
        for start in range(0, len(requests), batch):
            with nullcontext() if cache is None else remembering(cache.sources.facts):
                opened = [(request, self._media(request.sources)) for request in requests[start : start + batch]]
            for options, alike in groupby(opened, lambda one: _shown(*one)):
                group = list(alike)
                dialogues = [[_message(request, media)] for request, media in group]
                answers = self.model.answer_all(dialogues, options, rows=batch)
                for (request, _), answer in zip(group, answers, strict=True):
                    # a harness has no regions: what Qwen-VL places in words stays in the text
                    said = bare_places(answer.raw_text)
                    yield _cut(answer.text if said is None else said, request.until)
        if cache is not None:
            cache.write_usage()

    def _media(self, sources: Sequence[object]) -> tuple[Media, ...]:
        key = tuple(str(source) for source in sources if isinstance(source, str | Path))
        if self._last[0] == key and len(key) == len(sources):
            return self._last[1]
        media = media_of(sources)
        self._last = (key, media) if len(key) == len(sources) else ((), ())
        return media


def media_of(sources: Sequence[object]) -> tuple[Media, ...]:
    """What some sources show: several images and no video as a clip, else each by itself, in order.

    Raises: DataError, if something is neither an image nor a video; MediaError and LimitError, as opening does.
    """
    opened = []
    for source in sources:
        if not isinstance(source, Showable):
            raise DataError(f"a request is about a {type(source).__name__}; expected images, or the path of a video")
        opened.append(open_media(source))
    if len(opened) < 2 or any(one.kind == "video" for one in opened):
        return tuple(opened)
    height, width = opened[0].size
    frames = [Image.fromarray(read_image(one)).resize((width, height), Image.Resampling.BICUBIC) for one in opened]
    return (open_media(np.stack([np.asarray(frame) for frame in frames])),)


def options_from(given: Mapping[str, Any], base: Options) -> tuple[Options, tuple[str, ...]]:
    """How to answer, and where to cut the answer, as generation settings in the words of `transformers` say.

    Sampling takes place only where `do_sample` is true or left out and a temperature above 0 is given. What has no
    meaning here is told once per process and left out.
    """
    ignored = {name for name in given if name not in _KNOWN}
    if (given.get("num_beams") or 1) > 1:
        ignored.add("num_beams")
    if ignored:
        _tell_once(tuple(sorted(ignored)))
    temperature = float(given.get("temperature") or 0.0) if given.get("do_sample", True) else 0.0
    changes: dict[str, Any] = {"temperature": temperature}
    if given.get("max_new_tokens"):
        changes["max_new_tokens"] = int(given["max_new_tokens"])
    if temperature and given.get("top_p"):
        changes["top_p"] = float(given["top_p"])
    if given.get("seed") is not None:
        changes["seed"] = int(given["seed"])
    until = given.get("until") or ()
    return replace(base, **changes), tuple(filter(None, [until] if isinstance(until, str) else until))


_told: set[tuple[str, ...]] = set()


def _tell_once(names: tuple[str, ...]) -> None:
    if names not in _told:
        _told.add(names)
        log.warning("generation settings that mean nothing here are left out: %s", ", ".join(names))


def _message(request: HarnessRequest, media: tuple[Media, ...]) -> Message:
    if not media:
        return Message("user", (request.text,))
    text = _PLACEHOLDERS.sub("", request.text)
    return Message.user(text, media[0]) if len(media) == 1 else Message("user", (*media, f"\n{text}"))


def _shown(request: HarnessRequest, media: tuple[Media, ...]) -> Options:
    """Its options; of several images all are shown."""
    if len(request.sources) < 2 or len(media) > 1:
        return request.options
    return replace(request.options, frames=f"first:{media[0].count}")


def _cut(text: str, until: Sequence[str]) -> str:
    ends = [place for mark in until if (place := text.find(mark)) >= 0]
    return text[: min(ends, default=len(text))].strip()
