"""Tensors in and out of files: safetensors only, renamed by a key table, loaded loudly.

The only place that fills a module from a checkpoint. A checkpoint is judged from its headers first: every tensor in it
must have a place, every place must be filled, every shape must agree. Otherwise nothing is loaded and one
`CheckpointError` lists all that is wrong.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn

from segue import facts
from segue.errors import CheckpointError, ConfigError
from segue.facts import file_hash
from segue.weights.headers import (
    ADAPTER,
    DTYPES,
    FLOATING,
    Stored,
    checkpoint_files,
    pickled,
    read_header,
    read_headers,
    read_json,
    read_tensors,
)
from segue.weights.keys import KeyTable, Rule, Write, compiled, match, sources, to_upstream, upstream_shapes

__all__ = [
    "ADAPTER",
    "DTYPES",
    "LINEAGE",
    "MAX_LINES",
    "PRECISIONS",
    "WRAPPERS",
    "KeyTable",
    "LoadReport",
    "Rule",
    "Stored",
    "as_dtype",
    "check",
    "check_finite",
    "checkpoint_files",
    "file_hash",
    "joint_hash",
    "listing",
    "lineage",
    "load",
    "pickled",
    "read_header",
    "read_headers",
    "read_json",
    "read_tensors",
    "save",
    "to_upstream",
    "upstream_shapes",
    "write_lineage",
]

log = logging.getLogger(__name__)

LINEAGE = "lineage.json"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The types that a model is held in, by the names that people give them."""
MAX_LINES = 50
PACKED = ("qweight", "qzeros", "g_idx")
"""Parts of layers in 4 bits, which hold whole numbers; what is loaded besides are floating-point numbers."""
WRAPPERS = r"((module|_orig_mod)\.)+"
"""What DataParallel and torch.compile put before the name of every tensor that they wrap."""
_PART = 1 << 24


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load did: tensors read, how many were renamed, places filled from a tied tensor or left fresh, and the
    SHA-256 of each file that was read, by its name.
    """

    total: int
    renamed: int
    tied: tuple[str, ...]
    fresh: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=dict)


def load(
    module: nn.Module,
    folder: Path,
    table: KeyTable | None = None,
    *,
    tied: Mapping[str, str] | None = None,
    fresh: Sequence[str] = (),
    filled: Callable[[str], bool] = lambda place: False,
) -> LoadReport:
    """Fill a module from a folder's safetensors files, casting each tensor to the place's own dtype and device.

    `table` renames upstream names; without one the names are the module's own. `tied` maps places that the
    checkpoint may leave out to the place whose value they repeat. `fresh` are whole-name patterns of places that may
    stay as they are. Nothing is written unless every tensor and every place is accounted for. Tensors that are cast are
    held one at a time; others stay in the file's memory map, private to this process, so that they need no memory of
    their own until they are changed. `filled` is told each place that is not `tied` when it has its numbers; where it
    says True, the place has gone and is let go of. Numbers that are NaN or infinite are looked for once in a file that
    does not change.

    Raises: CheckpointError, naming every tensor missing, unexpected or misshapen, with both shapes.
    """
    headers = read_headers(folder)
    places = module.state_dict(keep_vars=True)
    writes, report = check(headers, {name: tuple(t.shape) for name, t in places.items()}, table, tied=tied, fresh=fresh)
    by_file: dict[Path, list[Write]] = defaultdict(list)
    for write in writes:
        by_file[headers[write.upstream].file].append(write)
    known = facts.of_this_user()
    with ThreadPoolExecutor(1) as beside:
        digests = beside.submit(_hashes, checkpoint_files(folder))
        for file, file_writes in by_file.items():
            fill = partial(_fill_from, file, file_writes, places, filled)
            if not known.once(file, "finite", partial(fill, check=True)):
                fill(check=False)
    with torch.no_grad():
        for name in report.tied:
            places[name].copy_(places[(tied or {})[name]])
    unused = [write.upstream for write in writes if not write.places]
    if unused:
        log.warning("%d tensors mean nothing here and are left out: %s", len(unused), ", ".join(unused[:5]))
    log.info("%d tensors, %d renamed, tied: %s, fresh: %s", report.total, report.renamed, report.tied, report.fresh)
    return replace(report, files=digests.result())


def check(
    headers: Mapping[str, Stored],
    expected: Mapping[str, tuple[int, ...]],
    table: KeyTable | None = None,
    *,
    tied: Mapping[str, str] | None = None,
    fresh: Sequence[str] = (),
    contrast: Callable[[], str] = lambda: "",
) -> tuple[list[Write], LoadReport]:
    """Match a checkpoint's headers against the places of a module, touching no data.

    `contrast` says what the error begins with: what the configuration describes and what the weights are, where that is
    known to differ.

    Raises: CheckpointError, listing every problem at once; its first line counts them and says what to do.
    """
    rules = None if table is None else compiled(table)
    writes, problems, mistyped = [], [], []
    filled: dict[tuple[str, int | None], str] = {}
    for name, stored in headers.items():
        write = match(name, rules)
        if write is None or any(place not in expected for place in write.places):
            problems.append(f"unexpected: {name} {list(stored.shape)}")
            continue
        problems += _shape_problems(write, stored, expected)
        is_packed = all(place.rsplit(".", 1)[-1] in PACKED for place in write.places)
        if stored.dtype not in FLOATING and not is_packed:
            mistyped.append(f"{name} is {stored.dtype}")
        for place in write.places:
            if (place, write.row) in filled:
                problems.append(f"twice: {name} and {filled[place, write.row]} both fill {place}")
            filled[place, write.row] = name
        writes.append(write)
    if mistyped:
        raise CheckpointError(
            f"{stored.file.parent}: {len(mistyped)} of {len(headers)} tensors are of a type no model computes with, "
            f"such as {mistyped[0]}; expected {', '.join(sorted(FLOATING))}: fetch the checkpoint again"
        )
    missing = _unfilled(expected, filled)
    from_tie = tuple(name for name in missing if tied and tied.get(name) in expected and tied[name] not in missing)
    left_fresh = tuple(name for name in missing if any(re.fullmatch(pattern, name) for pattern in fresh))
    lost = [name for name in missing if name not in {*from_tie, *left_fresh}]
    problems += [
        f"missing: {name} {list(shape)}" for name, shape in sources(lost, expected, filled, rules or ()).items()
    ]
    if problems:
        raise CheckpointError(_problem_text(problems, headers, contrast()))
    renamed = sum(write.places != (write.upstream,) for write in writes)
    return writes, LoadReport(len(headers), renamed, from_tie, left_fresh)


def _shape_problems(write: Write, stored: Stored, expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    wanted = [expected[place] if write.row is None else (1, *expected[place][1:]) for place in write.places]
    try:
        pieces = [tuple(piece.shape) for piece in write.cut(torch.empty(stored.shape, device="meta"))]
    except (RuntimeError, ValueError, IndexError):
        pieces = []
    if pieces == wanted:
        return []
    needs = list(write.shape(expected))
    return [f"misshapen: {write.upstream} is {list(stored.shape)} in the file, the architecture needs {needs}"]


def _unfilled(expected: Mapping[str, tuple[int, ...]], filled: Mapping[tuple[str, int | None], str]) -> list[str]:
    rows: dict[str, set[int | None]] = defaultdict(set)
    for place, row in filled:
        rows[place].add(row)
    return [
        name
        for name, shape in expected.items()
        if None not in rows[name] and (not rows[name] or rows[name] != set(range(shape[0])))
    ]


def _problem_text(problems: Sequence[str], headers: Mapping[str, Stored], contrast: str) -> str:
    folder = next((stored.file.parent for stored in headers.values()), "the checkpoint")
    kinds = Counter(problem.split(":")[0] for problem in problems)
    counts = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
    what = contrast or "the weights do not fit the architecture that config.json describes"
    wrapper = re.match(WRAPPERS, next(iter(headers), ""))
    if wrapper and all(name.startswith(wrapper[0]) for name in headers):
        cure = (
            f"its names all begin with `{wrapper[0]}`, as DataParallel and torch.compile save them: "
            f"`segue convert safetensors {folder} OUT --strip {wrapper[0]}` writes it without"
        )
        return f"{folder}: {what} (tensors: {counts}); nothing was loaded, {cure}{listing(problems[:MAX_LINES])}"
    is_cut = set(kinds) == {"missing"} and not contrast
    cure = "fetch the whole checkpoint again" if is_cut else "take config.json and weights from one checkpoint"
    return f"{folder}: {what} (tensors: {counts}); nothing was loaded, {cure}{listing(problems)}"


def listing(problems: Sequence[str]) -> str:
    """Problems for an error's text, one indented line each below it; many that are alike share a line."""
    return "".join(f"\n  {problem}" for problem in _gathered(sorted(problems, key=_by_number)))


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


