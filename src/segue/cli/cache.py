"""`segue cache`: features of frozen encoders on disk: what is there, whether it is whole, why something was missed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from segue.cli import options
from segue.cli.console import say
from segue.errors import ConfigError

if TYPE_CHECKING:
    from segue.features import Store

app = typer.Typer(no_args_is_help=True, add_completion=False)
"""The sub-commands; each is one function here."""

Cache = Annotated[str, typer.Argument(metavar="CACHE", help="The folder of the feature cache.")]
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
    console = Console()
    table = Table("namespace", "encoder", "point", "format", "entries", "size", box=SIMPLE_HEAD)
    for row in found["namespaces"]:
        identity = row["identity"] or {}
        encoder = identity.get("encoder", {})
        name = f"{encoder.get('family', '?')} {str(encoder.get('fingerprint', '?'))[:12]} {identity.get('dtype', '')}"
        cells = (row["namespace"], name, identity.get("point", "?"), identity.get("format", "?"))
        table.add_row(*cells, f"{row['entries']:,}", size(row["bytes"]))
    console.print(table)
    if found["datasets"]:
        table = Table("dataset", "namespace", "media", "there", "size", "", box=SIMPLE_HEAD)
        for row in found["datasets"]:
            mark = "pinned" if row["pinned"] else ""
            cells = (str(row["dataset"]), str(row["namespace"]), f"{row['media']:,}", f"{row['there']:,}")
            table.add_row(*cells, size(row["bytes"]), mark)
        console.print(table)
    table = Table(
        Column("run", overflow="fold"), "hits", "misses", "rate", "read", "written", "time saved", box=SIMPLE_HEAD
    )
    for row in [*found["runs"], {"started": "all runs", **found["totals"]}]:
        hits, misses = row.get("hits", 0), row.get("absent", 0) + row.get("corrupt", 0)
        rate = f"{100 * hits / (hits + misses):.1f} %" if hits + misses else ""
        sizes = (size(row.get("read_bytes", 0)), size(row.get("written_bytes", 0)))
        saved = f"{row.get('saved_seconds', 0.0):.1f} s"
        table.add_row(str(row.get("started", "?")), f"{hits:,.0f}", f"{misses:,.0f}", rate, *sizes, saved)
    console.print(table)


@app.command("verify")
def verify(cache: Cache, as_json: options.Json = False) -> None:
    """Read every entry and compare it with its checksums and its name; what is damaged is set aside.

    The exit code is 2 if anything was wrong.
    """
    from segue.features import inspection

    store = _store(cache)
    found = inspection.verify(store)
    if as_json:
        print(json.dumps({"sound": found.sound, "bytes": found.nbytes, "wrong": found.wrong}, ensure_ascii=False))
    else:
        print(f"{found.sound:,} entries, {size(found.nbytes)}, agree with their checksums; {len(found.wrong)} do not")
    raise typer.Exit(2 if found.wrong else 0)


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
    as_json: options.Json = False,
) -> None:
    """Tell what an entry is made of, or which entries there are of an image or video."""
    from segue.features import inspection

    store = _store(cache)
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
