"""`segue bench`: what things cost on this machine, as ratios from one run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from segue.cli import options
from segue.cli.console import VisibleConsole, say
from segue.errors import ConfigError

if TYPE_CHECKING:
    from segue.bench.report import BenchReport, Encodes, Ratio, StageTiming


def command(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Model to measure: a folder, or a hub id such as ByteDance/Sa2VA-4B.",
            callback=options.check_model,
        ),
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option(
            "--architecture", help="Measure an architecture in its real size with random weights, such as Sa2VA-1B."
        ),
    ] = None,
    objects: Annotated[
        str, typer.Option("--objects", help="Numbers of objects; ratios are against the first.")
    ] = "1,5",
    frames: Annotated[int, typer.Option("--frames", min=1, help="Frames of the clip.")] = 6,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="How often; the quickest counts. A clip: once.")] = 3,
    threads: Annotated[int, typer.Option("--threads", min=1, help="CPU threads; ratios are steadiest with 1.")] = 1,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.Json = False,
) -> None:
    """Measure what things cost, as ratios from one run.

    Without a model or an architecture, a tiny model with random weights is
    measured. In real size on a CPU, this takes half an hour.
    """
    if model is not None and architecture is not None:
        raise ConfigError("--model and --architecture were both given; a run measures one of them")
    numbers = _numbers(objects)

    import torch

    from segue import loading
    from segue.bench import stages
    from segue.bench.report import BenchPlan

    plan = BenchPlan(objects=numbers, frames=frames, repeats=repeats)
    torch.set_num_threads(threads)
    if model is None:
        name = architecture or "tiny"
        say(f"{name} with random weights")
        loaded = stages.random_engine(name, device=device, dtype=dtype)
    else:
        loaded = loading.load(model, device=device, dtype=dtype)
    report = stages.measure(loaded, plan, say)
    if as_json:
        print(json.dumps(report.as_json()))
    else:
        print_report(report, VisibleConsole(highlight=False, markup=False))


def _numbers(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between them.

    Raises: ConfigError.
    """
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--objects {text!r} is not a list of numbers; expected one such as 1,4,16") from error


def print_report(report: BenchReport, console: VisibleConsole) -> None:
    """The report for people."""
    machine, model = report.machine, report.model
    weights = "random weights" if model.get("random") else "its own weights"
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    threads = f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"
    console.print(f"{model['model']} with {weights}, {model['dtype']}, on {machine['device']}, {threads}")
    console.print(f"{machine['system']}, Python {machine['python']}, {versions}\n")
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="")
    for title in ("stage", "objects", "work"):
        table.add_column(title)
    for title in ("seconds", "each", "of the limit"):
        table.add_column(title, justify="right")
    for stage in report.stages:
        table.add_row(*_cells(stage, report.share(stage)))
    console.show(table)
    console.print()
    for line in _lines(report):
        console.print(line, soft_wrap=True)


def _cells(stage: StageTiming, share: float | None) -> tuple[str, ...]:
    work = f"{stage.count} {stage.unit}{'' if stage.count == 1 else 's'}"
    each = stage.least / stage.count
    slow = stage.unit != "token" and each >= 1
    rate = f"{each:.3g} s" if slow else f"{1 / each:.3g} {stage.unit}s/s"
    reached = "" if share is None else f"{share:.0%} of {'products' if stage.flops else 'bandwidth'}"
    return (stage.name, "" if stage.objects is None else str(stage.objects), work, f"{stage.least:.3g}", rate, reached)


def _lines(report: BenchReport) -> Iterator[str]:
    yield from map(_ratio_line, report.ratios)
    yield from map(_encodes_line, report.encodes)
    yield (
        f"limits measured here: {report.limits.bandwidth / 1e9:.0f} GB/s of a copy, read and written together; "
        f"{report.limits.products / 1e12:.3g} TFLOP/s of a matrix product"
    )
    yield f"weights: {report.weight_bytes / 1e9:.3f} GB"
    if report.peak_bytes is not None:
        yield f"peak memory: {report.peak_bytes / 1e9:.3f} GB"
    yield (
        f"Seconds are {report.clock}, the least of {report.plan.repeats} (a clip: of 1). Whatever else runs here moves "
        "them: compare ratios of one run, not seconds of two."
    )


def _ratio_line(ratio: Ratio) -> str:
    one, more = (f"{number} object{'' if number == 1 else 's'}" for number in (ratio.base, ratio.objects))
    spread = f" ({ratio.lowest:.2f} to {ratio.highest:.2f})" if ratio.lowest < ratio.highest else ""
    return f"{ratio.name}: {more} / {one} = {ratio.value:.2f}x{spread}"


def _encodes_line(found: Encodes) -> str:
    objects = f"{found.objects} object{'' if found.objects == 1 else 's'}"
    frames = f"{found.frames} frame{'' if found.frames == 1 else 's'}"
    ran = f"{found.encoded} frame{'' if found.encoded == 1 else 's'}"
    return f"SAM 2 encoder, {found.medium} of {frames}, {objects}: ran on {ran}"
