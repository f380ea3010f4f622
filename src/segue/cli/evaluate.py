"""`segue evaluate`: score a model on benchmarks or on masks of one's own, go on where a killed run stopped, compare."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from segue.cli import options
from segue.cli.console import STDERR, Bar, VisibleConsole, error, say, told_forms
from segue.errors import ConfigError, SegueError
from segue.files import alone

if TYPE_CHECKING:
    from segue.data.base import Dataset
    from segue.evals.run.evaluation import Evaluation, EvaluationSpec
    from segue.evals.run.report import RunReport
    from segue.features import Usage

RUN = "run"
_FAILURES_TOLD = 5
_USUAL = {"--device": "auto", "--dtype": "auto", "--cache-format": "lossless", "--cache-point": "tower"}
"""What these options are unless they are given."""


class _RunByDefault(TyperGroup):
    """What is no sub-command is a model: `segue evaluate demo` is `segue evaluate run demo`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = [RUN, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_RunByDefault, no_args_is_help=True, add_completion=False)
"""The sub-commands; each is one function here."""

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]", help="A folder, a training run, a hub id, or demo.", callback=options.check_model
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Folder below which the benchmarks' files lie: this one; with --rescore, where they lay for the run.",
    ),
]
Protocol = Annotated[
    str | None, typer.Option("--protocol", help="upstream: score as the original does, its defects included.")
]
MaxFailures = Annotated[
    int, typer.Option("--max-failures", min=0, help="Rows that may fail before the exit code is 2.")
]
ShowNames = Annotated[
    bool, typer.Option("--show-names", help="Tell the file names of a folder of your own in reports.")
]
Judge = Annotated[Path | None, typer.Option("--judge", help="With --rescore: a judge's ratings.")]
Rescore = Annotated[Path | None, typer.Option("--rescore", help="Score the answers of a run anew; no model is needed.")]
Cache = Annotated[
    str | None,
    typer.Option("--cache", help="Folder of a feature cache: what is there is neither decoded nor encoded again."),
]
CacheFormat = Annotated[
    str, typer.Option("--cache-format", help="How features are kept: lossless, lossless-split, int8, bf16.")
]
CachePoint = Annotated[
    Literal["tower", "projected"],
    typer.Option(
        "--cache-point", help="Where features are taken: after the tower, or as the language model sees them."
    ),
]
Out = Annotated[Path | None, typer.Option("--output", "-o", help="Folder for results, one folder per benchmark in it.")]


@app.callback()
def entry() -> None:
    """Score a model: `segue evaluate MODEL --on BENCHMARK -o OUT`, or compare two runs, or list the benchmarks."""


