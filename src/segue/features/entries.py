"""One entry as one safetensors file, with a checksum over its header and one over every tensor.

No container protects what it carries, so an entry is believed only if its checksums agree. The file is whatever any
safetensors reader expects: 8 bytes of length, a JSON header, the tensors one after another. The header is padded so
that the tensors begin at a multiple of 4096 bytes, which makes a file's size depend on shapes alone and gets the header
in one short request.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedIOBase, RawIOBase
from typing import Any

import torch
from torch import Tensor

from segue.errors import DataError
from segue.features.formats import CODES

File = RawIOBase | BufferedIOBase
"""A file that is open for bytes."""

PAGE = 4096
LARGEST_HEADER = 1 << 20
CHUNK = 1 << 20
_START = b'{"__metadata__":{"check":"'
_BLANK = b"00000000"
_CODES = {**CODES, torch.int8: "I8", torch.uint8: "U8", torch.int64: "I64", torch.bool: "BOOL"}
_TYPES = {code: dtype for dtype, code in _CODES.items()}


@dataclass(frozen=True, slots=True)
class Head:
    """What a file says of itself: `facts` about the entry, and per tensor its type, shape, place and checksum.

    Places are [start, stop) bytes after the header, which ends at `size`.
    """

    facts: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, Any]]
    size: int

    @property
    def nbytes(self) -> int:
        """The length of the whole file."""
        return self.size + max((row["data_offsets"][1] for row in self.tensors.values()), default=0)


@dataclass(frozen=True, slots=True)
class Content:
    """A file's tensors and the facts about them."""

    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


def write(file: File, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> int:
    """Write an entry to an open file and make sure that it is on the disk; returns its length in bytes.

    Raises: OSError, as the file does.
    """
    views = {name: _bytes(tensor) for name, tensor in tensors.items()}
    checks = {name: _checksum(view) for name, view in views.items()}
    rows, place = {}, 0
    for name, tensor in tensors.items():
        end = place + len(views[name])
        rows[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [place, end]}
        place = end
    head = _header({**facts, "crc32": checks}, rows)
    file.write(head)
    for view in views.values():
        file.write(view)
    file.flush()
    os.fsync(file.fileno())
    return len(head) + place


def _header(facts: Mapping[str, Any], rows: Mapping[str, Any]) -> bytes:
    metadata = {"check": _BLANK.decode(), "segue": json.dumps(facts, separators=(",", ":"), allow_nan=False)}
    text = json.dumps({"__metadata__": metadata, **rows}, separators=(",", ":")).encode()
    assert text.startswith(_START)
    padded = text + b" " * (-(len(text) + 8) % PAGE)
    place = len(_START)
    checked = padded[:place] + b"%08x" % zlib.crc32(padded) + padded[place + len(_BLANK) :]
    return len(padded).to_bytes(8, "little") + checked


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _checksum(view: memoryview) -> int:
    return zlib.crc32(view)


@contextmanager
def _telling() -> Iterator[None]:
    """What contradicts itself although its checksums agree, as nothing here writes it, is said to be no entry.

    Raises: DataError.
    """
    try:
        yield
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(f"it contradicts itself ({type(error).__name__}: {error})") from error


@_telling()
def read_head(file: File, length: int | None = None) -> Head:
    """The header of an open file, believed only if its checksum agrees and its tensors fill the file.

    `length` is the file's own, if it is known.

    Raises: DataError, saying what is wrong with it.
    """
    first = file.read(PAGE)
    size = int.from_bytes(first[:8], "little")
    if len(first) < PAGE or size + 8 > LARGEST_HEADER:
        raise DataError("it is cut short, or is no entry of a feature store")
    text = first[8 : 8 + size]
    text += file.read(size - len(text))
    place = len(_START)
    blank = text[:place] + _BLANK + text[place + len(_BLANK) :]
    if len(text) < size or not text.startswith(_START) or text[place : place + 8] != b"%08x" % zlib.crc32(blank):
        raise DataError("its header does not agree with its checksum")
    rows = json.loads(text)
    facts = json.loads(rows.pop("__metadata__")["segue"])
    if not isinstance(facts, dict):
        raise DataError("what it says of itself is no JSON object")
    head = Head(facts, rows, size + 8)
    if length is not None and head.nbytes != length:
        raise DataError(f"it has {length} bytes, its header promises {head.nbytes}")
    return head


@_telling()
def read(file: File, length: int | None = None, *, check: bool = True) -> Content:
    """All of an open entry. `check` False trusts the tensors, for an entry that was checked before.

    Raises: DataError, if a checksum does not agree or the file is cut short.
    """
    head = read_head(file, length)
    start, places = head.size, sorted(head.tensors.items(), key=lambda item: item[1]["data_offsets"])
    # one buffer for all: a remote file is read in one request
    whole = torch.empty(head.nbytes - start, dtype=torch.uint8)
    view = whole.numpy().data
    if not check:
        _fill(file, view)
        return Content(head.facts, {name: _tensor(whole, row) for name, row in places})
    for name, row in places:
        begin, end = row["data_offsets"]
        found = _fill(file, view[begin:end], check=True)
        if found != head.facts["crc32"][name]:
            raise DataError(f"its tensor {name.rpartition('/')[2]} does not agree with its checksum")
    return Content(head.facts, {name: _tensor(whole, row) for name, row in places})


def _fill(file: File, view: memoryview, *, check: bool = False) -> int:
    """Read until a buffer is full; returns the checksum, computed while each chunk is in the processor's cache."""
    value = place = 0
    while place < len(view):
        part = view[place : place + CHUNK] if check else view[place:]
        count = file.readinto(part)
        if not count:
            raise DataError("it is cut short")
        value = zlib.crc32(part[:count], value) if check else 0
        place += count
    return value


def _tensor(whole: Tensor, row: Mapping[str, Any]) -> Tensor:
    begin, end = row["data_offsets"]
    return whole[begin:end].view(_TYPES[row["dtype"]]).view(row["shape"])


def file_size(payload: int) -> int:
    """What a file of an entry weighs whose tensors weigh so much, as long as its header fits one page."""
    return PAGE + payload
