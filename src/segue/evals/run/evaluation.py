"""What is evaluated on what and how, and `run.json`, which says so beside the rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from segue.data.base import Dataset
from segue.datasets import DATASETS
from segue.errors import ConfigError, DataError
from segue.evals import benchmarks
from segue.evals.base import Benchmark, EvaluatedModel
from segue.files import atomic_path
from segue.options import Options

RUN = "run.json"
FORMAT = 1
BATCH = 16
"""Questions that are asked together, unless told; fewer, once they do not fit into memory."""
UNIT = 32
"""Questions about one medium that are asked together at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A benchmark to run: its data, the folder for its results, and how it is asked.

    `settings` are fields of `segue.Options` that are wanted beside those of the benchmark; changing one that the
    benchmark fixes makes another protocol of it. `limit` takes the first rows alone. `shard` is (i, n), from 0.
    """

    benchmark: Benchmark
    data: Path
    out: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    shard: tuple[int, int] = (0, 1)

    @property
    def options(self) -> Options:
        """How questions are asked.

        Raises: ConfigError, for an option that is none or out of range.
        """
        wanted = {**self.benchmark.settings, **self.settings}
        if unknown := sorted(set(wanted) - {one.name for one in fields(Options)}):
            raise ConfigError(f"{self.benchmark.name} sets {', '.join(unknown)}, which no answer knows")
        return Options(**wanted)

    @property
    def protocol(self) -> str:
        """The protocol, with what was changed of it."""
        fixed = self.benchmark.settings
        changed = [
            f"{name}={value}" for name, value in sorted(self.settings.items()) if fixed.get(name, value) != value
        ]
        return self.benchmark.protocol + (f" ({', '.join(changed)})" if changed else "")

    def open_data(self) -> Dataset:
        """The benchmark's rows.

        Raises: DataError, ConfigError, if they are not there; DataError, if there is none.
        """
        benchmark = self.benchmark
        dataset: Dataset = DATASETS[benchmark.dataset](self.data, benchmark.split, **benchmark.options)
        if not len(dataset):
            raise DataError(f"{benchmark.name} has no rows below {self.data}")
        return dataset

    def count(self, dataset: Dataset) -> int:
        """How many rows are asked for, of all shards together."""
        return len(dataset) if self.limit is None else min(self.limit, len(dataset))


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSpec:
    """What to evaluate on what, in words that travel between processes; fields as of `find`, `Evaluation`, `run`
    and `load`."""

    model: str
    on: str
    data: Path
    out: Path
    own: Mapping[str, str | None] = field(default_factory=dict)
    protocol: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    batch: int = BATCH
    device: str = "auto"
    dtype: str = "auto"
    quantize_kv: bool = False
    cache: str | None = None
    cache_format: str = "lossless"
    cache_point: Literal["tower", "projected"] = "tower"

    def evaluation(self, shard: tuple[int, int] = (0, 1)) -> Evaluation:
        """The part of it that is a shard's.

        Raises: ConfigError, if there is no such benchmark.
        """
        return Evaluation(
            benchmark=benchmarks.find(self.on, protocol=self.protocol, **self.own),
            data=self.data,
            out=self.out,
            settings=self.settings,
            limit=self.limit,
            shard=shard,
        )

    def load(self) -> EvaluatedModel:
        """The model, with its feature cache if there is to be one.

        Raises: ConfigError, for a model without masks where masks are scored; what `segue.loading.load` raises.
        """
        from segue import loading  # here alone, for what only names a benchmark need not wait for PyTorch
        from segue.features import Store

        engine = loading.load(self.model, device=self.device, dtype=self.dtype, quantize_kv=self.quantize_kv)
        benchmark = self.evaluation().benchmark
        # of scenes words are scored as well
        if engine.model.grounder is None and benchmark.task == "segment" and benchmark.dataset != "scene_questions":
            raise ConfigError(
                f"{self.model} has no grounder, so that it has no masks to score on {self.on}; take a Sa2VA, or a "
                "benchmark of words (`segue evaluate list`)"
            )
        if self.cache is not None:
            engine.use_cache(Store(self.cache), form=self.cache_format, point=self.cache_point)
        return engine


def units(dataset: Dataset, total: int) -> list[list[int]]:
    """The first `total` rows, those about one medium together, `UNIT` at most, in the order of the data."""
    name_of: Callable[[int], str] = getattr(dataset, "medium_of", lambda _: "")
    media: dict[object, list[int]] = {}
    for index in range(total):
        media.setdefault(name_of(index) or index, []).append(index)
    return [one[start : start + UNIT] for one in media.values() for start in range(0, len(one), UNIT)]


def shard_of(found: Sequence[list[int]], shard: tuple[int, int]) -> list[list[int]]:
    """The units of shard (i, n): i, i + n, i + 2n ..."""
    return list(found[shard[0] :: shard[1]])


def check_run(evaluation: Evaluation, lineage: Mapping[str, Any], length: int) -> None:
    """Write down what a folder's rows come from, or compare it with what is written there.

    Raises: ConfigError, if the folder's rows come from another model, benchmark, protocol or data.
    """
    benchmark, out = evaluation.benchmark, evaluation.out
    record = {
        "format": FORMAT,
        "benchmark": benchmark.name,
        "protocol": evaluation.protocol,
        "dataset": benchmark.dataset,
        "split": benchmark.split,
        "options": dict(benchmark.options),
        "settings": asdict(evaluation.options),
        "rows": length,
        "model": dict(lineage),
    }
    record = json.loads(json.dumps(record, default=str))
    if not (out / RUN).exists():
        write_run(out, {**record, "data": str(evaluation.data.absolute())})
        return
    old = read_run(out)
    changed = [name for name in record if record[name] != old.get(name)]
    if changed == ["model"]:
        mine, other = record["model"], old["model"]
        names = (name for name in {**mine, **other} if mine.get(name) != other.get(name))
        changed = [f"model {name}" for name in names if name not in ("device", "python", "model")]
    if changed:
        raise ConfigError(
            f"{out} holds rows of another run: {', '.join(changed)} differ. Give another -o, or --overwrite"
        )


def write_run(out: Path, record: Mapping[str, Any]) -> None:
    """Write `run.json`.

    Raises: MediaError, if it cannot be written.
    """
    with atomic_path(out / RUN) as path:
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def read_run(out: Path) -> dict[str, Any]:
    """What a folder's rows come from.

    Raises: ConfigError, if the folder has no run in it; DataError, if it cannot be read.
    """
    path = out / RUN
    if not path.is_file():
        raise ConfigError(f"{out} holds no evaluation ({RUN} is not there); give a folder that `segue evaluate` wrote")
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}; start anew with --overwrite") from error
    if record.get("format") != FORMAT:
        raise DataError(f"{path} has format {record.get('format')}; this version reads {FORMAT}")
    return record
