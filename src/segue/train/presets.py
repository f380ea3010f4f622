"""A recipe for one's own masks: LoRA for language, the rows of the new tokens, and all that makes masks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from segue.datasets import DATASETS
from segue.errors import ConfigError, DataError
from segue.grounding.losses import NUM_POINTS
from segue.grounding.model import VisionLanguageConfig
from segue.train.recipe import DatasetSpec, Lora, Option, ParameterGroup, Stage, TrainRecipe, Validation

BATCH = 8
"""Samples per step."""
LEAST_STEPS, MOST_STEPS = 500, 2000
"""What a fine-tune on a small set takes, whatever its size."""
LARGE = 3584
"""Width of a language model of 7 billion numbers and more, which is kept in 4 bits on a GPU."""
SMALL = 512
"""Width up to which a model takes a step's samples at once, keeps its activations, and learns at `SMALL_RATE`."""
RATE, SMALL_RATE = 4e-5, 1e-3
"""Sa2VA's peak learning rate, found for widths of 896 and more, and that of a model of a few million numbers."""
MOST_OBJECTS = 5
"""With how many objects Sa2VA counted each row; where no row has so many, the most there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneOptions:
    """What a user says of a fine-tune, and the most objects of a row, where known; None leaves it to the preset."""

    folder: Path
    base: str
    output: Path
    phrase: str | None = None
    group: str | None = None
    epochs: float | None = None
    steps: int | None = None
    objects: int | None = None


def finetune(request: FinetuneOptions, config: VisionLanguageConfig, *, device: str) -> TrainRecipe:
    """A recipe that fits a folder and a model: as many steps as 500 to 2000 samples deserve, evaluated twenty times on
    the folder's own validation split, ended when five evaluations bring nothing new.

    A model with two mask decoders learns with the one that follows language. On a GPU a model of 7B and more is kept in
    4 bits. No mask is compared at more points than its prediction has pixels, and no object of a row twice where all
    rows have few.

    Raises: SegueError, if the model has no grounder, or the folder cannot be read or has no validation split.
    """
    if config.sam2_config is None:
        raise ConfigError(
            f"{request.base} has no grounder, so that it cannot learn masks; take a Sa2VA, or teach it in words, by "
            "`segue train` with a recipe such as recipes/qwen_vl_lora.yaml and dialogues with boxes (docs/qwen_vl.md)"
        )
    options: dict[str, Option] = {}
    if request.phrase is not None:
        options["phrase"] = request.phrase
    if request.group is not None:
        options["group"] = request.group
    rows = {split: DATASETS["folder"](request.folder, split, **options) for split in ("train", "val")}
    if not len(rows["train"]) or not len(rows["val"]):
        raise DataError(
            f"{request.folder} has {len(rows['train'])} rows to train on and {len(rows['val'])} to evaluate on"
        )
    steps = _steps(len(rows["train"]), request)
    width = config.get_text_config().hidden_size
    is_gpu, is_large, is_small = device != "cpu", width >= LARGE, width <= SMALL
    batch = BATCH if is_small else 2 if is_gpu and not is_large else 1
    decoder = "language_decoder" if config.two_decoders else "mask_decoder"
    stage = Stage(
        name="finetune",
        steps=steps,
        groups={
            "language": ParameterGroup(how="lora"),
            "embeddings": ParameterGroup(how="rows"),
            "seg_projector": ParameterGroup(how="full"),
            decoder: ParameterGroup(how="full"),
        },
        lora=Lora(rank=32, alpha=64.0, quantize="4bit" if is_gpu and is_large else "none"),
        rate=SMALL_RATE if is_small else RATE,
    )
    every = math.ceil(steps / 20)
    return TrainRecipe(
        model=request.base,
        output=request.output,
        data=(DatasetSpec(dataset="folder", root=request.folder, split="train", options=options),),
        validation=Validation(
            data=(DatasetSpec(dataset="folder", root=request.folder, split="val", options=options),),
            every=every,
            patience=5,
        ),
        stages=(stage,),
        objects=min(request.objects or MOST_OBJECTS, MOST_OBJECTS),
        points=min(NUM_POINTS, (config.sam2_config.image_size // 4) ** 2),
        batch=batch,
        accumulation=BATCH // batch,
        precision="bf16" if is_gpu else "fp32",
        gradient_checkpointing=not is_small,
        save_every=every,
        log_every=max(1, min(10, steps // 20)),
        workers=2 if is_gpu else 0,
    )


def _steps(rows: int, request: FinetuneOptions) -> int:
    if request.steps is not None:
        return request.steps
    if request.epochs is not None:
        return max(1, round(request.epochs * rows / BATCH))
    return min(max(20 * rows // BATCH, LEAST_STEPS), MOST_STEPS)
