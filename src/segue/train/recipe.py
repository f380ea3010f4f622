"""What a training run is told: one recipe, read strictly from YAML, every default the one Sa2VA was trained with.

Source: Sa2VA's training configurations (AdamW, rates, warm-up, LoRA sizes, loss weights).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import ClassVar, Literal

from segue.data.mixture import CEILING
from segue.errors import ConfigError
from segue.grounding.losses import NUM_POINTS
from segue.train.from_scratch.model import Scratch
from segue.train.optim import Method

Option = bool | int | float | str | None
How = Literal["full", "lora", "rows", "frozen"]
MOST_STEPS, MOST_EPOCHS = 10_000_000, 100_000
"""Of a stage: the order of its rows is drawn before it begins."""
Metric = Literal["mean_iou", "ciou", "dice", "emitted"]
Objective = Literal["joint", "vision_alignment", "language", "decoupled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossWeights:
    """How much each term counts; the first three as Sa2VA was trained, the others are for training from scratch."""

    text: float = 1.0
    """Cross-entropy of the answers' tokens."""
    mask: float = 2.0
    """Binary cross-entropy of mask points."""
    dice: float = 0.5
    """Dice loss of mask points."""
    align: float = 0.0
    """Agreement of a prompt with the image features where its object is: what a fresh model needs to begin."""
    iou: float = 0.0
    """Squared error of the estimated IoU, from which the best of three masks is chosen."""
    presence: float = 0.0
    """Cross-entropy of the estimate that an object is visible."""
    target_embedding: float = 0.0
    """Distance of prompts from the target embeddings of their objects (`segue.train.from_scratch`)."""
    vision_alignment: float = 0.0
    """The same of the visual features that show an object, read as if they were prompts."""

    RENAMED: ClassVar = {"code": "target_embedding", "sight": "vision_alignment"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSpec:
    """A dataset and how often its rows are drawn."""

    dataset: str
    """Its form, a name of the table `segue.datasets.DATASETS`."""
    root: Path
    """The folder it lies in; relative paths start where the command runs."""
    split: str = "train"
    """The part of it to draw from."""
    weight: float = 1.0
    """How often an epoch draws each row, on average."""
    options: dict[str, Option] = field(default_factory=dict)
    """What this form can be told beside that, such as `variant` or `phrase`."""

    RENAMED: ClassVar = {"dataset": {"qa_lines": "vqa_jsonl"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What the model is evaluated on while it learns."""

    data: tuple[DatasetSpec, ...]
    """Held-out data; every row is evaluated once, whatever its weight."""
    limit: int = 64
    """At most so many rows, chosen once by the seed and the same ever after."""
    every: int = 100
    """Steps between two evaluations; one more stands at the end of each stage."""
    metric: Metric = "mean_iou"
    """Which figure tells the best checkpoint, times `emitted`; higher is better for all of them."""
    patience: int | None = None
    """End the stage after so many evaluations without a new best; never, where null."""

    def __post_init__(self) -> None:
        _at_least_one(limit=self.limit, every=self.every, patience=self.patience)
        if not self.data:
            raise ConfigError("validation names no data; give a list, or leave validation out")


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterGroup:
    """How one group of a model's parameters learns."""

    how: How
    """full: every number; lora: small matrices beside each linear layer; rows: only those of the new tokens."""
    rate: float | None = None
    """Its own peak learning rate; the stage's, where null."""
    layer_decay: float = 1.0
    """What the rate is multiplied by for each layer that lies further from the group's end: below 1, the first layers
    of a trained tower change least."""

    def __post_init__(self) -> None:
        if self.rate is not None and not 0 < self.rate < inf:
            raise ConfigError(f"a group's rate is {self.rate}; expected more than 0, or how: frozen")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"layer_decay is {self.layer_decay}; expected more than 0 and at most 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """The small matrices of groups that learn by LoRA."""

    rank: int = 128
    """Their inner width. Sa2VA: 128, and 256 from 8B on; 16 to 64 suit small data."""
    alpha: float = 256.0
    """What they add is scaled by alpha / rank; twice the rank keeps the scale at 2."""
    dropout: float = 0.05
    """Share of their inputs left out by chance."""
    layers: tuple[str, ...] | None = None
    """Last parts of the names of the layers that get them, such as q_proj; all linear layers of the groups, where
    null."""
    quantize: Literal["none", "4bit"] = "none"
    """4bit: keep the frozen matrices below them in 4 bits (extra `quant`), a quarter of the memory of bf16."""

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.alpha < inf or not 0 <= self.dropout < 1:
            raise ConfigError(
                f"rank {self.rank}, alpha {self.alpha} or dropout {self.dropout} is out of range; "
                "expected rank >= 1, alpha > 0 and 0 <= dropout < 1"
            )


def _sa2va_groups() -> dict[str, ParameterGroup]:
    return {
        "connector": ParameterGroup(how="full"),
        "language": ParameterGroup(how="lora"),
        "embeddings": ParameterGroup(how="full"),
        "seg_projector": ParameterGroup(how="full"),
        "mask_decoder": ParameterGroup(how="full"),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stretch of training in which the same parameters learn from the same data."""

    name: str
    """What it is called in logs and folders."""
    steps: int | None = None
    """Optimizer steps; give this or `epochs`."""
    epochs: float | None = None
    """How often all data are gone through; may be a fraction."""
    groups: dict[str, ParameterGroup] = field(default_factory=_sa2va_groups)
    """Which groups learn, and how; all others are frozen."""
    lora: Lora = Lora()
    """Sizes, for groups that learn by LoRA."""
    losses: LossWeights = LossWeights()
    """Weights of the terms that are added up to the loss."""
    objective: Objective = "joint"
    """joint: words and masks together. For a model that begins from nothing (`segue.train.from_scratch.objectives`),
    vision_alignment: what its tower sees; language: what its language model says; decoupled: that, and beside it masks,
    which are found by target embeddings."""
    optimizer: Method = "adamw"
    """adamw, or muon: orthogonal steps for the matrices of linear layers, which bring a fresh model on much faster."""
    rate: float = 4e-5
    """Peak learning rate."""
    warmup: float = 0.05
    """Share of the steps over which the rate rises linearly from 1e-5 of its peak."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What the rate does after that: fall along a cosine, or stay."""
    least_rate: float = 0.0
    """Where the cosine ends, as a share of the peak rate."""
    weight_decay: float = 0.05
    """AdamW's, on every parameter that learns."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's memory of gradients and of their squares."""
    epsilon: float = 1e-8
    """What AdamW adds to the roots that it divides by."""
    data: tuple[DatasetSpec, ...] | None = None
    """This stage's own data; the recipe's, where null."""

    RENAMED: ClassVar = {
        "objective": {
            "whole": "joint",
            "sight": "vision_alignment",
            "words": "language",
            "apart": "decoupled",
        }
    }

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ConfigError(f"stage {self.name!r} has steps {self.steps} and epochs {self.epochs}; give one of them")
        _at_least_one(steps=self.steps)
        if self.steps is not None and self.steps > MOST_STEPS:
            raise ConfigError(f"stage {self.name!r} has {self.steps} steps; expected at most {MOST_STEPS:,}")
        if self.epochs is not None and not 0 < self.epochs <= MOST_EPOCHS:
            raise ConfigError(
                f"stage {self.name!r} has {self.epochs} epochs; expected more than 0 and at most {MOST_EPOCHS:,}"
            )
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ConfigError(f"a stage is called {self.name!r}; a folder gets that name, so give plain letters")
        if not 0 < self.rate < inf or not 0 <= self.warmup < 1 or not 0 <= self.weight_decay < inf:
            raise ConfigError(
                f"rate {self.rate}, warmup {self.warmup} or weight_decay {self.weight_decay} is out of range; "
                "expected rate > 0, 0 <= warmup < 1 and weight_decay >= 0"
            )
        if not 0 <= self.least_rate <= 1 or not 0 < self.epsilon < inf or not all(0 <= one < 1 for one in self.betas):
            raise ConfigError(
                f"least_rate {self.least_rate}, epsilon {self.epsilon} or betas {self.betas} is out of range; "
                "expected 0 <= least_rate <= 1, epsilon > 0 and betas from 0 to below 1"
            )
        if all(group.how == "frozen" for group in self.groups.values()):
            raise ConfigError(f"stage {self.name!r} trains nothing; give a group that is full, lora or rows")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRecipe:
    """A whole run: from which model, on which data, in which stages, and what is kept of it."""

    model: str = ""
    """What to start from: a model folder, a training checkpoint, a hub id, or "demo"."""
    scratch: Scratch | None = None
    """What to make and start from, in place of a model."""
    output: Path
    """The run folder: checkpoints, logs, report."""
    data: tuple[DatasetSpec, ...]
    """What to learn from."""
    stages: tuple[Stage, ...]
    """One stage after another, each on top of the last."""
    validation: Validation | None = None
    """Held-out data to compare checkpoints by; without it the newest counts as the best."""
    objects: int = 5
    """With how many objects each row counts; of more, some are drawn by chance, fewer are repeated."""
    points: int = NUM_POINTS
    """At how many points each mask is compared."""
    batch: int = 2
    """Samples per process that go through the model at once."""
    accumulation: int = 1
    """Such batches per optimizer step; their gradients are averaged."""
    clip: float = 1.0
    """Longest gradient, as the norm over all parameters."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """bf16: compute and keep frozen weights in bfloat16, learn in float32. fp32: everything in float32."""
    gradient_checkpointing: bool = True
    """Compute the language model's activations twice instead of keeping them: a third slower, far less memory."""
    seed: int = 0
    """Decides order, wordings, frames, first weights and dropout; the same seed gives the same run."""
    log_every: int = 10
    """Steps between two lines of the log."""
    save_every: int = 500
    """Steps between two checkpoints."""
    keep: int = 2
    """How many of the newest checkpoints to keep, beside the best one."""
    on_bad_sample: Literal["raise", "skip"] = "raise"
    """What becomes of data that cannot be used: end the run, or leave them out and write them to `skipped.jsonl`."""
    ceiling: float = CEILING
    """With skip: the share of a dataset's rows that may be left out before the run ends all the same."""
    workers: int = 2
    """Processes that read and prepare samples ahead; 0 does it between the steps."""
    max_tokens: int = 8192
    """Longest row; whole turns are left out from the end until a sample fits."""
    cache: Path | None = None
    """A feature cache (docs/cache.md): what the frozen vision tower makes of pictures is taken from there, or kept."""
    frames: str | None = None
    """Which of a video sample's frames the language model is shown (first:k, uniform:k, numbers); on the others objects
    are followed by memory, as at inference. All are shown, where null."""
    max_tiles: int = 12
    """Most tiles an image is cut into."""
    image_side: int | None = None
    """Side in pixels of the squares that a Qwen-VL is shown from now on, whose tower spreads its positions; the model's
    own, where null."""
    template: str | None = None
    """The chat template that the model is talked to with from now on, such as qwen_vl_chat for a base model that is to
    learn dialogues; the model's own, where null."""

    def __post_init__(self) -> None:
        _at_least_one(
            batch=self.batch,
            accumulation=self.accumulation,
            log_every=self.log_every,
            save_every=self.save_every,
            keep=self.keep,
            max_tokens=self.max_tokens,
            max_tiles=self.max_tiles,
            objects=self.objects,
            points=self.points,
        )
        if bool(self.model) == bool(self.scratch):
            raise ConfigError(f"the recipe has model {self.model!r} and scratch {self.scratch}; give one of them")
        if self.workers < 0 or not self.clip > 0:
            raise ConfigError(f"workers {self.workers} or clip {self.clip} is out of range; expected >= 0 and > 0")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed is {self.seed}; expected 0 to {2**32 - 1}")
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"the stages are called {names}; expected one or more, each name once")
        if not self.data and any(stage.data is None for stage in self.stages):
            raise ConfigError("the recipe names no data; give a list under data")


def _at_least_one(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ConfigError(f"{name} is {number}; expected 1 or more")
