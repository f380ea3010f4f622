"""The steps of a stage: learn, check that it does, evaluate. One explicit loop over accelerate.

Nothing here draws chance of its own: what a step does follows from its number, so a run that goes on from a checkpoint
does what it would have done without the stop.
"""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from segue.errors import ConfigError, DataError, LimitError
from segue.train import evaluation, optim
from segue.train.batch_stream import FetchedBatch, step_seed
from segue.train.loss_module import LossModule
from segue.train.recipe import TrainRecipe
from segue.train.run_logger import RunLogger
from segue.train.setup import Accelerator, StageState
from segue.train.stages import seeded, stored_name

log = logging.getLogger(__name__)

SAMPLED = 4096
FIRST_STEPS = 10
_WORKER = "DataLoader worker"


class Stop:
    """Set when somebody asked the run to end (Ctrl-C, SIGTERM); the step that is at work is finished first."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals for the length of a block, where that is allowed (the main thread); a second one kills."""

        def ask(number: int, _: Any) -> None:
            self.asked = True
            signal.signal(number, before[signal.Signals(number)])

        try:
            before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass(slots=True)
class RunProgress:
    """How far a stage is: its own steps done, steps of the whole run, and what evaluations gave so far."""

    stage_step: int = 0
    step: int = 0
    best: float | None = None
    waited: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    evaluated_at: int = -1


class UpdateMonitor:
    """Makes sure that every group learns: the loss reaches it, and its numbers change.

    A group is sure once it has changed. That must have happened after a step at half the peak rate or more whose batch
    had both an image and a mask, and in any case when the rate has risen. A run that goes on after that has shown it
    before, and may be near its end, where steps are too small to be seen.
    """

    def __init__(self, state: StageState, first: int):
        self._state = state
        self._deadline = min(state.steps, max(FIRST_STEPS, int(state.stage.warmup * state.steps)))
        groups = state.trainable.groups if first < self._deadline else {}
        self._waiting = {
            group: {stored_name(name): _sample(parameter) for name, parameter in parameters.items()}
            for group, parameters in groups.items()
        }
        self._reached: set[str] = set()

    def gradients(self) -> None:
        """Note which groups the loss reaches; before the optimizer's step."""
        parameters = self._state.parameters
        for group, names in self._waiting.items():
            if any(parameters[name].grad is not None for name in names):
                self._reached.add(group)

    def moved(self, done: int, factor: float, *, is_complete: bool) -> None:
        """Check after a step.

        Raises: ConfigError, naming the groups that do not learn, and why.
        """
        parameters = self._state.parameters
        for group in list(self._waiting):
            before = self._waiting[group]
            if any(not torch.equal(before[name], _sample(parameters[name])) for name in before):
                del self._waiting[group]
        if not self._waiting or not (done >= self._deadline or (is_complete and factor >= 0.5)):
            return
        silent = [group for group in self._waiting if group not in self._reached]
        if silent:
            raise ConfigError(
                f"the loss does not reach the groups {', '.join(silent)}, so they would never learn; give data and "
                "loss weights that use them, or freeze them"
            )
        raise ConfigError(
            f"after {done} steps nothing in the groups {', '.join(self._waiting)} has changed; raise their rate, or "
            "give data and loss weights that use them"
        )


def _sample(parameter: Tensor) -> Tensor:
    return optim.whole(parameter.detach()).flatten()[:SAMPLED].clone()


