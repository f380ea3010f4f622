"""Ask a loaded model: messages in, an answer or a stream of events out. No globals."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from segue import weights
from segue.answering import Answering
from segue.checkpoints import model_folder
from segue.encoder import FeatureStore, MediaEncoder, check_length
from segue.errors import ConfigError, DataError, SegueError
from segue.features import FeatureCache, Store
from segue.geometry.notation import check_prefill
from segue.grounding import model as grounded
from segue.grounding.following import Policy
from segue.media import Source, open_media
from segue.models.decoding import Decoder, Decoding, Generation, IncrementalText
from segue.models.guiding import Guides
from segue.models.prefill import LastPrompt
from segue.models.protocol import Point, Processor, Prompt, seg_states
from segue.models.static_decoding import StaticDecoder, decodes_alone
from segue.models.templates import RAW, stop_check
from segue.options import DEFAULTS, Options
from segue.output.answers import Answer
from segue.prepare import MediaInput, TokenizedExample, collate, content_of, prepare
from segue.requests import (
    Job,
    Plan,
    Request,
    Row,
    Timer,
    answers_of,
    check_dialogue,
    question_about,
    raised,
    shown_in,
)
from segue.types import (
    Event,
    Failed,
    Message,
    Region,
    TextDelta,
    target_media,
)

__all__ = ["DEFAULTS", "ROWS", "Answer", "Engine", "Options", "Request"]


ROWS = 16
"""Dialogues that are decoded together, unless told."""
TOKENS = 2**16
"""Tokens that all prompts decoded together may have, padding included; a longer one is decoded alone."""
_NO_MORE = object()


class Engine:
    """A loaded model and how to ask it. An answer depends on the arguments alone, whatever was asked before.

    `lineage` says where the weights come from, in what precision and with which versions they run. Keys and values are
    kept in a `new_cache` while an answer is written.
    """

    def __init__(
        self,
        model: grounded.VisionLanguageModel,
        processor: Processor,
        lineage: Mapping[str, Any],
        features: FeatureStore | None = None,
        new_cache: Callable[[], DynamicCache] = DynamicCache,
    ):
        self.model = model
        self.processor = processor
        self.lineage = dict(lineage)
        self.encoder = MediaEncoder(model, processor, features)
        self._answering = Answering(model, processor, self.encoder, self.lineage)
        self.new_cache = new_cache
        self._is_loaded = True
        is_static = model.device.type == "cuda" and new_cache is DynamicCache
        self._static = StaticDecoder(model.mllm.language_model) if is_static else None

    @property
    def features(self) -> FeatureStore:
        """Where features of media are kept."""
        return self.encoder.features

    def ask(
        self, source: Source | None, text: str, *, regions: Sequence[Region] = (), options: Options = DEFAULTS
    ) -> Answer:
        """One question about an image, a video (all that `open_media` takes), or nothing but text. `regions` mark parts
        of an image to be spoken of.

        Raises: MediaError, LimitError, DataError and ConfigError, for what cannot be asked.
        """
        return self.answer(question_about(source, text, regions), options)

    def stream(
        self, source: Source | None, text: str, *, regions: Sequence[Region] = (), options: Options = DEFAULTS
    ) -> Iterator[Event]:
        """What `ask` answers, as it comes; see `stream_answer`."""
        return self.stream_answer(question_about(source, text, regions), options)

    def answer(self, messages: Sequence[Message], options: Options = DEFAULTS) -> Answer:
        """The whole answer to a dialogue that ends with the user's turn.

        Raises: as `ask` does; DataError too, for what is no list of messages.
        """
        request = Request([messages], options)
        return answers_of(self.run([request]))[request][0]

    def stream_answer(
        self, messages: Sequence[Message], options: Options = DEFAULTS, *, last_prompt: LastPrompt | None = None
    ) -> Iterator[Event]:
        """The answer as it comes: text, then the objects spoken of, then their masks frame by frame, then all of it.

        Close the iterator to cancel. In a dialogue without an image or video, regions have no masks; in one with
        several, masks are of the last one shown. Turns of a dialogue that are given the same `last_prompt` read only
        what came since the turn before, so that last bits may differ from those of a dialogue that is read anew.
        """
        return raised(self.run([Request([messages], options, last_prompt=last_prompt)]))

    def segment(self, source: Source, phrases: Sequence[str], options: Options = DEFAULTS) -> Answer:
        """Ask for each phrase on its own and follow all objects found together, each frame encoded once.

        Regions carry the phrase they were asked for. Phrases that brought no object are in `lineage["not_found"]`.

        Raises: DataError, if there is no phrase; ConfigError, without a grounder, or for a `prefill` without `[SEG]`.
        """
        request = self.segmentation(source, phrases, options)
        return answers_of(self.run([request]))[request][0]

    def stream_segment(self, source: Source, phrases: Sequence[str], options: Options = DEFAULTS) -> Iterator[Event]:
        """What `segment` answers, as it comes; see `stream_answer`."""
        return raised(self.run([self.segmentation(source, phrases, options)]))

    def segmentation(self, source: Source, phrases: Sequence[str], options: Options = DEFAULTS) -> Request:
        """What `segment` asks, for `run`. Raises as `segment` does."""
        if isinstance(phrases, str):
            raise DataError(f"phrases are a list, and {phrases!r} is text; write [{phrases!r}]")
        phrases = list(phrases) if isinstance(phrases, Iterable) else []
        if not phrases or not all(isinstance(phrase, str) and phrase.strip() for phrase in phrases):
            raise DataError("there is no phrase, or one that is empty or no text; say what to find: ['the cyclist']")
        if self.model.grounder is None:
            raise ConfigError(
                f"{self.lineage['model']} has no grounder, so that it cannot segment; take a Sa2VA, "
                "or ask where things are in words (`segue chat`)"
            )
        media = open_media(source)
        question = self.model.family.prompts[f"segment_{media.kind}"]
        dialogues = [[Message.user(question.replace("{phrase}", phrase), media)] for phrase in phrases]
        request = Request(dialogues, options, phrases)
        check_prefill(options.prefill)
        return request

    def answer_each(self, dialogues: Sequence[Sequence[Message]], options: Options = DEFAULTS) -> list[Answer]:
        """Answers to several dialogues about one image or video, or about none.

        All objects found are followed together, so that each frame is decoded and encoded once.

        Raises: DataError, if there is no dialogue, or two of them are about different media.
        """
        request = Request(dialogues, options)
        return answers_of(self.run([request]))[request]

    def answer_all(
        self, dialogues: Sequence[Sequence[Message]], options: Options = DEFAULTS, *, rows: int = ROWS
    ) -> list[Answer]:
        """Answers to several dialogues about whatever media, up to `rows` decoded together; the same as asked one by
        one, if greedy.

        Those about one medium share its features, and their objects are followed together.

        Raises: as `answer` does.
        """
        for messages in dialogues:
            check_dialogue(messages)
        groups: dict[int, list[int]] = {}
        media = [target_media(messages) for messages in dialogues]
        for number, one in enumerate(media):
            alike = next((first for first in groups if one is not None and media[first] is one), number)
            groups.setdefault(alike, []).append(number)
        requests = {number: Request([dialogues[one] for one in group], options) for number, group in groups.items()}
        found = answers_of(self.run(requests.values(), rows=rows))
        answers = {
            number: answer
            for first, group in groups.items()
            for number, answer in zip(group, found[requests[first]], strict=True)
        }
        return [answers[number] for number in range(len(dialogues))]

    @torch.no_grad()
    def score(self, messages: Sequence[Message], answers: Sequence[str], options: Options = DEFAULTS) -> list[float]:
        """How likely each of some answers is after a dialogue: the mean log-probability of its tokens, at most 0.

        The highest is what a ranking by likelihood chooses. Media are encoded once. Marks of turns in an answer are
        text, and what ends an answer does not count.

        Raises: DataError, without an answer or for an empty one, and for a dialogue that cannot be asked.
        """
        if isinstance(answers, str):
            raise DataError(f"answers to compare are a list, and {answers!r} is text; write [{answers!r}]")
        if not answers or not all(answers):
            raise DataError(f"{len(answers)} answers cannot be compared; give at least one, and none that is empty")
        self._check_loaded()
        plan = self.plan(options)
        inputs = self._inputs([messages], plan)
        plans = [replace(plan, options=replace(options, prefill=answer)) for answer in answers]
        rows = [self._prepare(messages, one, inputs) for one in plans]
        self.encoder.encode([one for row in rows for one in row.media])
        found: list[float] = []
        for start in range(0, len(rows), ROWS):
            part = rows[start : start + ROWS]
            batch = collate(part, self.processor).to(self.model.device)
            _, hidden = self.model.mllm(replace(batch, labels=None))
            for row, example in enumerate(part):
                length = len(example.ids) - example.answer_start
                scores = self.model.mllm.head(hidden[row, -length - 1 : -1]).float().log_softmax(-1)
                said = batch.input_ids[row, -length:, None]
                found.append(float(scores.gather(-1, said).mean()))
        return found

    @torch.no_grad()
    def logits(self, messages: Sequence[Message], options: Options = DEFAULTS) -> Float[Tensor, " v"]:
        """Scores of all tokens that the answer to a dialogue may begin with. Raises as `answer` does."""
        self._check_loaded()
        plan = self.plan(options)
        example = self._prepare(messages, plan, self._inputs([messages], plan))
        self.encoder.encode(example.media)
        _, hidden = self.model.mllm(collate([example], self.processor).to(self.model.device))
        logits: Float[Tensor, " v"] = self.model.mllm.head(hidden[0, -1]).float()
        return logits

    @torch.no_grad()
    def run(self, requests: Iterable[Request | None], *, rows: int = ROWS) -> Iterator[tuple[Request, Event | Failed]]:
        """Events of many requests as they come, each with its request: the one way in which anything is answered.

        Up to `rows` dialogues are decoded together, of any age and about whatever media; a request is taken when there
        is room for it. `None` among the requests says that none is waiting now. A request ends with `Finished` for
        each of its answers, in order, or with `Failed`. Of videos a frame of each is done at a time, between the words
        of the others. Close the iterator to cancel all.

        Raises: ConfigError, for less than one row.
        """
        if rows < 1:
            raise ConfigError(f"{rows} dialogues cannot be decoded together; expected at least 1")
        coming, jobs = iter(requests), list[Job]()
        followed: list[Generator[tuple[Request, Event | Failed]]] = []
        waiting: deque[tuple[Job, Row]] = deque()
        decoder, self._static = Decoder(self.model.mllm, self._static, self.new_cache), None
        is_open = True
        try:
            while is_open or jobs or followed:
                while is_open and len(waiting) + len(decoder.rows) + len(followed) < rows:
                    request = next(coming, _NO_MORE)
                    is_open = request is not _NO_MORE
                    if not isinstance(request, Request):
                        break
                    try:
                        jobs.append(self._take(request))
                    except SegueError as error:
                        yield request, Failed(error)
                    else:
                        waiting.extend((jobs[-1], row) for row in jobs[-1].rows)
                    del request
                self._prefill(self._cohort(waiting, decoder, rows), decoder)
                yield from self._generate_text(jobs, decoder)
                done = [job for job in jobs if job.is_said]
                jobs = [job for job in jobs if not job.is_said]
                yield from self._answering.ground([job for job in done if not job.points_into("video")])
                followed += [self._answering.ground([job]) for job in done if job.points_into("video")]
                for one in list(followed):
                    event = next(one, None)
                    if event is None:
                        followed.remove(one)
                    else:
                        yield event
                done, event = [], None  # what is over is not kept while the next request is waited for
        finally:
            for one in followed:
                one.close()
            decoder.close()
            self._static = decoder.static or self._static

    def use_cache(self, store: Store, *, form: str = "lossless", point: Point = "tower") -> FeatureCache:
        """Take features of media from a store, and keep there what is computed. `forget` when weights have changed.
        Where they are not exact, `lineage` says so.

        Raises: ConfigError, for an unknown format, or a model in a type that is not kept.
        """
        cache = self.encoder.use_cache(store, form=form, point=point)
        is_exact = cache.form.is_lossless or (form == "bf16" and self.model.dtype == torch.bfloat16)
        self.lineage |= {} if is_exact else {"features": f"{form}, {point}"}
        return cache

    def unload(self) -> None:
        """Let go of all weights for good. It answers no more, but can still say what a request would ask."""
        self.forget()
        self._static, self._is_loaded = None, False
        weights.release(self.model)

    def _check_loaded(self) -> None:
        """Raises: ConfigError, after `unload`."""
        if not self._is_loaded:
            raise ConfigError(f"{self.lineage['model']} has let go of its weights (unload); load it anew")

    def forget(self) -> None:
        """Let go of what was computed from the medium asked about last, so that nothing of it is used again."""
        self.encoder.forget()

    def save(self, folder: str | Path, *, dtype: str | torch.dtype | None = None) -> None:
        """Write the model in our layout: `config.json`, sharded safetensors, tokenizer files and `lineage.json`.

        `dtype` as in `segue.load`; without one the weights keep the precision they have. The folder appears when
        all of it is written, and any Hugging Face loader of this class reads it.

        Raises: ConfigError, for another dtype, a folder that exists or quantised weights; CheckpointError, if it fails.
        """
        self._check_loaded()
        folder = Path(folder)
        precision = None if dtype is None else weights.as_dtype(dtype)
        if folder.exists():
            raise ConfigError(f"{folder} exists already; choose a new folder to save the model in")
        model_folder.save(self.model, folder, dtype=precision, also=self._save_rest)

    def _save_rest(self, folder: Path) -> None:
        self.processor.save(folder)
        weights.write_lineage(folder, self.lineage)

    def plan(self, options: Options = DEFAULTS) -> Plan:
        """Options with `auto` resolved for this model.

        Raises: ConfigError, for a policy that it cannot follow.
        """
        has_both = self.model.config.two_decoders
        policy: Policy = options.policy if options.policy != "auto" else "consistent" if has_both else "upstream"
        if policy == "consistent" and not has_both:
            raise ConfigError(
                "policy 'consistent' needs a checkpoint with both mask decoders (such as Sa2VA-i); this one has the "
                "language decoder alone. Give SAM 2's own weights beside it (--sam2, or load(sam2=...)), or use policy "
                "'upstream' or 'auto'"
            )
        trained = self.model.config.video_frames or self.model.family.video_frames
        published = "uniform:5" if policy == "consistent" else trained
        return Plan(policy, published if options.frames == "auto" else options.frames, options)

    def _take(self, request: Request) -> Job:
        """A request with its media looked at and its dialogues made ready."""
        self._check_loaded()
        timer, plan = Timer(), self.plan(request.options)
        shown = [target_media(messages) for messages in request.dialogues]
        if not shown or any(one is not shown[0] for one in shown):
            raise DataError(f"{len(shown)} questions cannot be asked together; give some, all about the same medium")
        inputs = self._inputs(request.dialogues, plan)
        examples = [self._prepare(messages, plan, inputs) for messages in request.dialogues]
        phrases = request.phrases or [""] * len(examples)
        schema = plan.options.json_schema
        rows = [
            Row(example, IncrementalText(self.processor.tokenizer), phrase, self._guides(schema) if schema else None)
            for example, phrase in zip(examples, phrases, strict=True)
        ]
        media_input = next((one for one in inputs if one.media is shown[0]), None)
        timer.lap("vision")
        last_prompt = request.last_prompt or (LastPrompt() if len(rows) > 1 else None)
        return Job(request, plan, timer, media_input, rows, last_prompt)

    def _inputs(self, dialogues: Sequence[Sequence[Message]], plan: Plan) -> list[MediaInput]:
        """The media that dialogues show, each once."""
        for messages in dialogues:
            check_dialogue(messages)
        inputs: list[MediaInput] = []
        for media in (part for messages in dialogues for part in shown_in(messages)):
            if not any(one.media is media for one in inputs):
                shown = self.encoder.preprocess(media, frames=plan.frames, max_tiles=plan.options.max_tiles)
                inputs.append(shown)
        return inputs

    def _prepare(self, messages: Sequence[Message], plan: Plan, media: Sequence[MediaInput]) -> TokenizedExample:
        if messages and messages[-1].role != "user":
            raise DataError(f"the dialogue ends with the {messages[-1].role}'s turn; end it with a question")
        example = prepare(messages, self._talking(plan.options), prefill=plan.options.prefill, media=media)
        check_length(len(example.ids), self.model.config, "the prompt")
        return example

    def _talking(self, options: Options) -> Processor:
        """The processor with the template that a request is written in."""
        if not options.raw:
            return self.processor
        talking = copy(self.processor)
        talking.template = RAW
        return talking

    def _cohort(self, waiting: deque[tuple[Job, Row]], decoder: Decoder, rows: int) -> list[tuple[Job, Row]]:
        """The rows that join now: as many as there is room for, in rows and in tokens, but at least one."""
        cohort: list[tuple[Job, Row]] = []
        longest = decoder.longest
        is_alone = False
        while waiting and not is_alone:
            job, row = waiting[0]
            if row.generation is not None:  # cancelled while it waited
                waiting.popleft()
                continue
            length = len(row.example.ids) + job.plan.options.max_new_tokens
            count, longest = len(decoder.rows) + len(cohort) + 1, max(longest, len(row.example.ids))
            is_alone = decodes_alone(self.model.mllm.language_model, length)
            is_too_much = count > rows or count * longest > TOKENS or is_alone or not decoder.accepts(length)
            if count > 1 and is_too_much:
                break
            cohort.append(waiting.popleft())
        return cohort

    def _prefill(self, cohort: Sequence[tuple[Job, Row]], decoder: Decoder) -> None:
        """Encode what rows show, and read their prompts; where the caller gave a reply, read it too."""
        self.encoder.encode([medium for _, row in cohort for medium in row.example.media])
        for job in dict.fromkeys(job for job, _ in cohort):
            job.timer.lap("vision")
        given = [row for job, row in cohort if job.plan.options.prefill is not None]
        asked: dict[LastPrompt | None, list[tuple[Job, Row]]] = {}
        for job, row in cohort:
            if job.plan.options.prefill is None:
                asked.setdefault(job.last_prompt, []).append((job, row))
        for last, group in asked.items():
            decodings = [self._decoding(job.plan.options, row) for job, row in group]
            examples = [row.example for _, row in group]
            if last is None:
                states = decoder.add(self._prompt(examples), decodings)
            else:
                prompts = [(self._prompt([one]), content_of(one, self.processor)) for one in examples]
                states = decoder.add_alike(prompts, decodings, last)
            for (_, row), state in zip(group, states, strict=True):
                row.state = state
        if given:
            batch = collate([row.example for row in given], self.processor).to(self.model.device)
            _, hidden = self.model.mllm.forward(replace(batch, labels=None))
            for row, said in zip(given, hidden, strict=True):
                reply = row.example.ids[row.example.answer_start :].to(hidden.device)
                states_said = said[len(said) - len(reply) :]
                seg_hidden = seg_states(states_said[None], reply[None], self.processor.seg_id)
                row.generation = Generation(reply.tolist(), seg_hidden, "prefilled")

    def _prompt(self, examples: Sequence[TokenizedExample]) -> Prompt:
        return self.model.mllm.prompt(collate(examples, self.processor).to(self.model.device))

    @cached_property
    def _guides(self) -> Guides:
        return Guides(self.processor.tokenizer, self.processor.eos_ids[0])

    def _decoding(self, options: Options, row: Row) -> Decoding:
        return Decoding(
            is_over=stop_check(
                self.processor.tokenizer, self._talking(options).template, self.processor.eos_ids, options.stop
            ),
            seg_id=self.processor.seg_id,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=options.seed,
            guide=row.guide,
            likeliest=options.likeliest,
        )

    def _generate_text(self, jobs: Sequence[Job], decoder: Decoder) -> Iterator[tuple[Request, Event]]:
        """One more token for every row, and the text that came of it; rows of one request speak one after another."""
        for row in (row for job in jobs if job.request.is_cancelled for row in job.rows):
            if row.state is not None:
                decoder.remove(row.state)
        decoder.step()
        like = self.model.mllm.get_input_embeddings().weight
        for job in jobs:
            for row in job.rows:
                if row.state is not None and row.generation is None and row.state.is_finished:
                    row.generation = row.state.generation(like)
                elif row.state is None and job.request.is_cancelled and row.generation is None:
                    row.generation = Generation([], like.new_empty(0, like.shape[1]), "cancelled")
            for text in job.pieces():
                yield job.request, TextDelta(text)
            if job.is_said:
                job.timer.lap("language")
