"""Tensors in and out of files: safetensors only, renamed by a key table, loaded loudly.

The only file that fills a module from a checkpoint. A checkpoint is judged from its headers first: every tensor in it
must have a place, every place must be filled, every shape must agree. Otherwise nothing is loaded and one
`CheckpointError` lists all that is wrong.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from segue.errors import CheckpointError

log = logging.getLogger(__name__)

INDEX = "model.safetensors.index.json"
LINEAGE = "lineage.json"
SINGLE_FILES = ("model.safetensors", "weights.safetensors")
MAX_HEADER_BYTES = 100_000_000
MAX_LINES = 50
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


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of a key table: upstream names matching `upstream` (a whole-name pattern) fill the `native` places.

    `native` are names with `\\1` ... for the pattern's groups. With several of them, `split` turns the upstream tensor
    into one tensor each and `join` puts them together again; without `split` each place receives the whole tensor.
    `row` sends the tensor to one row of its place, for upstream layouts that keep the rows of a table apart.
    """

    upstream: str
    native: tuple[str, ...]
    split: Callable[[Tensor], Sequence[Tensor]] | None = None
    join: Callable[[Sequence[Tensor]], Tensor] | None = None
    row: int | None = None

    def below(self, upstream: str, native: str) -> Rule:
        """The rule for a part that stands under a prefix on each side; `upstream` is a pattern."""
        return replace(self, upstream=upstream + self.upstream, native=tuple(native + name for name in self.native))


KeyTable = Sequence[Rule]
Shapes = dict[str, tuple[int, ...]]
_Rules = Sequence[tuple[re.Pattern[str], Rule]]
_Backwards = Sequence[tuple[re.Pattern[str], Sequence[tuple[int, str]]]]


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load did: tensors read, how many were renamed, and places filled from a tied tensor or left fresh."""

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

    Raises: CheckpointError, if there are none, if the index names a file that is missing or lies outside the folder, if
    both an index and a single file claim to be the model, or if the folder holds pickled weights only.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; expected a model folder with config.json and *.safetensors")
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
        found = f"only {', '.join(names)}, which could run code when read," if names else "no weights"
        raise CheckpointError(f"{folder} holds {found}; expected *.safetensors files")
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
        size = file.stat().st_size
        with file.open("rb") as stream:
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
    if start.startswith(b"version "):
        return "is a Git LFS pointer and not the weights; run `git lfs pull` where it came from"
    return "is not a safetensors file, or is cut short; fetch it again"


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return found


def _stored(file: Path, name: str, row: Mapping[str, Any]) -> Stored:
    if not name.isprintable():
        raise ValueError(f"{name!r} is no tensor name")
    dtype, shape, (begin, end) = row["dtype"], row["shape"], row["data_offsets"]
    if dtype not in DTYPES:
        raise ValueError(f"tensor {name} is of type {dtype!r}; known are {', '.join(DTYPES)}")
    if not all(type(number) is int and 0 <= number < 2**63 for number in (*shape, begin, end)):
        raise ValueError(f"tensor {name} has shape {shape} at {begin} to {end}")
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
    stay as they are. Nothing is written unless every tensor and every place is accounted for. Tensors are held one at a
    time.

    Raises: CheckpointError, naming every tensor missing, unexpected or misshapen, with both shapes.
    """
    headers = read_headers(folder)
    places = module.state_dict()
    writes, report = check(headers, {name: tuple(t.shape) for name, t in places.items()}, table, tied=tied, fresh=fresh)
    by_file: dict[Path, list[_Write]] = defaultdict(list)
    for write in writes:
        by_file[headers[write.upstream].file].append(write)
    for file, file_writes in by_file.items():
        for write, tensor in zip(file_writes, read_tensors(file, [w.upstream for w in file_writes]), strict=True):
            _fill(places, write, tensor)
    with torch.no_grad():
        for name in report.tied:
            places[name].copy_(places[(tied or {})[name]])
    log.info("%d tensors, %d renamed, tied: %s, fresh: %s", report.total, report.renamed, report.tied, report.fresh)
    return report


