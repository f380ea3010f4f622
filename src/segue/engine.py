"""Ask a loaded model: messages in, an answer or a stream of events out. No globals."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from segue import types, weights
from segue.checkpoints import model_folder
from segue.errors import ConfigError, DataError
from segue.geometry.masks import at_threshold, box_of, logit
from segue.grounding import model as grounded
from segue.grounding.following import Policy, Shot, Track, encode, find, follow, frame_masks
from segue.grounding.sam2 import Decoded, Encoded
from segue.media import iter_frames, open_media, read_ahead
from segue.models.protocol import Batch, Decoding, Generation, Processor, check_computed, finished, seg_states
from segue.models.templates import stop_check
from segue.output import results
from segue.prepare import Example, View, collate, look, prepare
from segue.types import (
    Event,
    Finished,
    FrameMasks,
    Media,
    Message,
    ObjectsFound,
    Region,
    StopReason,
    TextDelta,
    Usage,
)

Returned = TypeVar("Returned")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to answer. Every field has a default; the fields that decided a result are written with it.

    `frames` is the plan of video frames that the language model sees: `first:k`, `uniform:k`, numbers, or `auto`, which
    is what the policy was published with. `policy` is how objects are followed through a video (see
    `segue.grounding.following.follow`); `auto` is `consistent` where the checkpoint has both decoders. `threshold` is
    the probability, in (0, 1), above which a pixel belongs to an object. `keep_logits` keeps low-resolution logits in
    the masks; `keep_masks` False leaves masks out of the answer, for a reader of the stream who has taken them as they
    came, so that memory does not grow with the video. `prefill` is the reply up to and including its `[SEG]`s, given by
    the caller, so that one forward pass replaces decoding. `temperature` 0 is greedy. `max_tiles` bounds an image's
    tiles; fewer are faster and coarser. A family without tiles gives an image as many twelfths of its most pixels.
    `reprompt` in [0, 1] asks for an object of a video again, by what the language model said of it, on frames where the
    confidence of following falls below it (`segue.grounding.following.follow`); 0 never does.
    """

    frames: str = "auto"
    policy: Literal["auto", "upstream", "consistent"] = "auto"
    threshold: float = 0.5
    keep_logits: bool = False
    keep_masks: bool = True
    prefill: str | None = None
    max_new_tokens: int = 2048
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_tiles: int = 12
    reprompt: float = 0.0

    def __post_init__(self) -> None:
        logit(self.threshold)
        if self.policy not in ("auto", "upstream", "consistent"):
            raise ConfigError(f"unknown policy {self.policy!r}; expected auto, upstream or consistent")
        if self.keep_logits and not self.keep_masks:
            raise ConfigError("keep_logits needs keep_masks: logits are kept in the masks of the answer")
        if not 0 <= self.reprompt <= 1:
            raise ConfigError(f"reprompt {self.reprompt} is no probability; expected 0 (never) to 1 (always)")
        if self.max_new_tokens < 1 or not 1 <= self.max_tiles <= 64:
            raise ConfigError(
                f"max_new_tokens {self.max_new_tokens} or max_tiles {self.max_tiles} is out of range; "
                "expected at least 1 token and 1 to 64 tiles"
            )


DEFAULTS = Options()


@dataclass(frozen=True, slots=True)
class _Plan:
    """Options with `auto` resolved for one model."""

    policy: Policy
    frames: str
    options: Options


@dataclass(frozen=True, slots=True)
class _Seen:
    """The medium asked about last and what was computed from it alone, for the next question about it."""

    key: tuple[str, int]
    view: View
    features: Float[Tensor, "v d"]
    encoded: Encoded | None


@dataclass(frozen=True, slots=True)
class _Reply:
    """One question and what the language model made of it; `phrase` is what `segment` asked for."""

    example: Example
    generation: Generation
    phrase: str = ""


@dataclass(frozen=True, slots=True)
class _Found:
    """The track of every object spoken of, and how many frames they were followed through."""

    tracks: tuple[Track, ...]
    frames: int = 0


@dataclass(slots=True)
class _Timer:
    seconds: dict[str, float] = field(default_factory=dict)
    mark: float = field(default_factory=perf_counter)

    def lap(self, stage: str) -> None:
        now = perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self.mark
        self.mark = now