@app.command(RUN)
@options.expanded
def run(
    model: Model = None,
    on: Annotated[
        str | None, typer.Option("--on", help="Benchmarks, separated by commas, or a folder of your own masks.")
    ] = None,
    data: Data = None,
    output: Out = None,
    rescore: Rescore = None,
    split: options.Split = None,
    phrase: options.Phrase = None,
    group: options.GroupPattern = None,
    judge: Judge = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first so many rows.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--overwrite", help="Go on with what OUT holds, or throw it away.")
    ] = True,
    protocol: Protocol = None,
    workers: options.Workers = None,
    shard: options.Shard = None,
    max_failures: MaxFailures = 0,
    batch: Annotated[
        int | None,
        typer.Option("--batch", min=1, help="Questions asked together: 16, or fewer once they do not fit into memory."),
    ] = None,
    *,
    settings: Annotated[dict[str, Any], options.AnswerOptions],
    raw: Annotated[
        bool, typer.Option("--raw", help="Leave the chat template's turns out, as Qwen-VL's evaluation does.")
    ] = False,
    show_names: ShowNames = False,
    cache: Cache = None,
    cache_format: CacheFormat = "lossless",
    cache_point: CachePoint = "tower",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    quantize_kv: options.QuantizeKv = False,
    as_json: options.Json = False,
) -> None:
    """Ask a model every question of a benchmark and report its figures.

    Answers are on the disk before the next batch is asked; the same command
    again goes on where it stopped. What fails is listed and has no score. Options that
    change what the benchmark fixes make it another protocol, which is not
    compared with the first.
    """
    broken: list[str] = []
    if rescore is not None:
        given: dict[str, Any] = {"MODEL": model, "--on": on, "-o": output}
        given |= {"--split": split, "--phrase": phrase, "--group": group}
        given |= {"--protocol": protocol, "--workers": workers, "--shard": shard, "--batch": batch, "--cache": cache}
        given |= {"--raw": raw or None, **{f"--{name.replace('_', '-')}": value for name, value in settings.items()}}
        given |= {"--device": device, "--dtype": dtype, "--cache-format": cache_format, "--cache-point": cache_point}
        given |= {"--overwrite": None if resume else True, "--quantize-kv": quantize_kv or None}
        reports = [_rescore(rescore, judge, data, limit, show_names=show_names, given=given)]
    else:
        if model is None or on is None or output is None or judge is not None:
            raise ConfigError(
                "say which model, on what, and where to: segue evaluate MODEL --on NAME -o OUT; --judge needs --rescore"
            )
        own = {"split": split, "phrase": phrase, "group": group}
        settings |= {"raw": True} if raw else {}
        if cache is None and (cache_format, cache_point) != (_USUAL["--cache-format"], _USUAL["--cache-point"]):
            say("--cache-format and --cache-point have no effect without --cache")
        how: dict[str, Any] = {"own": own, "protocol": protocol, "settings": settings, "limit": limit}
        if batch is not None:
            how["batch"] = batch
        how |= {"cache": cache, "cache_format": cache_format, "cache_point": cache_point}
        specs = _specs(model, on, data or Path(), output, **how, device=device, dtype=dtype, quantize_kv=quantize_kv)
        is_hidden = as_json and sys.stdout.isatty()
        where: dict[str, Any] = {"shard": options.parse_shard(shard), "workers": workers, "is_resumed": resume}
        reports, broken = _evaluate_all(specs, **where, is_hidden=is_hidden, show_names=show_names)
    for report in reports:
        _tell(report)
    if as_json:
        print(json.dumps(reports))
    if broken:
        error(f"not evaluated: {', '.join(broken)}; once that is mended, the same command does it")
    failed = sum(report["failed"] for report in reports)
    raise typer.Exit(2 if broken or failed > max_failures else 0)


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
    from segue.evals.run.evaluation import read_run

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
    VisibleConsole().show(table)


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
    VisibleConsole().show(table)


def _specs(model: str, on: str, data: Path, output: Path, **rest: Any) -> list[EvaluationSpec]:
    from segue.evals.benchmarks import find
    from segue.evals.run.evaluation import EvaluationSpec

    specs = []
    for name in [word.strip() for word in on.split(",") if word.strip()]:
        benchmark = find(name, protocol=rest["protocol"], **rest["own"])
        place = Path(name) if benchmark.is_private else data
        specs.append(EvaluationSpec(model=model, on=name, data=place, out=output / benchmark.name_of(place), **rest))
    return specs


def _evaluate_all(specs: list[EvaluationSpec], **how: Any) -> tuple[list[RunReport], list[str]]:
    """The reports of benchmarks, and the names of those that could not be run, which keep no other from it.

    Raises: SegueError, if there is but one.
    """
    reports, broken = list[Any](), list[str]()
    for spec in specs:
        try:
            reports.append(_evaluate(spec, **how))
        except SegueError as problem:
            if len(specs) == 1:
                raise
            error(f"{spec.out.name}: {problem}")
            broken.append(spec.out.name)
    return [report for report in reports if report is not None], broken


def _evaluate(
    spec: EvaluationSpec,
    shard: tuple[int, int] | None,
    workers: int | None,
    *,
    is_resumed: bool,
    is_hidden: bool,
    show_names: bool,
) -> RunReport | None:
    """Run one benchmark and report it; None while other shards are at work."""
    from segue.evals.run.evaluation import units
    from segue.evals.run.workers import run_workers

    evaluation = spec.evaluation(shard or (0, 1))
    if shard is not None and (workers or 1) > 1:
        raise ConfigError("--shard and --workers both deal out rows; give one of them")
    if shard is not None and not is_resumed:
        raise ConfigError(
            f"--overwrite would throw away what other shards have answered: remove {spec.out}, then start all shards"
        )
    if not is_resumed:
        _throw_away(spec.out)

    @cache
    def data() -> Dataset:
        if not is_hidden:
            say(f"reading the rows of {spec.out.name}")
        with told_forms():
            return evaluation.open_data()

    def media() -> int:
        if spec.limit is None and evaluation.benchmark.media is not None:
            return evaluation.benchmark.media
        return len(units(data(), evaluation.count(data())))

    count = 1 if shard else options.chosen_workers(workers, media, spec.model, spec.device)
    with Bar(spec.out.name, hidden=is_hidden, failures_told=_FAILURES_TOLD) as bar:
        if count > 1:
            usage = run_workers(spec, data, count, bar)
        else:
            dataset = data()
            from segue.evals.run import runner  # which takes seconds: what is wrong with the data is told before

            usage = runner.run(evaluation, dataset, spec.load, bar, batch=spec.batch)
    if spec.cache is not None:
        say(f"{spec.out.name}: {usage}")
    return _reported(evaluation, data(), usage if spec.cache is not None else None, show_names=show_names)


