"""Tensors of a file that torch has pickled, read without unpickling it.

Such a file is a zip archive: the numbers lie in it as they are, and a pickle says what they mean. The pickle's
instructions are followed one by one by `segue.pickled`, which calls nothing. What describes a tensor becomes a
description; an object of any other class becomes a `Foreign` that knows its class's name and does nothing. Only where
one of these stands among the tensors is the file refused.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch
from torch import Tensor

from segue.errors import CheckpointError, DataError
from segue.pickled import DAMAGED, Reader
from segue.reading import open_regular
from segue.weights.lazy import Spec, Tensors

MAX_PICKLE_BYTES = 200_000_000
MAX_INSTRUCTIONS = 5_000_000
"""What is followed of a checkpoint's pickle at most: a hundred thousand tensors have these instructions."""
_WORD = 16  # bytes
_MOST_AXES = 8
_MOST_NUMBERS = 2**62
"""No tensor has so many numbers, nor a stride or offset over so many: torch could not count them."""
WRAPPERS = ("state_dict", "model")
_STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
_DICTS = ("collections.OrderedDict",)


class Foreign:
    """Where a pickle has a class, a function or an object that is none of a tensor's parts. It does nothing."""

    def __init__(self, name: str):
        self.name = name

    def extend(self, _: Any) -> None:
        """Take what a list-like object would; nothing is kept."""

    def update(self, _: Any) -> None:
        """Take what a dict-like object would; nothing is kept."""


