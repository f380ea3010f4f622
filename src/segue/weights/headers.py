"""What safetensors files say of themselves: which tensors a model folder holds, of what type and shape.

Nothing here reads a tensor to learn that, and nothing reads a pickle.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from segue.errors import CheckpointError
from segue.reading import open_regular, read_bytes

ADAPTER = (
    "is a LoRA adapter of the peft library without the model that it belongs to; merge it into that model first (peft: "
    "model.merge_and_unload(), then save_pretrained), and give the merged folder"
)
_LFS = "is a Git LFS pointer and not the file; run `git lfs pull` where it came from"
_POINTER = b"version "
INDEX = "model.safetensors.index.json"
SINGLE_FILES = ("model.safetensors", "weights.safetensors")
MAX_HEADER_BYTES = 100_000_000
MAX_JSON_BYTES = 200_000_000
MAX_TENSORS = 200_000
MAX_AXES = 8
"""What no model that is known comes near: more is no header of one."""
_MAPPED = 1 << 29
"""Bytes that are read through one memory map before the next is opened."""
FLOATING = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
"""The types that weights of a model can have."""
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor as a safetensors header describes it; `dtype` is the header's own word (F32, BF16 ...)."""

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Its size on disk in bytes."""
        return self.numel * DTYPES[self.dtype].itemsize


def checkpoint_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a model folder: those its index names, a single file of a usual name, or all there are.

    Raises: CheckpointError, if there are none, if the index names a file that is missing or lies outside the folder, if
    both an index and a single file claim to be the model, or if the folder holds pickled weights only.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; expected a model folder with config.json and *.safetensors")
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} {ADAPTER}")
    single = next((folder / name for name in SINGLE_FILES if (folder / name).is_file()), None)
    if (folder / INDEX).is_file():
        files = _indexed_files(folder)
        if single is not None and single not in files:
            raise CheckpointError(
                f"{folder} holds two sets of weights, {single.name} and the shards of {INDEX}; move one of them away"
            )
        return files
    files = (single,) if single is not None else tuple(sorted(folder.glob("*.safetensors")))
    if not files:
        names = pickled(folder)
        if names:
            text = f"{folder} holds only pickled weights ({', '.join(names)}), which could run code when read"
            raise CheckpointError(
                f"{text}; take the checkpoint as *.safetensors, or rewrite it, which runs nothing: "
                "segue convert safetensors FOLDER OUT"
            )
        if (folder / "adapter_config.json").is_file():
            raise CheckpointError(f"{folder} {ADAPTER}")
        other = " but *.gguf files, which are not read" if any(folder.glob("*.gguf")) else ""
        raise CheckpointError(f"{folder} holds no weights{other}; expected *.safetensors files")
    return files


def _indexed_files(folder: Path) -> tuple[Path, ...]:
    shards = read_json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise CheckpointError(f"{folder / INDEX} has no weight_map from tensor names to files; fetch it again")
    names = sorted(set(shards.values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{folder / INDEX} names the file {name!r}; expected *.safetensors beside it")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of the {len(names)} files that its index names; fetch {', '.join(missing)}"
        )
    return tuple(folder / name for name in names)


def pickled(folder: Path) -> tuple[str, ...]:
    """Names of the files in a folder that look like pickles, which could run code when read; nothing reads them."""
    return tuple(sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES))


def read_headers(folder: Path) -> dict[str, Stored]:
    """Names, types and shapes of all tensors of a model folder, from the file headers alone.

    Raises: CheckpointError, for a file that is not safetensors, is cut short, or repeats a name of another file.
    """
    found: dict[str, Stored] = {}
    for file in checkpoint_files(folder):
        for name, stored in read_header(file).items():
            if name in found:
                other = found[name].file.name
                raise CheckpointError(f"tensor {name} stands in both {other} and {file.name} of {folder}")
            found[name] = stored
    return found


def read_header(file: Path) -> dict[str, Stored]:
    """Names, types and shapes of the tensors of one file, from its header alone.

    A header is believed only if its tensors fill the file exactly, one after another, each as long as its type and
    shape say.

    Raises: CheckpointError, if the file cannot be opened, is not safetensors, is cut short, or its header contradicts
    itself.
    """
    try:
        with open_regular(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            start = stream.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise CheckpointError(f"{file} {_what_it_is(start)} ({size} bytes)")
            text = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror})") from error
    try:
        rows = json.loads(text, object_pairs_hook=_no_repeats)
        rows.pop("__metadata__", None)
        if len(rows) > MAX_TENSORS:
            raise ValueError(f"it names {len(rows):,} tensors; at most {MAX_TENSORS:,} are read")
        tensors = {name: _stored(file, name, row) for name, row in rows.items()}
        end = _end_of_data(rows)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} has no sound safetensors header ({error}); fetch it again") from error
    if 8 + length + end != size:
        raise CheckpointError(f"{file} has {size} bytes, its header promises {8 + length + end}; fetch it again")
    return tensors


def _what_it_is(start: bytes) -> str:
    """What a file is that does not begin as safetensors do, as the end of a sentence."""
    if start.startswith((b"PK", b"\x80")):
        return "is a pickle under another name, which could run code when read; take the weights as safetensors"
    if start.startswith(_POINTER):
        return _LFS
    return "is not a safetensors file, or is cut short; fetch it again"


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"{Counter(name for name, _ in pairs).most_common(1)[0][0]!r} stands there twice")
    return found


def _stored(file: Path, name: str, row: Mapping[str, Any]) -> Stored:
    if not name.isprintable():
        raise ValueError(f"{name!r} is no tensor name")
    dtype, shape, (begin, end) = row["dtype"], row["shape"], row["data_offsets"]
    if dtype not in DTYPES:
        raise ValueError(f"tensor {name} is of type {dtype!r}; known are {', '.join(DTYPES)}")
    if not isinstance(shape, list) or not all(
        type(number) is int and 0 <= number < 2**63 for number in (*shape, begin, end)
    ):
        raise ValueError(f"tensor {name} has shape {str(shape)[:80]} at {begin} to {end}")
    if len(shape) > MAX_AXES:
        raise ValueError(f"tensor {name} has {len(shape):,} axes; at most {MAX_AXES} are read")
    stored = Stored(file, dtype, tuple(shape))
    if end - begin != stored.nbytes:
        raise ValueError(f"tensor {name} has {end - begin} bytes, its type and shape need {stored.nbytes}")
    return stored


def _end_of_data(rows: Mapping[str, Any]) -> int:
    end = 0
    for name, row in sorted(rows.items(), key=lambda item: item[1]["data_offsets"]):
        begin, next_end = row["data_offsets"]
        if begin != end:
            raise ValueError(f"the data of tensor {name} begin at {begin}, expected {end}")
        end = next_end
    return end


def read_tensors(file: Path, names: Iterable[str]) -> Iterator[Tensor]:
    """Tensors of one file, one at a time, as they are stored: parts of a memory map that is private to this process.

    Raises: CheckpointError, if the file cannot be read.
    """
    read = _MAPPED
    for name in names:
        if read >= _MAPPED:
            # what was read through a map counts as memory until nothing refers to the map
            reader, read = open_tensors(file), 0
        tensor = read_tensor(reader, file, name)
        read += tensor.nbytes
        yield tensor


def open_tensors(file: Path) -> Any:
    """A file to read tensors of by `read_tensor`; closed when nothing refers to it.

    Raises: CheckpointError, if the file cannot be read.
    """
    try:
        open_regular(file).close()
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); fetch it again") from error


def read_tensor(reader: Any, file: Path, name: str) -> Tensor:
    """One tensor of an opened file, as it is stored; the path is for the error.

    Raises: CheckpointError, if it cannot be read.
    """
    try:
        tensor: Tensor = reader.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); fetch it again") from error
    return tensor


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder.

    Raises: CheckpointError, if the file is missing, is not JSON or is not an object.
    """
    try:
        data = read_bytes(path, MAX_JSON_BYTES)
        value = json.loads(data.decode("utf-8-sig"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        if data.startswith(_POINTER):
            raise CheckpointError(f"{path} {_LFS}") from error
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}; expected a JSON object")
    return value