@dataclass(frozen=True, slots=True)
class Answer(types.Answer):
    """An answer that can write itself down, and draw its masks anew."""

    def save(self, folder: str | Path, formats: Sequence[str] = ("png", "coco", "overlay")) -> None:
        """Write masks, overlay, scores and text to a new folder; `formats` as `segue segment --formats`.

        Raises: ConfigError, as `segue.output.results.save` does.
        """
        results.save(self, Path(folder), formats)

    def at_threshold(self, threshold: float) -> Answer:
        """The same answer with a pixel in a mask where its probability is above `threshold`; boxes follow.

        Needs `Options(keep_logits=True)`. Nothing is computed but the masks.

        Raises: ConfigError, if the threshold is not in (0, 1); DataError, if the logits were not kept.
        """
        return replace(self, regions=tuple(_at_threshold(region, threshold) for region in self.regions))


class Engine:
    """A loaded model and how to ask it. An answer depends on the arguments alone, whatever was asked before.

    `lineage` says where the weights come from, in what precision and with which versions they run.
    """

    def __init__(self, model: grounded.VisionLanguageModel, processor: Processor, lineage: Mapping[str, Any]):
        self.model = model
        self.processor = processor
        self.lineage = dict(lineage)
        self._seen: _Seen | None = None

    def ask(
        self,
        source: str | Path | Media | np.ndarray | None,
        text: str,
        *,
        regions: Sequence[Region] = (),
        options: Options = DEFAULTS,
    ) -> Answer:
        """One question about an image, a video, or nothing but text. `regions` mark parts of an image to be spoken of.

        Raises: MediaError, LimitError, DataError and ConfigError, for what cannot be asked.
        """
        media = source if isinstance(source, Media) or source is None else open_media(source)
        return self.answer([Message.user(text, media, tuple(regions))], options)

    def answer(self, messages: Sequence[Message], options: Options = DEFAULTS) -> Answer:
        """The whole answer to a dialogue that ends with the user's turn."""
        return _last(self.stream(messages, options))

    @torch.no_grad()
    def stream(self, messages: Sequence[Message], options: Options = DEFAULTS) -> Iterator[Event]:
        """The answer as it comes: text, then the objects spoken of, then their masks frame by frame, then all of it.

        Close the iterator to cancel. In a dialogue without an image or video, regions have no masks; in one with
        several, masks are of the last one shown.
        """
        timer, plan = _Timer(), self._plan(options)
        media = _media(messages)
        seen = None if media is None else self._look(media, plan, timer)
        example = self._prepare(messages, plan, None if seen is None else seen.view)
        generation = yield from self._speak(example, seen, options)
        timer.lap("language")
        yield from self._point([_Reply(example, generation)], seen, plan, timer)

    @torch.no_grad()
    def segment(self, media: Media, phrases: Sequence[str], options: Options = DEFAULTS) -> Iterator[Event]:
        """Ask for each phrase on its own and follow all objects found together, each frame encoded once.

        Regions carry the phrase they were asked for. Phrases that brought no object are in `lineage["not_found"]`.

        Raises: DataError, if there is no phrase.
        """
        if not phrases:
            raise DataError("no phrase to segment; give at least one, such as 'the cyclist'")
        if self.model.grounder is None:
            raise ConfigError(
                f"{self.lineage['model']} has no grounder, so that it cannot segment; take a Sa2VA, "
                "or ask where things are in words (`segue chat`)"
            )
        timer, plan = _Timer(), self._plan(options)
        seen = self._look(media, plan, timer)
        question = self.model.family.prompts[f"segment_{media.kind}"]
        replies = []
        for phrase in phrases:
            message = Message.user(question.replace("{phrase}", phrase), media)
            example = self._prepare([message], plan, seen.view)
            replies.append(_Reply(example, (yield from self._speak(example, seen, options)), phrase))
        timer.lap("language")
        yield from self._point(replies, seen, plan, timer)

    @torch.no_grad()
    def answer_each(self, dialogues: Sequence[Sequence[Message]], options: Options = DEFAULTS) -> list[Answer]:
        """Answers to several dialogues about one image or video, or about none, each spoken on its own.

        All objects found are followed together, so that each frame is decoded and encoded once.

        Raises: DataError, if there is no dialogue, or two of them are about different media.
        """
        media = [_media(messages) for messages in dialogues]
        if not media or any(one is not media[0] for one in media):
            raise DataError(f"{len(media)} questions cannot be asked together; give some, all about the same medium")
        timer, plan = _Timer(), self._plan(options)
        seen = None if media[0] is None else self._look(media[0], plan, timer)
        replies = []
        for messages in dialogues:
            example = self._prepare(messages, plan, None if seen is None else seen.view)
            generation = _returned(self._speak(example, seen, options))
            replies.append(_Reply(example, generation))
        timer.lap("language")
        found = _returned(self._found(replies, seen, plan)) if seen is not None else _Found(())
        timer.lap("masks")
        answers, start = [], 0
        for reply in replies:
            stop = start + len(reply.generation.seg_hidden)
            tracks = found.tracks[start:stop]
            answers.append(self._answer([reply], replace(found, tracks=tracks), seen, plan, timer))
            start = stop
        return answers

    @torch.no_grad()
    def answer_all(self, dialogues: Sequence[Sequence[Message]], options: Options = DEFAULTS) -> list[Answer]:
        """Answers to several dialogues, computed as one batch; the same as asked one by one, if greedy.

        An image that several of them share is encoded once for the language model.

        Raises: DataError, if one of them is about a video: those are followed one at a time, by `answer`.
        """
        if not dialogues:
            return []
        timer, plan = _Timer(), self._plan(options)
        media = {id(one): one for one in map(_media, dialogues) if one is not None}
        if any(one.kind == "video" for one in media.values()):
            raise DataError("a batch holds a video; ask about videos one at a time")
        views = {
            key: look(one, self.processor, frames=plan.frames, max_tiles=options.max_tiles)
            for key, one in media.items()
        }
        examples = [self._prepare(messages, plan, views.get(id(_media(messages)))) for messages in dialogues]
        batch = collate(examples, self.processor).to(self.model.device)
        features = None if batch.pixels is None else self.model.mllm.encode(batch.pixels, batch.grids)
        timer.lap("vision")
        generations = self._generate(batch, features, examples, options)
        timer.lap("language")
        images = {
            row: example.view.shown.pixels[0]
            for row, (example, generation) in enumerate(zip(examples, generations, strict=True))
            if example.view is not None and len(generation.seg_hidden)
        }
        encoded = encode(self.model.grounder, images.values()) if images and self.model.grounder is not None else None
        answers = []
        for row, (example, generation) in enumerate(zip(examples, generations, strict=True)):
            frame = encoded.frame(list(images).index(row)) if encoded is not None and row in images else None
            seen = None if example.view is None else _Seen(("", 0), example.view, torch.empty(0, 0), frame)
            answers.append(_last(self._point([_Reply(example, generation)], seen, plan, timer)))
        return answers

    def save(self, folder: str | Path, *, dtype: str | None = None) -> None:
        """Write the model in our layout: `config.json`, sharded safetensors, tokenizer files and `lineage.json`.

        `dtype` is fp32, bf16 or fp16; without one the weights keep the precision they have. The folder appears when
        all of it is written, and any Hugging Face loader of this class reads it.

        Raises: ConfigError, for another dtype, or if the folder exists.
        """
        folder = Path(folder)
        if dtype is not None and dtype not in DTYPES:
            raise ConfigError(f"unknown dtype {dtype!r}; expected {', '.join(DTYPES)}")
        if folder.exists():
            raise ConfigError(f"{folder} exists already; choose a new folder to save the model in")
        model_folder.save(self.model, folder, dtype=DTYPES[dtype] if dtype else None, also=self._save_rest)

    def _save_rest(self, folder: Path) -> None:
        self.processor.save(folder)
        weights.write_lineage(folder, self.lineage)

    def _plan(self, options: Options) -> _Plan:
        has_both = self.model.config.two_decoders
        policy: Policy = "consistent" if has_both else "upstream"
        if options.policy != "auto":
            policy = options.policy
        if policy == "consistent" and not has_both:
            raise ConfigError(
                "policy 'consistent' needs a checkpoint with both mask decoders (such as Sa2VA-i); this one has the "
                "language decoder alone. Give SAM 2's own weights beside it (--sam2, or load(sam2=...)), or use policy "
                "'upstream' or 'auto'"
            )
        trained = self.model.config.video_frames or self.model.family.video_frames
        published = "uniform:5" if policy == "consistent" else trained
        return _Plan(policy, published if options.frames == "auto" else options.frames, options)

    def _look(self, media: Media, plan: _Plan, timer: _Timer) -> _Seen:
        key = (plan.frames, plan.options.max_tiles)
        seen = self._seen
        if seen is None or seen.view.media is not media or seen.key != key:
            view = look(media, self.processor, frames=plan.frames, max_tiles=plan.options.max_tiles)
            features = self.model.mllm.encode(view.visual.pixels.to(self.model.device), view.visual.grids)
            seen = self._seen = _Seen(key, view, features, None)
        timer.lap("vision")
        return seen

    def _prepare(self, messages: Sequence[Message], plan: _Plan, view: View | None) -> Example:
        if messages and messages[-1].role != "user":
            raise DataError(f"the dialogue ends with the {messages[-1].role}'s turn; end it with a question")
        example = prepare(
            messages,
            self.processor,
            frames=plan.frames,
            max_tiles=plan.options.max_tiles,
            prefill=plan.options.prefill,
            view=view,
        )
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if positions and len(example.ids) > positions:
            raise DataError(
                f"the prompt has {len(example.ids):,} tokens and the model {positions:,} positions; shorten it"
            )
        return example

    def _speak(self, example: Example, seen: _Seen | None, options: Options) -> Generator[TextDelta, None, Generation]:
        """Text as it comes; returns what was generated."""
        batch = replace(collate([example], self.processor), pixels=None).to(self.model.device)
        features = self._features(example, seen)
        if options.prefill is not None:
            yield TextDelta(options.prefill)
            return self._generate(batch, features, [example], options)[0]
        steps = self.model.mllm.generate(batch, features, self._decoding(options))
        ids: list[int] = []
        said = ""
        while True:
            try:
                ids += [token for token in next(steps) if token is not None]
            except StopIteration as done:
                rest = self.processor.tokenizer.decode(ids, skip_special_tokens=False)[len(said) :]
                if rest:
                    yield TextDelta(rest)
                return done.value[0]
            text = self.processor.tokenizer.decode(ids, skip_special_tokens=False)
            # an unfinished character decodes to a replacement mark: wait for the rest of it
            if not text.endswith("\ufffd"):
                yield TextDelta(text[len(said) :])
                said = text

    def _features(self, example: Example, seen: _Seen | None) -> Float[Tensor, "v d"] | None:
        """What the language model is shown of a row; where that is `seen` alone, it was encoded before."""
        if example.view is None or seen is None:
            return None
        visual = example.view.visual
        if visual.features == seen.view.visual.features:
            return seen.features
        return self.model.mllm.encode(visual.pixels.to(self.model.device), visual.grids)

    def _generate(
        self, batch: Batch, features: Float[Tensor, "v d"] | None, examples: Sequence[Example], options: Options
    ) -> list[Generation]:
        if options.prefill is None:
            return finished(self.model.mllm.generate(batch, features, self._decoding(options)))
        _, hidden = self.model.mllm.forward(batch, features)
        generations = []
        for row, example in enumerate(examples):
            reply = example.ids[example.answer_start :].to(hidden.device)
            said = hidden[row, hidden.shape[1] - len(reply) :]
            states = seg_states(said[None], reply[None], self.processor.seg_id)
            generations.append(Generation(reply.tolist(), states, "prefilled"))
        return generations

    def _decoding(self, options: Options) -> Decoding:
        return Decoding(
            is_over=stop_check(self.processor.tokenizer, self.processor.template, self.processor.eos_ids),
            seg_id=self.processor.seg_id,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=options.seed,
        )

    def _point(self, replies: Sequence[_Reply], seen: _Seen | None, plan: _Plan, timer: _Timer) -> Iterator[Event]:
        """Masks for what was said, frame by frame, then the answer."""
        found = _Found(())
        if seen is not None:
            found = yield from self._found(replies, seen, plan)
        timer.lap("masks")
        yield Finished(self._answer(replies, found, seen, plan, timer))

    def _found(
        self, replies: Sequence[_Reply], seen: _Seen, plan: _Plan
    ) -> Generator[ObjectsFound | FrameMasks, None, _Found]:
        """Follows every object spoken of; none, and nothing is decoded."""
        _, regions, _ = self._spoken(replies, self._raw(replies), seen)
        if not regions or self.model.grounder is None:
            return _Found(())
        yield ObjectsFound(seen.view.media, regions)
        tracks = tuple(Track(plan.options.keep_masks) for _ in regions)
        prompts = self.model.prompts(torch.cat([reply.generation.seg_hidden for reply in replies]))
        check_computed(prompts, "for what the masks are asked by")
        frames = 0
        for masks, decoded in self._masks(prompts, seen, plan):
            check_computed(decoded.logits, f"in the masks of frame {masks.index}")
            for number, track in enumerate(tracks):
                track.add(masks, number, decoded.logits if plan.options.keep_logits else None)
            frames += 1
            yield masks
        return _Found(tracks, frames)

    def _answer(
        self, replies: Sequence[_Reply], found: _Found, seen: _Seen | None, plan: _Plan, timer: _Timer
    ) -> Answer:
        """Everything that was said and found, together; `found` has a track for each region that the replies mark."""
        raw = self._raw(replies)
        text, regions, boxes = self._spoken(replies, raw, seen)
        if seen is not None:
            size = seen.view.media.size
            regions = tuple(track.region(region, size) for track, region in zip(found.tracks, regions, strict=True))
        usage = Usage(
            prompt_tokens=sum(reply.example.answer_start for reply in replies),
            visual_tokens=sum(len(reply.example.view.visual.rows) for reply in replies if reply.example.view),
            answer_tokens=sum(len(reply.generation.ids) for reply in replies),
            encoded_frames=found.frames,
            seconds=timer.seconds,
        )
        return Answer(
            text,
            regions + boxes,
            "\n".join(raw).strip(),
            None if seen is None else seen.view.media,
            usage,
            _reason(replies),
            self._lineage(replies, seen, plan),
        )

    def _spoken(
        self, replies: Sequence[_Reply], raw: Sequence[str], seen: _Seen | None
    ) -> tuple[str, tuple[Region, ...], tuple[Region, ...]]:
        """The clean text of all replies, a line each; one region per segmentation token; and those given as boxes."""
        texts: list[str] = []
        regions: list[Region] = []
        boxes: list[Region] = []
        size, visual = (seen.view.media.size, seen.view.visual) if seen is not None else (None, None)
        offset = 0
        for reply, spoken in zip(replies, raw, strict=True):
            text, found = self.model.family.parse(spoken, size, visual)
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

    def _raw(self, replies: Sequence[_Reply]) -> list[str]:
        """What was generated, special tokens included."""
        return [self.processor.tokenizer.decode(reply.generation.ids, skip_special_tokens=False) for reply in replies]

    def _masks(self, prompts: Float[Tensor, "n d"], seen: _Seen, plan: _Plan) -> Iterator[tuple[FrameMasks, Decoded]]:
        grounder, shown = self.model.grounder, seen.view.shown
        if seen.view.media.kind == "image":
            encoded = seen.encoded or encode(grounder, shown.pixels)
            if self._seen is seen:
                self._seen = replace(seen, encoded=encoded)
            found = iter([(Shot(0, 0.0, shown.pixels[0]), find(grounder, encoded, prompts))])
        else:
            images = {int(number): image for number, image in zip(shown.index, shown.pixels, strict=True)}
            shots = (Shot(*shot) for shot in read_ahead(iter_frames(seen.view.media)))
            found = follow(grounder, prompts, images, shots, policy=plan.policy, reprompt=plan.options.reprompt)
        for shot, decoded in found:
            yield frame_masks(shot, decoded, threshold=plan.options.threshold), decoded

    def _lineage(self, replies: Sequence[_Reply], seen: _Seen | None, plan: _Plan) -> dict[str, Any]:
        """The model's lineage, and all that decided this answer."""
        is_video = seen is not None and seen.view.media.kind == "video"
        request = {
            **asdict(plan.options),
            "policy": plan.policy if is_video else None,
            "frames": plan.frames if is_video else None,
            "frames_shown": list(seen.view.plan) if seen is not None and is_video else None,
            "prompts": [self._collapsed(reply.example.ids[: reply.example.answer_start].tolist()) for reply in replies],
        }
        not_found = [reply.phrase for reply in replies if reply.phrase and not len(reply.generation.seg_hidden)]
        return {**self.lineage, "request": request} | ({"not_found": not_found} if not_found else {})

    def _collapsed(self, ids: Sequence[int]) -> str:
        """A prompt for people: each run of visual tokens as its length."""
        pieces = []
        for is_visual, run in groupby(ids, lambda token: token == self.processor.visual_id):
            part = list(run)
            text = self.processor.tokenizer.decode(part, skip_special_tokens=False)
            pieces.append(f"{self.processor.visual_token}*{len(part)}" if is_visual else text)
        return "".join(pieces)


def _media(messages: Sequence[Message]) -> Media | None:
    """What was shown last: answers point into it."""
    shown = [part for message in messages for part in message.parts if isinstance(part, Media)]
    return shown[-1] if shown else None


def _at_threshold(region: Region, threshold: float) -> Region:
    if region.masks is None:
        return region
    masks = at_threshold(region.masks, threshold)
    boxes = (box_of(masks.dense(position)) for position in range(len(masks)))
    return replace(region, masks=masks, box=next((box for box in boxes if box is not None), None))


def _last(events: Iterator[Event]) -> Answer:
    for event in events:
        if isinstance(event, Finished) and isinstance(event.answer, Answer):
            return event.answer
    raise RuntimeError("a stream ended without its answer")


def _returned(steps: Generator[Any, None, Returned]) -> Returned:
    """What a generator returns when all that it yields is let go."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return cast(Returned, done.value)


def _reason(replies: Sequence[_Reply]) -> StopReason:
    reasons: list[StopReason] = [reply.generation.stop_reason for reply in replies]
    return "length" if "length" in reasons else reasons[0]
