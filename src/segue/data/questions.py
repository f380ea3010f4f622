"""Questions as benchmarks ask them: a template around the row's words, the medium first, and what a score needs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from segue.data.annotation_io import find_file, open_sized
from segue.data.base import rng_for
from segue.errors import DataError
from segue.types import Media, Message, Part, Sample, Task

_BLANK = re.compile(r"\{(\w+)\}")
QUESTION_PROMPT = "{question} Answer:"
"""How Qwen-VL's evaluation asks a question that is answered in a few words."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Question:
    """One row of a set of questions about images: the image's name and folders, the words, and what people answered.

    `target` goes to the sample as it is, with the answers.
    """

    id: str
    image: str
    folders: tuple[Path, ...]
    text: str
    answers: tuple[str, ...]
    target: Mapping[str, Any]

    def media(self) -> Media:
        """The image.

        Raises: MediaError, LimitError.
        """
        return open_sized(find_file(self.folders, self.image))


def filled(template: str, **words: str) -> str:
    """A template with what stands in braces replaced; braces in the words themselves stay.

    Raises: DataError, if the template has no place for one of them.
    """
    for name in words:
        if f"{{{name}}}" not in template:
            raise DataError(f"the prompt {template!r} has no {{{name}}}; say where it goes")
    return _BLANK.sub(lambda blank: words.get(blank[1], blank[0]), template)


def lettered(options: Sequence[str], form: str = "{letter}. {option}") -> str:
    """Options with their letters, a line each.

    Raises: DataError, if there are none or more than letters.
    """
    if not 1 <= len(options) <= len(LETTERS):
        raise DataError(f"a question has {len(options)} options; expected 1 to {len(LETTERS)}")
    return "\n".join(
        form.replace("{letter}", letter).replace("{option}", option)
        for letter, option in zip(LETTERS, options, strict=False)  # more letters
    )


def make_sample(
    name: str, parts: Sequence[Part], target: Mapping[str, Any], *, answer: str = "", task: Task = "chat", **about: Any
) -> Sample:
    """A sample of one question and its reference answer, which is empty where only a server knows it."""
    messages = (Message("user", tuple(parts)), Message("assistant", (answer,) if answer else ()))
    return Sample(name, task, messages, target=target, **about)


def question_sample(
    question: Question, *, prompt: str, source: str, shots: int = 0, pool: Sequence[Question] = (), number: int = 0
) -> Sample:
    """A question about an image; `prompt` has a place for {question}.

    `shots` examples of the pool with their most frequent answer come before it, one after another with nothing in
    between. Which ones, the number of the row decides alone.

    Raises: DataError, if the pool is smaller; MediaError, LimitError.
    """
    parts: list[Part] = []
    for example in _examples(pool, shots, number):
        said = max(dict.fromkeys(example.answers), key=example.answers.count, default="")
        parts += [example.media(), f"{filled(prompt, question=example.text)} {said}"]
    parts += [question.media(), filled(prompt, question=question.text)]
    target = {**question.target, "answers": list(question.answers)}
    answer = max(dict.fromkeys(question.answers), key=question.answers.count, default="")
    return make_sample(question.id, parts, target, answer=answer, source=source, group=question.image, frames=(0,))


def _examples(pool: Sequence[Question], shots: int, number: int) -> list[Question]:
    if shots > len(pool):
        raise DataError(f"{shots} examples were asked for and the training file has {len(pool)} questions")
    chosen = rng_for(0, 0, number).choice(len(pool), shots, replace=False) if shots else ()
    return [pool[int(place)] for place in chosen]


def shown_by(name: str) -> Callable[[tuple[int, Any]], str]:
    """Makes what names the medium of a numbered record: the text in its field of that name."""
    return partial(_stated, name=name)


def _stated(row: tuple[int, Any], *, name: str) -> str:
    stated = row[1].get(name) if isinstance(row[1], Mapping) else None
    return stated if isinstance(stated, str) else ""


def unique(names: Sequence[str], what: str) -> None:
    """Check that the rows of a file have names of their own.

    Raises: DataError, naming one that comes twice.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(f"{what} has two rows called {name!r}; a row must have a name of its own")
        seen.add(name)
