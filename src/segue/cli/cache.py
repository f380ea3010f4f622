"""`segue cache`: features of frozen encoders on disk: what is there, whether it is whole, why something was missed."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from segue.cli import options
from segue.cli.console import Bar, VisibleConsole, say, told_forms
from segue.errors import ConfigError, DataError

if TYPE_CHECKING:
    from segue.engine import Engine
    from segue.evals.run.feature_cache import CachedBenchmark, Listed
    from segue.features import Store

app = typer.Typer(no_args_is_help=True, add_completion=False)
"""The sub-commands; each is one function here."""

FAILURES_TOLD = 5
Cache = Annotated[str, typer.Argument(metavar="CACHE", help="The folder of the feature cache.")]
Model = Annotated[
    str,
    typer.Option("--model", "-m", help="Whose features: a folder, a hub id, or demo.", callback=options.check_model),
]
Data = Annotated[Path, typer.Option("--data", help="Folder below which the benchmark's files lie.")]
Frames = Annotated[
    str | None, typer.Option("--frames", help="Another plan of a video's frames than the benchmark's, as for evaluate.")
]
Form = Annotated[str, typer.Option("--format", help="lossless, lossless-split, int8, int8-per-tensor or bf16.")]
Point = Annotated[
    Literal["tower", "projected"], typer.Option("--point", help="After the tower, or as the language model sees them.")
]
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


@app.callback()
def group() -> None:
    """Features of frozen encoders on disk: look at them, check them, make room."""


@app.command("stats")
def stats(cache: Cache, as_json: options.Json = False) -> None:
    """Tell what lies in a cache, by what made it and by dataset, and what runs have found and missed."""
    from segue.features import inspection

    store = _store(cache)
    found = {
        "namespaces": [
            {"namespace": one.name, "identity": one.identity, "entries": one.count, "bytes": one.nbytes}
            for one in inspection.spaces(store)
        ],
        "datasets": inspection.datasets(store),
        "runs": store.stats(),
        "totals": inspection.totals(store),
    }
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    _print_stats(found)


def _print_stats(found: dict[str, Any]) -> None:
    console = VisibleConsole()
    table = Table("namespace", "encoder", "point", "format", "entries", "size", box=SIMPLE_HEAD)
    for row in found["namespaces"]:
        identity = row["identity"] or {}
        encoder = identity.get("encoder", {})
        name = f"{encoder.get('family', '?')} {str(encoder.get('fingerprint', '?'))[:12]} {identity.get('dtype', '')}"
        cells = (row["namespace"], name, identity.get("point", "?"), identity.get("format", "?"))
        table.add_row(*cells, f"{row['entries']:,}", size(row["bytes"]))
    console.show(table)
    if found["datasets"]:
        table = Table("dataset", "namespace", "media", "there", "size", "", box=SIMPLE_HEAD)
        for row in found["datasets"]:
            mark = "pinned" if row["pinned"] else ""
            cells = (str(row["dataset"]), str(row["namespace"]), f"{row['media']:,}", f"{row['there']:,}")
            table.add_row(*cells, size(row["bytes"]), mark)
        console.show(table)
    table = Table("run", "hits", "misses", "rate", "read", "written", "time saved", box=SIMPLE_HEAD)
    for row in [*found["runs"], {"started": "all runs", **found["totals"]}]:
        hits, misses = row.get("hits", 0), row.get("absent", 0) + row.get("corrupt", 0)
        rate = f"{100 * hits / (hits + misses):.1f} %" if hits + misses else ""
        sizes = (size(row.get("read_bytes", 0)), size(row.get("written_bytes", 0)))
        saved = f"{row.get('saved_seconds', 0.0):.1f} s"
        table.add_row(str(row.get("started", "?")), f"{hits:,.0f}", f"{misses:,.0f}", rate, *sizes, saved)
    console.show(table)


@app.command("build")
def build(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Benchmarks, as `segue evaluate --on` takes them.")],
    cache: Annotated[str, typer.Option("--cache", help="Folder of the feature cache; made if it is not there.")],
    model: Model,
    data: Data = Path(),
    form: Form = "lossless",
    point: Point = "tower",
    frames: Frames = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="Most bytes of all entries: 200GB. Without it the disk decides.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first so many rows.")] = None,
    shard: options.Shard = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what there is to do, and what it weighs.")
    ] = False,
    pin: Annotated[bool, typer.Option("--pin", help="Keep the entries from eviction.")] = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.Json = False,
) -> None:
    """Encode the images or videos of a benchmark before it is asked.

    Tells first what is there already, what the rest will weigh and whether
    it fits. The same command again goes on where it stopped, and opens no
    entry. The exit code is 2 if something could not be encoded or kept.
    """
    from segue.evals.run import feature_cache
    from segue.features import Store

    store = Store(cache, budget=None if budget is None else parse_size(budget))
    if store.remote is not None:
        raise ConfigError(f"{cache} is an address, which is only read; build into a folder, and copy it there")
    part = options.parse_shard(shard) or (0, 1)
    how: dict[str, Any] = {"form": form, "point": point, "frames": frames, "limit": limit, "shard": part}
    engine, told = _loaded(model, device, dtype), list[dict[str, Any]]()
    for name in [word.strip() for word in dataset.split(",") if word.strip()]:
        this = _benchmark(name, data, engine, store, **how)
        with Bar(f"looking at {name}", hidden=as_json, failures_told=FAILURES_TOLD) as bar:
            listed = feature_cache.list_media(this, bar)
        told.append({"dataset": name, "dry_run": dry_run, **_project(this, listed)})
        if not dry_run:
            told[-1] |= _build(this, listed, shard=shard, pin=pin, is_hidden=as_json)
    if as_json:
        print(json.dumps(told))
    raise typer.Exit(2 if any(one["failed"] or one.get("left") for one in told) else 0)


def _project(this: CachedBenchmark, listed: Listed) -> dict[str, Any]:
    """Say what there is to do, what it will weigh, and whether that fits."""
    from segue.evals.run import feature_cache

    weights = feature_cache.projected_bytes(this, listed.absent)
    there, total, room = len(listed.there), sum(weights), -this.cache.store.shortage(0)
    say(
        f"{this.evaluation.benchmark.name}: {there:,} images and videos are kept, {len(weights):,} are to be encoded; "
        f"they take {size(total)} as {this.cache.form.name} at {this.cache.point}, and there is room for "
        f"{size(max(room, 0))}"
    )
    if total > room:
        fit = sum(sofar <= room for sofar in accumulate(weights))
        say(f"that is too little: it will stop after about {fit:,}", style="yellow")
    return {"media": there + len(weights), "there": there, "bytes": total, "failed": len(listed.failures)}


def _build(this: CachedBenchmark, listed: Listed, *, shard: str | None, pin: bool, is_hidden: bool) -> dict[str, Any]:
    from segue.evals.run import feature_cache

    cache, name = this.cache, this.evaluation.benchmark.name
    keys = [cache.identity.key(*one.key).hash for one in (*listed.there, *listed.absent)]
    # first of all: what is half done is known to belong together
    cache.store.write_ref(name, cache.namespace, keys, pinned=pin, shard=(shard or "").replace("/", "-of-"))
    start = perf_counter()
    with Bar(name, hidden=is_hidden, failures_told=FAILURES_TOLD) as bar:
        bar.start(len(keys), len(listed.there))
        failures = feature_cache.build(this, listed.absent, bar)
    seconds = perf_counter() - start
    left = sum(not cache.has(*one.key) for one in listed.absent) - len(failures)
    done = len(listed.absent) - left - len(failures)
    say(
        f"{name}: {done:,} encoded in {seconds:.0f} s ({done / max(seconds, 1e-9):.1f} a second), "
        f"{size(cache.usage.written_bytes)} written"
        + (f"; {left:,} are left, because {cache.store.problems[-1]}" if left and cache.store.problems else "")
    )
    return {"encoded": done, "left": left, "failed": len(listed.failures) + len(failures), "seconds": seconds}


@app.command("verify")
def verify(
    cache: Cache,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Compare entries of this model with fresh features, too.")
    ] = None,
    on: Annotated[str | None, typer.Option("--on", help="With --model: the benchmark whose media are taken.")] = None,
    data: Data = Path(),
    samples: Annotated[int, typer.Option("--samples", min=1, help="How many images or videos are taken.")] = 100,
    answers: Annotated[
        bool, typer.Option("--answers", help="Ask a question about each with the cache and without, and compare.")
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="How many tokens of answers are compared.")
    ] = 64,
    form: Form = "lossless",
    point: Point = "tower",
    frames: Frames = None,
    seed: Annotated[int, typer.Option("--seed", help="Decides which media are taken.")] = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.Json = False,
) -> None:
    """Read every entry and compare it with its checksums and its name; what is damaged is set aside.

    With --model and --on also compare features of some media with fresh
    ones, and with --answers what is answered. The exit code is 2 if anything
    was wrong: an entry that is damaged, an error that its format does not
    explain, or another answer (of int8 more than 1 in 100).
    """
    from segue.features import inspection

    if (model is None) != (on is None) or (answers and model is None):
        raise ConfigError("features and answers are compared with --model MODEL --on BENCHMARK, both given")
    store = _store(cache)
    found = inspection.verify(store)
    told: dict[str, Any] = {"sound": found.sound, "bytes": found.nbytes, "wrong": found.wrong}
    say(f"{found.sound:,} entries, {size(found.nbytes)}, agree with their checksums; {len(found.wrong)} do not")
    is_wrong = bool(found.wrong)
    if model is not None and on is not None:
        this = _benchmark(on, data, _loaded(model, device, dtype), store, form=form, point=point, frames=frames)
        told |= _compare(this, samples, seed, tokens=max_new_tokens if answers else 0, is_hidden=as_json)
        is_wrong |= not told["as_expected"]
    if as_json:
        print(json.dumps(told, ensure_ascii=False))
    raise typer.Exit(2 if is_wrong else 0)


def _compare(this: CachedBenchmark, samples: int, seed: int, *, tokens: int, is_hidden: bool) -> dict[str, Any]:
    from segue.evals.run import feature_cache

    there = feature_cache.chosen(feature_cache.list_media(this).there, samples, seed)
    if not there:
        raise DataError(
            f"{this.cache.store.root} has no media of {this.evaluation.benchmark.name} for this model, format, point "
            "and plan of frames; `segue cache stats` and `segue cache signature` show what it has"
        )
    with Bar("features", hidden=is_hidden, failures_told=FAILURES_TOLD) as bar:
        features = feature_cache.compare_features(this, there, bar)
    say(
        f"features of {features.media:,} media: error at most {features.error:.2e}, cosine at least "
        f"{features.cosine:.6f}; {len(features.wrong)} are not as their format promises"
    )
    told: dict[str, Any] = {"features": asdict(features), "as_expected": not features.wrong}
    if tokens:
        with Bar("answers", hidden=is_hidden, failures_told=FAILURES_TOLD) as bar:
            same = feature_cache.compare_answers(this, there, tokens, bar)
        low, high = same.interval
        say(
            f"{same.equal:,} of {same.asked:,} answers are equal with the cache and without: of all, "
            f"{100 * low:.1f} to {100 * high:.1f} % with 95 % confidence"
        )
        least = 1.0 if this.cache.form.is_lossless else 0.99
        told |= {"answers": {**asdict(same), "interval": same.interval}}
        told["as_expected"] &= same.equal >= least * same.asked
    return told


@app.command("signature")
def signature(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Models, as for `segue chat`.")],
    dtype: options.Dtype = "auto",
    as_json: options.Json = False,
) -> None:
    """Tell which models may share entries: those whose weights below the point are equal, whatever they are called."""
    from segue.features.keys import fingerprints, joined

    first: dict[str, dict[str, str]] = {}
    rows: list[dict[str, Any]] = []
    for name in models:
        engine = _loaded(name, "cpu", dtype)
        row: dict[str, Any] = {"model": name, "dtype": str(engine.model.dtype).removeprefix("torch.")}
        for point in ("tower", "projected"):
            lines = fingerprints(engine.model.mllm.below(point), engine.model.dtype)
            known = first.setdefault(point, lines)
            row[point] = joined(lines)
            row[f"{point}_differs"] = sorted(one for one in {**known, **lines} if known.get(one) != lines.get(one))
        rows.append(row)
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(f"{row['model']} ({row['dtype']}): tower {row['tower'][:16]}, projected {row['projected'][:16]}")
        for point in ("tower", "projected"):
            differing = row[f"{point}_differs"]
            if differing and row is not rows[0]:
                shown = ", ".join(differing[:3]) + (f" and {len(differing) - 3:,} more" if len(differing) > 3 else "")
                print(f"  shares no entries of {point} with {rows[0]['model']}; they differ in {shown}")
            elif row is not rows[0]:
                print(f"  shares entries of {point} with {rows[0]['model']}")


def _loaded(model: str, device: str, dtype: str) -> Engine:
    from segue import loading

    return loading.load(model, device=device, dtype=dtype)


def _benchmark(
    name: str, data: Path, engine: Engine, store: Store, *, form: str, point: str, frames: str | None, **rest: Any
) -> CachedBenchmark:
    """A benchmark and a model with its cache."""
    from segue.evals.benchmarks import find
    from segue.evals.run.evaluation import Evaluation
    from segue.evals.run.feature_cache import CachedBenchmark

    benchmark = find(name)
    settings = {} if frames is None else {"frames": frames}
    place = Path(name) if benchmark.is_private else data
    evaluation = Evaluation(benchmark=benchmark, data=place, out=Path(), settings=settings, **rest)
    cache = engine.use_cache(store, form=form, point="tower" if point == "tower" else "projected")
    with told_forms():
        dataset = evaluation.open_data()
    return CachedBenchmark(evaluation, dataset, engine, cache)


@app.command("prune")
def prune(
    cache: Cache,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Entries of this dataset that no other dataset uses.")
    ] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", help="Entries of one model, format and point; `stats` names them.")
    ] = None,
    days: Annotated[float | None, typer.Option("--unused-days", min=0.0, help="Entries unused for so long.")] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="Entries unused for longest, until the rest is no larger: 200GB.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would go.")] = False,
    as_json: options.Json = False,
) -> None:
    """Make room. Entries of pinned datasets stay, unless the dataset itself is named."""
    from segue.features import inspection

    store = _store(cache)
    if dataset is namespace is days is budget is None:
        raise ConfigError("say what is to go: --dataset, --namespace, --unused-days or --budget")
    known = {str(ref.get("dataset")) for ref in store.refs()}
    if dataset is not None and dataset not in known:
        raise ConfigError(f"{cache} knows no dataset {dataset!r}; it knows {', '.join(sorted(known)) or 'none'}")
    if namespace is not None and namespace not in store.namespaces():
        raise ConfigError(f"{cache} has no namespace {namespace!r}; it has {', '.join(store.namespaces()) or 'none'}")
    limit = None if budget is None else parse_size(budget)
    chosen = inspection.Pruning(dataset=dataset, namespace=namespace, days=days, budget=limit)
    gone = inspection.to_prune(store, chosen)
    freed = sum(one.nbytes for one in gone) if dry_run else sum(store.remove(one) for one in gone)
    left = 0 if dry_run else store.clean()
    if as_json:
        print(json.dumps({"entries": len(gone), "bytes": freed, "half_written": left, "dry_run": dry_run}))
        return
    verb = "would be removed" if dry_run else "removed"
    print(f"{len(gone):,} entries, {size(freed)}, {verb}; {left} half-written files of killed runs removed")


@app.command("inspect")
def inspect(
    cache: Cache,
    what: Annotated[str, typer.Argument(metavar="KEY|FILE", help="The first digits of an entry's key, or a medium.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Of a medium: why this model does not find it.")
    ] = None,
    frames: Annotated[str, typer.Option("--frames", help="With --model: the plan of a video's frames.")] = "auto",
    point: Point = "tower",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.Json = False,
) -> None:
    """Tell what an entry is made of, or which entries there are of an image or video.

    With --model, tell in what the nearest entry differs from the one that
    this model would use.
    """
    from segue.features import inspection

    store = _store(cache)
    if model is not None:
        print("\n".join(_explain(store, Path(what), _loaded(model, device, dtype), point, frames)))
        return
    if Path(what).exists():
        from segue.features import Sources
        from segue.media import open_media

        source = Sources(store.folder / "sources").hash(open_media(what))
        found = [
            (one, head) for one, head in inspection.heads(store) if head.facts["key_object"].get("source") == source
        ]
    else:
        found = [(one, store.head(one.place)) for one in store.entries() if re.match(re.escape(what), one.place.key)]
    rows = [{"path": str(one.path), "bytes": one.nbytes, **head.facts} for one, head in found]
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
        return
    if not rows:
        say(f"{cache} has no entry of {what}")
        raise typer.Exit(2)
    for row in rows:
        print(json.dumps(row, indent=2, ensure_ascii=False))


def _explain(store: Store, path: Path, engine: Engine, point: Any, frames: str) -> list[str]:
    from segue.engine import Options
    from segue.features import inspection
    from segue.media import open_media

    plan = engine.plan(Options(frames=frames))
    key = engine.encoder.key(open_media(path), frames=plan.frames, max_tiles=plan.options.max_tiles)
    found = inspection.explain(store, engine.encoder.identity(point).key(*key).parts)
    return found or [f"the entry of {path} is there"]


def _store(cache: str) -> Store:
    from segue.features import Store

    if "://" in cache:
        raise ConfigError(f"{cache} is an address; look at a cache where it lies, in a folder")
    if not (Path(cache) / "STORE.json").is_file():
        raise ConfigError(f"{cache} is no feature cache: it has no STORE.json")
    return Store(cache)


def parse_size(text: str) -> int:
    """Bytes in words: 200GB, 1.5TiB, 1000.

    Raises: ConfigError.
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]i?|)b?\s*", text.lower())
    if not found:
        raise ConfigError(f"{text!r} is no size; expected such as 200GB, 1.5TiB or a number of bytes")
    return int(float(found[1]) * _UNITS[found[2]])


def size(nbytes: int | float) -> str:
    """Bytes for people."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= factor:
            return f"{nbytes / factor:.1f} {unit}"
    return f"{nbytes:.0f} B"
