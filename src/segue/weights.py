"""Tensors in and out of files: safetensors only, renamed by a key table, loaded loudly.

The only file that fills a module from a checkpoint. A checkpoint is judged from its headers first: every tensor in it must
have a place, every place must be filled, every shape must agree. Otherwise nothing is loaded and one `CheckpointError`
lists all that is wrong.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from segue.errors import CheckpointError

log = logging.getLogger(__name__)

INDEX = "model.safetensors.index.json"
SINGLE_FILES = ("model.safetensors", "weights.safetensors")
MAX_HEADER_BYTES = 100_000_000
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
        return int(torch.Size(self.shape).numel())

    @property
    def nbytes(self) -> int:
        """Its size on disk in bytes."""
        return self.numel * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of a key table: upstream names matching `upstream` (a whole-name pattern) fill the `native` places.

    `native` are names with `\\1` ... for the pattern's groups. With several of them, `split` turns the upstream tensor into
    one tensor each and `join` puts them together again; without `split` each place receives the whole tensor.
    `row` sends the tensor to one row of its place, for upstream layouts that keep the rows of a table apart.
    """

    upstream: str
    native: tuple[str, ...]
    split: Callable[[Tensor], Sequence[Tensor]] | None = None
    join: Callable[[Sequence[Tensor]], Tensor] | None = None
    row: int | None = None


KeyTable = Sequence[Rule]


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load did: tensors read, how many changed their name, and places filled from a tied tensor or left fresh."""

    total: int
    renamed: int
    tied: tuple[str, ...]
    fresh: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Write:
    upstream: str
    rule: Rule | None
    places: tuple[str, ...]


def checkpoint_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a model folder: those its index names, a single file of a usual name, or all there are.

    Raises: CheckpointError, if there are none, if the index names a file that is missing or lies outside the folder, or if
    the folder holds pickled weights only.
    """
    index = folder / INDEX
    if index.is_file():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        for name in names:
            if Path(name).name != name or not (folder / name).is_file():
                raise CheckpointError(f"{index} names the file {name!r}, which is not in {folder}; fetch the missing shard")
        return tuple(folder / name for name in names)
    for name in SINGLE_FILES:
        if (folder / name).is_file():
            return (folder / name,)
    files = tuple(sorted(folder.glob("*.safetensors")))
    if not files:
        pickled = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLE_SUFFIXES)
        found = f"only {', '.join(pickled)}, which could run code when read" if pickled else "no weights"
        raise CheckpointError(f"{folder} has {found}; expected *.safetensors files")
    return files


def read_headers(folder: Path) -> dict[str, Stored]:
    """Names, types and shapes of all tensors of a model folder, from the file headers alone.

    Raises: CheckpointError, for a file that is not safetensors, is cut short, or repeats a name of another file.
    """
    found: dict[str, Stored] = {}
    for file in checkpoint_files(folder):
        for name, stored in _read_header(file).items():
            if name in found:
                raise CheckpointError(f"tensor {name} stands in both {found[name].file.name} and {file.name} of {folder}")
            found[name] = stored
    return found