@dataclass(frozen=True, slots=True)
class _Storage:
    """Numbers of one type in one entry of the archive."""

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True, slots=True)
class _View:
    """A tensor: how its places lie in a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def end(self) -> int:
        """One past the last number of the storage that it reaches."""
        if 0 in self.shape:
            return self.offset
        return self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True)) + 1


@dataclass(frozen=True, slots=True)
class TorchFile:
    """What a file holds: its tensors by name, and what else stands beside them (`meta`, `message_hub` ...), unread."""

    path: Path
    tensors: Tensors
    others: tuple[str, ...]


class _TorchReader(Reader):
    """Follows a pickle of torch's: tensors as descriptions, everything else as it is or as a `Foreign`."""

    most = MAX_INSTRUCTIONS

    def build(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name == "GLOBAL":
            stack.append(Foreign(argument.replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            stack.append(Foreign(".".join(map(str, self.taken(len(stack) - 2)))))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
            maker, *arguments = self.taken(len(stack) - (3 if name == "NEWOBJ_EX" else 2))
            stack.append(_made(maker, arguments[0]) if name == "REDUCE" else Foreign(_name(maker)))
        elif name == "BUILD":
            # the state of an object, or attributes of a dict of tensors; neither is needed
            stack.pop()
        elif name == "EMPTY_SET":
            stack.append(Foreign("builtins.set"))
        elif name in ("ADDITEMS", "FROZENSET"):
            self.taken(self.marks.pop())
            if name == "FROZENSET":
                stack.append(Foreign("builtins.frozenset"))
        elif name == "BYTEARRAY8":
            stack.append(bytes(argument))
        else:
            super().build(name, argument)


def open_pth(path: Path) -> TorchFile:
    """The tensors of a file that torch has written, under the names that they have there; none of them is read yet.

    They stand in the file itself, or in the dict that it calls `state_dict` or `model`.

    Raises: CheckpointError, if the file is no such archive, is damaged, or has anything but tensors among them.
    """
    try:
        open_regular(path).close()
        archive = ZipFile(path)
        root = next((name[: -len("data.pkl")] for name in archive.namelist() if name.endswith("data.pkl")), None)
        if root is None:
            raise CheckpointError(f"{path} is a zip file without a data.pkl; expected one that torch has saved")
        if archive.getinfo(f"{root}data.pkl").file_size > MAX_PICKLE_BYTES:
            raise CheckpointError(f"{path} has more than {MAX_PICKLE_BYTES} bytes beside its tensors; it is damaged")
        if f"{root}byteorder" in archive.namelist() and _small(archive, f"{root}byteorder") != b"little":
            raise CheckpointError(f"{path} was written on a machine of the other byte order; save it on another")
        content = _TorchReader().read(io.BytesIO(archive.read(f"{root}data.pkl")))
        views, others = _views(path, content)
    except BadZipFile as error:
        text = "is no zip archive as torch writes them since version 1.6, or is cut short"
        raise CheckpointError(f"{path} {text}; fetch it again, or save it anew with a newer torch") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from error
    except (*DAMAGED, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        raise CheckpointError(f"{path} is no readable checkpoint ({error}); fetch it again") from error
    except DataError as error:
        text = "is a pickle that asks for more than tensors and plain values"
        raise CheckpointError(f"{path} {text}: it {error}") from error
    _check_entries(path, archive, root, views)
    specs = {name: Spec(view.shape, view.storage.dtype) for name, view in views.items()}
    return TorchFile(path, Tensors(specs, lambda name: _read(path, archive, root, views[name])), others)


def _small(archive: ZipFile, name: str) -> bytes:
    """A member that holds a word.

    Raises: ValueError, if it is larger.
    """
    if archive.getinfo(name).file_size > _WORD:
        raise ValueError(f"its member {name} has {archive.getinfo(name).file_size:,} bytes; expected a word")
    return archive.read(name)


def _storage(described: Any) -> _Storage | Foreign:
    _, kind, key, _, numel = described
    dtype = _STORAGES.get(kind.name)
    if dtype is None:
        return kind
    if not isinstance(key, str) or not key.isalnum():
        raise ValueError(f"{key!r} is no name of a storage")
    return _Storage(key, dtype, int(numel))


def _made(maker: Any, arguments: Any) -> Any:
    """What calling `maker` would give, where that is a dict or a tensor; else something inert."""
    name = _name(maker)
    if name in _DICTS and not arguments:
        return {}
    if name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
        return arguments[0]
    if name == "torch._utils._rebuild_tensor_v2":
        storage, offset, shape, stride = arguments[:4]
        if not isinstance(storage, _Storage):
            return Foreign(f"{name} of {_name(storage)}")
        if max(len(shape), len(stride)) > _MOST_AXES:
            raise ValueError(f"a tensor has {max(len(shape), len(stride)):,} axes; at most {_MOST_AXES} are read")
        if not all(type(number) is int and 0 <= number < _MOST_NUMBERS for number in (offset, *shape, *stride)):
            raise ValueError(f"a tensor has shape {str(shape)[:80]} and strides {str(stride)[:80]}")
        # of an empty tensor too, whose other sizes torch multiplies
        if math.prod(max(size, 1) for size in shape) >= _MOST_NUMBERS:
            raise ValueError(f"a tensor has shape {shape}")
        if len(shape) != len(stride) or math.prod(shape) > max(storage.numel, 1):
            raise ValueError(f"a tensor of {len(shape)} axes has more numbers than its storage")
        return _View(storage, offset, tuple(shape), tuple(stride))
    return Foreign(name)


def _name(maker: Any) -> str:
    return maker.name if isinstance(maker, Foreign) else type(maker).__name__


def _views(path: Path, content: Any) -> tuple[dict[str, _View], tuple[str, ...]]:
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds an object of {_name(content)}; expected tensors by name")
    wrapper = next((key for key in WRAPPERS if isinstance(content.get(key), dict | Foreign)), None)
    state = content if wrapper is None else content[wrapper]
    if isinstance(state, dict) and not state:
        raise CheckpointError(f"{path} holds no tensor; expected the state_dict of a training run")
    if isinstance(state, Foreign):
        raise CheckpointError(f"{path} keeps its tensors in an object of {state.name}; expected tensors by name")
    strange = [
        f"{str(name)[:80]!r}: {_name(value)}"
        for name, value in state.items()
        if not isinstance(value, _View) or not isinstance(name, str) or not name.isprintable()
    ]
    if strange:
        text = f"{path} holds {len(strange)} values that are no tensors among {len(state)}: {', '.join(strange[:5])}"
        raise CheckpointError(f"{text}; nothing was read. Save it anew with tensors alone in its state_dict")
    others = () if wrapper is None else tuple(str(key) for key in content if key != wrapper)
    return state, others


def _check_entries(path: Path, archive: ZipFile, root: str, views: Mapping[str, _View]) -> None:
    for problem in _entry_problems(archive, root, views):
        raise CheckpointError(f"{path} is damaged: {problem}; fetch it again")


def _entry_problems(archive: ZipFile, root: str, views: Mapping[str, _View]) -> Iterator[str]:
    sizes = {entry.filename: entry for entry in archive.infolist()}
    for name, view in views.items():
        entry = sizes.get(f"{root}data/{view.storage.key}")
        needed = view.storage.numel * view.storage.dtype.itemsize
        if entry is None or entry.compress_type != ZIP_STORED or entry.file_size != needed:
            yield f"the numbers of {name} are not there, or not as many as it says"
        elif view.end > view.storage.numel:
            yield f"{name} reaches beyond its {view.storage.numel} numbers"


def _read(path: Path, archive: ZipFile, root: str, view: _View) -> Tensor:
    try:
        data = bytearray(archive.read(f"{root}data/{view.storage.key}"))
    except (BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError, zlib.error) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); fetch it again") from error
    if len(data) != view.storage.numel * view.storage.dtype.itemsize:
        raise CheckpointError(f"{path} is damaged: numbers are missing in it; fetch it again")
    if not data:
        return torch.empty(view.shape, dtype=view.storage.dtype)
    numbers = torch.frombuffer(data, dtype=view.storage.dtype)
    return numbers.as_strided(view.shape, view.stride, view.offset)
