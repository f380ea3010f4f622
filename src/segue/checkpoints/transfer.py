"""Named components of one checkpoint transferred into a model of perhaps another size, and an account of it.

Unless components are named, everything must be there and fit: a checkpoint of another size is refused, in the names of
both architectures, rather than loaded as far as it happens to go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from segue.checkpoints import zoo
from segue.checkpoints.coverage import Coverage, TensorStatus, coverage, plain
from segue.checkpoints.folders import OpenedFolder, Target, check_target, hashed, open_folder, own_contents, write
from segue.checkpoints.model_folder import key_table
from segue.checkpoints.pth import open_pth
from segue.checkpoints.upstream_training import find_place, is_lora, spellings
from segue.errors import CheckpointError, ConfigError
from segue.grounding.model import VisionLanguageModel, component_of
from segue.weights import lazy
from segue.weights.keys import Rules, Write, compiled, match
from segue.weights.lazy import Spec, Tensors, cut_shapes

Tokens = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class TransferSource:
    """Where components come from: tensors under our names as far as they have one, and its tokens, if it tells them."""

    path: Path
    tensors: Tensors
    sizes: zoo.Sizes
    tokens: Tokens | None


@dataclass(frozen=True, slots=True)
class TransferResult:
    """A model with components of another checkpoint in it. `loaded` are the tensors that were taken over.

    `rows` has one line for each component asked for, `kept` names the others. `source` and `target` say in words what
    the two are.
    """

    tensors: Tensors
    loaded: tuple[str, ...]
    rows: tuple[Coverage, ...]
    kept: tuple[str, ...]
    source: str
    target: str

    def report(self) -> dict[str, Any]:
        """The account as plain values, as `load_report.json` has it."""
        numbers = sum(spec.numel for spec in self.tensors.specs.values())
        return {
            "source": self.source,
            "target": self.target,
            "components": plain(self.rows),
            "kept": list(self.kept),
            "fraction": round(sum(row.loaded_numbers for row in self.rows) / numbers, 6),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferOptions:
    """What to take over. `components` by name, or `None` for the whole model.

    `min_coverage` is the share of each component, from 0 to 1, that must be there and fit; below 1, tensors that have
    no place in the model may be left out as well.
    """

    components: Sequence[str] | None = None
    min_coverage: float = 1.0


def initialise(model: Path, target: Target, source: Path, options: TransferOptions) -> TransferResult:
    """Write a model folder in our layout whose named components are those of another checkpoint.

    `source` is a model folder of either layout or a `.pth` without LoRA. The folder has the account as
    `load_report.json`.

    Raises: CheckpointError, with the account, if less fits than is asked for; ConfigError, for an unknown component.
    """
    check_target(target, model, source)
    opened = open_folder(model)
    tokenizer = opened.tokenizer()
    result = transfer(opened, tokenizer.get_vocab(), open_source(source, opened), options)
    made_from = {
        "command": "init",
        "model": hashed(model, target.progress),
        "source": hashed(source, target.progress),
        "components": [row.component for row in result.rows],
    }
    contents = own_contents(replace(opened, tensors=result.tensors), tokenizer, target.dtype, made_from)
    write(target, replace(contents, report=result.report()))
    return result


def init_from(
    model: VisionLanguageModel,
    tokenizer: PreTrainedTokenizerFast,
    source: Path,
    options: TransferOptions = TransferOptions(),
) -> TransferResult:
    """Fill named components of a model in memory from another checkpoint; nothing is filled if less fits than asked.

    Raises: as `initialise` does.
    """
    state = model.state_dict()
    specs = {name: Spec(tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}
    shapes = {name: spec.shape for name, spec in specs.items()}
    target = OpenedFolder(
        Path("the model"), model.config, Tensors(specs, state.__getitem__), shapes, zoo.Sizes.of_shapes(shapes)
    )
    result = transfer(target, tokenizer.get_vocab(), open_source(source, target), options)
    with torch.no_grad():
        for name in result.loaded:
            state[name].copy_(result.tensors.read(name))
    return result


def open_source(path: Path, model: OpenedFolder) -> TransferSource:
    """A model folder of either layout, or a `.pth` whose names a model of the family of `model` would have.

    Raises: CheckpointError, if it cannot be read, or holds LoRA pairs.
    """
    if path.is_dir():
        other = open_folder(path)
        return TransferSource(path, other.tensors, other.sizes, other.tokenizer().get_vocab())
    file = open_pth(path).tensors
    if any(map(is_lora, file.specs)):
        text = f"{path} is a training checkpoint: what it learned is in LoRA pairs, which belong to one model"
        raise CheckpointError(f"{text}; join it with its base first: segue convert import {path.name} OUT --base MODEL")
    rules = compiled(key_table(model.config))
    writes = {name: find_place(name, rules, model.places) for name in file.specs}
    fitting = [write for name, write in writes.items() if write and cut_shapes(write, file.specs[name].shape)]
    known = {write.upstream for write in fitting}
    found = lazy.native(_renamed(file, writes), fitting)
    strange = {
        _nearest_place(name, rules): file.specs[name]
        for name, write in writes.items()
        if write is None or write.upstream not in known
    }
    shapes = {spelling: spec.shape for name, spec in file.specs.items() for spelling in spellings(name)}
    return TransferSource(path, Tensors({**strange, **found.specs}, found.read), zoo.Sizes.of_shapes(shapes), None)


def _renamed(file: Tensors, writes: Mapping[str, Write | None]) -> Tensors:
    """A trainer's tensors under the names that the key table knows."""
    names = {write.upstream: name for name, write in writes.items() if write}
    return Tensors({new: file.specs[old] for new, old in names.items()}, lambda name: file.read(names[name]))


