"""Replaying a recording of the original code, seam by seam, and saying how near ours comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from segue import loading
from segue.checkpoints.model_folder import claiming
from segue.engine import Engine
from segue.errors import ConfigError
from segue.models.native_resolution.shared import NativeResolutionMLLM
from segue.models.protocol import Processor
from segue.parity import qwen_vl, qwen_vl_text
from segue.parity.cases import replay_case
from segue.parity.compare import TOLERANCE, Check, Found, Seam, judge
from segue.parity.language import replay_language, replay_vision
from segue.parity.masks import Frames, replay_frames, replay_image, replay_single, replay_tracker, replay_video
from segue.parity.preprocessing import replay_preprocessing, replay_prompts
from segue.parity.qwen_vl import QwenVLSubject
from segue.parity.recording import TEXTS, Recording
from segue.weights import read_json

__all__ = ["TOLERANCE", "Check", "Recording", "Report", "Seam", "load", "replay", "wanted_seams"]

NO_WEIGHTS = "this recording comes without weights"


@dataclass(frozen=True, slots=True)
class Subject:
    """What a recording is replayed on: its processor, and a model where the recording has one."""

    processor: Processor
    engine: Engine | None
    frames: str


@dataclass(frozen=True, slots=True)
class Report:
    """How a recording compares: its seams in the order of the data's flow, and notes on how it was done."""

    recording: str
    seams: tuple[Seam, ...]
    notes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether something was compared and nothing fails."""
        verdicts = {seam.verdict for seam in self.seams}
        return "fail" not in verdicts and "pass" in verdicts


def load(recording: Recording, *, dtype: str = "fp32", device: str = "cpu") -> Subject | QwenVLSubject:
    """The recorded model, or its preprocessing alone if its weights were left out.

    Raises: ConfigError, if no family here claims it; CheckpointError, if its weights do not fit.
    """
    if recording.is_qwen_vl:
        precision = loading.pick_dtype(dtype, device)
        return qwen_vl.load(recording, dtype=precision, device=loading.pick_device(device))
    raw = read_json(recording.folder / "config.json")
    family = claiming(raw)
    if recording.has_weights:
        return subject(loading.load(recording.folder, device=device, dtype=dtype))
    config = family.architecture(raw)
    return Subject(family.processor(recording.folder, config, raw["template"]), None, family.video_frames)


def subject(engine: Engine) -> Subject:
    """A loaded model to replay a recording on; from now on its language side attends as the recorded one did."""
    # another order of summation would turn a pixel whose logit is 0 to within float32; the Qwen-VL flavours were
    # recorded with the fused kernel, whatever their manifests say: only with it are states equal to the last bit
    is_fused = isinstance(engine.model.mllm, NativeResolutionMLLM)
    engine.model.mllm.set_attn_implementation("sdpa" if is_fused else "eager")
    # the original's two flavours choose their frames by different rules, and each was recorded with its own
    plan = "uniform:5" if engine.model.config.two_decoders else engine.model.family.video_frames
    return Subject(engine.processor, engine, plan)


def wanted_seams(recording: Recording, only: Sequence[str] = ()) -> tuple[str, ...]:
    """The recording's seams, or those of them that are named in `only` in full or by their first parts.

    Raises: ConfigError, naming the seams there are, for a name that is none.
    """
    for name in only:
        if not any(f"{seam}.".startswith(f"{name}.") for seam in recording.seams):
            raise ConfigError(f"{recording.folder} has no seam {name!r}; it has {', '.join(recording.seams)}")
    return tuple(
        seam for seam in recording.seams if not only or any(f"{seam}.".startswith(f"{name}.") for name in only)
    )


@torch.no_grad()
def replay(
    recording: Recording,
    model: Subject | QwenVLSubject,
    seams: Sequence[str],
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Replay these seams of a recording, on as many threads as it was made; `say` hears each before its turn."""
    done, notes = [], []
    engine = model.engine if isinstance(model, Subject) else None
    frames = None if engine is None else Frames(engine.model.grounder)
    with _threads(recording.threads):
        for seam in seams:
            say(f"{recording.folder.name}: {seam}")
            found = _replay_seam(recording, seam, model, frames)
            done.append(Seam(seam, tuple(judge(recording, seam, found))))
            notes += found.notes
    return Report(recording.folder.name, tuple(done), tuple(notes))


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """So many threads for sums on a CPU, which are split among them, while the context lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _replay_seam(recording: Recording, seam: str, model: Subject | QwenVLSubject, frames: Frames | None) -> Found:
    if isinstance(model, QwenVLSubject):
        is_text = seam in TEXTS
        return (
            qwen_vl_text.replay(recording, seam, model.tokenizer)
            if is_text
            else qwen_vl.replay(recording, seam, model.mllm)
        )
    if seam == "pre":
        return replay_preprocessing(recording, model.processor)
    if seam == "prompt":
        return replay_prompts(recording, model.processor, model.frames)
    if model.engine is None or frames is None:
        return Found(skipped={name: NO_WEIGHTS for name in recording.names(seam)})
    whole = model.engine.model
    first, _, rest = seam.partition(".")
    if first == "e2e":
        return replay_case(recording, rest, model.engine, model.frames, frames)
    if first == "tracker":
        return replay_tracker(recording, seam, whole.grounder, frames)
    if rest.startswith("video.cond"):
        return replay_video(recording, seam, whole.grounder, frames)
    replays = {
        "vision": partial(replay_vision, recording, whole.mllm),
        "llm": partial(replay_language, recording, whole.mllm),
        "sam2": partial(replay_image, recording, whole.grounder),
        "sam2.single": partial(replay_single, recording, whole.grounder, frames),
        "sam2.video": partial(replay_frames, recording, whole.grounder, frames),
    }
    return replays[seam]() if seam in replays else Found()
