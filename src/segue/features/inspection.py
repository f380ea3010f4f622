"""Looking at a store: what lies there, whether it is whole, why something was not found, and what can go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from time import time
from typing import Any

from segue.errors import DataError
from segue.features import entries
from segue.features.cache import Usage
from segue.features.keys import differences, digest
from segue.features.store import DAY, Found, Store

COUNTS = tuple(one.name for one in fields(Usage))


@dataclass(frozen=True, slots=True)
class Space:
    """One namespace: what its features are made by, how many there are, and how many bytes."""

    name: str
    identity: Mapping[str, Any] | None
    count: int
    nbytes: int


def spaces(store: Store) -> list[Space]:
    """The namespaces of a store. No entry is opened."""
    found = []
    for name in store.namespaces():
        listed = list(store.entries(name))
        found.append(Space(name, store.describe(name), len(listed), sum(one.nbytes for one in listed)))
    return found


def datasets(store: Store) -> list[dict[str, Any]]:
    """The datasets that were built: how many of their media are there, how many bytes, and whether they are pinned."""
    sizes: dict[Any, int] = {(one.place.namespace, one.place.key): one.nbytes for one in store.entries()}
    keys: dict[tuple[str, str], set[str]] = {}
    pinned: dict[tuple[str, str], bool] = {}
    for ref in store.refs():  # one for each shard
        name = str(ref.get("dataset")), str(ref.get("namespace"))
        keys.setdefault(name, set()).update(map(str, ref["entries"]))
        pinned[name] = pinned.get(name, False) or bool(ref.get("pinned"))
    rows = []
    for (dataset, namespace), media in keys.items():
        there = [sizes[namespace, key] for key in media if (namespace, key) in sizes]
        rows.append(
            {
                "dataset": dataset,
                "namespace": namespace,
                "media": len(media),
                "there": len(there),
                "bytes": sum(there),
                "pinned": pinned[dataset, namespace],
            }
        )
    return rows


def totals(store: Store) -> dict[str, int | float]:
    """What all runs together have found and missed."""
    found: Counter[str] = Counter()
    for row in store.stats():
        found.update({name: row[name] for name in COUNTS if isinstance(row.get(name), int | float)})
    return {name: found[name] for name in COUNTS}


@dataclass(slots=True)
class Verdict:
    """What verifying brought: entries whose bytes agree with their checksums, and what was found wrong."""

    sound: int = 0
    nbytes: int = 0
    wrong: list[str] = field(default_factory=list)


def verify(store: Store, tell: Callable[[int], None] = lambda _: None) -> Verdict:
    """Read every entry and compare it with its checksums and its name; damaged ones are set aside.

    `tell` hears the bytes of each.
    """
    verdict = Verdict()
    for found in store.entries():
        try:
            content = _read(found)
            if digest(content.facts["key_object"]) != found.place.key:
                raise DataError("its key object is not the one it is named by")
        except FileNotFoundError:
            continue  # evicted meanwhile
        except (DataError, ValueError, KeyError, TypeError, RecursionError) as error:
            verdict.wrong.append(f"{found.path}: {error}")
            store.quarantine(found.place, str(error))
        else:
            verdict.sound += 1
            verdict.nbytes += found.nbytes
        tell(found.nbytes)
    return verdict


def _read(found: Found) -> entries.Content:
    with found.path.open("rb", buffering=0) as file:
        return entries.read(file, found.nbytes)


def heads(store: Store) -> Iterator[tuple[Found, entries.Head]]:
    """Every entry with what it says of itself; damaged ones are left out."""
    for found in store.entries():
        try:
            yield found, store.head(found.place)
        except (DataError, OSError):
            continue


def explain(store: Store, wanted: Mapping[str, Any]) -> list[str]:
    """Why a store has no entry for a key object: in what the nearest entries differ, those of the same medium first.

    Empty if the entry is there. One line says so if the store has nothing that is like it at all.
    """
    near: list[tuple[int, list[str], str]] = []
    for found, head in heads(store):
        known = head.facts.get("key_object", {})
        differing = differences(known, wanted)
        if not differing:
            return []
        is_other = known.get("source") != wanted.get("source")
        near.append((1000 * is_other + len(differing), differing, found.place.key))
    if not near:
        return ["the store has no entries"]
    near.sort(key=lambda one: one[0])
    score, differing, key = near[0]
    if score >= 1000:
        return [f"no entry is of this medium; the nearest, {key[:16]}, differs in", *differing]
    return [f"entry {key[:16]} is of this medium and differs in", *differing]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning:
    """What is to go: entries of a dataset that no other dataset uses, of a namespace, unused for so many days, or so
    many that the rest fits a budget in bytes. Several together are all of them.
    """

    dataset: str | None = None
    namespace: str | None = None
    days: float | None = None
    budget: int | None = None


def to_prune(store: Store, pruning: Pruning) -> list[Found]:
    """The entries that would go. Those of pinned datasets stay, unless their own dataset is named."""
    listed = sorted(store.entries(), key=lambda one: one.used)
    refs = store.refs()
    named = {key for ref in refs if ref.get("dataset") == pruning.dataset for key in _keys(ref)}
    others = {key for ref in refs if ref.get("dataset") != pruning.dataset for key in _keys(ref)}
    pinned = {key for ref in refs if ref.get("pinned") and ref.get("dataset") != pruning.dataset for key in _keys(ref)}
    gone = []
    for one in listed:
        key = (one.place.namespace, one.place.key)
        is_old = pruning.days is not None and time() - one.used > pruning.days * DAY
        is_named = one.place.namespace == pruning.namespace or (key in named and key not in others)
        if (is_old or is_named) and key not in pinned:
            gone.append(one)
    if pruning.budget is not None:
        gone += _over(listed, gone, pinned, pruning.budget)
    return gone


def _over(listed: Sequence[Found], gone: Sequence[Found], pinned: set[Any], budget: int) -> list[Found]:
    """What has to go besides for the rest to fit, the longest unused first."""
    left = [one for one in listed if one not in gone]
    over, more = sum(one.nbytes for one in left) - budget, []
    for one in left:
        if over <= 0:
            break
        if (one.place.namespace, one.place.key) not in pinned:
            more.append(one)
            over -= one.nbytes
    return more


def _keys(ref: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    return ((ref.get("namespace"), key) for key in ref["entries"])
