"""What a foreign evaluation harness asks, put to an engine: texts, and images or videos in whatever form it holds them.

A model here knows one medium per dialogue, which stands before the text, as in training. Several images become the
frames of a clip, all of which are shown, brought to the size of the first.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from segue.engine import Options
from segue.errors import DataError
from segue.loading import load
from segue.media import open_media, read_image
from segue.types import Answer, Media, Message

log = logging.getLogger(__name__)

_Source = str | Path | bytes | Image.Image | np.ndarray

_PLACEHOLDERS = re.compile(r"<(?:image|video)>[ \t]*\n?")
_KNOWN = {"max_new_tokens", "temperature", "top_p", "do_sample", "until", "num_beams", "seed"}


@dataclass(frozen=True, slots=True)
class Question:
    """One thing to be asked: a text, what it is about (nothing, one medium, or several images), and how to answer.

    The answer ends before the first of `until` in it.
    """

    text: str
    sources: tuple[object, ...] = ()
    options: Options = Options()
    until: tuple[str, ...] = ()


@runtime_checkable
class Answering(Protocol):
    """What of an engine is needed; see `segue.Engine`."""

    def answer(self, messages: Sequence[Message], options: Options) -> Answer:
        """The answer to a dialogue."""
        ...

    def answer_all(self, dialogues: Sequence[Sequence[Message]], options: Options) -> Sequence[Answer]:
        """Answers to several dialogues, none about a video."""
        ...


class Asker:
    """An engine that answers a harness's questions in words.

    The medium of the last question is kept, so that questions in a row about one video decode and encode it once.
    """

    def __init__(self, engine: Answering):
        self.engine = engine
        self._last: tuple[tuple[str, ...], Media] | None = None

    @classmethod
    def load(cls, model: str, *, device: str = "auto", dtype: str = "auto") -> Asker:
        """An asker of a model, named as for `segue.load`."""
        return cls(load(model, device=device, dtype=dtype))

    def ask(self, question: Question) -> str:
        """What the model answers, without special tokens.

        Raises: DataError, MediaError and LimitError, for what cannot be asked.
        """
        media = self._medium(question.sources)
        answer = self.engine.answer([_message(question, media)], _shown(question, media))
        return _cut(answer.text, question.until)

    def ask_all(self, questions: Sequence[Question], *, batch: int = 1) -> Iterator[str]:
        """Answers in the order of the questions, neighbours about no or one image computed up to `batch` at a time."""
        waiting: list[tuple[Question, Media | None]] = []
        for question in questions:
            if waiting and (len(waiting) == batch or waiting[0][0].options != question.options):
                yield from self._batch(waiting)
                waiting = []
            media = self._medium(question.sources) if batch > 1 else None
            if batch > 1 and (media is None or media.kind == "image"):
                waiting.append((question, media))
                continue
            yield from self._batch(waiting)
            waiting = []
            yield self.ask(question)
        yield from self._batch(waiting)

    def _batch(self, waiting: Sequence[tuple[Question, Media | None]]) -> Iterator[str]:
        if waiting:
            dialogues = [[_message(question, media)] for question, media in waiting]
            answers = self.engine.answer_all(dialogues, waiting[0][0].options)
            for (question, _), answer in zip(waiting, answers, strict=True):
                yield _cut(answer.text, question.until)

    def _medium(self, sources: Sequence[object]) -> Media | None:
        if not sources:
            return None
        key = tuple(str(source) for source in sources if isinstance(source, str | Path))
        if self._last is not None and self._last[0] == key and len(key) == len(sources):
            return self._last[1]
        media = medium(sources)
        self._last = (key, media) if len(key) == len(sources) else None
        return media


def medium(sources: Sequence[object]) -> Media:
    """The one medium that some sources are: itself, if it is one, else a clip of these images in order.

    Raises: DataError, if one of several is a video, or something is neither an image nor a video; MediaError and
        LimitError, as opening does.
    """
    opened = []
    for source in sources:
        if not isinstance(source, _Source):
            raise DataError(f"a question is about a {type(source).__name__}; expected images, or the path of a video")
        opened.append(open_media(source))
    if len(opened) == 1:
        return opened[0]
    if videos := [one.name for one in opened if one.kind == "video"]:
        raise DataError(
            f"a question is about {len(opened)} media, of which {', '.join(videos)} is a video; the models know one "
            "video, or images alone"
        )
    height, width = opened[0].size
    frames = [Image.fromarray(read_image(one)).resize((width, height), Image.Resampling.BICUBIC) for one in opened]
    return open_media(np.stack([np.asarray(frame) for frame in frames]))


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


def _message(question: Question, media: Media | None) -> Message:
    if media is None:
        return Message("user", (question.text,))
    return Message.user(_PLACEHOLDERS.sub("", question.text), media)


def _shown(question: Question, media: Media | None) -> Options:
    """Its options; of several images all are shown."""
    if media is None or len(question.sources) < 2:
        return question.options
    return replace(question.options, frames=f"first:{media.count}")


def _cut(text: str, until: Sequence[str]) -> str:
    ends = [place for mark in until if (place := text.find(mark)) >= 0]
    return text[: min(ends, default=len(text))].strip()
