"""What things cost: the stages of one model on one machine, measured side by side in one run.

On a machine that others share, absolute times say little. Ratios of work done in turns within one run say more, and
counts of work say most. On a CPU the clock is the processor time of this process; elsewhere it is wall time between
points at which the device has nothing left to do.
"""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from segue.bench.clock import seconds_of
from segue.bench.limits import flops_of, measured, read_per_token
from segue.bench.report import BenchPlan, BenchReport, Encodes, StageTiming
from segue.checkpoints.model_folder import load_processor
from segue.checkpoints.random_weights import write_tokenizer
from segue.checkpoints.zoo import config_of
from segue.engine import Engine
from segue.grounding import model as grounded
from segue.grounding.following import decode_prompts, encode
from segue.grounding.sam2 import Encoded, LanguageSam2
from segue.grounding.tracking import MAX_POINTERS, VideoMemory, conditioning, step
from segue.loading import pick_device, pick_dtype
from segue.media import open_media
from segue.media.sampling import choose
from segue.models.decoding import Decoder, Decoding
from segue.models.protocol import MLLM, Batch, visual_features
from segue.models.static_decoding import StaticDecoder
from segue.options import Options
from segue.prepare import collate, prepare, preprocess_media
from segue.types import Message

IMAGE_SIZE = (800, 800)
CLIP_SIZE = (360, 640)
NEW_TOKENS = {"cpu": 16, "cuda": 128}
PHRASE = "the object"
LONG = 1000  # frames of a video long enough that its memory has stopped growing


def random_engine(architecture: str, *, device: str = "auto", dtype: str = "auto") -> Engine:
    """A model of a known architecture in its real size, with random weights that are written nowhere.

    Its tokenizer knows single bytes only, which changes no cost but that of a longer prompt. `device` and `dtype` are
    `segue.loading.load`'s.

    Raises: ConfigError, for an unknown architecture, device or dtype.
    """
    config, place = config_of(architecture), pick_device(device)
    precision = pick_dtype(dtype, place, sum(map(math.prod, grounded.expected(config).values())))
    model = grounded.build(config, dtype=precision, device=place, fill=True)
    with TemporaryDirectory() as name:
        write_tokenizer(Path(name), config.special_tokens)
        processor = load_processor(Path(name), config)
    lineage = {"model": architecture, "random": True, "dtype": str(precision).removeprefix("torch."), "device": place}
    return Engine(model, processor, lineage)


@torch.no_grad()
def measure(engine: Engine, plan: BenchPlan, tell: Callable[[str], None]) -> BenchReport:
    """Measure a loaded model; `tell` gets a line per stage.

    What the model answers does not matter, so random weights will do.
    """
    device = engine.model.device
    limits = measured(device, engine.model.dtype)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    encodes: list[Encodes] = []
    stages: list[StageTiming] = []
    for stage in _stages(engine, plan, encodes):
        stages.append(stage)
        tell(f"{stage.name}{'' if stage.objects is None else f', objects: {stage.objects}'}: {stage.least:.3g} s")
    return BenchReport(
        model=engine.lineage,
        machine=_machine(device),
        plan=plan,
        clock="CPU seconds" if device.type == "cpu" else "wall seconds, the device idle at both ends",
        stages=tuple(stages),
        encodes=tuple(dict.fromkeys(encodes)),
        limits=limits,
        weight_bytes=sum(tensor.nbytes for tensor in engine.model.state_dict().values()),
        peak_bytes=peak_bytes(device),
    )


def _stages(engine: Engine, plan: BenchPlan, encodes: list[Encodes]) -> Iterator[StageTiming]:
    yield from _language_stages(engine, plan.repeats)
    yield from _mask_stages(engine, plan)
    for name, pixels, repeats in (
        ("image, start to end", blocks(1, IMAGE_SIZE)[0], plan.repeats),
        ("clip, start to end", blocks(plan.frames, CLIP_SIZE), 1),
    ):
        jobs = {objects: partial(_ask, engine, pixels, objects, encodes) for objects in plan.objects}
        for objects, seconds in _in_turns(jobs, repeats, engine.model.device).items():
            count, unit = (1, "image") if pixels.ndim == 3 else (len(pixels), "frame")
            yield StageTiming(name, objects, count, unit, seconds)


