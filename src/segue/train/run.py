"""A run from its recipe to its report: the folder, the stages, checkpoints, and going on after a stop."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from contextlib import ExitStack
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from segue import config
from segue.checkpoints import adapters
from segue.checkpoints.adapters import CHECKPOINTS, RECIPE, CheckpointRecord
from segue.data.base import Dataset
from segue.errors import CheckpointError, ConfigError
from segue.files import alone, new_folder
from segue.progress import size
from segue.train import checkpoints, evaluation, report, setup
from segue.train.estimate import StepTiming, description, trial
from segue.train.loop import RunProgress, StageLoop, Stop, enough_memory
from segue.train.recipe import TrainRecipe
from segue.train.run_logger import RunLogger, Watcher, write_text
from segue.train.setup import Accelerator, Base, StageState

log = logging.getLogger(__name__)

STAGES, RUN, DATA = "stages", "run.json", "data.json"
_MAY_DIFFER = ("output", "log_every", "save_every", "keep", "workers", "on_bad_sample", "ceiling", "cache")


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
    logger: RunLogger
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

    Raises: SegueError, also if another process trains in the run folder. Whatever goes wrong, the last checkpoint is
    whole.
    """
    accelerator = setup.accelerator(recipe, device=device)
    start = _begin(recipe, resume=resume)
    accelerator.wait_for_everyone()
    logger = RunLogger(recipe.output, watcher, is_main=accelerator.is_main_process)
    run = _Run(recipe, accelerator, logger, Stop(), limit)
    with ExitStack() as held:
        if accelerator.is_main_process:
            _make(recipe.output)
            held.enter_context(alone(recipe.output))
            _write_beginnings(recipe, accelerator)
        held.callback(logger.close)
        with run.stop.listening():
            progress, is_stopped = _stages(run, start)
    best = adapters.find(recipe.output)
    assert best is not None
    if accelerator.is_main_process:
        report.write(recipe.output, recipe)
    metrics = adapters.read(best).metrics
    return Outcome(recipe.output, best, progress.step, metrics, is_stopped, accelerator.is_main_process)


def estimate(recipe: TrainRecipe, watcher: Watcher, *, device: str = "auto") -> StepTiming:
    """Tell what the first stage needs and measure a step of it; nothing is learned, and no run folder is begun. What a
    feature cache lacks is kept there.

    Raises: SegueError, as training does.
    """
    accelerator = setup.accelerator(recipe, device=device)
    with TemporaryDirectory(prefix="segue-") as folder:
        # a model from nothing and a list of bad rows are written on the way
        recipe = replace(recipe, output=Path(folder))
        state = setup.prepare(recipe, 0, setup.first_base(recipe), accelerator)
        logger = RunLogger(recipe.output, watcher, is_main=False)
        watcher.say(description(state, recipe))
        measured = trial(StageLoop(recipe, state, accelerator, logger, RunProgress()))
    hours = measured.seconds * state.steps / 3600
    watcher.say(
        f"measured: {measured.seconds:.2f} s a step, {hours:.1f} h for {state.steps} steps, without reading data and "
        f"evaluating; at most {size(measured.peak)} of memory"
    )
    return measured


def _begin(recipe: TrainRecipe, *, resume: bool) -> tuple[Path, CheckpointRecord] | None:
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
            key, before_, now = _first_change(name, getattr(old, name), getattr(recipe, name))
            raise ConfigError(
                f"the run in {recipe.output} was started with another {key} ({before_}, now {now}); go on with the "
                "same recipe, or start a new run on top of its checkpoint"
            )
    return checkpoints.newest(recipe.output, [stage.name for stage in recipe.stages])


def _first_change(key: str, old: Any, new: Any) -> tuple[str, Any, Any]:
    """The dotted key of the first value that differs, and both values."""
    parts: list[tuple[Any, Any, Any]] = []
    if is_dataclass(old) and is_dataclass(new):
        parts = [(one.name, getattr(old, one.name), getattr(new, one.name)) for one in fields(old)]
    elif isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        parts = [(number, *pair) for number, pair in enumerate(zip(old, new, strict=True))]
    elif isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        parts = [(name, value, new[name]) for name, value in old.items()]
    for name, first, second in parts:
        if first != second:
            return _first_change(f"{key}.{name}", first, second)
    return key, old, new


