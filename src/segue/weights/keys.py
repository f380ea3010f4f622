"""Key tables: what upstream calls a tensor, and the places here that it fills; read forwards and backwards."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from segue.errors import CheckpointError



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
Shapes = Mapping[str, tuple[int, ...]]
Rules = Sequence[tuple[re.Pattern[str], Rule]]
Filled = Mapping[tuple[str, int | None], str]
_Backwards = Sequence[tuple[re.Pattern[str], Sequence[tuple[int, str]]]]


@dataclass(frozen=True, slots=True)
class _Write:
    upstream: str
    rule: Rule | None
    places: tuple[str, ...]


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
