"""`segue estimate`: what a job will take on devices that are not at hand, by arithmetic alone."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from segue.cli import options
from segue.cli.console import VisibleConsole
from segue.errors import ConfigError
from segue.progress import size

if TYPE_CHECKING:
    from segue.bench.estimate import Accelerator, Cost

app = typer.Typer(no_args_is_help=True, add_completion=False)
"""The sub-commands; each is one function here."""


_MOST = 10**12  # of what is counted, so that products stay numbers that can be printed


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceOptions:
    """What the job runs on; see `options.expanded`."""

    gpu: Annotated[str, typer.Option("--gpu", help="The device: l4, rtx4090, a100, h100 or h200.")] = "h100"
    share: Annotated[
        float,
        typer.Option("--share", min=0.01, max=1.0, help="How much of the device's limits is reached: an assumption."),
    ] = 0.4

    @property
    def device(self) -> Accelerator:
        """Raises: ConfigError, if it is not known."""
        from segue.bench.estimate import ACCELERATORS

        if self.gpu not in ACCELERATORS:
            raise ConfigError(f"unknown device {self.gpu!r}; known: {', '.join(ACCELERATORS)}")
        return ACCELERATORS[self.gpu]

    @property
    def words(self) -> str:
        """As titles say it."""
        return f"on {self.gpu} at {self.share:.0%} of its limits"


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetOptions(DeviceOptions):
    """Which models run, and on how many devices; see `options.expanded`."""

    objects: Annotated[int, typer.Option("--objects", min=1, max=1000, help="Things asked for in each.")] = 3
    models: Annotated[
        str, typer.Option("--models", help="Architectures, separated by commas; `segue models` lists those there are.")
    ] = "Sa2VA-1B,Sa2VA-4B,Sa2VA-8B,Sa2VA-26B"
    gpus: Annotated[str, typer.Option("--gpus", help="Numbers of devices, separated by commas.")] = "1,8,64"

    @property
    def arithmetic(self) -> dict[str, Any]:
        """The arithmetic of each model. Raises: ConfigError, if there is none, or one cannot segment."""
        from segue.bench.estimate import arithmetic

        models = {name: arithmetic(name) for name in _words(self.models)}
        if not models:
            raise ConfigError("--models names none; `segue models` lists those there are")
        if without := [name for name, model in models.items() if model.config.sam2_config is None]:
            raise ConfigError(f"{', '.join(without)} has no grounder, so that it cannot segment; take a Sa2VA")
        return models

    @property
    def numbers(self) -> Sequence[int]:
        """How many devices. Raises: ConfigError."""
        words = _words(self.gpus)
        if not words or not all(re.fullmatch("[1-9][0-9]{0,6}", word) for word in words):
            raise ConfigError(f"--gpus {self.gpus[:80]!r} is not a list of numbers; expected one such as 1,8,64")
        return list(dict.fromkeys(map(int, words)))

    def hours(self, cost: Cost) -> dict[str, float]:
        """Hours of a job by the number of devices."""
        return {str(number): cost.seconds(self.device, self.share) / 3600 / number for number in self.numbers}


@app.callback()
def group() -> None:
    """What a job will take: tokens, operations, hours and bytes, by arithmetic. docs/scaling.md has the formulas."""


@app.command("images")
@options.expanded
def images(
    count: Annotated[int, typer.Option("--count", min=1, max=_MOST, help="Images.")] = 1_000_000,
    *,
    fleet: FleetOptions,
    as_json: options.Json = False,
) -> None:
    """Segment images: so many things asked for in each."""
    from segue.bench import estimate

    costs = {name: estimate.images(model, fleet.objects) * count for name, model in fleet.arithmetic.items()}
    _tell(costs, fleet, f"{count:,} images, {fleet.objects} things asked for in each", as_json=as_json)


@app.command("videos")
@options.expanded
def videos(
    minutes: Annotated[
        int, typer.Option("--minutes", min=1, max=_MOST, help="Minutes of video, in clips of one.")
    ] = 1_000_000,
    fps: Annotated[
        float, typer.Option("--fps", min=0.1, max=1000, help="Frames a second, each of which gets masks.")
    ] = 24.0,
    *,
    fleet: FleetOptions,
    as_json: options.Json = False,
) -> None:
    """Segment videos: so many things found in each clip of a minute and followed on every frame."""
    from segue.bench import estimate

    frames = max(1, round(60 * fps))
    costs = {name: estimate.clip(model, frames, fleet.objects) * minutes for name, model in fleet.arithmetic.items()}
    title = f"{minutes:,} minutes of video at {fps:g} frames a second, {fleet.objects} things followed in each"
    _tell(costs, fleet, title, as_json=as_json)


@app.command("finetune")
@options.expanded
def finetune(
    samples: Annotated[
        int, typer.Option("--samples", min=1, max=_MOST, help="Images learned from, repeats counted.")
    ] = 100_000,
    full: Annotated[bool, typer.Option("--full", help="The language model in full, not through LoRA.")] = False,
    *,
    fleet: FleetOptions,
    as_json: options.Json = False,
) -> None:
    """Fine-tune on images with masks, one sample on a GPU at once.

    With --full, weights, gradients and moments are spread over the GPUs
    (FSDP2 or ZeRO-3); with LoRA every GPU holds all of them.
    """
    from segue.bench import estimate

    rows: list[dict[str, Any]] = []
    for name, model in fleet.arithmetic.items():
        one = estimate.training(model, fleet.objects, is_lora=not full)
        cost = one.cost * samples
        memory = {str(number): one.memory(number if full else 1) for number in fleet.numbers}
        rows.append(
            {
                "model": name,
                "learned": one.learned,
                "flops": cost.flops,
                "hours": fleet.hours(cost),
                "memory": memory,
                "fits": {number: need <= fleet.device.memory for number, need in memory.items()},
                "checkpoint": one.cost.stored,
            }
        )
    if as_json:
        print(json.dumps(rows))
        return
    table = Table("model", "learn", "PFLOP", box=SIMPLE_HEAD)
    for number in fleet.numbers:
        table.add_column(f"hours, GB on {number}", justify="right")
    table.add_column("checkpoint", justify="right")
    for row in rows:
        cells = [
            f"{_figure(hours)}, {row['memory'][number] / 1e9:.0f}{'' if row['fits'][number] else ' (no)'}"
            for number, hours in row["hours"].items()
        ]
        work = f"{_figure(row['learned'] / 1e6)} M", _figure(row["flops"] / 1e15)
        table.add_row(row["model"], *work, *cells, size(row["checkpoint"]))
    how = "in full; (no): does not fit" if full else "LoRA"
    _print(table, f"{samples:,} images, {fleet.objects} things in each, {fleet.words}, {how}")


@app.command("cache")
@options.expanded
def cache(
    frames: Annotated[int, typer.Option("--frames", min=1, max=1_000_000, help="Frames of each video.")] = 128,
    *,
    on: DeviceOptions,
    as_json: options.Json = False,
) -> None:
    """Cache the features of the seven sets of long videos, as LongVA's tower computes them."""
    from segue.bench import estimate

    rows: list[dict[str, Any]] = [
        {
            "set": one.name,
            "videos": one.videos,
            "flops": one.flops,
            "hours": one.flops / on.device.products / on.share / 3600,
            "lossless": one.lossless,
            "int8": one.int8,
        }
        for one in estimate.cached_sets(frames)
    ]
    if as_json:
        print(json.dumps(rows))
        return
    rows.append({"set": "all", **{key: sum(row[key] for row in rows) for key in rows[0] if key != "set"}})
    table = Table("set", box=SIMPLE_HEAD)
    for title in ("videos", "PFLOP", "hours on 1", "lossless", "int8"):
        table.add_column(title, justify="right")
    for row in rows:
        figures = _figure(row["flops"] / 1e15), _figure(row["hours"]), size(row["lossless"]), size(row["int8"])
        table.add_row(row["set"], f"{row['videos']:,}", *figures)
    _print(table, f"{frames} frames of every video, {on.words}; decoding is not counted")


def _tell(costs: dict[str, Cost], fleet: FleetOptions, title: str, *, as_json: bool) -> None:
    rows: list[dict[str, Any]] = [
        {
            "model": name,
            "tokens": cost.tokens,
            "flops": cost.flops,
            "hours": fleet.hours(cost),
            "bytes": cost.stored,
        }
        for name, cost in costs.items()
    ]
    if as_json:
        print(json.dumps(rows))
        return
    table = Table("model", box=SIMPLE_HEAD)
    for column in ("tokens", "EFLOP", *(f"hours on {number}" for number in fleet.numbers), "masks"):
        table.add_column(column, justify="right")
    for row in rows:
        hours = map(_figure, row["hours"].values())
        tokens = row["tokens"] / 1e9
        told = f"{tokens:,.2f} B" if tokens >= 0.01 else f"{tokens:.2g} B"
        figures = told, _figure(row["flops"] / 1e18), *hours, size(row["bytes"])
        table.add_row(row["model"], *figures)
    _print(table, f"{title}, {fleet.words}")


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _print(table: Table, title: str) -> None:
    console = VisibleConsole(highlight=False)
    console.print(title, soft_wrap=True)
    console.show(table)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
