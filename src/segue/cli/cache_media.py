"""`segue cache build` and `verify`: a benchmark's media encoded before it is asked, and what is kept held against fresh
features and answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from itertools import accumulate
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from segue.cli import options
from segue.cli.console import Bar, say, told_forms
from segue.errors import ConfigError, DataError
from segue.progress import parse_size, size

if TYPE_CHECKING:
    from segue.engine import Engine
    from segue.evals.run.feature_cache import CachedBenchmark, Listed
    from segue.features import Store

FAILURES_TOLD = 5
LEAST_EQUAL = 0.99
"""The share of answers that a format which is not lossless must leave as they are."""
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


def build(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Benchmarks, as `segue evaluate --on` takes them.")],
    cache: Annotated[str, typer.Option("--cache", help="Folder of the feature cache; made if it is not there.")],
    model: Model,
    data: Data = Path(),
    split: options.Split = None,
    phrase: options.Phrase = None,
    group: options.GroupPattern = None,
    form: Form = "lossless",
    point: Point = "tower",
    frames: Frames = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="Most bytes of all entries: 200GB. Without it the disk decides.")
    ] = None,
    reserve: Annotated[
        str | None, typer.Option("--reserve", help="Bytes of the disk to leave free; else 5 %, at least 20 GiB.")
    ] = None,
    evict: Annotated[
        bool, typer.Option("--evict", help="Make room: remove what was unused for longest and is not pinned.")
    ] = False,
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
    _tell_start(model, dataset)
    from segue.evals.run import feature_cache
    from segue.features import Store

    part = options.parse_shard(shard) or (0, 1)
    budgeted, reserved = (None if text is None else parse_size(text) for text in (budget, reserve))
    store = Store(cache, budget=budgeted, reserve=reserved, evicts=evict, writes=not dry_run)
    if store.remote is not None:
        raise ConfigError(f"{cache} is an address, which is only read; build into a folder, and copy it there")
    how: dict[str, Any] = {"form": form, "point": point, "frames": frames, "limit": limit, "shard": part}
    own = {"split": split, "phrase": phrase, "group": group}
    engine, told = load_model(model, device, dtype), list[dict[str, Any]]()
    for name in [word.strip() for word in dataset.split(",") if word.strip()]:
        this = _benchmark(name, data, engine, store, own, **how)
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
        f"{this.name}: {there:,} images and videos are kept, {len(weights):,} are to be encoded; "
        f"they take {size(total)} as {this.cache.form.name} at {this.cache.point}, and there is room for "
        f"{size(max(room, 0))}"
    )
    if total > room:
        fit = sum(sofar <= room for sofar in accumulate(weights))
        what = "others must go" if this.cache.store.evicts else f"it will stop after about {fit:,}"
        say(f"that is too little: {what}", style="yellow")
    return {"media": there + len(weights), "there": there, "bytes": total, "failed": len(listed.failures)}


def _build(this: CachedBenchmark, listed: Listed, *, shard: str | None, pin: bool, is_hidden: bool) -> dict[str, Any]:
    from segue.evals.run import feature_cache

    cache, name = this.cache, this.name
    keys = [cache.identity.key(*one.key).hash for one in (*listed.there, *listed.absent)]
    refer = partial(cache.store.write_ref, name, cache.namespace, keys, shard=(shard or "").replace("/", "-of-"))
    # first of all: what is half done is known to belong together, and makes no room for the rest of it
    refer(pinned=pin or cache.store.evicts)
    start = perf_counter()
    with Bar(name, hidden=is_hidden, failures_told=FAILURES_TOLD) as bar:
        bar.start(len(keys), len(listed.there))
        failures = feature_cache.build(this, listed.absent, bar)
    seconds = perf_counter() - start
    refer(pinned=pin)
    left = sum(not cache.has(*one.key) for one in listed.absent) - len(failures)
    done = len(listed.absent) - left - len(failures)
    say(
        f"{name}: {done:,} encoded in {seconds:.0f} s ({done / max(seconds, 1e-9):.1f} a second), "
        f"{size(cache.usage.written_bytes)} written"
        + (f"; {left:,} are left, because {cache.store.problems[-1]}" if left and cache.store.problems else "")
    )
    return {"encoded": done, "left": left, "failed": len(listed.failures) + len(failures), "seconds": seconds}


def verify(
    cache: Cache,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Compare entries of this model with fresh features, too.")
    ] = None,
    on: Annotated[str | None, typer.Option("--on", help="With --model: the benchmark whose media are taken.")] = None,
    data: Data = Path(),
    split: options.Split = None,
    phrase: options.Phrase = None,
    group: options.GroupPattern = None,
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
    explain, another answer (of int8 more than 1 in 100), or of a lossless
    format other logits.
    """
    if (model is None) != (on is None) or (answers and model is None):
        raise ConfigError("features and answers are compared with --model MODEL --on BENCHMARK, both given")
    say(f"reading every entry of {cache}")
    from segue.features import inspection

    store = open_store(cache)
    found = inspection.verify(store)
    told: dict[str, Any] = {"sound": found.sound, "bytes": found.nbytes, "wrong": found.wrong}
    say(f"{found.sound:,} entries, {size(found.nbytes)}, agree with their checksums; {len(found.wrong)} do not")
    is_wrong = bool(found.wrong)
    if model is not None and on is not None:
        _tell_start(model, on)
        own, engine = {"split": split, "phrase": phrase, "group": group}, load_model(model, device, dtype)
        this = _benchmark(on, data, engine, store, own, form=form, point=point, frames=frames)
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
            f"{this.cache.store.root} has no media of {this.name} for this model, format, point "
            f"and plan of frames; {this.cache.other_weights() or '`segue cache stats` shows what it has'}"
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
            f"{100 * low:.1f} to {100 * high:.1f} % with 95 % confidence; the logits of the first token are identical "
            f"for {same.same_logits:,}, its choice for {same.same_token:,}; divergence up to {same.divergence:.1e} nats"
        )
        told |= {"answers": {**asdict(same), "interval": same.interval}}
        told["as_expected"] &= same.equal >= (1.0 if this.cache.form.is_lossless else LEAST_EQUAL) * same.asked
        # features of another machine differ in their last bits, and logits with them
        told["as_expected"] &= same.same_logits == same.asked or not this.cache.form.is_lossless or features.error > 0
    return told


