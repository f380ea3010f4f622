"""`segue evaluate`: score a model on benchmarks or on masks of one's own, go on where a killed run stopped, compare."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from segue.cli import options
from segue.cli.console import STDERR, VisibleConsole, error, say
from segue.errors import ConfigError

if TYPE_CHECKING:
    from segue.data.base import Dataset
    from segue.evals.run.report import Report
    from segue.evals.run.runner import Job
    from segue.evals.run.workers import Order
else:
    # What evaluates brings torch along, which `--help` can do without.
    Report, Job, Order, Dataset = dict[str, Any], Any, Any, Any

RUN = "run"
_EVERY = 15.0  # seconds between two lines of progress where there is no terminal
_FAILURES_TOLD = 5


class _Group(TyperGroup):
    """What is no sub-command is a model: `segue evaluate demo` is `segue evaluate run demo`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = [RUN, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_Group, no_args_is_help=True, add_completion=False)
"""The sub-commands; each is one function here."""

Phrase = Annotated[str | None, typer.Option("--phrase", help="Of a folder of your own: what its mask pictures show.")]
Group = Annotated[
    str | None, typer.Option("--group", help="Of a folder of your own: a pattern that finds the group in a name.")
]
Split = Annotated[str | None, typer.Option("--split", help="Of a folder of your own: train, val, test or all.")]
Protocol = Annotated[
    str | None, typer.Option("--protocol", help="upstream: score as the original does, its defects included.")
]
Shard = Annotated[
    str | None, typer.Option("--shard", help="Shard i/N, from 0: every machine does one, into the same OUT.")
]
MaxFailures = Annotated[
    int, typer.Option("--max-failures", min=0, help="Rows that may fail before the exit code is 2.")
]
ShowNames = Annotated[
    bool, typer.Option("--show-names", help="Tell the file names of a folder of your own in reports.")
]
Judge = Annotated[Path | None, typer.Option("--judge", help="With --rescore: a judge's ratings.")]
Rescore = Annotated[Path | None, typer.Option("--rescore", help="Score the answers of a run anew; no model is needed.")]
Out = Annotated[Path | None, typer.Option("--output", "-o", help="Folder for results, one folder per benchmark in it.")]


@app.callback()
def entry() -> None:
    """Score a model: `segue evaluate MODEL --on BENCHMARK -o OUT`, or compare two runs, or list the benchmarks."""


@app.command(RUN)
def run(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A folder, a training run, a hub id, or demo.")
    ] = None,
    on: Annotated[
        str | None, typer.Option("--on", help="Benchmarks, separated by commas, or a folder of your own masks.")
    ] = None,
    data: Annotated[Path, typer.Option("--data", help="Folder below which the benchmarks' files lie.")] = Path(),
    output: Out = None,
    rescore: Rescore = None,
    split: Split = None,
    phrase: Phrase = None,
    group: Group = None,
    judge: Judge = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first so many rows.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--overwrite", help="Go on with what OUT holds, or throw it away.")
    ] = True,
    protocol: Protocol = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes on this machine.")] = 1,
    shard: Shard = None,
    max_failures: MaxFailures = 0,
    frames: Annotated[str | None, typer.Option("--frames", help="Another plan of video frames.")] = None,
    policy: Annotated[
        Literal["auto", "upstream", "consistent"] | None, typer.Option("--policy", help="How objects are followed.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", min=0.0, max=1.0, help="Probability above which a pixel counts.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")
    ] = None,
    max_tiles: Annotated[int | None, typer.Option("--max-tiles", min=1, help="Most tiles of an image.")] = None,
    show_names: ShowNames = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.Json = False,
) -> None:
    """Ask a model every question of a benchmark and report its figures.

    Each answer is on the disk before the next question; the same command again
    goes on where it stopped. What fails is listed and has no score. Options that
    change what the benchmark fixes make it another protocol, which is not
    compared with the first.
    """
    asked = {"frames": frames, "policy": policy, "threshold": threshold}
    asked |= {"max_new_tokens": max_new_tokens, "max_tiles": max_tiles}
    settings = {name: value for name, value in asked.items() if value is not None}
    if rescore is not None:
        if model is not None or on is not None:
            raise ConfigError("--rescore takes the answers of a run; leave MODEL and --on away")
        reports = [_rescore(rescore, judge, limit, show_names=show_names)]
    else:
        if model is None or on is None or output is None or judge is not None:
            raise ConfigError(
                "say which model, on what, and where to: segue evaluate MODEL --on NAME -o OUT; --judge needs --rescore"
            )
        own = {"split": split, "phrase": phrase, "group": group}
        asking: dict[str, Any] = {"own": own, "protocol": protocol, "settings": settings, "limit": limit}
        orders = _orders(model, on, data, output, **asking, device=device, dtype=dtype)
        is_hidden = as_json and sys.stdout.isatty()
        going = {"is_resumed": resume, "is_hidden": is_hidden, "show_names": show_names}
        made = [_one(order, shard, workers, **going) for order in orders]
        reports = [report for report in made if report is not None]
    for report in reports:
        _tell(report)
    if as_json:
        print(json.dumps(reports))
    failed = sum(report["failed"] for report in reports)
    raise typer.Exit(2 if failed > max_failures else 0)


