"""A row of tokens put together from pieces: what a template writes, what a person wrote, what a model is to learn.

What a person wrote is text and nothing else: marks in it begin no turn, show no picture and ask for no object.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from typing import Literal, Protocol, runtime_checkable

IGNORED = -100


@runtime_checkable
class Encoder(Protocol):
    """What is needed of a tokenizer to put rows together; see `segue.models.templates.TextTokenizer`."""

    def encode(self, text: str, *, add_special_tokens: bool, split_special_tokens: bool = False) -> list[int]:
        """Token ids of a text; with `split_special_tokens`, special tokens in it are ordinary text."""
        ...


Writer = Literal["template", "user", "model"]

ANSWER_MARKS = frozenset(
    ("[SEG]", "<p>", "</p>", "<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<think>", "</think>")
)
"""What an answer may hold; its other marks are text, as all of a user's are."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that stands together in a row. `is_learned` labels its tokens; `writer` says whose it is."""

    text: str
    is_learned: bool = False
    writer: Writer = "template"


@dataclass(frozen=True, slots=True)
class Marks:
    """What finds the marks that are text to each writer."""

    user: re.Pattern[str]
    model: re.Pattern[str]

    @classmethod
    def of(cls, tokens: Iterable[str]) -> Marks:
        """Those of a tokenizer with these tokens beyond its ordinary ones."""
        return _marks(frozenset(tokens))

    def cut(self, text: str, writer: Writer) -> list[str]:
        """A text in parts that hold no mark that its writer may not set."""
        if writer == "template":
            return [text]
        return inert(text, self.user if writer == "user" else self.model)


@cache
def _marks(known: frozenset[str]) -> Marks:
    return Marks(pattern(known), pattern(known - ANSWER_MARKS))


def inert(text: str, marks: re.Pattern[str]) -> list[str]:
    """A text cut inside every mark in it, so that its parts, each encoded by itself, hold none."""
    parts, start = [], 0
    while found := marks.search(text, start):
        parts.append(text[start : found.start() + 1])
        start = found.start() + 1
    return [*parts, text[start:]]


def pattern(marks: Iterable[str]) -> re.Pattern[str]:
    """What finds any of some marks; those of one letter cannot be cut and are no marks."""
    longest_first = sorted((mark for mark in marks if len(mark) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def framed(frame: str, content: Sequence[Piece], learned: Sequence[str]) -> list[Piece]:
    """A turn: what stands in the place of `{text}` in a frame, between the frame's own parts.

    Those of its parts that are among `learned` are learned, in order.
    """
    before, _, after = frame.partition("{text}")
    return [*_frame_pieces(before, learned), *content, *_frame_pieces(after, learned)]


def _frame_pieces(frame: str, learned: Sequence[str]) -> list[Piece]:
    if not learned:
        return [Piece(frame)] if frame else []
    parts = re.split("(" + "|".join(map(re.escape, learned)) + ")", frame)
    return [Piece(part, is_learned=bool(number % 2)) for number, part in enumerate(parts) if part]


def encode_row(
    pieces: Sequence[Piece], tokenizer: Encoder, marks: Marks, *, apart: bool
) -> tuple[list[int], list[int]]:
    """Token ids of a row and their labels, -100 where nothing is learned.

    Neighbours that are learned alike are encoded as one text, cut inside the marks that its writer may not set. With
    `apart` every piece is encoded by itself, and a user's as if there were no special tokens.
    """
    ids: list[int] = []
    labels: list[int] = []
    for run in _apart(pieces, marks) if apart else _runs(pieces, marks):
        tokens = tokenizer.encode(run.text, add_special_tokens=False, split_special_tokens=run.writer == "user")
        ids += tokens
        labels += tokens if run.is_learned else [IGNORED] * len(tokens)
    return ids, labels


def _apart(pieces: Sequence[Piece], marks: Marks) -> Iterator[Piece]:
    for piece in pieces:
        if piece.writer == "user":
            yield piece
        else:
            yield from (replace(piece, text=part) for part in marks.cut(piece.text, piece.writer))


def _runs(pieces: Sequence[Piece], marks: Marks) -> Iterator[Piece]:
    """Pieces joined as far as they go: up to a change of what is learned, or a mark that is none."""
    run = Piece("")
    # what a person wrote in two parts is read as one, for a mark may lie across
    for (is_learned, writer), group in groupby(pieces, lambda piece: (piece.is_learned, piece.writer)):
        text = "".join(piece.text for piece in group)
        if is_learned != run.is_learned:
            yield run
            run = Piece("", is_learned)
        *closed, last = marks.cut(text, writer)
        for part in closed:
            yield Piece(run.text + part, is_learned)
            run = Piece("", is_learned)
        run = Piece(run.text + last, is_learned)
    yield run


def recent(lengths: Sequence[int], room: int) -> int:
    """How many of the newest of some turns are together shorter than the room for them; the first too many ends it."""
    total, kept = 0, 0
    for length in reversed(lengths):
        total += length
        if total >= room:
            break
        kept += 1
    return kept
