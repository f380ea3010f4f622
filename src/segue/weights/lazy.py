"""Named tensors that are read or computed when they are asked for, and files written from them one at a time.

What a conversion works with: a model of any size passes through in the memory of one shard.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from segue.errors import CheckpointError
from segue.weights.headers import DTYPES, INDEX, SINGLE_FILES, Stored, open_tensors, read_tensor
from segue.weights.keys import KeyTable, Write, compiled, match

# twice this is held while one is written
SHARD_BYTES = 2_000_000_000
Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Spec:
    """What a tensor will be when it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Tensors:
    """Tensors by name, each known by its `Spec` and read, or computed from others, when `read` is called."""

    specs: Mapping[str, Spec]
    read: Callable[[str], Tensor]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes."""
        return {name: spec.shape for name, spec in self.specs.items()}

    @property
    def nbytes(self) -> int:
        """The size of all of them in bytes."""
        return sum(spec.nbytes for spec in self.specs.values())

    def cast(self, dtype_of: Callable[[str], torch.dtype]) -> Tensors:
        """The same tensors, floating ones in the type that `dtype_of` says for their name."""
        specs = {
            name: Spec(spec.shape, dtype_of(name)) if spec.dtype.is_floating_point else spec
            for name, spec in self.specs.items()
        }
        return Tensors(specs, lambda name: self.read(name).to(specs[name].dtype))


def stored(headers: Mapping[str, Stored]) -> Tensors:
    """The tensors that headers describe, under the names that they have in their files."""
    specs = {name: Spec(one.shape, DTYPES[one.dtype]) for name, one in headers.items()}
    # opened once each: a header of a thousand names takes longer to read than a tensor
    opened = cache(open_tensors)
    return Tensors(specs, lambda name: read_tensor(opened(headers[name].file), headers[name].file, name))


def native(source: Tensors, writes: Sequence[Write], tied: Mapping[str, str] | None = None) -> Tensors:
    """Upstream tensors under our names, as `writes` send them; of `tied` places each repeats the place it names."""
    pieces: dict[str, list[tuple[Write, int]]] = defaultdict(list)
    for write in writes:
        for number, place in enumerate(write.places):
            pieces[place].append((write, number))
    again = {place: other for place, other in (tied or {}).items() if place not in pieces}

    def read(place: str) -> Tensor:
        parts = sorted(pieces[again.get(place, place)], key=lambda part: part[0].row or 0)
        tensors = [write.cut(source.read(write.upstream))[number] for write, number in parts]
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors)

    def spec(place: str) -> Spec:
        found = [
            (cut_shapes(write, source.specs[write.upstream].shape)[number], write) for write, number in pieces[place]
        ]
        return Spec(
            (sum(shape[0] for shape, _ in found), *found[0][0][1:]) if found[1:] else found[0][0],
            source.specs[found[0][1].upstream].dtype,
        )

    specs = {place: spec(place) for place in pieces}
    return Tensors(specs | {place: specs[other] for place, other in again.items()}, read)


def upstream(source: Tensors, table: KeyTable, shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
    """Our tensors under upstream names, for every name in `shapes`; the inverse of `native`."""
    rules = compiled(table)
    writes = {name: write for name in shapes if (write := match(name, rules))}
    specs = {name: Spec(shapes[name], source.specs[write.places[0]].dtype) for name, write in writes.items()}

    def read(name: str) -> Tensor:
        return writes[name].joined({place: source.read(place) for place in writes[name].places})

    return Tensors(specs, read)


def cut_shapes(write: Write, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The shapes of what each place receives of an upstream tensor; empty if it cannot be cut so."""
    try:
        return [tuple(piece.shape) for piece in write.cut(torch.empty(shape, device="meta"))]
    except (RuntimeError, ValueError, IndexError):
        return []


def digest(tensor: Tensor) -> str:
    """The SHA-256 of a tensor's numbers as they stand in memory, as hexadecimal."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()


def write_shards(folder: Path, tensors: Tensors, *, advance: Advance, shard_bytes: int = SHARD_BYTES) -> dict[str, str]:
    """Write tensors as safetensors of at most `shard_bytes` each, with an index where there are several.

    Every file is flushed to the disk. `advance` is told the bytes of each tensor when it has been read. Returns the
    digest of each tensor by name.
    """
    shards = _shards(tensors, shard_bytes)
    count, digests, homes = len(shards), {}, {}
    for number, names in enumerate(shards, 1):
        file = folder / (SINGLE_FILES[0] if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors")
        found: dict[str, Tensor] = {}
        for name in names:
            # a copy of its own, because files cannot hold tensors that share memory
            found[name] = tensors.read(name).clone(memory_format=torch.contiguous_format)
            digests[name], homes[name] = digest(found[name]), file.name
            advance(tensors.specs[name].nbytes)
        try:
            save_file(found, file, metadata={"format": "pt"})
        except SafetensorError as error:
            raise CheckpointError(f"cannot write {file}: {error}; free space or choose another folder") from error
        # the library leaves them readable by their owner alone
        file.chmod(0o644)
        flush(file)
    if count > 1:
        index = {"metadata": {"total_size": tensors.nbytes}, "weight_map": homes}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return digests


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _shards(tensors: Tensors, most: int) -> list[list[str]]:
    """Names in order, as many together as fit; a tensor that is larger than a shard has one to itself."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, spec in tensors.specs.items():
        if shards[-1] and size + spec.nbytes > most:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += spec.nbytes
    return shards