@app.command("compare")
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A run: a folder that `segue evaluate` wrote.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another run over the same rows.")],
    as_json: options.Json = False,
) -> None:
    """Tell whether B is better than A or whether that was luck.

    Runs of different protocols or over different rows are refused.
    """
    from segue.evals.benchmarks import of_run
    from segue.evals.run import compare as comparing
    from segue.evals.run import report
    from segue.evals.run.runner import read_run

    found = comparing.compare(first, second, of_run(read_run(first)))
    if as_json:
        print(json.dumps(comparing.as_json(found)))
        return
    table = Table("figure", "A", "B", "B - A", "95% interval", "p", "", box=SIMPLE_HEAD)
    for one in found:
        values = [report.number(value) for value in (one.first, one.second, one.difference)]
        interval = f"{report.number(one.low)} to {report.number(one.high)}"
        verdict = ("higher" if one.difference > 0 else "lower") if one.is_significant else "may be luck"
        table.add_row(one.figure, *values, interval, f"{one.p:.3f}", verdict)
    VisibleConsole().print(table)


@app.command("list")
def list_(as_json: options.Json = False) -> None:
    """List the benchmarks: what each asks, what is quoted, and which files it needs below --data."""
    from segue.evals.benchmarks import BENCHMARKS

    records: list[dict[str, Any]] = [
        {
            "name": one.name,
            "protocol": one.protocol,
            "headline": one.headline,
            "task": one.task,
            "dataset": one.dataset,
            "split": one.split,
            "files": list(one.files),
            "published": dict(one.published),
            "submission": one.submit is not None,
        }
        for one in BENCHMARKS.values()
    ]
    if as_json:
        print(json.dumps(records))
        return
    table = Table("name", "headline", "protocol", "needs below --data", box=SIMPLE_HEAD)
    for one in records:
        table.add_row(one["name"], one["headline"], one["protocol"], Text("\n".join(one["files"]) or "nothing"))
    VisibleConsole().print(table)


def _orders(model: str, on: str, data: Path, output: Path, **rest: Any) -> list[Order]:
    from segue.evals.benchmarks import find
    from segue.evals.run.workers import Order as Made

    orders = []
    for name in [word.strip() for word in on.split(",") if word.strip()]:
        benchmark = find(name, protocol=rest["protocol"], **rest["own"])
        is_folder = benchmark.is_private
        out = output / (f"{Path(name).resolve().name}_{benchmark.split}" if is_folder else benchmark.name)
        place = Path(name) if is_folder else data
        orders.append(Made(model=model, on=name, data=place, out=out, **rest))
    return orders


def _one(
    order: Order, shard: str | None, workers: int, *, is_resumed: bool, is_hidden: bool, show_names: bool
) -> Report | None:
    """Run one benchmark and report it; None while other shards are at work."""
    from segue.evals.run import runner
    from segue.evals.run import workers as processes

    if not is_resumed:
        _throw_away(order.out)
    job = order.job(_shard(shard))
    dataset = runner.open_data(job)
    with _Watching(order.out.name, is_hidden=is_hidden) as watcher:
        if workers > 1:
            if shard is not None:
                raise ConfigError("--shard and --workers both deal out rows; give one of them")
            processes.run_workers(order, workers, watcher)
        else:
            runner.run(job, dataset, order.load, watcher)
    return _reported(job, dataset, show_names=show_names)


