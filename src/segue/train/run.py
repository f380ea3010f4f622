"""A run from its recipe to its report: the folder, the stages, checkpoints, and going on after a stop."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from segue import config
from segue.checkpoints import adapters
from segue.checkpoints.adapters import CHECKPOINTS, RECIPE, Record
from segue.errors import CheckpointError, ConfigError
from segue.train import checkpoints, evaluation, report, setup
from segue.train.estimate import Trial, description, size, trial
from segue.train.loop import Progress, Stop, Stretch, enough_memory
from segue.train.recipe import TrainRecipe
from segue.train.run_logger import Journal, Watcher, write_text
from segue.train.setup import Accelerator, Base, Ready

log = logging.getLogger(__name__)

STAGES, RUN = "stages", "run.json"
_MAY_DIFFER = ("output", "log_every", "save_every", "keep", "workers", "on_bad_sample", "ceiling")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: its folder, the best checkpoint, steps done in all, whether somebody stopped it, and whether
    this process speaks for all.
    """

    run: Path
    best: Path
    step: int
    metrics: dict[str, float]
    is_stopped: bool
    is_main: bool


@dataclass(slots=True)
class _Run:
    recipe: TrainRecipe
    accelerator: Accelerator
    journal: Journal
    stop: Stop
    limit: int | None

    @property
    def folder(self) -> Path:
        return self.recipe.output


def train(
    recipe: TrainRecipe, watcher: Watcher, *, resume: bool = False, limit: int | None = None, device: str = "auto"
) -> Outcome:
    """Train as a recipe says, in this process or in all that were launched together.

    `resume` goes on from the newest checkpoint in the run folder, or begins where there is none yet. `limit` ends the
    run after so many steps, as a signal would: with a checkpoint to go on from.

    Raises: SegueError. Whatever goes wrong, the last checkpoint is whole.
    """
    accelerator = setup.accelerator(recipe, device=device)
    start = _begin(recipe, resume=resume)
    accelerator.wait_for_everyone()
    journal = Journal(recipe.output, watcher, is_main=accelerator.is_main_process)
    run = _Run(recipe, accelerator, journal, Stop(), limit)
    if accelerator.is_main_process:
        _write_beginnings(recipe, accelerator)
    try:
        with run.stop.listening():
            progress, is_stopped = _stages(run, start)
    finally:
        journal.close()
    best = adapters.find(recipe.output)
    assert best is not None
    if accelerator.is_main_process:
        report.write(recipe.output, recipe)
    metrics = adapters.read(best).metrics
    return Outcome(recipe.output, best, progress.step, metrics, is_stopped, accelerator.is_main_process)


def estimate(recipe: TrainRecipe, watcher: Watcher, *, device: str = "auto") -> Trial:
    """Tell what the first stage needs and measure a step of it; nothing is learned or written.

    Raises: SegueError, as training does.
    """
    accelerator = setup.accelerator(recipe, device=device)
    ready = setup.prepare(recipe, 0, setup.first_base(recipe), accelerator)
    journal = Journal(recipe.output, watcher, is_main=False)
    watcher.say(description(ready, recipe))
    measured = trial(Stretch(recipe, ready, accelerator, journal, Progress()))
    hours = measured.seconds * ready.steps / 3600
    watcher.say(
        f"measured: {measured.seconds:.2f} s a step, {hours:.1f} h for {ready.steps} steps, without reading data and "
        f"judging; at most {size(measured.peak)} of memory"
    )
    return measured


def _begin(recipe: TrainRecipe, *, resume: bool) -> tuple[Path, Record] | None:
    """Where to go on, if that is asked for and allowed."""
    before = recipe.output / RECIPE
    if not resume:
        if (recipe.output / CHECKPOINTS).exists() or before.exists():
            raise ConfigError(
                f"{recipe.output} holds a run already; go on with it by --resume, or choose another output"
            )
        return None
    if not before.is_file():
        raise CheckpointError(f"{recipe.output} holds no run to go on with; start without --resume")
    old = config.load(TrainRecipe, before)
    for name in (part.name for part in fields(recipe) if part.name not in _MAY_DIFFER):
        if getattr(old, name) != getattr(recipe, name):
            raise ConfigError(
                f"the run in {recipe.output} was started with another {name} ({getattr(old, name)}, now "
                f"{getattr(recipe, name)}); go on with the same recipe, or start a new run on top of its checkpoint"
            )
    return checkpoints.newest(recipe.output)