def check_finite(tensor: Tensor, name: str, file: Path) -> None:
    """Refuse a tensor with numbers that are NaN or infinite; it costs one pass over it.

    Raises: CheckpointError.
    """
    # a sum shows in one pass, without room for another tensor, that something may be wrong
    if not tensor.is_floating_point() or bool(tensor.sum(dtype=torch.float32).isfinite()):
        return
    bad = sum(int((~part.float().isfinite()).sum()) for part in torch.split(tensor.flatten(), _PART))
    if bad:
        raise CheckpointError(
            f"{file}: tensor {name} has {bad:,} of {tensor.numel():,} numbers that are NaN or infinite, so nothing it "
            "answers would hold; fetch the checkpoint again"
        )


def _fill_from(
    file: Path, writes: Sequence[Write], places: dict[str, Tensor], filled: Callable[[str], bool], *, check: bool
) -> None:
    for write, tensor in zip(writes, read_tensors(file, [write.upstream for write in writes]), strict=True):
        if check:
            check_finite(tensor, write.upstream, file)
        _fill(places, write, tensor)
        for place in write.places:
            if filled(place):
                del places[place]


def _fill(places: Mapping[str, Tensor], write: Write, tensor: Tensor) -> None:
    # several places that receive the same must not share its memory
    is_alone = len(write.places) == 1 or (write.rule is not None and write.rule.split is not None)
    with torch.no_grad():
        for place, piece in zip(write.places, write.cut(tensor), strict=True):
            target = places[place]
            if write.row is not None:
                target[write.row : write.row + 1].copy_(piece)
            elif is_alone and piece.dtype == target.dtype and piece.device == target.device and piece.is_contiguous():
                target.data = piece
            else:
                target.copy_(piece)