@dataclass(slots=True)
class StageLoop:
    """The loop of one stage."""

    recipe: TrainRecipe
    state: StageState
    accelerator: Accelerator
    logger: RunLogger
    progress: RunProgress
    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0
    tokens: int = 0
    is_complete: bool = False
    told: int = 0
    since: float = field(default_factory=perf_counter)

    def steps(self, last: int) -> Iterator[int]:
        """Learn up to the step `last` of the stage; yields the number of steps done after each.

        Raises: SegueError, for data that cannot be used, a loss that is no number, memory that does not suffice, or a
            group that does not learn. What was saved before stays.
        """
        state, first = self.state, self.progress.stage_step
        self.told = first
        monitor = UpdateMonitor(state, first)
        batches = state.stream.batches(first, last, workers=self.recipe.workers)
        for step in range(first, last):
            stage = state.stage
            factor = optim.rate_factor(
                step, state.steps, warmup=stage.warmup, schedule=stage.schedule, least=stage.least_rate
            )
            current = optim.set_rates(state.optimizer, factor)
            norm = self.learn(step, batches, monitor)
            monitor.moved(step + 1, factor, is_complete=self.is_complete)
            self.progress.stage_step, self.progress.step = step + 1, self.progress.step + 1
            self._tell(current, norm, is_last=step + 1 == last)
            yield step + 1

    def learn(self, step: int, batches: Iterator[FetchedBatch], monitor: UpdateMonitor | None = None) -> float:
        """One step from the next batches; returns the norm of the gradient before it was clipped.

        Raises: SegueError, as `steps` does.
        """
        accelerator, state = self.accelerator, self.state
        norm = torch.zeros(())
        with enough_memory(f"at step {step + 1}"):
            for micro in range(self.recipe.accumulation):
                fetched = next(batches)
                if fetched.error:
                    raise fetched.error
                if state.features is not None and fetched.usage is not None:
                    state.features.usage += fetched.usage
                with accelerator.accumulate(state.loss_module):
                    terms, counts = self._terms(fetched, step, micro)
                    accelerator.backward(terms["loss"] * counts)
                    self._note(terms, counts, step, fetched)
                    if accelerator.sync_gradients:
                        if monitor:
                            monitor.gradients()
                        norm = accelerator.clip_grad_norm_(state.loss_module.parameters(), self.recipe.clip)
                        self._check(float(norm), "gradient", step, fetched)
                    state.optimizer.step()
                    state.optimizer.zero_grad()
        return float(norm)

    def _terms(self, fetched: FetchedBatch, step: int, micro: int) -> tuple[Mapping[str, Tensor], float]:
        """The terms of a batch, and 1 if they count; where all its rows are bad another goes through, and counts 0."""
        batch = fetched.batch
        counts = 1.0 if batch is not None else 0.0
        batch = (batch or self.state.stream.spare()).to(self.accelerator.device)
        seed = step_seed(self.recipe.seed, self.state.index, step, self.accelerator.process_index, micro)
        # FSDP2 is not wrapped in autocast by itself
        with seeded(seed, self.accelerator.device), self.accelerator.autocast():
            terms: Mapping[str, Tensor] = self.state.loss_module(batch, seed)
        return terms, counts

    def _note(self, terms: Mapping[str, Tensor], counts: float, step: int, fetched: FetchedBatch) -> None:
        # after the way back, for reading a number waits for the device
        self._check(float(terms["loss"].detach()), "loss", step, fetched)
        if counts and fetched.batch is not None:
            batch = fetched.batch
            self.is_complete = batch.batch.visual_places is not None and any(
                truth is not None for truth in batch.truths
            )
            for name, term in terms.items():
                self.sums[name] = self.sums.get(name, 0.0) + float(term.detach())
            self.count += 1
            self.tokens += batch.tokens

    def _check(self, value: float, what: str, step: int, fetched: FetchedBatch) -> None:
        if not math.isfinite(value):
            raise DataError(
                f"the {what} became {value} at step {step + 1} of stage {self.state.stage.name!r}, on the samples "
                f"{', '.join(fetched.ids) or 'none'}. Nothing was learned from it, and the last checkpoint is good: go "
                "on from it with a lower rate, or look at these samples"
            )

    def _tell(self, current: Mapping[str, float], norm: float, *, is_last: bool) -> None:
        done = self.progress.stage_step
        if done % self.recipe.log_every and not is_last:
            if self.logger.is_main:
                self.logger.watcher.step(done, {})
            return
        means, tokens = self._together()
        values = {**means, "norm": norm, "rate": max(current.values()), "tokens": tokens}
        seconds = (perf_counter() - self.since) / (done - self.told)
        self.logger.write("step", self.progress.step, stage=self.state.stage.name, seconds=round(seconds, 3), **values)
        if self.logger.is_main:
            self.logger.watcher.step(done, values)
        self.sums, self.count, self.tokens, self.told, self.since = {}, 0, 0, done, perf_counter()

    def _together(self) -> tuple[dict[str, float], int]:
        """Means of the terms over all processes, and all their tokens."""
        said = self._gathered([(self.sums, self.count, self.tokens)])
        count = max(sum(part[1] for part in said), 1)
        names = sorted({name for part in said for name in part[0]})
        means = {name: sum(part[0].get(name, 0.0) for part in said) / count for name in names}
        return means, sum(part[2] for part in said)

    def _gathered(self, mine: list[Any]) -> list[Any]:
        if self.accelerator.num_processes == 1:
            return mine
        from accelerate.utils import gather_object

        return list(gather_object(mine))

    def rounds(self, held_out: list[evaluation.ValidationRow]) -> int:
        """How many held-out rows the process with most of them has.

        Raises: ConfigError, if none has any.
        """
        most: int = max(self._gathered([len(held_out)]))
        if not most:
            raise ConfigError(evaluation.POINTLESS)
        return most

    def evaluate(self, held_out: list[evaluation.ValidationRow]) -> list[evaluation.SampleResult]:
        """Evaluate the held-out rows of all processes and log the figures; returns what was found of each row.

        Raises: ConfigError, if they point at nothing.
        """
        loss_module = self.accelerator.unwrap_model(self.state.loss_module)
        rounds = self.rounds(held_out)
        with enough_memory(f"while evaluating after step {self.progress.step}"), self.accelerator.autocast():
            mine = evaluation.evaluate(loss_module, held_out, self.state.make, rounds=rounds)
            if not held_out:
                self._accompany(loss_module, rounds)
        results = self._gathered(mine)
        self.progress.metrics, self.progress.evaluated_at = evaluation.figures(results), self.progress.step
        self.logger.write("evaluated", self.progress.step, stage=self.state.stage.name, **self.progress.metrics)
        return results

    def _accompany(self, loss_module: LossModule, rounds: int) -> None:
        """Ask as often as the others do, where none of this process's rows points at anything.

        Layers that are spread over processes come together only if all ask for them.
        """
        batch = self.state.stream.spare().to(self.accelerator.device)
        loss_module.eval()
        for _ in range(rounds):
            loss_module.evaluate(batch)
        loss_module.train()


@contextmanager
def enough_memory(when: str) -> Iterator[None]:
    """Say in one line that memory ran out in the block, on whatever device; `when` is what was at work.

    Raises: LimitError, if it did, or if a data worker was killed, which is what then happens to workers.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(when, error) from error
    except RuntimeError as error:
        if _WORKER in str(error):
            raise LimitError(
                f"a data worker died {when} ({_first_line(error)}), most often for want of memory. The last checkpoint "
                "is good. Use fewer workers, a smaller batch or fewer max_tiles, and go on with --resume"
            ) from error
        if "not enough memory" not in str(error):
            raise
        raise _out_of_memory(when, error) from error


def _out_of_memory(when: str, error: Exception) -> LimitError:
    return LimitError(
        f"memory ran out {when} ({_first_line(error)}). The last checkpoint is good. Use a smaller "
        "batch with more accumulation, fewer max_tiles, gradient_checkpointing, LoRA with quantize: 4bit, or rows "
        "instead of full embeddings; `segue train RECIPE --estimate` says what fits"
    )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