def _read_header(file: Path) -> dict[str, Stored]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise CheckpointError(f"{file} is not a safetensors file, or is cut short ({size} bytes); fetch it again")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            tensors = {name: Stored(file, row["dtype"], tuple(row["shape"])) for name, row in header.items()}
            end = max((row["data_offsets"][1] for row in header.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{file} has no readable safetensors header ({error}); fetch it again") from error
    unknown = sorted({stored.dtype for stored in tensors.values()} - set(DTYPES))
    if unknown:
        raise CheckpointError(f"{file} holds tensors of type {', '.join(unknown)}; known are {', '.join(DTYPES)}")
    if 8 + length + end != size:
        raise CheckpointError(f"{file} has {size} bytes, its header promises {8 + length + end}; fetch it again")
    return tensors


def load(
    module: nn.Module,
    folder: Path,
    table: KeyTable | None = None,
    *,
    tied: Mapping[str, str] | None = None,
    fresh: Sequence[str] = (),
) -> LoadReport:
    """Fill a module from a folder's safetensors files, casting each tensor to the place's own dtype and device.

    `table` renames upstream names; without one the names are the module's own. `tied` maps places that the
    checkpoint may leave out to the place whose value they repeat. `fresh` are whole-name patterns of places that may
    stay as they are. Nothing is written unless every tensor and every place is accounted for. One tensor is held at a time.

    Raises: CheckpointError, naming every tensor missing, unexpected or misshapen, with both shapes.
    """
    headers = read_headers(folder)
    places = module.state_dict()
    writes, report = check(headers, {name: tuple(t.shape) for name, t in places.items()}, table, tied=tied, fresh=fresh)
    by_file: dict[Path, list[_Write]] = defaultdict(list)
    for write in writes:
        by_file[headers[write.upstream].file].append(write)
    for file, file_writes in by_file.items():
        try:
            with safe_open(file, framework="pt") as reader:
                for write in file_writes:
                    _fill(places, write, reader.get_tensor(write.upstream))
        except SafetensorError as error:
            raise CheckpointError(f"{file} cannot be read ({error}); fetch it again") from error
    with torch.no_grad():
        for name in report.tied:
            places[name].copy_(places[(tied or {})[name]])
    log.info("%d tensors, %d renamed, tied: %s, fresh: %s", report.total, report.renamed, report.tied, report.fresh)
    return report


def check(
    headers: Mapping[str, Stored],
    expected: Mapping[str, tuple[int, ...]],
    table: KeyTable | None = None,
    *,
    tied: Mapping[str, str] | None = None,
    fresh: Sequence[str] = (),
) -> tuple[list[_Write], LoadReport]:
    """Match a checkpoint's headers against the places of a module, touching no data.

    Raises: CheckpointError, listing every problem at once.
    """
    rules = None if table is None else [(re.compile(rule.upstream), rule) for rule in table]
    writes, problems = [], []
    filled: dict[tuple[str, int | None], str] = {}
    for name, stored in headers.items():
        write = _match(name, rules)
        if write is None or any(place not in expected for place in write.places):
            problems.append(f"unexpected: {name} {list(stored.shape)}")
            continue
        problems += _shape_problems(write, stored, expected)
        row = write.rule.row if write.rule else None
        for place in write.places:
            if (place, row) in filled:
                problems.append(f"twice: {name} and {filled[place, row]} both fill {place}")
            filled[place, row] = name
        writes.append(write)
    missing = _missing(expected, filled)
    from_tie = tuple(name for name in missing if tied and tied.get(name) in expected and tied[name] not in missing)
    left_fresh = tuple(name for name in missing if any(re.fullmatch(pattern, name) for pattern in fresh))
    problems += [
        f"missing: {_upstream_name(name, table)} {list(expected[name])}"
        for name in missing
        if name not in from_tie and name not in left_fresh
    ]
    if problems:
        raise CheckpointError(_problem_text(problems, headers))
    renamed = sum(write.places != (write.upstream,) for write in writes)
    return writes, LoadReport(len(headers), renamed, from_tie, left_fresh)


def _problem_text(problems: Sequence[str], headers: Mapping[str, Stored]) -> str:
    folder = next((stored.file.parent for stored in headers.values()), "the checkpoint")
    kinds: dict[str, int] = defaultdict(int)
    for problem in problems:
        kinds[problem.split(":")[0]] += 1
    counts = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
    lines = "".join(f"\n  {problem}" for problem in sorted(problems))
    return (
        f"the weights in {folder} do not fit the architecture its config.json describes ({counts}); "
        f"nothing was loaded. Use the config.json that belongs to these weights.{lines}"
    )


def _match(name: str, rules: Iterable[tuple[re.Pattern[str], Rule]] | None) -> _Write | None:
    if rules is None:
        return _Write(name, None, (name,))
    for pattern, rule in rules:
        found = pattern.fullmatch(name)
        if found:
            return _Write(name, rule, tuple(found.expand(native) for native in rule.native))
    return None


def _pieces(write: _Write, tensor: Tensor) -> Sequence[Tensor]:
    if write.rule is None or write.rule.split is None:
        return [tensor] * len(write.places)
    return write.rule.split(tensor)


def _shape_problems(write: _Write, stored: Stored, expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    row = write.rule.row if write.rule else None
    wanted = [expected[place] if row is None else (1, *expected[place][1:]) for place in write.places]
    shape = f"misshapen: {write.upstream} is {list(stored.shape)} in the file, the architecture needs "
    try:
        pieces = [tuple(piece.shape) for piece in _pieces(write, torch.empty(stored.shape, device="meta"))]
    except (RuntimeError, ValueError):
        return [shape + f"the parts {[list(want) for want in wanted]}"]
    if pieces == wanted:
        return []
    return [shape + (f"{list(wanted[0])}" if len(wanted) == 1 else f"the parts {[list(want) for want in wanted]}")]


def _missing(expected: Mapping[str, tuple[int, ...]], filled: Mapping[tuple[str, int | None], str]) -> list[str]:
    rows: dict[str, set[int | None]] = defaultdict(set)
    for place, row in filled:
        rows[place].add(row)
    return [
        name
        for name, shape in expected.items()
        if None not in rows[name] and (not rows[name] or rows[name] != set(range(shape[0])))
    ]


def _upstream_name(native: str, table: KeyTable | None) -> str:
    """How the checkpoint would have called it, as far as a rule can be read backwards; for error texts."""
    for rule in table or ():
        for template in rule.native:
            pattern = re.escape(template).replace(r"\\1", r"(?P<a>.+?)").replace(r"\\2", r"(?P<b>.+?)")
            found = re.fullmatch(re.sub(r"\\\\\d", ".+?", pattern), native)
            if found:
                return f"{rule.upstream} (for {native})" if found.groups() else f"{rule.upstream} (for {native})"
    return native


def _fill(places: Mapping[str, Tensor], write: _Write, tensor: Tensor) -> None:
    with torch.no_grad():
        for place, piece in zip(write.places, _pieces(write, tensor), strict=True):
            target = places[place]
            if write.rule is not None and write.rule.row is not None:
                target = target[write.rule.row : write.rule.row + 1]
            target.copy_(piece)


def to_upstream(state: Mapping[str, Tensor], table: KeyTable, names: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of a module under upstream names, for every name in `names`; the inverse of loading with `table`.

    Raises: CheckpointError, for a name that no rule of the table covers.
    """
    rules = [(re.compile(rule.upstream), rule) for rule in table]
    found: dict[str, Tensor] = {}
    for name in names:
        write = _match(name, rules)
        if write is None or write.rule is None:
            raise CheckpointError(f"no rule of the key table covers the upstream name {name}")
        pieces = [state[place] for place in write.places]
        if write.rule.row is not None:
            pieces = [piece[write.rule.row : write.rule.row + 1] for piece in pieces]
        found[name] = write.rule.join(pieces) if write.rule.join else pieces[0]
    return found


def save(module: nn.Module, folder: Path, *, dtype: torch.dtype | None = None, shard: str = "4GB") -> None:
    """Write a module's tensors as sharded safetensors under its own names, floating ones cast to `dtype` if given."""
    state = {
        name: (tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in module.state_dict().items()
    }
    save_torch_state_dict(state, folder, max_shard_size=shard)


def file_hash(path: Path) -> str:
    """The SHA-256 of a file's bytes, as hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def lineage(folder: Path, report: LoadReport) -> dict[str, Any]:
    """Where a loaded model's numbers come from: every weight file with its hash, and what was tied or left fresh.

    `model_hash` is one hash over the files' hashes: two models with the same value hold the same weights.
    """
    files = {file.name: file_hash(file) for file in checkpoint_files(folder)}
    whole = hashlib.sha256("\n".join(f"{name} {digest}" for name, digest in sorted(files.items())).encode())
    return {
        "files": files,
        "model_hash": whole.hexdigest()[:16],
        "tensors": report.total,
        "renamed": report.renamed,
        "tied": list(report.tied),
        "fresh": list(report.fresh),
    }


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder.

    Raises: CheckpointError, if the file is missing, is not JSON or is not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}; expected a JSON object")
    return value
