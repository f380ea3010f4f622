"""Pickled annotation files read as plain data, without unpickling them.

A pickle is a small program, and running a stranger's is running a stranger's code. Here its instructions are listed by
the standard library's disassembler, which executes nothing, and only those that build lists, dicts, tuples, text, bytes
and numbers are followed. Any other is an error, so a file that holds objects of some class, numpy arrays included, is
refused: convert it to JSON first, where it is trusted.
"""

from __future__ import annotations

import gc
import io
import pickletools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segue.errors import DataError
from segue.reading import read_bytes

DAMAGED = (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError)
"""What the disassembler and the stack raise on bytes that are no pickle."""

MAX_BYTES = 1 << 30
MAX_INSTRUCTIONS = 20_000_000
"""What is read of a pickle at most; RefCOCO's largest file has two thirds of these instructions."""
_NOTHING = frozenset({"PROTO", "FRAME"})
_FIXED: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = frozenset(
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"STRING", "BINSTRING", "SHORT_BINSTRING"}
    | {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
)
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_KEEP = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_RECALL = frozenset({"GET", "BINGET", "LONG_BINGET"})


def read_pickled(path: Path) -> Any:
    """The lists, dicts, tuples, text, bytes and numbers of a pickled file, of any protocol.

    Raises: DataError, if the file holds anything else or is damaged.
    """
    try:
        return Reader().read(io.BytesIO(read_bytes(path, MAX_BYTES)))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except DAMAGED as error:
        raise DataError(f"{path} is no readable pickle file: {error}; copy it again") from error
    except DataError as error:
        raise DataError(f"{path} {error}") from error


class Reader:
    """The stack machine that a pickle is written for, less every instruction that could call anything.

    What a heir knows how to stand in for harmlessly it takes in `build`, before asking its parent.
    """

    most = MAX_INSTRUCTIONS

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def read(self, file: io.BytesIO) -> Any:
        """The one value that a pickle holds.

        Raises: DataError, at an instruction that is not followed; one of `DAMAGED`, where the bytes are no pickle.
        """
        with _no_collection():
            for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
                if count > self.most:
                    raise DataError(f"has more than {self.most:,} instructions, the most that are followed")
                if opcode.name == "STOP":
                    break
                self._follow(opcode.name, argument)
            return self.stack.pop()

    def _follow(self, name: str, argument: Any) -> None:
        if name in _KEEP:
            self._memo[argument] = self.stack[-1]
        elif name in _VALUES:
            self.stack.append(argument)
        elif name in _FIXED:
            self.stack.append(_FIXED[name])
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self.stack[-1]
        elif name in _RECALL:
            self.stack.append(self._memo[argument])
        elif name not in _NOTHING:
            self.build(name, argument)

    def build(self, name: str, argument: Any) -> None:
        """Put together what lies on the stack.

        Raises: DataError, if the instruction could call anything.
        """
        stack = self.stack
        if name == "MARK":
            self.marks.append(len(stack))
        elif name in ("EMPTY_LIST", "EMPTY_DICT"):
            stack.append([] if name == "EMPTY_LIST" else {})
        elif name in _TUPLES:
            stack.append(tuple(self.taken(len(stack) - _TUPLES[name])))
        elif name in ("LIST", "TUPLE"):
            stack.append((list if name == "LIST" else tuple)(self.taken(self.marks.pop())))
        elif name == "DICT":
            stack.append(_pairs(self.taken(self.marks.pop())))
        elif name in ("APPEND", "APPENDS"):
            items = self.taken(len(stack) - 1 if name == "APPEND" else self.marks.pop())
            stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self.taken(len(stack) - 2 if name == "SETITEM" else self.marks.pop())
            stack[-1].update(_pairs(items))
        else:
            raise DataError(
                f"holds more than lists, dicts, text and numbers (instruction {name}), and following it could run "
                "code; convert the file to JSON, as the documentation of segue.pickled shows, if you trust it"
            )

    def taken(self, start: int) -> list[Any]:
        """What lies on the stack from a height on, taken off it."""
        if start < 0:
            raise IndexError("it takes more from its stack than is there")
        items = self.stack[start:]
        del self.stack[start:]
        return items


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without the collector of garbage, which would walk through all that is built again and again."""
    is_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_on:
            gc.enable()


def _pairs(items: list[Any]) -> dict[Any, Any]:
    # hashing or showing a key that is nested deeply would overflow the stack
    if strange := next((key for key in items[::2] if not isinstance(key, str | bytes | int | float | None)), None):
        raise DataError(f"has a key that is a {type(strange).__name__}; expected text or numbers")
    return dict(zip(items[::2], items[1::2], strict=True))
