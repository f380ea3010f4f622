"""Recordings of Sa2VA: a model with SAM 2, from pixels to masks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from segue import loading
from segue.checkpoints.model_folder import claiming
from segue.engine import Engine
from segue.models.native_resolution.shared import NativeResolutionMLLM
from segue.models.protocol import Processor
from segue.parity.cases import replay_case
from segue.parity.compare import Replay
from segue.parity.language import replay_language, replay_vision
from segue.parity.masks import Frames, replay_frames, replay_image, replay_single, replay_tracker, replay_video
from segue.parity.preprocessing import replay_preprocessing, replay_prompts
from segue.parity.recording import Recording
from segue.weights import read_json

NO_WEIGHTS = "this recording comes without weights"


@dataclass(frozen=True, slots=True)
class Subject:
    """What a recording is replayed on: its processor, and a model where the recording has one.

    `frames` is the plan of frames, `encoded` what SAM 2 has made of frames so far, for all seams together.
    """

    processor: Processor
    engine: Engine | None
    frames: str
    encoded: Frames | None = None


def load(recording: Recording, *, dtype: str = "fp32", device: str = "cpu") -> Subject:
    """The recorded model, or its preprocessing alone if its weights were left out.

    Raises: ConfigError, if no family here claims it; CheckpointError, if its weights do not fit.
    """
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
    return Subject(engine.processor, engine, plan, Frames(engine.model.grounder))


def replay(recording: Recording, seam: str, model: Subject) -> Replay:
    """One seam: what ours makes of the same inputs."""
    if seam == "pre":
        return replay_preprocessing(recording, model.processor)
    if seam == "prompt":
        return replay_prompts(recording, model.processor, model.frames)
    if model.engine is None or model.encoded is None:
        return Replay(skipped={name: NO_WEIGHTS for name in recording.names(seam)})
    whole, frames = model.engine.model, model.encoded
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
    return replays[seam]() if seam in replays else Replay()