def _rescore(
    out: Path, judge: Path | None, data: Path | None, limit: int | None, *, show_names: bool, given: Mapping[str, Any]
) -> RunReport:
    """Score a run's answers anew, on the data of the run unless others are named; `given` are the options that only
    questions have, None or what is usual where they were not given.
    """
    if unused := [name for name, value in given.items() if value not in (None, _USUAL.get(name))]:
        raise ConfigError(f"--rescore takes the answers of a run as they are; leave {', '.join(unused)} away")
    from segue.evals.benchmarks import of_run
    from segue.evals.run import runner
    from segue.evals.run.evaluation import Evaluation, read_run

    record = read_run(out)
    evaluation = Evaluation(benchmark=of_run(record), data=data or Path(record["data"]), out=out, limit=limit)
    dataset = evaluation.open_data()
    runner.rescore(evaluation, dataset, ratings=judge)
    made = _reported(evaluation, dataset, show_names=show_names)
    if made is None:
        raise ConfigError(f"{out} has rows that were not asked yet; run the rest first, or give --limit")
    return made


def _reported(
    evaluation: Evaluation, dataset: Dataset, usage: Usage | None = None, *, show_names: bool
) -> RunReport | None:
    """The report of a folder, written there; None while rows of it are other shards' work."""
    from segue.evals.run import page, report

    total, out = evaluation.count(dataset), evaluation.out
    run = report.RunFolder(out=out, benchmark=evaluation.benchmark, total=total, show_names=show_names)
    if missing := total - len(run.lines):
        say(f"{out.name}: {missing:,} rows are other shards' work; the last to end writes the report")
        return None
    made = report.gather(run)
    report.write(run, made, usage)
    page.write(run, made, dataset)
    return {**made, "folder": str(out)}


def _throw_away(out: Path) -> None:
    """Remove an older run's folder.

    Raises: ConfigError, if it is no run, or one at work.
    """
    from segue.evals.run import rows
    from segue.evals.run.evaluation import RUN as RECORD

    if out.exists():
        if any(out.iterdir()) and not _is_evaluation(out / RECORD, bool(rows.files(out))):
            raise ConfigError(f"{out} holds no evaluation, so it is not overwritten; choose another folder")
        with ExitStack() as held:
            for path in rows.files(out):
                held.enter_context(alone(path))
            shutil.rmtree(out)


def _is_evaluation(record: Path, has_rows: bool) -> bool:
    """Whether a folder's `run.json` is an evaluation's: a training run has one too. Of a damaged one rows say so."""
    try:
        return "benchmark" in json.loads(record.read_text(encoding="utf-8"))
    except OSError:
        return False
    except (ValueError, TypeError, RecursionError):
        return has_rows


def _tell(made: RunReport) -> None:
    from segue.evals.run.report import figure_lines, threshold_lines

    table = Table("figure", "value", "95% interval", title=f"{made['benchmark']} ({made['protocol']})", box=SIMPLE_HEAD)
    for line in figure_lines(made):
        table.add_row(*line)
    STDERR.show(table)
    if scanned := threshold_lines(made):
        headings, *lines = scanned
        table = Table(*headings, box=SIMPLE_HEAD)
        for one in lines:
            table.add_row(*one, style="bold" if one[-1] else "")
        STDERR.show(table)
    counted = f"{made['n']:,} of {made['rows']:,} rows"
    if made["failed"]:
        error(f"{made['failed']:,} rows failed and are in no figure, such as")
        for one in made["failures"][:_FAILURES_TOLD]:
            say(f"  {one['id']}: {one['error']}")
    say(f"{counted}, model {made['model'].get('model_hash', '?')}, report: {Path(made['folder']) / 'report.html'}")