def _rescore(out: Path, judge: Path | None, limit: int | None, *, show_names: bool) -> Report:
    from segue.evals.benchmarks import of_run
    from segue.evals.run import runner

    record = runner.read_run(out)
    job = runner.Job(benchmark=of_run(record), data=Path(record["data"]), out=out, limit=limit)
    dataset = runner.open_data(job)
    runner.rescore(job, dataset, judge=judge)
    made = _reported(job, dataset, show_names=show_names)
    if made is None:
        raise ConfigError(f"{out} has rows that were not asked yet; run the rest first, or give --limit")
    return made


def _reported(job: Job, dataset: Dataset, *, show_names: bool) -> Report | None:
    """The report of a folder, written there; None while rows of it are other shards' work."""
    from segue.evals.run import page, report, runner

    total = runner.count(job, dataset)
    run = report.Run(out=job.out, benchmark=job.benchmark, total=total, show_names=show_names)
    if missing := total - len(run.lines()):
        say(f"{job.out.name}: {missing:,} rows are other shards' work; the last to end writes the report")
        return None
    made = report.gather(run)
    report.write(run, made)
    page.write(run, made, dataset)
    return {**made, "folder": str(job.out)}


def _throw_away(out: Path) -> None:
    """Remove an older run's folder.

    Raises: ConfigError, if it is no run.
    """
    from segue.evals.run.runner import RUN as RECORD

    if out.exists():
        if any(out.iterdir()) and not (out / RECORD).is_file():
            raise ConfigError(f"{out} holds no evaluation, so it is not overwritten; choose another folder")
        shutil.rmtree(out)


def _shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return 0, 1
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal()) or int(number) >= int(count):
        raise ConfigError(f"--shard {text!r} is no shard; expected i/N with i from 0 to N - 1, such as 0/4")
    return int(number), int(count)


def _tell(made: Report) -> None:
    from segue.evals.run.report import figure_lines

    table = Table("figure", "value", "95% interval", title=f"{made['benchmark']} ({made['protocol']})", box=SIMPLE_HEAD)
    for line in figure_lines(made):
        table.add_row(*line)
    STDERR.print(table)
    counted = f"{made['n']:,} of {made['rows']:,} rows"
    if made["failed"]:
        error(f"{made['failed']:,} rows failed and are in no figure, such as")
        for one in made["failures"][:_FAILURES_TOLD]:
            say(f"  {one['id']}: {one['error']}")
    say(f"{counted}, model {made['model'].get('model_hash', '?')}, report: {Path(made['folder']) / 'report.html'}")


class _Watching:
    """A bar with the time left on a terminal; elsewhere a line with the time left, every now and then."""

    def __init__(self, title: str, *, is_hidden: bool):
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._is_plain = not STDERR.is_terminal
        self._bar = Progress(*columns, console=STDERR, disable=is_hidden or self._is_plain, transient=True)
        self._task: TaskID = self._bar.add_task(title, total=None)
        self._title = title
        self._total = self._before = self._stepped = self._failed = 0
        self._began = self._said = perf_counter()

    def __enter__(self) -> _Watching:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def start(self, total: int, done: int) -> None:
        """So many questions, so many of them answered by an earlier run."""
        self._total, self._before = total, done
        if not self._stepped:
            self._began = self._said = perf_counter()
        if done:
            say(f"{self._title}: {done:,} of {total:,} rows are answered already")
        self._bar.update(self._task, total=total, completed=done + self._stepped)

    def step(self, failure: str | None) -> None:
        """One more is answered or failed."""
        self._stepped += 1
        if failure is not None:
            self._failed += 1
            if self._failed <= _FAILURES_TOLD:
                error(failure)
        title = f"{self._title}, {self._failed} failed" if self._failed else self._title
        self._bar.update(self._task, completed=self._before + self._stepped, description=title)
        now = perf_counter()
        if self._is_plain and now - self._said >= _EVERY:
            self._said = now
            done = self._before + self._stepped
            left = (now - self._began) / self._stepped * (self._total - done)
            say(f"{title}: {done:,} of {self._total:,}, {left:.0f} s left", style="dim")
