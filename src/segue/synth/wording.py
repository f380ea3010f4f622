"""Queries in words, English and Chinese. The words themselves are in `words_en.txt` and `words_zh.txt`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Literal

import numpy as np

from segue.errors import DataError
from segue.synth.meaning import Noun, Query

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")

Words = Mapping[Language, str]
"""The same thing said in every language."""


@cache
def vocabulary(language: Language) -> Mapping[str, tuple[str, ...]]:
    """The wordings of a language by key.

    Raises: DataError, if the file that holds them is damaged.
    """
    file = f"words_{language}.txt"
    entries: dict[str, tuple[str, ...]] = {}
    text = resources.files("segue.synth").joinpath(file).read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        key, colon, wordings = line.partition(": ")
        if not colon or key in entries:
            raise DataError(f"line {number} of {file} is {line!r}; expected 'key: wording | wording', each key once")
        entries[key] = tuple(wording.strip() for wording in wordings.split(" | "))
    return entries


def say(key: str, language: Language, rng: np.random.Generator, **filled: str) -> str:
    """One of the wordings of a key, by chance, with what stands in braces filled in."""
    wordings = vocabulary(language)[key]
    text = wordings[int(rng.integers(len(wordings)))]
    for name, value in filled.items():
        text = text.replace("{" + name + "}", value)
    return text


def phrase_of(query: Query, count: int, language: Language, rng: np.random.Generator) -> str:
    """Words for a query that denotes `count` things; what is asked for in vain is asked for as one thing."""
    forms = noun_forms(query.noun, language, rng)
    if count > 1:
        head = say("head.two" if count == 2 else "head.many", language, rng, **forms)
    else:
        head = say("head.one" if query.noun.kind else "head.any", language, rng, **forms)
    if query.test is None:
        return head
    anchor = "" if query.anchor is None else the(query.anchor, language, rng)
    return say(f"test.{query.test}", language, rng, head=head, anchor=anchor, **forms)


def the(noun: Noun, language: Language, rng: np.random.Generator) -> str:
    """One thing that is known: "the red star"."""
    return say("head.any", language, rng, **noun_forms(noun, language, rng))


def a(noun: Noun, language: Language, rng: np.random.Generator, *, is_another: bool = False) -> str:
    """One thing not spoken of before: "a red star", or "another red star" after one that was called the same."""
    key = "another" if is_another else "indefinite"
    return re.sub(r"^a(?= [aeiou])", "an", say(key, language, rng, **noun_forms(noun, language, rng)))


def noun_forms(noun: Noun, language: Language, rng: np.random.Generator) -> dict[str, str]:
    """A noun with its attributes, as it is filled in: `noun` and, by language, the plural `nouns` or its `measure`."""
    kind, other = say(f"kind.{noun.kind or 'any'}", language, rng).split(" / ")
    adjectives = {
        name: say(f"{name}.{value}", language, rng) if value else ""
        for name, value in (("colour", noun.colour), ("texture", noun.texture), ("size", noun.size))
    }
    words = " ".join(say("noun", language, rng, kind=kind, **adjectives).split())
    if language == "zh":
        return {"noun": words, "measure": other}
    return {"noun": words, "nouns": words.removesuffix(kind) + other}


def listed(items: list[str], language: Language, rng: np.random.Generator) -> str:
    """Items as a list in words: "a, b and c"."""
    comma, last = (say(f"join.{name}", language, rng, space=" ") for name in ("comma", "last"))
    return last.join([comma.join(items[:-1]), items[-1]]) if len(items) > 1 else items[0]


def sentence(text: str, language: Language) -> str:
    """The words as a sentence of their own."""
    return text + "。" if language == "zh" else text[0].upper() + text[1:] + "."


def is_bare(noun: Noun) -> bool:
    """Whether a noun asks for nothing at all: "thing"."""
    return noun == Noun()
