"""Load a model and ask it: messages in, an answer or a stream of events out. No globals."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from segue import weights
from segue.errors import CheckpointError, ConfigError, DataError
from segue.geometry.masks import box_of, encode
from segue.geometry.notation import parse_grounded
from segue.grounding import model as grounded
from segue.grounding.following import Policy, Shot, find, follow, frame_masks
from segue.grounding.following import encode as encode_frames
from segue.grounding.sam2 import Decoded, Encoded
from segue.media import iter_frames, open_media
from segue.models.base import Batch, Decoding, Generation, Processor, seg_states
from segue.models.templates import stop_check
from segue.prepare import Example, View, collate, look, prepare
from segue.types import (
    Answer,
    Event,
    Finished,
    FrameMasks,
    Frames,
    MaskTrack,
    Media,
    Message,
    ObjectsFound,
    Region,
    StopReason,
    TextDelta,
    Usage,
)

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WANTED_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to answer. Every field has a default; the fields that decided a result are written with it.

    `frames` is the plan of video frames that the language model sees: `first:k`, `uniform:k`, numbers, or `auto`, which is what
    the policy was published with. `policy` is how objects are followed through a video (see
    `segue.grounding.following.follow`); `auto` is `consistent` where the checkpoint has the decoders for it. `threshold` is the
    probability, in (0, 1), above which a pixel belongs to an object. `keep_logits` keeps low-resolution logits in
    the masks. `prefill` is the reply up to and including its `[SEG]`s, given by the caller, so that one forward pass
    replaces decoding. `temperature` 0 is greedy. `max_tiles` bounds the tiles of an image; fewer are faster and coarser.
    """

    frames: str = "auto"
    policy: Literal["auto", "upstream", "consistent"] = "auto"
    threshold: float = 0.5
    keep_logits: bool = False
    prefill: str | None = None
    max_new_tokens: int = 2048
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_tiles: int = 12

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ConfigError(f"threshold {self.threshold} is out of range; expected a probability between 0 and 1")
        if self.policy not in ("auto", "upstream", "consistent"):
            raise ConfigError(f"unknown policy {self.policy!r}; expected auto, upstream or consistent")
        if self.max_new_tokens < 1 or not 1 <= self.max_tiles <= 64:
            raise ConfigError(
                f"max_new_tokens {self.max_new_tokens} or max_tiles {self.max_tiles} is out of range; "
                "expected at least 1 token and 1 to 64 tiles"
            )


@dataclass(slots=True)
class _Timer:
    seconds: dict[str, float] = field(default_factory=dict)
    mark: float = field(default_factory=time.perf_counter)

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self.mark
        self.mark = now


@dataclass(frozen=True, slots=True)
class _Seen:
    """The medium asked about last and what was computed from it alone, for the next question about it."""

    media: Media
    plan: tuple[str, int]
    view: View
    features: Float[Tensor, "v d"]
    encoded: Encoded | None


@dataclass(slots=True)
class _Track:
    """One object's masks as they come in."""

    index: list[int] = field(default_factory=list)
    rles: list[str] = field(default_factory=list)
    logits: list[np.ndarray] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    presence: list[float] = field(default_factory=list)
    box: Float[np.ndarray, " 4"] | None = None

    def add(self, frame: FrameMasks, number: int, logits: Tensor | None) -> None:
        mask = frame.masks[number]
        self.index.append(frame.index)
        self.rles.append(encode(mask))
        self.scores.append(float(frame.scores[number]))
        self.presence.append(float(frame.presence[number]))
        if logits is not None:
            self.logits.append(logits[number].cpu().numpy())
        if self.box is None:
            self.box = box_of(mask)

    def region(self, region: Region, size: tuple[int, int]) -> Region:
        logits = np.stack(self.logits) if self.logits else None
        return replace(
            region,
            box=self.box,
            masks=MaskTrack(size, np.array(self.index), tuple(self.rles), logits),
            score=float(np.mean(self.scores)),
            scores=np.array(self.scores),
            presence=np.array(self.presence),
        )


