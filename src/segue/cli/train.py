"""`segue train` and `segue finetune`: learn from data, and leave checkpoints that every command reads."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from segue.cli import options
from segue.cli.console import STDERR, say
from segue.errors import ConfigError, DataError

if TYPE_CHECKING:
    from segue.own_data.doctor import Examined
    from segue.train.recipe import TrainRecipe
    from segue.train.run import Outcome
else:
    # Recipes bring torch along, which `--help` can do without.
    TrainRecipe = Outcome = Examined = Any

STOPPED = 130

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Another value for a key of the recipe, such as clip=0.5."),
]
Cache = Annotated[
    Path | None,
    typer.Option("--cache", help="Feature cache: the frozen vision tower sees each picture in the first epoch alone."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in the output folder.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Stop after so many steps; --resume goes on.")]
Estimate = Annotated[
    bool, typer.Option("--estimate", help="Tell memory, steps and time from one step, and learn nothing.")
]


def _check_device(device: str) -> str:
    if device not in ("auto", "cpu"):
        raise ConfigError(f"device {device!r} cannot be trained on by name; expected auto or cpu (accelerate chooses)")
    return device


TrainDevice = Annotated[
    str,
    typer.Option("--device", help="auto or cpu; several GPUs through accelerate launch.", callback=_check_device),
]


def command(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file; recipes/ holds some.")],
    sets: Set = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Run folder, instead of the recipe's.")] = None,
    cache: Cache = None,
    resume: Resume = False,
    limit: Limit = None,
    estimate: Estimate = False,
    device: TrainDevice = "auto",
    as_json: options.Json = False,
) -> None:
    """Train as a recipe says.

    Checkpoints, log and report go to the run folder. Ctrl-C finishes the
    step, saves and ends with exit code 130; --resume goes on from there.
    """
    if not recipe.is_file():
        raise ConfigError(f"there is no recipe {recipe}; give a YAML file, of which recipes/ holds some")
    from segue import config
    from segue.train.recipe import TrainRecipe

    read = config.load(TrainRecipe, recipe, sets or [])
    if output is not None:
        read = replace(read, output=output)
    if cache is not None:
        read = replace(read, cache=cache)
    _leave(_run(read, resume=resume, limit=limit, estimate=estimate, device=device, as_json=as_json), limit)


def finetune(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Your images or videos with masks.")],
    base: Annotated[
        str,
        typer.Option(
            "--base", "-b", help="Model to start from: a folder, a hub id, or demo.", callback=options.check_model
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Run folder.")] = Path("segue-run"),
    phrase: options.Phrase = None,
    group: options.GroupPattern = None,
    epochs: Annotated[float | None, typer.Option("--epochs", help="How often to go through the data.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Steps of eight samples.")] = None,
    sets: Set = None,
    cache: Cache = None,
    resume: Resume = False,
    limit: Limit = None,
    estimate: Estimate = False,
    device: TrainDevice = "auto",
    as_json: options.Json = False,
) -> None:
    """Fine-tune a model on your own masks.

    Checks the data as `segue doctor` does, makes a recipe that fits folder
    and model, keeps it in the run folder, and trains. `segue train` can go
    on with that recipe.
    """
    if epochs is not None and steps is not None:
        raise ConfigError(f"--epochs {epochs} and --steps {steps} contradict each other; give one of them")
    from segue import config
    from segue.train.presets import FinetuneOptions
    from segue.train.recipe import TrainRecipe
    from segue.train.setup import require_accelerate

    if not estimate:
        require_accelerate()
    has_test = True
    if resume:
        fixed = {"--phrase": phrase, "--group": group, "--epochs": epochs, "--steps": steps}
        if unused := [name for name, value in fixed.items() if value is not None]:
            recipe = output / "recipe.yaml"
            say(f"{', '.join(unused)} have no effect with --resume, which goes by {recipe} (--set KEY=VALUE)")
        if not (output / "recipe.yaml").is_file():
            raise ConfigError(f"{output} holds no run to go on with; start without --resume")
        made = replace(config.load(TrainRecipe, output / "recipe.yaml", sets or []), output=output)
        _check_same(made, folder, base)
    else:
        wish = FinetuneOptions(
            folder=folder, base=base, output=output, phrase=phrase, group=group, epochs=epochs, steps=steps
        )
        examined = _check_data(folder, phrase=phrase, group=group)
        objects, has_test = max(len(seen.texts) for seen in examined.seen), "test" in examined.report.splits
        made = _with_sets(_preset(replace(wish, objects=objects), device), sets or [])
    if cache is not None:
        made = replace(made, cache=cache)
    if not resume:
        say(_summary(made))
    outcome = _run(made, resume=resume, limit=limit, estimate=estimate, device=device, as_json=as_json)
    if outcome is not None and outcome.is_main:
        _tell_next(made, outcome, phrase=phrase, group=group, has_test=has_test)
    _leave(outcome, limit)


def _summary(made: TrainRecipe) -> str:
    """What a fine-tune will do, in a few lines."""
    stage = made.stages[0]
    learns = ", ".join(f"{name} ({group.how})" for name, group in stage.groups.items())
    quantised = "" if stage.lora.quantize == "none" else f" on {stage.lora.quantize} weights"
    samples = made.batch * made.accumulation
    length = f"{stage.epochs:g} epochs" if stage.steps is None else _many(stage.steps, "step")
    lines = [
        f"{made.model} learns for {length} of {samples} samples at rate {stage.rate:g}",
        f"what learns: {learns}; LoRA of rank {stage.lora.rank}{quantised}",
    ]
    if made.validation is not None:
        patience = made.validation.patience
        lines.append(
            f"every {_many(made.validation.every, 'step')} the held-out rows are asked; the best checkpoint is kept"
            + (f", and {patience} times without gain end it" if patience else "")
        )
    return "\n".join([*lines, f"all settings go to {made.output / 'recipe.yaml'} (--set KEY=VALUE changes them)"])


def _tell_next(made: TrainRecipe, outcome: Outcome, *, phrase: str | None, group: str | None, has_test: bool) -> None:
    """The commands that one would type next."""
    data, run = made.data[0], str(outcome.run)
    given = {"--phrase": phrase or data.options.get("phrase"), "--group": group or data.options.get("group")}
    words = [word for name, value in given.items() if value is not None for word in (name, str(value))]
    if outcome.is_stopped:
        again = shlex.join(["segue", "finetune", str(data.root), "--base", made.model, "-o", run, "--resume"])
        say(f"go on:    {again}")
        return
    words += [] if has_test else ["--split", "val"]
    # a run called `run` or `list` would be taken for a sub-command
    model = run if "/" in run else f"./{run}"
    score = shlex.join(["segue", "evaluate", model, "--on", f"{data.root}", *words, "-o", f"{run}-scores"])
    say(f"score it: {score}")
    use = shlex.join(["segue", "segment", "IMAGE", str(phrase or "PHRASE"), "--model", run, "-o", "tuned"])
    say(f"use it:   {use}")


def _preset(wish: Any, device: str) -> TrainRecipe:
    from segue import loading
    from segue.checkpoints.locate import resolve, weights_folder
    from segue.checkpoints.model_folder import read_layout
    from segue.train.presets import finetune as preset

    folder = weights_folder(resolve(wish.base))
    return preset(wish, read_layout(folder).config, device=loading.pick_device(device))


def _with_sets(made: TrainRecipe, sets: list[str]) -> TrainRecipe:
    """The recipe with what the user would have otherwise, read as strictly as from a file."""
    from tempfile import TemporaryDirectory

    from segue import config
    from segue.train.recipe import TrainRecipe

    with TemporaryDirectory() as scratch:
        path = Path(scratch) / "finetune.yaml"
        path.write_text(config.dump(made), encoding="utf-8")
        return config.load(TrainRecipe, path, sets)


def _check_same(made: TrainRecipe, folder: Path, base: str) -> None:
    """Refuse to go on with other data or from another model than a run was started with.

    Raises: ConfigError.
    """
    for what, given, known in (("FOLDER", str(folder), str(made.data[0].root)), ("--base", base, made.model)):
        if given != known and Path(given).resolve() != Path(known).resolve():
            raise ConfigError(
                f"the run in {made.output} was started with {what} {known}, and --resume goes on with that, not with "
                f"{given}; give {known}, or start a new run on top of this one: --base {made.output} -o ANOTHER"
            )


def _check_data(folder: Path, *, phrase: str | None, group: str | None) -> Examined:
    """What the data doctor finds, told before anything is loaded.

    Raises: DataError, for data with errors; what `segue.own_data.doctor.examine` raises.
    """
    from segue.own_data.doctor import KINDS, examine

    examined = examine(folder, phrase=phrase, group=group)
    report = examined.report
    given = (("--phrase", phrase), ("--group", group))
    words = [word for name, value in given if value is not None for word in (name, value)]
    doctor = shlex.join(["segue", "doctor", str(folder), *words])
    errors = [finding for finding in report.findings if finding.severity == "error"]
    if errors:
        kinds = [(KINDS[kind].title, several) for kind, several in report.by_kind().items() if several[0] in errors]
        told = "; ".join(f"{title} ({len(several)}, first in {several[0].file})" for title, several in kinds)
        raise DataError(
            f"{folder} has {_many(len(errors), 'error')}: {told}. `{doctor}` shows them all, and "
            f"`{doctor} --fix {shlex.quote(f'{folder}-mended')}` writes a corrected copy"
        )
    parts = ", ".join(f"{count} {split or 'in no split'}" for split, count in report.splits.items())
    say(f"{folder} is read as {examined.survey.form}")
    say(f"checked {folder}: {_many(report.rows, 'row')} ({parts}) with {_many(report.objects, 'object')}, no errors")
    if report.findings:
        say(f"{_many(len(report.findings), 'warning')}; `{doctor}` shows them", style="yellow")
    return examined


def _run(
    recipe: TrainRecipe, *, resume: bool, limit: int | None, estimate: bool, device: str, as_json: bool
) -> Outcome | None:
    """Train, and tell how it ended; None where only the cost was to be told."""
    from segue.train import run

    with Watching(hidden=as_json and sys.stdout.isatty()) as watcher:
        if estimate:
            measured = run.estimate(recipe, watcher, device=device)
            if as_json:
                print(json.dumps({"seconds_per_step": measured.seconds, "peak_bytes": measured.peak}))
            return None
        outcome = run.train(recipe, watcher, resume=resume, limit=limit, device=device)
    figures = ", ".join(f"{name} {value:.4f}" for name, value in outcome.metrics.items())
    if outcome.is_main:
        say(f"best checkpoint: {outcome.best}{f' ({figures})' if figures else ''}")
        say(f"report: {outcome.run / 'report.html'}")
    if as_json and outcome.is_main:
        told = {"run": str(outcome.run), "best": str(outcome.best), "step": outcome.step, "metrics": outcome.metrics}
        print(json.dumps({**told, "stopped": outcome.is_stopped}))
    return outcome


def _leave(outcome: Outcome | None, limit: int | None) -> None:
    if outcome is not None and outcome.is_stopped and limit is None:
        raise typer.Exit(STOPPED)


class Watching:
    """A bar with the time left on a terminal; elsewhere a line for each line of the log, with the time left too."""

    def __init__(self, *, hidden: bool):
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=STDERR, disable=hidden or not STDERR.is_terminal, transient=True)
        self._task: TaskID | None = None
        self._steps = self._done = 0
        self._started = 0.0

    def __enter__(self) -> Watching:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """A line for people, above the bar."""
        say(text)

    def start(self, stage: str, steps: int, done: int) -> None:
        """A new bar for a stage."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(stage, total=steps, completed=done)
        self._steps, self._done, self._started = steps, done, perf_counter()

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Move the bar; say the figures of the log."""
        if self._task is not None:
            self._bar.update(self._task, completed=step)
        if values:
            seconds = (perf_counter() - self._started) / max(step - self._done, 1) * (self._steps - step)
            told = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
            say(f"step {step}/{self._steps}  {told}  left {_clock(seconds)}", style="dim")


def _many(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