def _write_beginnings(recipe: TrainRecipe, accelerator: Accelerator) -> None:
    try:
        recipe.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write into {recipe.output}: {error.strerror}; choose another output") from error
    checkpoints.tidy(recipe.output)
    told = {
        "versions": checkpoints.versions(),
        "processes": accelerator.num_processes,
        "device": str(accelerator.device),
        "distribution": str(accelerator.distributed_type.value),
    }
    write_text(recipe.output / RECIPE, config.dump(recipe))
    write_text(recipe.output / RUN, json.dumps(told, indent=2) + "\n")


def _stages(run: _Run, start: tuple[Path, Record] | None) -> tuple[Progress, bool]:
    first, progress = 0, Progress()
    if start is not None:
        record = start[1]
        first = [stage.name for stage in run.recipe.stages].index(record.stage)
        progress = _progress(record)
        if record.progress["is_over"]:
            first, progress, start = first + 1, Progress(step=progress.step), None
            if first == len(run.recipe.stages):
                run.journal.say(f"the run in {run.folder} is finished; nothing is left to do")
    # of a run that ended before its first checkpoint nothing counts
    run.journal.begin(progress.step or -1)
    for index in range(first, len(run.recipe.stages)):
        base = setup.first_base(run.recipe) if index == 0 else _stage_base(run, index - 1)
        with enough_memory(f"while stage {run.recipe.stages[index].name!r} was made ready"):
            ready = setup.prepare(run.recipe, index, base, run.accelerator)
            if start is not None:
                _restore(ready, *start)
        if _stage(run, ready, progress):
            return progress, True
        _close(run, ready)
        progress, start = Progress(step=progress.step), None
    return progress, False


def _progress(record: Record) -> Progress:
    kept = record.progress
    return Progress(record.stage_step, record.step, kept["best"], kept["waited"], record.metrics, kept["judged_at"])


def _restore(ready: Ready, checkpoint: Path, record: Record) -> None:
    adapters.check_base(checkpoint, record, ready.base_hash)
    if record.progress["per_step"] != ready.feed.share.per_step:
        raise ConfigError(
            f"the run took {record.progress['per_step']} samples a step, now it would take "
            f"{ready.feed.share.per_step}; go on with the same batch x accumulation x processes"
        )
    ready.restore(checkpoints.read_all(checkpoint / adapters.TENSORS), checkpoints.read_state(checkpoint))


def _stage(run: _Run, ready: Ready, progress: Progress) -> bool:
    """One stage to its end; returns whether the run was stopped in it."""
    told = description(ready, run.recipe)
    run.journal.say(told)
    if not progress.stage_step:
        run.journal.write("stage", progress.step, stage=ready.stage.name, text=told)
    held_out = _held_out(run, ready)
    stretch = Stretch(run.recipe, ready, run.accelerator, run.journal, progress)
    last = ready.steps
    if run.limit is not None:
        last = min(last, progress.stage_step + max(run.limit - progress.step, 0))
    if run.journal.is_main:
        run.journal.watcher.start(ready.stage.name, ready.steps, progress.stage_step)
    for done in stretch.steps(last):
        is_asked = _is_asked(run)
        is_best, is_over = _judged(run, stretch, held_out, done)
        is_end = done == last or is_asked or is_over
        if is_best or is_end or done % run.recipe.save_every == 0:
            _save(run, ready, progress, is_over=is_over or done == ready.steps)
        if is_over:
            run.journal.say(
                f"stage {ready.stage.name} ends after {done} steps: no better for {progress.waited} judgements"
            )
            return False
        if is_asked:
            break
    is_stopped = progress.stage_step < ready.steps
    if is_stopped:
        run.journal.say(f"stopped after {progress.step} steps, all kept; --resume goes on from there")
    return is_stopped


def _is_asked(run: _Run) -> bool:
    """Whether any process was asked to stop; all of them agree on it."""
    if run.accelerator.num_processes == 1:
        return run.stop.asked
    if run.stop.asked:
        run.accelerator.set_trigger()
    return bool(run.accelerator.check_trigger())


def _held_out(run: _Run, ready: Ready) -> list[evaluation.Case]:
    validation = run.recipe.validation
    if validation is None:
        return []
    share = ready.feed.share
    return evaluation.cases(validation, ready.make, run.recipe.seed, rank=share.rank, processes=share.processes)