def read_tensors(file: Path, names: Iterable[str]) -> Iterator[Tensor]:
    """Tensors of one file, one at a time, as they are stored.

    Raises: CheckpointError, if the file cannot be read.
    """
    try:
        with safe_open(file, framework="pt") as reader:
            for name in names:
                yield reader.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); fetch it again") from error


def check(
    headers: Mapping[str, Stored],
    expected: Mapping[str, tuple[int, ...]],
    table: KeyTable | None = None,
    *,
    tied: Mapping[str, str] | None = None,
    fresh: Sequence[str] = (),
    contrast: str = "",
) -> tuple[list[_Write], LoadReport]:
    """Match a checkpoint's headers against the places of a module, touching no data.

    `contrast` is what the error begins with: what the configuration describes and what the weights are, where that is
    known to differ.

    Raises: CheckpointError, listing every problem at once; its first line counts them and says what to do.
    """
    rules = None if table is None else _compiled(table)
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
    lost = [name for name in missing if name not in {*from_tie, *left_fresh}]
    absent = _upstream_shapes(lost, expected, filled, rules or ())
    problems += [f"missing: {name} {list(shape)}" for name, shape in absent.items()]
    if problems:
        raise CheckpointError(_problem_text(problems, headers, contrast))
    renamed = sum(write.places != (write.upstream,) for write in writes)
    return writes, LoadReport(len(headers), renamed, from_tie, left_fresh)


def _problem_text(problems: Sequence[str], headers: Mapping[str, Stored], contrast: str) -> str:
    folder = next((stored.file.parent for stored in headers.values()), "the checkpoint")
    kinds = Counter(problem.split(":")[0] for problem in problems)
    counts = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
    what = contrast or "the weights do not fit the architecture that config.json describes"
    is_cut = set(kinds) == {"missing"}
    cure = "fetch the whole checkpoint again" if is_cut else "take config.json and weights from one checkpoint"
    lines = "".join(f"\n  {problem}" for problem in _gathered(sorted(problems, key=_by_number)))
    return f"{folder}: {what} (tensors: {counts}); nothing was loaded, {cure}{lines}"


