"""Wordings of questions and answers, kept as text files beside this module, and how a phrase is put into them.

A file holds one wording a line, all equally likely. What stands in braces is filled in. The files whose names begin
with `synth` belong to the generated scenes.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

import numpy as np

from segue.errors import DataError

SEGMENT_PROMPTS = {"image": "Please segment {phrase} in this image.", "video": "Please segment {phrase}."}
"""The one wording, by the kind of medium, that Sa2VA models were published and are measured with."""


@cache
def wordings(name: str) -> tuple[str, ...]:
    """All wordings of a file, named without its suffix."""
    text = resources.files("segue.data").joinpath("prompts", f"{name}.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def sample_wording(name: str, rng: np.random.Generator, **filled: str) -> str:
    """One of the wordings of a file, by chance, with what stands in braces filled in."""
    lines = wordings(name)
    text = lines[int(rng.integers(len(lines)))]
    for blank, value in filled.items():
        text = text.replace(f"{{{blank}}}", value)
    return text


def segment_question(phrase: str, rng: np.random.Generator) -> str:
    """A question for the mask of a phrase.

    A phrase that is a question itself stands as it is, followed by the wish for a mask.
    """
    return sample_wording("reason_questions" if "?" in phrase else "segment_questions", rng, phrase=phrase)


def clean_phrase(text: str) -> str:
    """A phrase as it is put into a question: lower case, no space around it, no full stop at its end.

    Raises: DataError, if nothing is left, or something is no character.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(f"an object is described by {text!r}, which holds bytes that are no text; write it in UTF-8")
    phrase = text.strip().lower().removesuffix(".").rstrip()
    if not phrase:
        raise DataError(f"an object is described by {text!r}, which says nothing; give it a phrase")
    return phrase