def _make(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write into {output}: {error.strerror}; choose another output") from error


def _write_beginnings(recipe: TrainRecipe, accelerator: Accelerator) -> None:
    checkpoints.tidy(recipe.output)
    told = {
        "versions": checkpoints.versions(),
        "processes": accelerator.num_processes,
        "device": str(accelerator.device),
        "distribution": str(accelerator.distributed_type.value),
    }
    write_text(recipe.output / RECIPE, config.dump(recipe))
    write_text(recipe.output / RUN, json.dumps(told, indent=2) + "\n")


def _stages(run: _Run, start: tuple[Path, CheckpointRecord] | None) -> tuple[RunProgress, bool]:
    first, progress = 0, RunProgress()
    if start is not None:
        record = start[1]
        first = [stage.name for stage in run.recipe.stages].index(record.stage)
        progress = _progress(record)
        if record.progress["is_over"]:
            first, progress, start = first + 1, RunProgress(step=progress.step), None
            if first == len(run.recipe.stages):
                run.logger.say(f"the run in {run.folder} is finished; nothing is left to do")
    # of a run that ended before its first checkpoint nothing counts
    run.logger.begin(progress.step or -1)
    for index in range(first, len(run.recipe.stages)):
        base = setup.first_base(run.recipe) if index == 0 else _stage_base(run, index - 1)
        with enough_memory(f"while stage {run.recipe.stages[index].name!r} was made ready"):
            state = setup.prepare(run.recipe, index, base, run.accelerator)
            if start is not None:
                _restore(state, *start)
        _check_data(run, state)
        is_stopped = _stage(run, state, progress)
        if state.features is not None:
            state.features.write_usage()
            run.logger.say(f"stage {state.stage.name}: {state.features.usage}")
        if is_stopped:
            return progress, True
        _close(run, state)
        progress, start = RunProgress(step=progress.step), None
    return progress, False


def _check_data(run: _Run, state: StageState) -> None:
    """Say which data are not as they were when the stage was begun."""
    if not run.logger.is_main:
        return
    path = run.folder / DATA
    known = _known_data(path) if path.is_file() else {}
    now = {part.name: [len(part.dataset), fingerprint(part.dataset)] for part in state.mixture.parts}
    for name, (rows, digest) in known.setdefault(state.stage.name, now).items():
        if now.get(name, [0, ""])[1] != digest:
            run.logger.say(
                f"warning: the data of {name} changed since this run began ({rows} rows then, "
                f"{now.get(name, [0])[0]} now): it goes on with what is there now, and its order of rows is another"
            )
    write_text(path, json.dumps(known, indent=2, ensure_ascii=False) + "\n")


def _known_data(path: Path) -> dict[str, dict[str, list[Any]]]:
    """By stage and dataset, how many rows there were and what stands for them."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return {
            stage: {name: [rows, digest] for name, (rows, digest) in parts.items()} for stage, parts in known.items()
        }
    except (ValueError, TypeError, AttributeError, RecursionError):
        log.warning("%s is damaged: whether the data changed since this run began is not known", path)
        return {}


def fingerprint(dataset: Dataset) -> str:
    """Stands for the annotations of a dataset's rows, in any process; empty, where they do not lie in memory."""
    rows = getattr(dataset, "rows", None)
    if rows is None:
        return ""
    # readers stand in rows as functions, which lie elsewhere in each process
    text = re.sub(r" at 0x[0-9a-f]+>", ">", "\n".join(map(repr, rows)))
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def _progress(record: CheckpointRecord) -> RunProgress:
    kept = record.progress
    # the word of runs that began before
    evaluated_at = kept.get("evaluated_at", kept.get("judged_at", -1))
    return RunProgress(record.stage_step, record.step, kept["best"], kept["waited"], record.metrics, evaluated_at)


def _restore(state: StageState, checkpoint: Path, record: CheckpointRecord) -> None:
    adapters.check_base(checkpoint, record, state.base_hash)
    if record.progress["per_step"] != state.stream.shard.per_step:
        raise ConfigError(
            f"the run took {record.progress['per_step']} samples a step, now it would take "
            f"{state.stream.shard.per_step}; go on with the same batch x accumulation x processes"
        )
    state.restore(checkpoints.read_all(checkpoint / adapters.TENSORS), checkpoints.read_state(checkpoint))


def _stage(run: _Run, state: StageState, progress: RunProgress) -> bool:
    """One stage to its end; returns whether the run was stopped in it."""
    told = description(state, run.recipe)
    run.logger.say(told)
    if not progress.stage_step:
        run.logger.write("stage", progress.step, stage=state.stage.name, text=told)
    held_out = _held_out(run, state)
    loop = StageLoop(run.recipe, state, run.accelerator, run.logger, progress)
    if run.recipe.validation is not None:
        loop.rounds(held_out)  # before steps are spent on it
    last = state.steps
    if run.limit is not None:
        last = min(last, progress.stage_step + max(run.limit - progress.step, 0))
    if run.logger.is_main:
        run.logger.watcher.start(state.stage.name, state.steps, progress.stage_step)
    for done in loop.steps(last):
        is_asked = _is_asked(run)
        is_best, is_over = _evaluate(run, loop, held_out, done)
        is_end = done == last or is_asked or is_over
        if is_best or is_end or done % run.recipe.save_every == 0:
            _save(run, state, progress, is_over=is_over or done == state.steps)
        if is_over:
            run.logger.say(
                f"stage {state.stage.name} ends after {done} steps: no better for {progress.waited} evaluations"
            )
            return False
        if is_asked:
            break
    is_stopped = progress.stage_step < state.steps
    if is_stopped:
        run.logger.say(f"stopped after {progress.step} steps, all kept; --resume goes on from there")
    return is_stopped


def _is_asked(run: _Run) -> bool:
    """Whether any process was asked to stop; all of them agree on it."""
    if run.accelerator.num_processes == 1:
        return run.stop.asked
    if run.stop.asked:
        run.accelerator.set_trigger()
    return bool(run.accelerator.check_trigger())


def _held_out(run: _Run, state: StageState) -> list[evaluation.ValidationRow]:
    validation = run.recipe.validation
    if validation is None:
        return []
    shard = state.stream.shard
    return evaluation.validation_rows(
        validation, state.make, run.recipe.seed, rank=shard.rank, processes=shard.processes
    )


def _evaluate(run: _Run, loop: StageLoop, held_out: list[evaluation.ValidationRow], done: int) -> tuple[bool, bool]:
    """Evaluate, if this step is one to do it after; returns whether it is the best so far, and if patience is out."""
    validation, progress = run.recipe.validation, loop.progress
    if validation is None or (done % validation.every and done != loop.state.steps):
        return False, False
    results = loop.evaluate(held_out)
    score = adapters.rank(progress.metrics, validation.metric)
    run.logger.say(f"step {progress.step}: " + ", ".join(f"{name} {x:.4f}" for name, x in progress.metrics.items()))
    is_best = progress.best is None or score > progress.best
    progress.best, progress.waited = (score, 0) if is_best else (progress.best, progress.waited + 1)
    if is_best and run.logger.is_main:
        _write_cases(run.folder, results, loop.state.make.side)
    return is_best, validation.patience is not None and progress.waited >= validation.patience


def _write_cases(run: Path, results: list[evaluation.SampleResult], side: int | None) -> None:
    rows = [
        {
            "part": result.part,
            "row": result.number,
            "iou": round(result.iou, 6),
            "frame": result.frame,
            "masks": [{"size": [side, side], "counts": one.mask} for one in result.objects],
        }
        for result in sorted(results, key=lambda one: (one.part, one.number))
    ]
    write_text(run / report.CASES, json.dumps(rows, indent=1) + "\n")


def _save(run: _Run, state: StageState, progress: RunProgress, *, is_over: bool) -> None:
    with enough_memory(f"while step {progress.step} was saved"):
        tensors, moments = state.tensors(), state.optimizer_tensors()
    if run.accelerator.is_main_process:
        folder = run.folder / CHECKPOINTS / f"step-{progress.step:06d}"
        checkpoints.write(folder, _record(run, state, progress, is_over), tensors, state.processor, state=moments)
        checkpoints.prune(run.folder, run.recipe.keep)
    run.accelerator.wait_for_everyone()


def _record(run: _Run, state: StageState, progress: RunProgress, is_over: bool) -> CheckpointRecord:
    validation = run.recipe.validation
    kept: dict[str, Any] = {
        "best": progress.best,
        "waited": progress.waited,
        "evaluated_at": progress.evaluated_at,
        "per_step": state.stream.shard.per_step,
        "is_over": is_over,
    }
    return CheckpointRecord(
        base=state.base.name,
        base_folder=setup.relative_to_checkpoint(state.base.folder, run.folder),
        base_hash=state.base_hash,
        tensors_hash="",
        stage=state.stage.name,
        step=progress.step,
        stage_step=progress.stage_step,
        position=progress.stage_step * state.stream.shard.per_step,
        lora=state.trainable.lora,
        token_ids=state.trainable.token_ids,
        metric=validation.metric if validation else "",
        metrics=progress.metrics if progress.evaluated_at == progress.step else {},
        progress=kept,
        recipe=config.dump(run.recipe),
        image_side=run.recipe.image_side,
        template=run.recipe.template,
        versions=checkpoints.versions(),
    )


def _close(run: _Run, state: StageState) -> None:
    """Keep what the next stage stands on: the best checkpoint of this one, apart from those that come and go."""
    if state.index + 1 < len(run.recipe.stages) and run.accelerator.is_main_process:
        _keep_stage(run.folder, state.stage.name)
    run.accelerator.free_memory()
    run.accelerator.wait_for_everyone()


def _keep_stage(run: Path, name: str) -> None:
    chosen = adapters.best(adapters.checkpoints(run))
    target = run / STAGES / name
    try:
        with new_folder(target) as part:
            leaving_out = shutil.ignore_patterns(checkpoints.STATE)
            shutil.copytree(chosen, part, ignore=leaving_out, dirs_exist_ok=True)
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