def _tell_start(model: str, dataset: str) -> None:
    """Say what is done before there is a bar: libraries and weights are read, and annotations, or scenes are drawn."""
    say(f"loading {model} and the rows of {dataset}")


def load_model(model: str, device: str, dtype: str) -> Engine:
    """A model; what `segue.loading.load` raises."""
    from segue import loading

    return loading.load(model, device=device, dtype=dtype)


def _benchmark(
    name: str,
    data: Path,
    engine: Engine,
    store: Store,
    own: Mapping[str, str | None],
    *,
    form: str,
    point: str,
    frames: str | None,
    **rest: Any,
) -> CachedBenchmark:
    """A benchmark and a model with its cache; `own` are the options of a folder of one's own."""
    from segue.evals.benchmarks import find
    from segue.evals.run.evaluation import Evaluation
    from segue.evals.run.feature_cache import CachedBenchmark

    benchmark = find(name, **own)
    settings = {} if frames is None else {"frames": frames}
    place = Path(name) if benchmark.is_private else data
    evaluation = Evaluation(benchmark=benchmark, data=place, out=Path(), settings=settings, **rest)
    cache = engine.use_cache(store, form=form, point="tower" if point == "tower" else "projected")
    with told_forms():
        dataset = evaluation.open_data()
    return CachedBenchmark(evaluation, dataset, engine, cache)


def open_store(cache: str) -> Store:
    """The store in a folder that holds one.

    Raises: ConfigError, if it holds none, or is an address.
    """
    from segue.features import Store

    if "://" in cache:
        raise ConfigError(f"{cache} is an address; look at a cache where it lies, in a folder")
    if not (Path(cache) / "STORE.json").is_file():
        raise ConfigError(f"{cache} is no feature cache: it has no STORE.json")
    return Store(cache)
