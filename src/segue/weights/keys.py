"""Key tables: what upstream calls a tensor, and the places here that it fills; read forwards and backwards."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from segue.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of a key table: upstream names matching `upstream` (a whole-name pattern) fill the `native` places.

    `native` are names with `\\1` ... for the pattern's groups. With several of them, `split` turns the upstream tensor
    into one tensor each and `join` puts them together again, both by rows; without `split` each place receives all.
    `row` sends the tensor to one row of its place, for upstream layouts that keep the rows of a table apart. Without
    places the tensor is left out, which loading tells.
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
Rules = Sequence[tuple[re.Pattern[str], tuple[str, ...], Rule]]
_Backwards = Sequence[tuple[str, re.Pattern[str], Sequence[tuple[int, str]]]]


@dataclass(frozen=True, slots=True)
class Write:
    """An upstream tensor on its way to the places it fills, by the rule that says so; no rule if names are ours."""

    upstream: str
    rule: Rule | None
    places: tuple[str, ...]

    @property
    def row(self) -> int | None:
        """The row of its place that it fills, if it fills no more."""
        return self.rule.row if self.rule else None

    def cut(self, tensor: Tensor) -> Sequence[Tensor]:
        """What each place receives of the upstream tensor."""
        if self.rule is None or self.rule.split is None:
            return [tensor] * len(self.places)
        return self.rule.split(tensor)

    def joined(self, state: Mapping[str, Tensor]) -> Tensor:
        """The upstream tensor put together from its places."""
        pieces = [state[place] for place in self.places]
        if self.row is not None:
            # a copy, because files cannot hold tensors that share memory
            pieces = [piece[self.row : self.row + 1].clone() for piece in pieces]
        return self.rule.join(pieces) if self.rule and self.rule.join else pieces[0]

    def shape(self, expected: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """The shape that the upstream tensor must have to fill its places."""
        if self.row is None and (self.rule is None or self.rule.join is None):
            return expected[self.places[0]]
        whole = {place: torch.empty(expected[place], device="meta") for place in self.places}
        return tuple(self.joined(whole).shape)


def compiled(table: KeyTable) -> Rules:
    """The rules of a table with their patterns and with format strings for their places, ready for `match`."""
    return [
        (re.compile(rule.upstream), tuple(re.sub(r"\\(\d)", r"{\1}", native) for native in rule.native), rule)
        for rule in table
    ]


def match(name: str, rules: Rules | None) -> Write | None:
    """Where an upstream tensor goes by the first rule that knows its name; `None` if none does.

    Without rules every name is its own place.
    """
    if rules is None:
        return Write(name, None, (name,))
    for pattern, places, rule in rules:
        found = pattern.fullmatch(name)
        if found:
            return Write(name, rule, tuple(place.format(name, *found.groups()) for place in places))
    return None


def to_upstream(state: Mapping[str, Tensor], table: KeyTable, names: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of a module under upstream names, for every name in `names`; the inverse of loading with `table`.

    Raises: CheckpointError, for a name that no rule of the table covers.
    """
    rules = compiled(table)
    found: dict[str, Tensor] = {}
    for name in names:
        write = match(name, rules)
        if write is None:
            raise CheckpointError(f"no rule of the key table covers the upstream name {name}")
        found[name] = write.joined(state)
    return found


def upstream_shapes(expected: Mapping[str, tuple[int, ...]], table: KeyTable) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of an upstream checkpoint that fills these places: the table read backwards."""
    return sources(expected, expected, {}, compiled(table))


def sources(
    places: Iterable[str],
    expected: Mapping[str, tuple[int, ...]],
    filled: Mapping[tuple[str, int | None], str],
    rules: Rules,
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the upstream tensors that would fill these places, but for rows that are `filled` already.

    A place whose rule cannot be read backwards stands under its own name.
    """
    backwards = _backwards(rules)
    found: dict[str, tuple[int, ...]] = {}
    for place in places:
        writes = [
            write
            for write in _sources(place, backwards, rules)
            if (place, write.row) not in filled and set(write.places) <= expected.keys()
        ]
        # of several spellings that are understood the first is the usual one; of a table kept in rows all are needed
        is_in_rows = any(write.row is not None for write in writes)
        for write in writes if is_in_rows else writes[:1] or [Write(place, None, (place,))]:
            found[write.upstream] = write.shape(expected)
    return found


def _backwards(rules: Rules) -> _Backwards:
    """For every place that a table fills: how its names here start, their pattern, and the pieces of the upstream name.

    A piece is (0, text) or (number of a group, ...). Places whose rule cannot be read backwards are left out.
    """
    found = []
    for _, _, rule in rules:
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
                found.append((template.split("\\")[0], re.compile(pattern), pieces))
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


def _sources(place: str, backwards: _Backwards, rules: Rules) -> Iterator[Write]:
    """The upstream tensors that could fill a place."""
    for start, pattern, pieces in backwards:
        found = pattern.fullmatch(place) if place.startswith(start) else None
        if found is None:
            continue
        write = match("".join(found[f"g{number}"] if number else text for number, text in pieces), rules)
        if write is not None and place in write.places:
            yield write
