"""What is asked, and how far the answering of it has come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from time import perf_counter
from typing import Any

from segue.grounding.following import Policy, TrackBuilder
from segue.media import Source, open_media
from segue.models.decoding import DecodeState, Generation, IncrementalText
from segue.models.guiding import Guide
from segue.models.prefill import LastPrompt
from segue.models.protocol import Parse, Processor
from segue.models.templates import TextTokenizer
from segue.options import DEFAULTS, Options
from segue.prepare import MediaInput, TokenizedExample
from segue.types import Event, Failed, Finished, Media, MediaKind, Message, Region, StopReason, TokenScore


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
        return [Reply(row.example, row.generation, row.phrase) for row in self.rows if row.generation is not None]


@dataclass(frozen=True, slots=True)
class Reply:
    """One question and what the language model made of it; `phrase` is what `segment` asked for."""

    example: TokenizedExample
    generation: Generation
    phrase: str = ""


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


def question_about(source: Source | None, text: str, regions: Sequence[Region]) -> list[Message]:
    """A dialogue of one question."""
    return [Message.user(text, None if source is None else open_media(source), tuple(regions))]


def shown_in(messages: Sequence[Message]) -> list[Media]:
    """The media of a dialogue, in reading order."""
    return [part for message in messages for part in message.parts if isinstance(part, Media)]


def parse_replies(
    replies: Sequence[Reply], raw: Sequence[str], parse: Parse, shown: MediaInput | None
) -> tuple[str, tuple[Region, ...], tuple[Region, ...]]:
    """The clean text of all replies, a line each; one region per segmentation token; and those given as boxes.

    Spans of regions lie in that text. `shown` is the medium that the replies are about.
    """
    texts: list[str] = []
    regions: list[Region] = []
    boxes: list[Region] = []
    size, vision = (None, None) if shown is None else (shown.media.size, shown.vision)
    offset = 0
    for reply, spoken in zip(replies, raw, strict=True):
        text, found = parse(spoken, size, vision)
        marked = [region for region in found if region.box is None]
        if len(marked) != len(reply.generation.seg_hidden):
            # the letters "[SEG]" spelled out of ordinary tokens ask for nothing
            marked = [Region() for _ in reply.generation.seg_hidden]
        for region in (*marked, *(region for region in found if region.box is not None)):
            span = None if region.span is None else (region.span[0] + offset, region.span[1] + offset)
            placed = replace(region, phrase=region.phrase or reply.phrase, span=span)
            (regions if region.box is None else boxes).append(placed)
        texts.append(text)
        offset += len(text) + 1
    return "\n".join(texts), tuple(regions), tuple(boxes)


def decided_by(job: Job, replies: Sequence[Reply], processor: Processor) -> dict[str, Any]:
    """All that decided an answer beside the model, and what was not found, for its lineage."""
    is_video = job.media is not None and job.media.media.kind == "video"
    request = {
        **asdict(job.plan.options),
        "policy": job.plan.policy if is_video else None,
        "frames": job.plan.frames if is_video else None,
        "frames_shown": list(job.media.plan) if job.media is not None and is_video else None,
        "prompts": [readable_prompt(reply, processor) for reply in replies],
    }
    not_found = [reply.phrase for reply in replies if reply.phrase and not len(reply.generation.seg_hidden)]
    return {"request": request} | ({"not_found": not_found} if not_found else {})


def readable_prompt(reply: Reply, processor: Processor) -> str:
    """The prompt of a reply for people: each run of visual tokens as its length."""
    pieces = []
    ids = reply.example.ids[: reply.example.answer_start].tolist()
    for is_visual, run in groupby(ids, lambda token: token == processor.visual_id):
        part = list(run)
        text = processor.tokenizer.decode(part, skip_special_tokens=False)
        pieces.append(f"{processor.visual_token}*{len(part)}" if is_visual else text)
    return "".join(pieces)


def token_scores(replies: Sequence[Reply], tokenizer: TextTokenizer) -> tuple[TokenScore, ...]:
    """How likely each token of all replies was, where that was asked for."""

    def text(token: int) -> str:
        return tokenizer.decode([token], skip_special_tokens=False)

    return tuple(
        TokenScore(text(token), score, tuple((text(one), other) for one, other in likeliest))
        for reply in replies
        # a reply has no scores where none were asked for
        for token, (score, likeliest) in zip(reply.generation.ids, reply.generation.scores, strict=False)
    )


def stop_reason(replies: Sequence[Reply]) -> StopReason:
    """Why an answer ended: of several replies, the reason that says most."""
    reasons: list[StopReason] = [reply.generation.stop_reason for reply in replies]
    return next((one for one in ("cancelled", "length") if one in reasons), reasons[0])


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