def _language_stages(engine: Engine, repeats: int) -> Iterator[StageTiming]:
    """Tiles to features, prompt to first token, and the tokens after it."""
    mllm, device = engine.model.mllm, engine.model.device
    batch = _question(engine)
    assert batch.pixels is not None
    job = partial(visual_features, mllm, batch)
    flops = flops_of(job)
    count, unit = (len(batch.pixels), "tile") if batch.grids is None else (len(batch.grids), "image")
    yield StageTiming("vision encode", None, count, unit, _in_turns({0: job}, repeats, device)[0], flops)
    yield from _reading_stages(engine, batch.with_features(visual_features(mllm, batch)), repeats)


def _question(engine: Engine) -> Batch:
    media = open_media(blocks(1, IMAGE_SIZE)[0])
    shown = preprocess_media(media, engine.processor, frames="first:1")
    question = engine.model.family.prompts["segment_image"].replace("{phrase}", PHRASE)
    example = prepare([Message.user(question, media)], engine.processor, media=[shown])
    return collate([example], engine.processor).to(engine.model.device)


def _reading_stages(engine: Engine, batch: Batch, repeats: int) -> Iterator[StageTiming]:
    """A prompt up to its first token, and the tokens after it; on CUDA, also how long it takes to record a step."""
    mllm, device = engine.model.mllm, engine.model.device
    count = NEW_TOKENS.get(device.type, 64)
    settings = Decoding(is_over=lambda ids: False, seg_id=engine.processor.seg_id, max_new_tokens=2 * count)
    first = partial(_first_token, mllm, batch, settings, None)
    flops = flops_of(first)
    prefill = _in_turns({0: first}, repeats, device)[0]
    yield StageTiming("prefill", None, batch.input_ids.shape[1], "token", prefill, flops)
    weights = float(count * read_per_token(mllm.language_model))
    kinds: dict[str, StaticDecoder | None] = {"decode": None}
    if device.type == "cuda":
        kinds = {"decode": StaticDecoder(mllm.language_model), "decode, not recorded": None}
        recorded = seconds_of(partial(_first_token, mllm, batch, settings, kinds["decode"]), device)
        yield StageTiming("record a step", None, 1, "graph", (max(recorded - min(prefill), 0.0),))
    for name, static in kinds.items():
        decode: tuple[float, ...] = ()
        for _ in range(repeats):
            decoder = _first_token(mllm, batch, settings, static)
            decode += (seconds_of(partial(_steps, decoder, count), device),)
            decoder.close()
        yield StageTiming(name, None, count, "token", decode, bytes=weights)


def _first_token(mllm: MLLM, batch: Batch, decoding: Decoding, static: StaticDecoder | None) -> Decoder:
    decoder = Decoder(mllm, static)
    decoder.add(mllm.prompt(batch), [decoding])
    decoder.step()
    return decoder


def _steps(decoder: Decoder, count: int) -> None:
    for _ in range(count):
        decoder.step()


