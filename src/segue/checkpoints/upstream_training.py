"""A training checkpoint of the original (`iter_N.pth`) joined with the model that training began from.

Such a file holds only what was trained: LoRA pairs of the language model, the tables of tokens, the projectors and
the mask decoder. Each of its tensors is used, or the file is refused.

Source: Sa2VA's trainers (bytedance/Sa2VA, `projects/llava_sam2` and `projects/sa2va`) and LoRA (arXiv 2106.09685).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from segue import weights
from segue.checkpoints import zoo
from segue.checkpoints.coverage import TensorStatus
from segue.checkpoints.folders import OpenedFolder
from segue.checkpoints.model_folder import key_table
from segue.checkpoints.pth import TorchFile
from segue.errors import CheckpointError
from segue.weights.keys import Rules, Write, compiled, match
from segue.weights.lazy import Spec, Tensors, cut_shapes

# a name inside peft's wrappers: what it is of, and the part it plays
_PAIR = re.compile(r"(.+)\.lora_([AB])(?:\.\w+)?\.weight")
_WHOLE = re.compile(r"(.+)\.(?:modules_to_save\.\w+|base_layer)\.(weight|bias)")
_UNUSED = re.compile(r".+\.original_module\.(weight|bias)")
_PREFIXES = ("", "mllm.", "mllm.model.")


@dataclass(frozen=True, slots=True)
class LoraPair:
    """A LoRA pair by its names in the file; the tensor that it moves gets `scale` x B A added."""

    down: str
    up: str
    rank: int
    scale: float


@dataclass(slots=True)
class TrainingTensors:
    """What a training file says, by official names: tensors that it holds whole, and pairs that move others.

    `unused` are copies that training kept beside what it trained.
    """

    whole: dict[str, str] = field(default_factory=dict)
    pairs: dict[str, LoraPair] = field(default_factory=dict)
    writes: dict[str, Write] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)


def read_training(file: TorchFile, base: OpenedFolder, alpha: float | None) -> TrainingTensors:
    """What each tensor of a training file means for a model like `base`.

    `alpha` is LoRA's, which the file does not hold; without one it is twice the rank, as in every published recipe.

    Raises: CheckpointError, naming every tensor that has no place, is twice there, or lacks its other half.
    """
    rules = compiled(key_table(base.config))
    found, problems = TrainingTensors(), []
    halves: dict[str, dict[str, str]] = defaultdict(dict)
    for name, spec in file.tensors.specs.items():
        if _UNUSED.fullmatch(name):
            found.unused.append(name)
            continue
        pair, whole = _PAIR.fullmatch(name), _WHOLE.fullmatch(name)
        plain = f"{pair[1]}.weight" if pair else f"{whole[1]}.{whole[2]}" if whole else name
        write = find_place(plain, rules, base.places)
        if write is None:
            problems.append(f"unexpected: {name} {list(spec.shape)}")
            continue
        held = halves[write.upstream] if pair else found.whole
        key = pair[2] if pair else write.upstream
        if key in held:
            problems.append(f"twice: {name} and {held[key]} are both of {write.upstream}")
        held[key] = name
        found.writes[write.upstream] = write
    for target, names in halves.items():
        _join(target, names, file, found=found, alpha=alpha, problems=problems)
    if problems:
        raise CheckpointError(problem_text(file, base, problems))
    return found


def find_place(name: str, rules: Rules, places: Container[str]) -> Write | None:
    """Where a tensor of the original's trainer belongs: its name is the model's own under wrappers of training code.

    The first spelling that leads to places of the model counts; `None` if none does.
    """
    for spelling in spellings(name):
        write = match(spelling, rules)
        if write and all(place in places for place in write.places):
            return write
    return None


def spellings(name: str) -> Iterator[str]:
    """A trainer's name for a tensor without the wrappers of peft and of several processes, and under each part of the
    trainer that may hold it.
    """
    bare = re.sub(weights.WRAPPERS, "", name).replace("base_model.model.", "")
    return (bare.removeprefix(prefix) for prefix in _PREFIXES if bare.startswith(prefix))


def is_lora(name: str) -> bool:
    """Whether a tensor of a trainer is half of a LoRA pair."""
    return _PAIR.fullmatch(name) is not None


def _join(
    target: str,
    names: Mapping[str, str],
    file: TorchFile,
    *,
    found: TrainingTensors,
    alpha: float | None,
    problems: list[str],
) -> None:
    if names.keys() != {"A", "B"}:
        problems.append(f"half: {next(iter(names.values()))} has no other half")
        return
    down, up = (file.tensors.specs[names[half]].shape for half in "AB")
    if len(down) != 2 or len(up) != 2 or down[0] != up[1] or not down[0]:
        problems.append(f"misshapen: the halves for {target} are {list(down)} and {list(up)}")
        return
    rank = down[0]
    found.pairs[target] = LoraPair(names["A"], names["B"], rank, 2.0 if alpha is None else alpha / rank)


def rows_of(file: TorchFile, trained: TrainingTensors, base: OpenedFolder) -> int | None:
    """How many tokens the file's tables have; `None` if it holds none.

    Raises: CheckpointError, if its tables differ.
    """
    tables = base.tables
    rows = {
        name: file.tensors.specs[name].shape[0]
        for target, name in trained.whole.items()
        if trained.writes[target].places[0] in tables
    }
    if len(set(rows.values())) > 1:
        raise CheckpointError(f"{file.path} has tables of different lengths: {rows}; it is no checkpoint of one model")
    return next(iter(rows.values()), None)


class Merge:
    """The model that a training file and its base make: whole tensors replace, pairs are added in float32.

    Tables of tokens get `rows` rows; those that neither file has are the mean of the others, as upstream begins them,
    and `filled` counts them. `moved` are the places that a pair whose B is not all zeros moves, `still` the targets of
    the others.

    Raises: CheckpointError, naming every tensor that is missing from both or has another shape.
    """

    def __init__(self, file: TorchFile, trained: TrainingTensors, base: OpenedFolder, rows: int):
        self._file, self._trained, self._base = file, trained, base
        tables = base.tables
        self._shapes = {place: (rows, *shape[1:]) if place in tables else shape for place, shape in base.places.items()}
        self._wholes = self._by_place(trained.whole)
        self._pairs = self._by_place(trained.pairs)
        problems = [*self._misshapen(), *self._missing()]
        if problems:
            raise CheckpointError(problem_text(file, base, problems))
        is_moved = {target: bool(file.tensors.read(pair.up).any()) for target, pair in trained.pairs.items()}
        self.still = tuple(target for target, is_so in is_moved.items() if not is_so)
        self.moved = tuple(
            place for place, parts in self._pairs.items() if any(is_moved[target] for target, _ in parts)
        )
        self.filled = {
            place: missing
            for place in tables
            if place not in self._wholes and (missing := rows - base.tensors.specs[place].shape[0]) > 0
        }

    @property
    def tensors(self) -> Tensors:
        """The merged model, under our names."""
        specs = {place: Spec(shape, self._dtype(place)) for place, shape in self._shapes.items()}
        return Tensors(specs, self._merged)

    @property
    def statuses(self) -> dict[str, TensorStatus]:
        """Which of the model's tensors the file decided: `loaded`; the others are the base's: `absent`."""
        decided = {*self._wholes, *self._pairs}
        return {place: "loaded" if place in decided else "absent" for place in self._shapes}

    def unmoved(self, place: str) -> Tensor:
        """A tensor without what LoRA adds to it."""
        value = None if place not in self._base.tensors.specs else self._base.tensors.read(place)
        for target, number in self._wholes.get(place, ()):
            write = self._trained.writes[target]
            piece = write.cut(self._file.tensors.read(self._trained.whole[target]))[number]
            if write.row is None:
                value = piece
            else:
                value = torch.zeros(self._shapes[place]) if value is None else value.clone()
                value[write.row : write.row + 1] = piece
        assert value is not None, "what is missing was refused"
        return _with_rows(value, self._shapes[place])

    def _merged(self, place: str) -> Tensor:
        value = self.unmoved(place)
        for target, number in self._pairs.get(place, ()):
            pair = self._trained.pairs[target]
            delta = self._file.tensors.read(pair.up).float() @ self._file.tensors.read(pair.down).float()
            value = value.float() + self._trained.writes[target].cut(pair.scale * delta)[number]
        return value

    def _dtype(self, place: str) -> torch.dtype:
        if place in self._base.tensors.specs:
            return self._base.tensors.specs[place].dtype
        return self._file.tensors.specs[self._trained.whole[self._wholes[place][0][0]]].dtype

    def _by_place(self, targets: Iterable[str]) -> dict[str, list[tuple[str, int]]]:
        found: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for target in targets:
            for number, place in enumerate(self._trained.writes[target].places):
                found[place].append((target, number))
        return dict(found)

    def _misshapen(self) -> Iterator[str]:
        specs = self._file.tensors.specs
        sizes = {target: (name, specs[name].shape) for target, name in self._trained.whole.items()}
        given = [*sizes.items()]
        for target, pair in self._trained.pairs.items():
            given.append((target, (pair.up, (specs[pair.up].shape[0], specs[pair.down].shape[1]))))
        for target, (name, shape) in given:
            write = self._trained.writes[target]
            whole = [self._shapes[place] for place in write.places]
            if cut_shapes(write, shape) != [(1, *one[1:]) if write.row is not None else one for one in whole]:
                yield f"misshapen: {name} makes {list(shape)}, the base needs {list(write.shape(self._shapes))}"

    def _missing(self) -> Iterator[str]:
        for place, shape in self._shapes.items():
            rows = {self._trained.writes[target].row for target, _ in self._wholes.get(place, ())}
            is_whole = None in rows or rows == set(range(shape[0]))
            if place not in self._base.tensors.specs and not is_whole:
                yield f"missing: {place} {list(shape)}"


def _with_rows(table: Tensor, shape: tuple[int, ...]) -> Tensor:
    if table.shape == shape or not shape:
        return table
    more = shape[0] - len(table)
    if more <= 0:
        return table[: shape[0]]
    return torch.cat([table, table.float().mean(0, keepdim=True).to(table.dtype).expand(more, *shape[1:])])


def problem_text(file: TorchFile, base: OpenedFolder, problems: Iterable[str]) -> str:
    """One error for all that is wrong with a training file and its base."""
    found = list(problems)
    text = f"{file.path} does not fit {base.folder}, which is {zoo.describe(base.sizes)} ({len(found)} tensors)"
    cure = "take as base the model that this training began from"
    if any(problem.startswith("missing: grounder.") for problem in found):
        cure += ", and give SAM 2's weights by --sam2 if it has none"
    return f"{text}; nothing was written, {cure}{weights.listing(found)}"
