"""Captions of marked regions: what is said of the region itself, without the words that only name it."""

from __future__ import annotations

import re

from segue.evals.base import Row
from segue.evals.metrics import captions
from segue.types import Answer, Sample

_NAMING = re.compile(r"(?:\bthe region marked (?:by|as)\s+)?\bregion1\b(?:\s*(?:is|shows)\b)?\s*:?", re.IGNORECASE)
_REMOVED = ("region1", "The region marked by", "The region marked as", "is", "shows", ":")


def score(sample: Sample, answer: Answer) -> Row:
    """The caption without "The region marked by region1 shows" and the like."""
    return captions.told(sample, " ".join(_NAMING.sub(" ", answer.text).split()))


def score_upstream(sample: Sample, answer: Answer) -> Row:
    """The caption as the original cleans it, which also takes the letters "is" out of "This"."""
    text = answer.text
    # PARITY(region_words_removed): published figures were made so
    for piece in _REMOVED:
        text = text.replace(piece, "")
    return captions.told(sample, text.strip())
