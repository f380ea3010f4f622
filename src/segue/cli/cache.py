"""`segue cache`: features of frozen encoders on disk: what is there, whether it is whole, why something was missed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from segue.cli import options
from segue.cli.cache_media import Cache, Point, build, load_model, open_store, verify
from segue.cli.console import VisibleConsole, say
from segue.errors import ConfigError
from segue.progress import parse_size, size

if TYPE_CHECKING:
    from segue.engine import Engine
    from segue.features import Store

app = typer.Typer(no_args_is_help=True, add_completion=False)
"""The sub-commands; each is one function, here or in `segue.cli.cache_media`."""
app.command("build")(build)
app.command("verify")(verify)


@app.callback()
def group() -> None:
    """Features of frozen encoders on disk: look at them, check them, make room."""


@app.command("stats")
def stats(cache: Cache, as_json: options.Json = False) -> None:
    """Tell what lies in a cache, by what made it and by dataset, and what runs have found and missed."""
    say(f"reading what {cache} holds")
    from segue.features import inspection

    store = open_store(cache)
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


@app.command("signature")
def signature(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Models, as for `segue chat`.")],
    dtype: options.Dtype = "auto",
    as_json: options.Json = False,
) -> None:
    """Tell which models may share entries: those whose weights below the point and whose settings are equal, whatever
    they are called.
    """
    say(f"hashing the weights of {', '.join(models)}")
    from segue.features.keys import differences, fingerprints, identity_of, joined

    first: dict[str, tuple[dict[str, str], dict[str, Any]]] = {}
    rows: list[dict[str, Any]] = []
    for name in models:
        engine = load_model(name, "cpu", dtype)
        row: dict[str, Any] = {"model": name, "dtype": str(engine.model.dtype).removeprefix("torch.")}
        for point in ("tower", "projected"):
            lines = fingerprints(engine.model.mllm.below(point), engine.model.dtype)
            row[point] = joined(lines)
            settings = identity_of(engine.model.config, row[point], engine.model.dtype, point).describe()
            del settings["encoder"]["fingerprint"]
            known, usual = first.setdefault(point, (lines, settings))
            row[f"{point}_differs"] = sorted(one for one in {**known, **lines} if known.get(one) != lines.get(one))
            row[f"{point}_settings"] = differences(usual, settings)
        rows.append(row)
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(f"{row['model']} ({row['dtype']}): tower {row['tower'][:16]}, projected {row['projected'][:16]}")
        for point in ("tower", "projected"):
            differing = row[f"{point}_settings"] + row[f"{point}_differs"]
            if differing and row is not rows[0]:
                shown = ", ".join(differing[:3]) + (f" and {len(differing) - 3:,} more" if len(differing) > 3 else "")
                print(f"  shares no entries of {point} with {rows[0]['model']}; they differ in {shown}")
            elif row is not rows[0]:
                print(f"  shares entries of {point} with {rows[0]['model']}")


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
    say(f"reading what {cache} holds")
    from segue.features import inspection

    store = open_store(cache)
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
    half_written = "" if dry_run else f"; {left} half-written files of killed runs removed"
    print(f"{len(gone):,} entries, {size(freed)}, {verb}{half_written}")


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
    say(f"looking in {cache} for {what}")
    from segue.features import inspection

    store = open_store(cache)
    if model is not None:
        lines = _explain(store, Path(what), load_model(model, device, dtype), point, frames)
        print(json.dumps(lines, ensure_ascii=False) if as_json else "\n".join(lines))
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
    from segue.features import inspection
    from segue.media import open_media
    from segue.options import Options

    plan = engine.plan(Options(frames=frames))
    key = engine.encoder.key(open_media(path), frames=plan.frames, max_tiles=plan.options.max_tiles)
    found = inspection.explain(store, engine.encoder.identity(point).key(*key).parts)
    return found or [f"the entry of {path} is there"]