class Engine:
    """A loaded model and how to ask it. Answers depend on the arguments alone; several may be asked in turn.

    `lineage` says where the weights come from, in what precision and with which versions they run.
    """

    def __init__(self, model: grounded.GroundedModel, processor: Processor, lineage: Mapping[str, Any]):
        self.model = model
        self.processor = processor
        self.lineage = dict(lineage)
        self._seen: _Seen | None = None

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return self.model.seg_projector[0].weight.device

    def ask(
        self,
        source: str | Path | Media | np.ndarray | None,
        text: str,
        *,
        regions: Sequence[Region] = (),
        options: Options = Options(),  # noqa: B008  frozen
    ) -> Answer:
        """One question about an image, a video, or nothing but text. `regions` mark parts of an image to be spoken of.

        Raises: MediaError, LimitError, DataError and ConfigError, for what cannot be asked.
        """
        media = source if isinstance(source, Media) or source is None else open_media(source)
        return self.answer([Message.user(text, media, tuple(regions))], options)

    def answer(self, messages: Sequence[Message], options: Options = Options()) -> Answer:  # noqa: B008
        """The whole answer to a dialogue that ends with the user's turn."""
        return _last(self.stream(messages, options))

    @torch.no_grad()
    def stream(self, messages: Sequence[Message], options: Options = Options()) -> Iterator[Event]:  # noqa: B008
        """The answer as it comes: text, then the objects spoken of, then their masks frame by frame, then all of it.

        Close the iterator to cancel; nothing is kept.
        """
        timer, plan = _Timer(), self._plan(options)
        media = next((part for message in messages for part in message.parts if isinstance(part, Media)), None)
        seen = self._look(media, plan, options, timer)
        example = self._prepare(messages, plan, options, seen)
        generation = yield from self._generate(example, seen, options)
        timer.lap("language")
        yield from self._finish([(example, generation, "")], seen, plan, options, timer)

    @torch.no_grad()
    def segment(
        self, media: Media, phrases: Sequence[str], options: Options = Options()  # noqa: B008
    ) -> Iterator[Event]:
        """Ask for each phrase on its own and follow all objects found together, each frame encoded once.

        Regions carry the phrase they were asked for. A phrase that brings no object is named in `lineage["not_found"]`.

        Raises: DataError, if there is no phrase.
        """
        if not phrases:
            raise DataError("no phrase to segment; give at least one, such as 'the cyclist'")
        timer, plan = _Timer(), self._plan(options)
        seen = self._look(media, plan, options, timer)
        question = self.model.family.prompts[f"segment_{media.kind}"]
        asked = []
        for phrase in phrases:
            message = Message.user(question.replace("{phrase}", phrase), media)
            example = self._prepare([message], plan, options, seen)
            asked.append((example, (yield from self._generate(example, seen, options)), phrase))
        timer.lap("language")
        yield from self._finish(asked, seen, plan, options, timer)

    @torch.no_grad()
    def answer_all(
        self, dialogues: Sequence[Sequence[Message]], options: Options = Options()  # noqa: B008
    ) -> list[Answer]:
        """Answers to several dialogues about images, computed as one batch; the same as asked one by one.

        Raises: DataError, if one of them is about a video: those are followed one at a time, by `answer`.
        """
        timer, plan = _Timer(), self._plan(options)
        examples = [self._prepare(messages, plan, options, None) for messages in dialogues]
        if any(example.view is not None and example.view.media.kind == "video" for example in examples):
            raise DataError("a batch holds a video; ask about videos one at a time")
        batch = self._to_device(collate(examples, self.processor))
        features = None if batch.pixels is None else self.model.mllm.encode(batch.pixels)
        timer.lap("vision")
        generations = self._run(batch, features, examples, options)
        timer.lap("language")
        grounded_rows = [row for row, generation in enumerate(generations) if len(generation.seg_hidden)]
        images = [_image(examples[row]) for row in grounded_rows]
        encoded = encode_frames(self.model.grounder, images) if images else None
        answers = []
        for row, (example, generation) in enumerate(zip(examples, generations, strict=True)):
            frame = encoded.frame(grounded_rows.index(row)) if encoded is not None and row in grounded_rows else None
            seen = _Seen(example.view.media, ("", 0), example.view, torch.empty(0), frame) if example.view else None
            answers.append(_last(self._finish([(example, generation, "")], seen, plan, options, timer)))
        return answers

    def save(self, folder: Path, *, dtype: str | None = None) -> None:
        """Write the model in our layout: `config.json`, sharded safetensors, tokenizer files and `lineage.json`.

        `dtype` is fp32, bf16 or fp16; without one the weights keep the precision they have. Loads everywhere a Hugging Face
        folder of this class does.
        """
        from segue.media.files import atomic_path

        if dtype is not None and dtype not in DTYPES:
            raise ConfigError(f"unknown dtype {dtype!r}; expected {', '.join(DTYPES)}")
        with atomic_path(folder) as part:
            part.mkdir(parents=True)
            self.model.config.save_pretrained(part)
            weights.save(self.model, part, dtype=DTYPES[dtype] if dtype else None)
            self.processor.save(part)
            weights.write_lineage(part, self.lineage)

    def _plan(self, options: Options) -> tuple[Policy, str]:
        """Policy and frame plan, with `auto` resolved."""
        has_both = self.model.config.two_decoders
        policy: Policy = "consistent" if options.policy == "auto" and has_both else "upstream"
        if options.policy != "auto":
            policy = options.policy
        if policy == "consistent" and not has_both:
            raise ConfigError(
                "policy 'consistent' needs a checkpoint with both mask decoders (such as Sa2VA-i); this one has the "
                "language decoder alone. Use policy 'upstream' or 'auto'"
            )
        by_policy = "uniform:5" if policy == "consistent" else self.model.family.video_frames
        return policy, by_policy if options.frames == "auto" else options.frames

    def _look(self, media: Media | None, plan: tuple[Policy, str], options: Options, timer: _Timer) -> _Seen | None:
        if media is None:
            return None
        key = (plan[1], options.max_tiles)
        if self._seen is not None and self._seen.media is media and self._seen.plan == key:
            return self._seen
        view = look(media, self.processor, frames=plan[1], max_tiles=options.max_tiles)
        features = self.model.mllm.encode(view.visual.pixels.to(self.device))
        self._seen = _Seen(media, key, view, features, None)
        timer.lap("vision")
        return self._seen

    def _prepare(
        self, messages: Sequence[Message], plan: tuple[Policy, str], options: Options, seen: _Seen | None
    ) -> Example:
        return prepare(
            messages,
            self.processor,
            frames=plan[1],
            max_tiles=options.max_tiles,
            prefill=options.prefill,
            view=seen.view if seen else None,
        )

    def _to_device(self, batch: Any) -> Any:
        moved = {name: getattr(batch, name) for name in batch.__slots__}
        return type(batch)(**{name: None if t is None else t.to(self.device) for name, t in moved.items()})

    def _generate(self, example: Example, seen: _Seen | None, options: Options) -> Iterator[TextDelta]:
        """Text as it comes; returns the row's `Generation`."""
        batch = self._to_device(collate([example], self.processor))
        features = seen.features if seen else None
        if options.prefill is not None:
            yield TextDelta(options.prefill)
            return self._run(batch, features, [example], options)[0]
        steps = self.model.mllm.generate(batch, features, self._decoding(options))
        ids: list[int] = []
        said = ""
        while True:
            try:
                ids.append(next(steps)[0])
            except StopIteration as done:
                return done.value[0]
            text = self.processor.tokenizer.decode(ids, skip_special_tokens=False)
            # an unfinished character decodes to a replacement mark: wait for the rest of it
            if not text.endswith("\ufffd"):
                yield TextDelta(text[len(said) :])
                said = text

    def _run(
        self, batch: Any, features: Tensor | None, examples: Sequence[Example], options: Options
    ) -> list[Generation]:
        if options.prefill is None:
            steps = self.model.mllm.generate(batch, features, self._decoding(options))
            while True:
                try:
                    next(steps)
                except StopIteration as done:
                    return done.value
        _, hidden = self.model.mllm.forward(batch, features)
        found = []
        for row, example in enumerate(examples):
            reply = example.ids[example.answer_start :].to(self.device)
            states = hidden[row, hidden.shape[1] - len(reply) :]
            found.append(Generation(reply.tolist(), seg_states(states[None], reply[None], self.processor.seg_id), "prefilled"))
        return found

    def _decoding(self, options: Options) -> Decoding:
        return Decoding(
            is_over=stop_check(self.processor.tokenizer, self.processor.template, self.processor.eos_ids),
            seg_id=self.processor.seg_id,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=options.seed,
        )

    def _finish(
        self,
        asked: Sequence[tuple[Example, Generation, str]],
        seen: _Seen | None,
        plan: tuple[Policy, str],
        options: Options,
        timer: _Timer,
    ) -> Iterator[Event]:
        """Masks for what was said, frame by frame, then the answer."""
        raw = [self.processor.tokenizer.decode(g.ids, skip_special_tokens=False).strip() for _, g, _ in asked]
        texts, regions = self._spoken(asked, raw)
        frames = 0
        if regions and seen is None:
            raise DataError(f"the answer points at {len(regions)} objects, and the dialogue has no image or video")
        if regions and seen is not None:
            yield ObjectsFound(seen.media, regions)
            tracks = [_Track() for _ in regions]
            hidden = torch.cat([generation.seg_hidden for _, generation, _ in asked])
            for masks, decoded in self._masks(self.model.prompts(hidden), seen, plan[0], options):
                for number, track in enumerate(tracks):
                    track.add(masks, number, decoded.logits if options.keep_logits else None)
                frames += 1
                yield masks
            regions = tuple(track.region(region, seen.media.size) for track, region in zip(tracks, regions, strict=True))
        timer.lap("masks")
        usage = Usage(
            prompt_tokens=sum(example.answer_start for example, _, _ in asked),
            visual_tokens=sum(len(example.view.visual.rows) for example, _, _ in asked if example.view),
            answer_tokens=sum(len(generation.ids) for _, generation, _ in asked),
            encoded_frames=frames,
            seconds=timer.seconds,
        )
        lineage = {**self.lineage, "request": self._request(asked, seen, plan, options)}
        missing = [phrase for _, generation, phrase in asked if phrase and not len(generation.seg_hidden)]
        if missing:
            lineage["not_found"] = missing
        yield Finished(Answer("\n".join(texts), regions, "\n".join(raw), usage, _reason(asked), lineage))

    def _spoken(
        self, asked: Sequence[tuple[Example, Generation, str]], raw: Sequence[str]
    ) -> tuple[list[str], tuple[Region, ...]]:
        """Clean texts and one region per segmentation token, spans counted over the joined text."""
        texts: list[str] = []
        regions: list[Region] = []
        offset = 0
        for (_, generation, phrase), spoken in zip(asked, raw, strict=True):
            text, found = parse_grounded(spoken)
            if len(found) != len(generation.seg_hidden):
                # the letters "[SEG]" spelled out of ordinary tokens ask for nothing
                found = tuple(Region() for _ in generation.seg_hidden)
            for region in found:
                span = None if region.span is None else (region.span[0] + offset, region.span[1] + offset)
                regions.append(replace(region, phrase=region.phrase or phrase, span=span))
            texts.append(text)
            offset += len(text) + 1
        return texts, tuple(regions)

    def _masks(
        self, prompts: Float[Tensor, "n d"], seen: _Seen, policy: Policy, options: Options
    ) -> Iterator[tuple[FrameMasks, Decoded]]:
        grounder = self.model.grounder
        if seen.media.kind == "image":
            encoded = seen.encoded or encode_frames(grounder, [seen.view.shown.pixels[0]])
            if self._seen is seen:
                self._seen = replace(seen, encoded=encoded)
            found = iter([(Shot(0, 0.0, seen.view.shown.pixels[0]), find(grounder, encoded, prompts))])
        else:
            shots = (Shot(*shot) for shot in iter_frames(seen.media))
            found = follow(grounder, prompts, _by_number(seen.view.shown), shots, policy=policy)
        for shot, decoded in found:
            yield frame_masks(shot, decoded, side=grounder.side, threshold=options.threshold), decoded

    def _request(
        self,
        asked: Sequence[tuple[Example, Generation, str]],
        seen: _Seen | None,
        plan: tuple[Policy, str],
        options: Options,
    ) -> dict[str, Any]:
        """What decided this answer, beside the model."""
        questions = [self._collapsed(example.ids[: example.answer_start].tolist()) for example, _, _ in asked]
        is_video = seen is not None and seen.media.kind == "video"
        return {
            **asdict(options),
            "policy": plan[0] if is_video else None,
            "frames": plan[1] if is_video else None,
            "frames_shown": list(seen.view.plan) if seen is not None and is_video else None,
            "prompts": questions,
        }

    def _collapsed(self, ids: Sequence[int]) -> str:
        """A prompt for people: each run of visual tokens as its length."""
        text = self.processor.tokenizer.decode(list(ids), skip_special_tokens=False)
        token = self.processor.visual_token
        pieces, run = [], 0
        for piece in text.replace(token, f"\0{token}\0").split("\0"):
            if piece == token:
                run += 1
            elif piece:
                pieces += [f"{token}*{run}"] * bool(run) + [piece]
                run = 0
        return "".join(pieces)