def _nearest_place(name: str, rules: Rules) -> str:
    """What a tensor would be called here in a model that had it, else its own name."""
    return next((found.places[0] for spelling in spellings(name) if (found := match(spelling, rules))), name)


def transfer(model: OpenedFolder, tokens: Tokens, source: TransferSource, options: TransferOptions) -> TransferResult:
    """The model with components of a source in it, compared tensor by tensor with all that the model has.

    Tables of tokens are matched by the tokens' text where the two vocabularies are not the same.

    Raises: CheckpointError, with the account, if less fits than is asked for; ConfigError, for an unknown component.
    """
    asked = _asked(model, options)
    parts = model.parts
    differ = source.tokens is not None and source.tokens != tokens
    tables = model.tables if differ else frozenset[str]()
    specs = {name: spec for name, spec in model.tensors.specs.items() if component_of(name, parts) in asked}
    statuses = {name: _status(spec, source.tensors.specs.get(name), name in tables) for name, spec in specs.items()}
    rows = {
        name: _row_pairs(tokens, source.tokens or {}, specs[name].shape[0], source.tensors.specs[name].shape[0])
        for name in tables
        if statuses.get(name) == "loaded"
    }
    taken = {name: len(pairs) * (specs[name].numel // specs[name].shape[0]) for name, pairs in rows.items()}
    unused = [
        name
        for name in source.tensors.specs
        if name not in model.tensors.specs and (options.components is None or component_of(name, parts) in asked)
    ]

    def read(name: str) -> Tensor:
        if statuses.get(name) != "loaded":
            return model.tensors.read(name)
        if name not in rows:
            return source.tensors.read(name)
        table, other = model.tensors.read(name).clone(), source.tensors.read(name)
        ours, theirs = ([pair[side] for pair in rows[name]] for side in (0, 1))
        table[ours] = other[theirs].to(table.dtype)
        return table

    result = TransferResult(
        tensors=Tensors(model.tensors.specs, read),
        loaded=tuple(name for name, status in statuses.items() if status == "loaded"),
        rows=coverage(specs, statuses, parts, unused=unused, taken=taken),
        kept=tuple(name for name in _present(model) if name not in asked),
        source=zoo.describe(source.sizes),
        target=zoo.describe(model.sizes),
    )
    _refuse_less(result, source.path, model.folder, options)
    return result


def _present(model: OpenedFolder) -> tuple[str, ...]:
    """The components that a model has."""
    parts = model.parts
    found = {component_of(name, parts) for name in model.tensors.specs}
    return tuple(name for name in parts if name in found)


def _asked(model: OpenedFolder, options: TransferOptions) -> tuple[str, ...]:
    present = _present(model)
    if options.components is None:
        return present
    unknown = [name for name in options.components if name not in present]
    if unknown or not options.components:
        text = f"unknown component {', '.join(unknown)}" if unknown else "no component is named"
        raise ConfigError(f"{text}; the model has {', '.join(present)}")
    if not 0 <= options.min_coverage <= 1:
        raise ConfigError(f"the least coverage {options.min_coverage} is no share; expected 0 to 1")
    return tuple(options.components)


def _status(spec: Spec, other: Spec | None, is_table: bool) -> TensorStatus:
    if other is None:
        return "absent"
    fits = other.shape[1:] == spec.shape[1:] if is_table else other.shape == spec.shape
    return "loaded" if fits else "mismatched"


def _row_pairs(ours: Tokens, theirs: Tokens, our_rows: int, their_rows: int) -> list[tuple[int, int]]:
    """The rows of two tables that stand for the same token."""
    pairs = [(number, theirs[token]) for token, number in ours.items() if token in theirs]
    return [(one, other) for one, other in pairs if one < our_rows and other < their_rows]


def _refuse_less(result: TransferResult, source: Path, target: Path, options: TransferOptions) -> None:
    short = [row for row in result.rows if not _is_enough(row, options)]
    if not short:
        return
    lines = [
        f"{row.component}: {row.loaded} of {row.loaded + row.mismatched + row.absent} tensors fit "
        f"({row.fraction:.1%} of the numbers), {row.mismatched} of another shape, {row.absent} absent, "
        f"{row.unused} without a place here"
        for row in result.rows
    ]
    lost = [row.component for row in short if row.numbers] or ["what has no place here"]
    whole = [row.component for row in result.rows if row.loaded and _is_enough(row, TransferOptions())]
    cure = "take a checkpoint of the same architecture"
    if whole:
        cure += f", or name what to take over: --components {','.join(whole)}"
    raise CheckpointError(
        f"{source} is {result.source}, {target} is {result.target}: {', '.join(lost)} cannot be transferred; "
        f"nothing was loaded, {cure}" + "".join(f"\n  {line}" for line in lines)
    )


def _is_enough(row: Coverage, options: TransferOptions) -> bool:
    """Whether a component is there as wholly as is asked; rows for tokens that the source lacks may be missing."""
    if not row.loaded:
        return not row.unused and not row.numbers
    if row.mismatched + row.absent + row.unused == 0 and options.components is not None:
        return True
    return row.fraction >= options.min_coverage and (not row.unused or options.min_coverage < 1)
