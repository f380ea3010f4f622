"""What a stage will need, told before its first step: data, steps, what learns, and memory."""

from __future__ import annotations

import math
import resource
import sys
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from segue.data.mixture import table
from segue.progress import size
from segue.train import optim
from segue.train.batch_stream import FetchedBatch
from segue.train.loop import StageLoop
from segue.train.recipe import TrainRecipe
from segue.train.setup import StageState

# what the mask decoder keeps of one object on one frame, counted in maps of the size of its image embedding
DECODER_MAPS = 60


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """About how many bytes a process needs: `working` is for one batch like the first of the data."""

    weights: int
    gradients: int
    optimizer: int
    working: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.working


def memory(state: StageState, recipe: TrainRecipe) -> MemoryEstimate:
    """Weights as they are, of spread ones this process's share; a gradient and AdamW's two moments in float32 for all
    that learns; and what a batch needs (`working_memory`).

    Raises: SegueError, if no sample can be used.
    """
    model: Any = state.model
    learned = sum(optim.local(p).numel() for group in state.trainable.groups.values() for p in group.values())
    held = [optim.local(tensor) for tensor in (*model.parameters(), *model.buffers())]
    weights = sum(tensor.numel() * tensor.element_size() for tensor in held)
    batch = state.stream.spare()
    text, sam = model.config.get_text_config(), model.config.sam2_config
    working = working_memory(
        text,
        sam,
        tokens=batch.batch.input_ids.numel(),
        scored=batch.tokens,
        frames=sum(len(truth.frames) for truth in batch.truths if truth is not None),
        size=2 if recipe.precision == "bf16" else 4,
        is_checkpointed=recipe.gradient_checkpointing,
    )
    return MemoryEstimate(weights, 4 * learned, 8 * learned, working)


def working_memory(  # noqa: PLR0913 - what is counted
    text: Any, sam: Any, *, tokens: int, scored: int, frames: int, size: int, is_checkpointed: bool = True
) -> int:
    """About how many bytes a batch needs while it is learned from, counted and not measured: states kept for the way
    back, one layer at work, the scores of the vocabulary, and the mask decoder's maps of five objects on every frame.

    `text` and `sam` are the configurations of the language model and of SAM 2, `None` without one; `scored` are the
    tokens that have a label, `size` the bytes of a number.
    """
    layer = tokens * (4 * text.intermediate_size + 10 * text.hidden_size) * size
    layers = text.num_hidden_layers
    kept = tokens * text.hidden_size * size * layers + layer if is_checkpointed else layer * layers
    scores = scored * text.vocab_size * (size + 8)
    cells = 0 if sam is None else (sam.image_size // 16) ** 2 * sam.mask_decoder_config.hidden_size
    return int(kept + scores + frames * 5 * cells * DECODER_MAPS * 4)


def description(state: StageState, recipe: TrainRecipe) -> str:
    """The lines that are printed before the first step.

    Raises: SegueError, as `memory` does.
    """
    shard, mixture, need = state.stream.shard, state.mixture, memory(state, recipe)
    epochs, position = divmod(state.steps * shard.per_step, len(mixture))
    learned = state.trainable.count
    whole = sum(p.numel() for p in state.model.parameters())
    groups = [
        f"  {name:<16}{group.how:<6}{learned[name]:>15,}  rate {group.rate or state.stage.rate:g}"
        for name, group in state.stage.groups.items()
        if name in learned
    ]
    header = (
        f"stage {state.stage.name}: {state.steps} steps of {shard.per_step} samples ({shard.batch} at once, "
        f"{shard.accumulation} batches to a step, {shard.processes} process{'es' * (shard.processes > 1)}), "
        f"{state.steps * shard.per_step / len(mixture):.3g} epochs"
    )
    lines = [header]
    lines += [table(mixture.tallies(epochs, position)), f"learning: {sum(learned.values()):,} of {whole:,} numbers"]
    lines += groups
    lines.append(
        f"memory per process: about {size(need.total)} (weights {size(need.weights)}, gradients "
        f"{size(need.gradients)}, optimizer {size(need.optimizer)}, at work {size(need.working)})"
    )
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class StepTiming:
    """What one step took: seconds, and the peak of memory in bytes (of the GPU, else of the process)."""

    seconds: float
    peak: int


def trial(loop: StageLoop) -> StepTiming:
    """Learn one step twice, at a rate of 0, and measure the second.

    Raises: SegueError, as a step does.
    """
    state = loop.state
    optim.set_rates(state.optimizer, 0.0)
    seconds = math.nan
    for _ in range(2):
        batches: list[FetchedBatch] = list(state.stream.batches(0, 1, workers=0))
        started = perf_counter()
        loop.learn(0, iter(batches))
        seconds = perf_counter() - started
    return StepTiming(seconds, peak_memory())


def peak_memory() -> int:
    """The most memory in bytes that was taken at once so far: of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