def _last(events: Iterator[Event]) -> Answer:
    for event in events:
        if isinstance(event, Finished):
            return event.answer
    raise RuntimeError("a stream ended without its answer")


def _image(example: Example) -> UInt8[np.ndarray, "h w 3"]:
    if example.view is None:
        raise DataError("the answer points at objects, and the dialogue has no image")
    return example.view.shown.pixels[0]


def _by_number(shown: Frames) -> dict[int, UInt8[np.ndarray, "h w 3"]]:
    return {int(number): image for number, image in zip(shown.index, shown.pixels, strict=True)}


def _reason(asked: Sequence[tuple[Example, Generation, str]]) -> StopReason:
    reasons = [generation.stop_reason for _, generation, _ in asked]
    return "length" if "length" in reasons else reasons[0]


def load(model: str | Path, *, device: str = "auto", dtype: str = "auto") -> Engine:
    """A model from a folder in the official Sa2VA or our own layout, or from the hub by its id.

    `device` is auto, cpu, cuda, cuda:1, mps ...; `dtype` auto, bf16, fp16 or fp32. `auto` takes the best device there is, and
    bfloat16 on a GPU that has it, float32 elsewhere. Nothing that the folder brings is executed.

    Raises: CheckpointError, if the weights do not fit; ConfigError, if nothing here knows the model or the device.
    """
    folder = resolve(model)
    place = _device(device)
    precision = _dtype(dtype, place)
    loaded, report = grounded.load(folder, dtype=precision, device=place)
    processor = loaded.family.processor(folder, loaded.config.mllm_config, loaded.config.template)
    lineage = {
        "model": str(model),
        **weights.lineage(folder, report),
        "family": loaded.config.family,
        "dtype": str(precision).removeprefix("torch."),
        "device": place,
        "versions": {name: version(name) for name in ("segue", "torch", "transformers")},
        "python": platform.python_version(),
    }
    return Engine(loaded, processor, lineage)


def resolve(model: str | Path) -> Path:
    """The folder of a model: itself, or a snapshot of the hub repository of that id.

    Raises: CheckpointError, if it is neither.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    parts = str(model).split("/")
    if len(parts) != 2 or not all(parts) or folder.is_absolute() or parts[0] in (".", ".."):
        raise CheckpointError(f"there is no folder {str(model)!r}; expected a model folder or a hub id such as ByteDance/Sa2VA-4B")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(model), allow_patterns=WANTED_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(f"{model!r} is no folder here and could not be fetched from the hub ({error})") from error


def _device(name: str) -> str:
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise ConfigError(f"unknown device {name!r}; expected auto, cpu, cuda, cuda:1 or mps") from error
    if (kind == "cuda" and not torch.cuda.is_available()) or (kind == "mps" and not has_mps):
        raise ConfigError(f"device {name!r} is not available on this machine; use --device cpu or auto")
    return name


def _dtype(name: str, device: str) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.startswith("cuda") and torch.cuda.is_bf16_supported() else torch.float32
    if name not in DTYPES:
        raise ConfigError(f"unknown dtype {name!r}; expected auto, {', '.join(DTYPES)}")
    return DTYPES[name]