def _judged(run: _Run, stretch: Stretch, held_out: list[evaluation.Case], done: int) -> tuple[bool, bool]:
    """Judge, if this step is one to judge after; returns whether it is the best so far, and whether patience is out."""
    validation, progress = run.recipe.validation, stretch.progress
    if validation is None or (done % validation.every and done != stretch.ready.steps):
        return False, False
    verdicts = stretch.judge(held_out)
    score = progress.metrics[validation.metric]
    run.journal.say(f"step {progress.step}: " + ", ".join(f"{name} {x:.4f}" for name, x in progress.metrics.items()))
    is_best = progress.best is None or score > progress.best
    progress.best, progress.waited = (score, 0) if is_best else (progress.best, progress.waited + 1)
    if is_best and run.journal.is_main:
        _write_cases(run.folder, verdicts, stretch.ready.make.side)
    return is_best, validation.patience is not None and progress.waited >= validation.patience


def _write_cases(run: Path, verdicts: list[evaluation.Verdict], side: int) -> None:
    rows = [
        {
            "part": found.part,
            "row": found.number,
            "iou": round(found.iou, 6),
            "frame": found.frame,
            "masks": [{"size": [side, side], "counts": judged.mask} for judged in found.objects],
        }
        for found in sorted(verdicts, key=lambda found: (found.part, found.number))
    ]
    write_text(run / report.CASES, json.dumps(rows, indent=1) + "\n")


def _save(run: _Run, ready: Ready, progress: Progress, *, is_over: bool) -> None:
    with enough_memory(f"while step {progress.step} was saved"):
        tensors, state = ready.tensors(), ready.state()
    if run.accelerator.is_main_process:
        folder = run.folder / CHECKPOINTS / f"step-{progress.step:06d}"
        checkpoints.write(folder, _record(run, ready, progress, is_over), tensors, ready.processor, state=state)
        checkpoints.prune(run.folder, run.recipe.keep)
    run.accelerator.wait_for_everyone()


def _record(run: _Run, ready: Ready, progress: Progress, is_over: bool) -> Record:
    validation = run.recipe.validation
    kept: dict[str, Any] = {
        "best": progress.best,
        "waited": progress.waited,
        "judged_at": progress.judged_at,
        "per_step": ready.feed.share.per_step,
        "is_over": is_over,
    }
    return Record(
        base=ready.base.name,
        base_folder=setup.relative_to_checkpoint(ready.base.folder, run.folder),
        base_hash=ready.base_hash,
        tensors_hash="",
        stage=ready.stage.name,
        step=progress.step,
        stage_step=progress.stage_step,
        position=progress.stage_step * ready.feed.share.per_step,
        lora=ready.learning.lora,
        token_ids=ready.learning.token_ids,
        metric=validation.metric if validation else "",
        metrics=progress.metrics if progress.judged_at == progress.step else {},
        progress=kept,
        recipe=config.dump(run.recipe),
        versions=checkpoints.versions(),
    )


def _close(run: _Run, ready: Ready) -> None:
    """Keep what the next stage stands on: the best checkpoint of this one, apart from those that come and go."""
    if ready.index + 1 < len(run.recipe.stages) and run.accelerator.is_main_process:
        _keep_stage(run.folder, ready.stage.name)
    run.accelerator.free_memory()
    run.accelerator.wait_for_everyone()


def _keep_stage(run: Path, name: str) -> None:
    chosen = adapters.best(adapters.checkpoints(run))
    target = run / STAGES / name
    try:
        target.parent.mkdir(exist_ok=True)
        part = target.with_name(f".{name}")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(chosen, part, ignore=shutil.ignore_patterns(checkpoints.STATE))
        if target.exists():
            shutil.rmtree(target)
        part.replace(target)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {target}: {error.strerror}; free space, then go on with --resume"
        ) from error


def _stage_base(run: _Run, index: int) -> Base:
    """What the stage before ended with."""
    name = run.recipe.stages[index].name
    folder = run.folder / STAGES / name
    if not folder.is_dir() and run.accelerator.is_main_process:
        _keep_stage(run.folder, name)
    run.accelerator.wait_for_everyone()
    return Base(name=str(folder), folder=folder)
