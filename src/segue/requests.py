"""What is asked, and how far the answering of it has come."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from segue.errors import ConfigError, DataError
from segue.grounding.following import Policy, TrackBuilder
from segue.media import Source, open_media
from segue.models.decoding import DecodeState, Generation, IncrementalText
from segue.models.guiding import Guide
from segue.models.prefill import LastPrompt
from segue.options import DEFAULTS, Options
from segue.prepare import MediaInput, TokenizedExample
from segue.types import Event, Failed, Finished, Media, MediaKind, Message, Region


@dataclass(slots=True, eq=False)
class Request:
    """Dialogues about one image or video, or about none, to be answered together: its objects are followed once.

    Each dialogue has an answer of its own; with `phrases`, one for each dialogue, there is one answer to all. Set
    `is_cancelled` at any time to have it end with what was said so far. `last_prompt` holds what was read for the turn
    before, and afterwards what was read for this one.
    """

    dialogues: Sequence[Sequence[Message]]
    options: Options = DEFAULTS
    phrases: Sequence[str] = ()
    is_cancelled: bool = False
    last_prompt: LastPrompt | None = None

    def __post_init__(self) -> None:
        """Raises: DataError, for a dialogue that is no list of messages; ConfigError, for options that are none."""
        for messages in self.dialogues:
            check_dialogue(messages)
        if not isinstance(self.options, Options):
            raise ConfigError(f"the options are {self.options!r}; write segue.Options(threshold=0.3)")


@dataclass(frozen=True, slots=True)
class Plan:
    """Options with `auto` resolved for one model."""

    policy: Policy
    frames: str
    options: Options


@dataclass(slots=True, eq=False)
class Row:
    """One dialogue of a request and what the language model makes of it; `phrase` is what `segment` asked for, `guide`
    what holds it to a JSON schema.
    """

    example: TokenizedExample
    text: IncrementalText
    phrase: str = ""
    guide: Guide | None = None
    state: DecodeState | None = None
    generation: Generation | None = None


@dataclass(slots=True, eq=False)
class Job:
    """A request that is being answered. `told` counts the rows whose text was told to its end. Several rows show the
    same medium, so that those that begin like the `last_prompt` go on from it.
    """

    request: Request
    plan: Plan
    timer: Timer
    media: MediaInput | None
    rows: list[Row]
    last_prompt: LastPrompt | None = None
    told: int = 0

    @property
    def is_said(self) -> bool:
        """Whether all rows have come to their end."""
        return all(row.generation is not None for row in self.rows)

    @property
    def num_objects(self) -> int:
        """How many objects the replies point at."""
        return sum(len(reply.generation.seg_hidden) for reply in self.replies)

    def points_into(self, kind: MediaKind) -> bool:
        """Whether there are objects to be found in a medium of this kind."""
        is_kind = self.media is not None and self.media.media.kind == kind
        return is_kind and not self.request.is_cancelled and self.num_objects > 0

    def pieces(self) -> Iterator[str]:
        """What came to the text of the rows, in their order: a row speaks when those before it are done."""
        while self.told < len(self.rows):
            row = self.rows[self.told]
            if row.state is not None:
                text = row.text.piece(row.state.ids, is_last=row.generation is not None)
            else:
                text = self.plan.options.prefill or "" if row.generation is not None else ""
            if text:
                yield text
            if row.generation is None:
                return
            self.told += 1

    @property
    def replies(self) -> list[Reply]:
        """What all rows came to, once they have."""
        return [
            Reply(row.example, row.generation, row.phrase, 0 if row.state is None else row.state.cached)
            for row in self.rows
            if row.generation is not None
        ]


@dataclass(frozen=True, slots=True)
class Reply:
    """One question and what the language model made of it; `phrase` is what `segment` asked for. `cached` tokens of the
    prompt were known.
    """

    example: TokenizedExample
    generation: Generation
    phrase: str = ""
    cached: int = 0


@dataclass(frozen=True, slots=True)
class Tracks:
    """The track of every object spoken of, and how many frames they were followed through."""

    tracks: tuple[TrackBuilder, ...] = ()
    frames: int = 0


@dataclass(slots=True)
class Timer:
    """Wall seconds per stage, between one `lap` and the next."""

    seconds: dict[str, float] = field(default_factory=dict)
    mark: float = field(default_factory=perf_counter)

    def lap(self, stage: str) -> None:
        """Count the time since the last lap to a stage."""
        now = perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self.mark
        self.mark = now


def check_dialogue(messages: object) -> None:
    """Raises: DataError, for what is no list of messages."""
    if not isinstance(messages, Sequence) or not all(isinstance(one, Message) for one in messages):
        raise DataError(
            f"a dialogue is a list of messages, and {reprlib.repr(messages)} is none; "
            "write [segue.Message.user('What is this?', segue.open_media('photo.jpg'))]"
        )


def question_about(source: Source | None, text: str, regions: Sequence[Region]) -> list[Message]:
    """A dialogue of one question."""
    return [Message.user(text, None if source is None else open_media(source), tuple(regions))]


def shown_in(messages: Sequence[Message]) -> list[Media]:
    """The media of a dialogue, in reading order."""
    return [part for message in messages for part in message.parts if isinstance(part, Media)]


def until_stop(text: str, stops: Sequence[str]) -> str:
    """A text up to the first of some others in it; all of it, if none is."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]


def raised(events: Iterator[tuple[Request, Event | Failed]]) -> Iterator[Event]:
    """Events of one request; its failure is raised."""
    for _, event in events:
        if isinstance(event, Failed):
            raise event.error
        yield event


def answers_of(events: Iterator[tuple[Request, Event | Failed]]) -> dict[Request, list[Any]]:
    """The answers to each request, as the engine makes them; a failure is raised."""
    found: dict[Request, list[Any]] = {}
    for request, event in events:
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Finished):
            found.setdefault(request, []).append(event.answer)
    return found