def _mask_stages(engine: Engine, plan: BenchPlan) -> Iterator[StageTiming]:
    """SAM 2 on one frame: its encoder, masks by prompt, and masks by memory as late in a video."""
    grounder, device = engine.model.grounder, engine.model.device
    images = blocks(1, IMAGE_SIZE)
    flops = flops_of(partial(encode, grounder, images))
    encoding = _in_turns({0: partial(encode, grounder, images)}, plan.repeats, device)[0]
    yield StageTiming("SAM 2 encode", None, 1, "frame", encoding, flops)
    encoded = encode(grounder, images)
    prompts = {objects: _prompts(engine, objects) for objects in plan.objects}
    finding = {objects: partial(decode_prompts, grounder, encoded, prompt) for objects, prompt in prompts.items()}
    counted = {objects: flops_of(job) for objects, job in finding.items()}
    for objects, seconds in _in_turns(finding, plan.repeats, device).items():
        yield StageTiming("mask decode", objects, 1, "frame", seconds, counted[objects])
    shown, consistent = len(choose(engine.model.family.video_frames, LONG)), engine.model.config.two_decoders
    following: dict[int, Callable[[], object]] = {}
    for objects, prompt in prompts.items():
        memory = late_memory(grounder, encoded, prompt, shown=shown)
        following[objects] = partial(step, grounder, LONG, encoded, memory, consistent=consistent)
    counted = {objects: flops_of(job) for objects, job in following.items()}
    followed = _in_turns(following, plan.repeats, device)
    for objects, seconds in followed.items():
        yield StageTiming("follow, late in a video", objects, 1, "frame", seconds, counted[objects])
    for objects, seconds in followed.items():
        both = tuple(first + second for first, second in zip(encoding, seconds, strict=True))
        yield StageTiming("encode and follow", objects, 1, "frame", both, flops + counted[objects])


def late_memory(
    grounder: LanguageSam2, encoded: Encoded, prompts: Float[Tensor, "n d"], *, shown: int, pooled: bool = False
) -> VideoMemory:
    """The memory before frame `LONG` of a video whose first `shown` frames were prompted: as full as it gets.

    All frames are the same one, which costs as much as different ones.
    """
    one = conditioning(grounder, 0, encoded, decode_prompts(grounder, encoded, prompts), pooled=pooled)
    memory = VideoMemory(tuple(replace(one, frame=frame) for frame in range(shown)), pooled=pooled)
    for frame in range(LONG - MAX_POINTERS, LONG):
        memory = memory.after(replace(one, frame=frame), keep_maps=grounder.config.num_maskmem - 1)
    return memory


def _prompts(engine: Engine, objects: int) -> Float[Tensor, "n d"]:
    states = torch.randn(objects, engine.model.mllm.width, generator=torch.Generator().manual_seed(0))
    return engine.model.prompts(states.to(engine.model.device))


def _ask(engine: Engine, pixels: UInt8[np.ndarray, "*t h w 3"], objects: int, encodes: list[Encodes]) -> None:
    engine.forget()
    media = open_media(pixels)
    question = engine.model.family.prompts[f"segment_{media.kind}"].replace("{phrase}", PHRASE)
    with counting(engine.model.grounder.sam2.vision_encoder) as rows:
        engine.ask(media, question, options=Options(prefill=" ".join(["[SEG]"] * objects)))
    encodes.append(Encodes(media.kind, objects, media.count, sum(rows)))


@contextmanager
def counting(module: nn.Module) -> Iterator[list[int]]:
    """While the block lasts, a list that grows by the number of rows of every batch that goes through the module."""
    rows: list[int] = []
    hook = module.register_forward_hook(lambda _, arguments, __: rows.append(len(arguments[0])))
    try:
        yield rows
    finally:
        hook.remove()


def blocks(frames: int, size: tuple[int, int]) -> UInt8[np.ndarray, "t h w 3"]:
    """Frames of random colours in squares of 40 pixels; the same ones every time."""
    height, width = size
    small = np.random.default_rng(0).integers(0, 256, (frames, height // 40, width // 40, 3), dtype=np.uint8)
    return small.repeat(40, axis=1).repeat(40, axis=2)


def _in_turns(
    jobs: Mapping[int, Callable[[], object]], repeats: int, device: torch.device
) -> dict[int, tuple[float, ...]]:
    """Seconds of each job, every repeat of one beside the same repeat of the others."""
    seconds: dict[int, tuple[float, ...]] = dict.fromkeys(jobs, ())
    for _ in range(repeats):
        for name, job in jobs.items():
            seconds[name] += (seconds_of(job, device),)
    return seconds


def peak_bytes(device: torch.device) -> int | None:
    """The most memory there was in use: on a GPU that PyTorch holds, else of this process; `None` if nobody knows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _machine(device: torch.device) -> dict[str, Any]:
    names = ("segue", "torch", "transformers")
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
    }