def _by_number(text: str) -> list[str]:
    """Sorts layer 10 behind layer 9."""
    return [part.zfill(6) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def _gathered(problems: Sequence[str]) -> list[str]:
    """Many problems on fewer lines: those that differ in the first number of a name alone stand together."""
    if len(problems) <= MAX_LINES:
        return list(problems)
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    for problem in problems:
        before, number, after = ([*re.split(r"(?<=\.)(\d+)(?=\.)", problem, maxsplit=1), "", ""])[:3]
        found[before, after].append(int(number or 0))
    return [before + (_runs(numbers) if after else "") + after for (before, after), numbers in found.items()]


def _runs(numbers: Sequence[int]) -> str:
    """0, 1, 2 and 5 as {0-2,5}; a single number as it is."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    text = ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return text if len(numbers) == 1 else f"{{{text}}}"


def _compiled(table: KeyTable) -> _Rules:
    return [(re.compile(rule.upstream), rule) for rule in table]


def _match(name: str, rules: _Rules | None) -> _Write | None:
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
    try:
        pieces = [tuple(piece.shape) for piece in _pieces(write, torch.empty(stored.shape, device="meta"))]
    except (RuntimeError, ValueError, IndexError):
        pieces = []
    if pieces == wanted:
        return []
    needs = list(_shape_upstream(write, expected))
    return [f"misshapen: {write.upstream} is {list(stored.shape)} in the file, the architecture needs {needs}"]


def _shape_upstream(write: _Write, expected: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape that an upstream tensor must have to fill its places."""
    shapes = [expected[place] for place in write.places]
    if write.rule is not None and write.rule.row is not None:
        return (1, *shapes[0][1:])
    if write.rule is None or write.rule.join is None:
        return shapes[0]
    return tuple(write.rule.join([torch.empty(shape, device="meta") for shape in shapes]).shape)


def _missing(expected: Mapping[str, tuple[int, ...]], filled: Mapping[tuple[str, int | None], str]) -> list[str]:
    rows: dict[str, set[int | None]] = defaultdict(set)
    for place, row in filled:
        rows[place].add(row)
    return [
        name
        for name, shape in expected.items()
        if None not in rows[name] and (not rows[name] or rows[name] != set(range(shape[0])))
    ]


def upstream_shapes(expected: Mapping[str, tuple[int, ...]], table: KeyTable) -> Shapes:
    """Names and shapes of the tensors of an upstream checkpoint that fills these places: the key table read backwards."""
    return _upstream_shapes(expected, expected, {}, _compiled(table))


def _upstream_shapes(
    places: Iterable[str],
    expected: Mapping[str, tuple[int, ...]],
    filled: Mapping[tuple[str, int | None], str],
    rules: _Rules,
) -> Shapes:
    """Upstream tensors that fill these places, but for rows that are filled already."""
    backwards = _backwards(rules)
    found: Shapes = {}
    for place in places:
        sources = [
            write
            for write in _sources(place, backwards, rules)
            if (place, write.rule.row if write.rule else None) not in filled and set(write.places) <= expected.keys()
        ]
        # of several spellings that are understood the first is the usual one; of a table kept in rows all are needed
        is_in_rows = any(write.rule and write.rule.row is not None for write in sources)
        for write in sources if is_in_rows else sources[:1] or [_Write(place, None, (place,))]:
            found[write.upstream] = _shape_upstream(write, expected)
    return found


def _backwards(rules: _Rules) -> _Backwards:
    """For every place that a table fills: a pattern of native names, and the pieces of a match's upstream name.

    A piece is (0, text) or (number of a group, ...). Places whose rule cannot be read backwards are left out.
    """
    found = []
    for _, rule in rules:
        pieces = _outermost(rule.upstream)
        groups = {number: source for number, source in pieces if number}
        for template in rule.native:
            seen: set[int] = set()
            pattern = ""
            for position, part in enumerate(re.split(r"\\(\d)", template)):
                number = int(part) if position % 2 else 0
                if not number:
                    pattern += re.escape(part)
                elif number in groups:
                    pattern += f"(?P=g{number})" if number in seen else f"(?P<g{number}>{groups[number]})"
                    seen.add(number)
            if seen == groups.keys():
                found.append((re.compile(pattern), pieces))
    return found


def _outermost(pattern: str) -> list[tuple[int, str]]:
    """A pattern cut at its outermost groups into (number, inside) and, between them, (0, text).

    Of a choice that is not numbered the first is taken.
    """
    pieces: list[tuple[int, str]] = []
    number = depth = start = opened = 0
    for token in re.finditer(r"\\.|\((?:\?:)?|\)", pattern):
        if token[0] == ")":
            depth -= 1
            if not depth:
                inside = pattern[start : token.start()]
                pieces.append((opened, inside) if opened else (0, inside.split("|")[0]))
                start = token.end()
        elif token[0].startswith("("):
            number += token[0] == "("
            if not depth:
                pieces.append((0, pattern[start : token.start()].replace("\\", "")))
                start, opened = token.end(), number * (token[0] == "(")
            depth += 1
    return [*pieces, (0, pattern[start:].replace("\\", ""))]


def _sources(place: str, backwards: _Backwards, rules: _Rules) -> Iterator[_Write]:
    """The upstream tensors that could fill a place."""
    for pattern, pieces in backwards:
        found = pattern.fullmatch(place)
        if found is None:
            continue
        write = _match("".join(found[f"g{number}"] if number else text for number, text in pieces), rules)
        if write is not None and place in write.places:
            yield write


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
    rules = _compiled(table)
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
    return {
        **_hashes(folder),
        "tensors": report.total,
        "renamed": report.renamed,
        "tied": list(report.tied),
        "fresh": list(report.fresh),
    }


def write_lineage(folder: Path, made_from: Mapping[str, Any]) -> None:
    """Write `lineage.json` into a model folder: the hashes of its own weight files, and what they were made from."""
    content = {**_hashes(folder), "made_from": made_from}
    (folder / LINEAGE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _hashes(folder: Path) -> dict[str, Any]:
    files = {file.name: file_hash(file) for file in checkpoint_files(folder)}
    whole = hashlib.sha256("\n".join(f"{name} {digest}" for name, digest in sorted(files.items())).encode())
    return {"files": files, "model_hash": whole.hexdigest()[:16]}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder.

    Raises: CheckpointError, if the file is missing, is not JSON or is not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}; expected a JSON object")
    return value
