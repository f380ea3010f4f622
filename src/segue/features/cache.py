"""Features of one model in a store: looked up by a medium's content, kept when they had to be computed."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from time import perf_counter
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from segue.errors import DataError
from segue.features import formats
from segue.features.entries import Content
from segue.features.keys import Identity, Key, canonical, differences
from segue.features.sources import Sources
from segue.features.store import FORMAT, Place, Store

WRITTEN_EVERY = 50


@dataclass(slots=True)
class Usage:
    """What a run has found and missed. `saved` are the seconds that hits took when they were computed, less those of
    reading them; bytes are those of whole entries.
    """

    hits: int = 0
    absent: int = 0
    corrupt: int = 0
    refused: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    read_seconds: float = 0.0
    saved_seconds: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(**{name: value + getattr(other, name) for name, value in asdict(self).items()})

    @property
    def misses(self) -> int:
        """How often features had to be computed."""
        return self.absent + self.corrupt

    def __str__(self) -> str:
        asked = self.hits + self.misses
        rate = f"{100 * self.hits / asked:.1f} %" if asked else "nothing asked"
        text = f"features: {self.hits} hits, {self.misses} misses ({rate})"
        if self.corrupt:
            text += f", {self.corrupt} of them damaged entries"
        if self.refused:
            text += f", {self.refused} not kept for infinite or NaN values"
        text += f"; {self.read_bytes / 1e6:.1f} MB read, {self.written_bytes / 1e6:.1f} MB written"
        return text + (f", {self.saved_seconds:.1f} s saved" if self.hits else "")


@dataclass(frozen=True, slots=True)
class Features:
    """Features of a medium, and what stands beside them (`frame_index`, `grids`), by name."""

    values: Float[Tensor, "*t c"]
    beside: Mapping[str, Tensor] = field(default_factory=dict)


class FeatureCache:
    """What one model has made of media, by content. A miss is `None`: compute, and `put`.

    An entry is used only if its key says that the same weights made it, from the same bytes, by the same rules, at the
    same precision. `form` is how entries are kept (`segue.features.formats`).
    """

    def __init__(self, store: Store, identity: Identity, form: str = "lossless"):
        self.store, self.identity, self.form = store, identity, formats.lookup(form)
        self.namespace = identity.namespace(form)
        self.usage = Usage()
        self.sources = Sources(store.folder / "sources" if store.remote is None and store.folder.is_dir() else None)
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self._run = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._unwritten = 0
        self._last: tuple[str, Features] | None = None
        self._described = {**identity.describe(), "format": form, "dtype": identity.dtype}
        if self.namespace not in store.namespaces() and (other := self.other_weights()):
            store.tell(f"{other}; none of that is used, and what is missing is computed")
        store.write_namespace(self.namespace, self._described)

    def __reduce__(self) -> tuple[Any, ...]:
        return FeatureCache, (self.store, self.identity, self.form.name)

    @property
    def point(self) -> Literal["tower", "projected"]:
        """Where features are taken."""
        return "tower" if self.identity.point == "tower" else "projected"

    def other_weights(self) -> str | None:
        """What features there are of the same family at the same point and in the same format but of other weights, and
        in what those nearest to these differ; `None` without any.
        """
        found: list[list[str]] = []
        for name in self.store.namespaces():
            differing = differences(self.store.describe(name) or {}, self._described)
            what = {line.partition(":")[0] for line in differing}
            if "encoder.fingerprint" in what and not what & {"encoder.family", "point", "format"}:
                found.append(differing)
        if not found:
            return None
        nearest = min(found, key=len)
        return f"the cache {self.store.root} has features of other weights: {'; '.join(nearest)}"

    def place(self, key: Key) -> Place:
        """Where the entry of a key lies."""
        return Place(self.namespace, key.hash)

    def has(self, source: str, sampling: str) -> bool:
        """Whether there is an entry; it is not read."""
        return self.store.has(self.place(self.identity.key(source, sampling)))

    def get(self, source: str, sampling: str) -> Features | None:
        """Features of the medium with this content hash, its frames chosen by this rule; `None` if there are none."""
        key, start = self.identity.key(source, sampling), perf_counter()
        if self._last is not None and self._last[0] == key.hash:
            self._count("hits")
            return self._last[1]
        content = self.store.get(self.place(key))
        if not isinstance(content, Content):
            self._count(content)
            return None
        try:
            features, took = self._restored(content, key), float(content.facts.get("seconds", 0.0))
        except (DataError, KeyError, RuntimeError, TypeError, ValueError) as error:
            self.store.quarantine(self.place(key), str(error))
            self._count("corrupt")
            return None
        seconds = perf_counter() - start
        self.usage.read_bytes += sum(tensor.nbytes for tensor in content.tensors.values())
        self.usage.read_seconds += seconds
        self.usage.saved_seconds += took - seconds
        self._count("hits")
        self._last = key.hash, features
        return features

    def _restored(self, content: Content, key: Key) -> Features:
        facts = content.facts
        if canonical(facts["key_object"]) != canonical(key.parts) or facts["mode"] != self.form.name:
            raise DataError("its key object is not the one it is named by")
        parts = {name.partition("/")[2]: tensor for name, tensor in content.tensors.items()}
        values = self.form.decode(parts, formats.TYPES[self.identity.dtype])
        if list(values.shape) != facts["shape"]:
            raise DataError(f"its features are {list(values.shape)}, it says {facts['shape']}")
        return Features(values, {name: parts[name] for name in facts["beside"]})

    def put(self, source: str, sampling: str, features: Features, *, seconds: float = 0.0) -> formats.Loss | None:
        """Keep features that took so many seconds; returns what keeping them has cost, `None` if they are not kept.

        Features with infinities or NaN are refused, which is counted and told.

        Raises: DataError, if their type is not the one that the identity says.
        """
        values = features.values.detach()
        if formats.CODES.get(values.dtype) != self.identity.dtype:
            raise DataError(f"features of {values.dtype} were offered to entries that are {self.identity.dtype}")
        key = self.identity.key(source, sampling)
        try:
            formats.check_finite(values)
        except DataError as error:
            self.usage.refused += 1
            self.store.tell(f"the entry {key.hash[:16]} is not kept: {error}")
            return None
        if self.store.has(self.place(key)):
            return None
        parts = self.form.encode(values)
        loss = formats.Loss(0.0, 0.0)
        if not self.form.is_lossless:
            loss = formats.measure(values, self.form.decode(parts, values.dtype))
        written = self.store.put(
            self.place(key), self._facts(key, features, loss, seconds), _named(key, parts, features)
        )
        self.usage.written_bytes += written
        return loss if written else None

    def _facts(self, key: Key, features: Features, loss: formats.Loss, seconds: float) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "key_object": dict(key.parts),
            "mode": self.form.name,
            "shape": list(features.values.shape),
            "beside": list(features.beside),
            "loss": asdict(loss),
            "seconds": round(seconds, 6),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "segue": version("segue"),
        }

    def _count(self, what: str) -> None:
        setattr(self.usage, what, getattr(self.usage, what) + 1)
        self._unwritten += 1
        if self._unwritten >= WRITTEN_EVERY:
            self.write_usage()

    def take_usage(self) -> Usage:
        """What was counted so far, which from now on somebody else accounts for."""
        taken, self.usage, self._unwritten = self.usage, Usage(), 0
        return taken

    def write_usage(self) -> None:
        """Write down in the store what this run has found and missed so far."""
        self._unwritten = 0
        content = {"run": self._run, "started": self.started, "namespace": self.namespace, **asdict(self.usage)}
        self.store.write_stats(self._run, content)


def _named(key: Key, parts: Mapping[str, Tensor], features: Features) -> dict[str, Tensor]:
    """The tensors of an entry by the names they are stored under; the widest types first, so that each is aligned."""
    named = {**{name: tensor.detach().cpu() for name, tensor in features.beside.items()}, **parts}
    order = sorted(named, key=lambda name: -named[name].element_size())
    return {f"{key.hash}/{name}": named[name] for name in order}