def save(module: nn.Module, folder: Path, *, dtype: torch.dtype | None = None, shard: str = "4GB") -> None:
    """Write a module's tensors as sharded safetensors under its own names, floating ones cast to `dtype` if given."""
    state = {
        name: _whole(tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor)
        for name, tensor in module.state_dict().items()
    }
    save_torch_state_dict(state, folder, max_shard_size=shard)
    for file in folder.glob("*.safetensors"):
        # the library leaves them readable by their owner alone
        file.chmod(0o644)


def release(module: nn.Module) -> None:
    """Let go of a module's weights for good; what it is made of stays to be looked at."""
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.new_empty(0)


def _whole(tensor: Tensor) -> Tensor:
    """A tensor with memory of its own, where it is a part of a larger one, as queries are of a fused layer."""
    is_part = tensor.untyped_storage().nbytes() > tensor.nbytes
    return tensor.clone() if is_part else tensor.contiguous()


def as_dtype(name: str | torch.dtype) -> torch.dtype:
    """The precision of that name, ours or PyTorch's: fp32, bf16, fp16, float32, bfloat16, float16.

    Raises: ConfigError, for another.
    """
    known = {**PRECISIONS, **{str(dtype).removeprefix("torch."): dtype for dtype in PRECISIONS.values()}}
    found = known.get(str(name).removeprefix("torch."))
    if found is None:
        raise ConfigError(f"unknown dtype {name!r}; expected {', '.join(known)}")
    return found


def lineage(report: LoadReport) -> dict[str, Any]:
    """Where a loaded model's numbers come from: every weight file with its hash, and what was tied or left fresh.

    `model_hash` is one hash over the files' hashes: two models with the same value hold the same weights.
    """
    return {
        "files": dict(report.files),
        "model_hash": joint_hash(report.files),
        "tensors": report.total,
        "renamed": report.renamed,
        "tied": list(report.tied),
        "fresh": list(report.fresh),
    }


def write_lineage(folder: Path, made_from: Mapping[str, Any]) -> None:
    """Write `lineage.json` into a model folder: the hashes of its own weight files, and what they were made from."""
    files = _hashes(checkpoint_files(folder))
    content = {"files": files, "model_hash": joint_hash(files), "made_from": made_from}
    (folder / LINEAGE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _hashes(files: Sequence[Path]) -> dict[str, str]:
    known = facts.of_this_user()
    return {file.name: known.hash(file) for file in files}


def joint_hash(digests: Mapping[str, str]) -> str:
    """One hash over the digests of several things and their names, whatever their order: 16 hexadecimal digits."""
    lines = "\n".join(f"{name} {digest}" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]
