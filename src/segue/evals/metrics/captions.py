"""How alike captions are: BLEU, ROUGE-L, CIDEr and METEOR, in Python alone.

All of them compare words, which `words` cuts as the Penn Treebank does. Figures are in percent of the scorer's unit, as
papers print them: a CIDEr of 1.2 is 120.

Source: the scorers of the COCO caption challenge (`pycocoevalcap`), whose values these equal but for METEOR. Theirs
asks a Java program with a list of synonyms and a table of paraphrases; here words agree if they or their stems are the
same, and all words weigh the same. The Java program computes the same with the modules "exact stem" and delta 0.5; the
figure's name says so.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from segue.errors import DataError
from segue.evals.base import Row
from segue.evals.metrics import meteor
from segue.evals.metrics.figures import mean, some, unparsed
from segue.types import Answer, Sample

METEOR = "meteor (exact+stem)"
LONGEST = 4
"""Words in a row that BLEU and CIDEr compare at most."""

Words = tuple[str, ...]
Runs = tuple[Counter[str], ...]


_ABBREVIATIONS = (
    "mr|mrs|ms|dr|prof|st|jr|sr|vs|etc|inc|ltd|co|corp|col|lt|capt|sgt|rev|gov|sen|rep|mt|ft|ave|blvd|rd"
    r"|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|no(?=\.\s*\d)"
)
_APART = {"cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na", "lemme": "lem me"}
_APART |= {"gimme": "gim me", "y'all": "y' all"}
_CLINGING = "n't|'(?:s|m|d|re|ve|ll)"
_TOKEN = re.compile(
    rf"""
    </?\w[^<>]*>                                  # tags
  | [\w.+-]+@[\w.-]+\w                            # addresses
  | \b(?:{_ABBREVIATIONS})\.                      # abbreviations keep their full stop
  | (?:[^\W\d_]\.){{2,}}(?!\w)                    # and so do u.s. and a.m.
  | (?<!\S)-?\d+(?:[.,:/]\d+)+                    # -3.5 and 1,000 and 10:30 and 1/2
  | \d+(?:[.,:/]\d+)+
  | (?<!\S)-\d+
  | (?:{_CLINGING})\b                             # what clings to the word before
  | y'all\b | '(?:em|n')(?!\w) | o'clock\b
  | (?:(?!n't\b)\w)+(?:[-/&.](?:(?!n't\b)\w)+)*   # t-shirt and and/or and at&t and www.where.net
  | [!?]{{2,}} | \S
    """,
    re.VERBOSE,
)
_PUNCTUATION = frozenset("'`.?!,:-;\"") | {"–", "—", "…", "“", "”"}
_WRITTEN = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}

# A confidence interval reduces the same captions hundreds of times; what belongs to one caption is worked out once.
_once = lru_cache(maxsize=1 << 17)


@_once
def words(text: str) -> tuple[str, ...]:
    """The words of a caption in lower case, without punctuation; brackets are words of their own.

    Source: Stanford's PTBTokenizer, as `pycocoevalcap` calls it.
    """
    text = text.lower().replace("’", "'").replace("‘", "'")
    tokens = (token for token in _TOKEN.findall(text) if token not in _PUNCTUATION)
    return tuple(word for token in tokens for word in _APART.get(token, _WRITTEN.get(token, token)).split())


def score(sample: Sample, answer: Answer) -> Row:
    """What was said, and what people said: `target["references"]`, or else the dialogue's own answer."""
    return told(sample, answer.text)


def told(sample: Sample, text: str) -> Row:
    """The row of a text that is a sample's caption."""
    references = sample.target.get("references") or [sample.messages[-1].text]
    return {"caption": text, "references": list(references), "unparsed": not text.strip()}


def reduce(rows: Sequence[Row]) -> dict[str, float]:
    """`cider`, `meteor (exact+stem)`, `bleu-1` to `bleu-4` and `rouge-l` over all captions, in percent.

    CIDEr weighs words by how few images they are said of, so it means nothing for one image alone, and then is 0.

    Raises: DataError, for no rows, or an image without references.
    """
    if not all(row["references"] for row in some(rows)):
        raise DataError("an image has no caption to compare with; give each at least one")
    found = [words(row["caption"]) for row in rows]
    truth = [tuple(words(text) for text in row["references"]) for row in rows]
    figures = {"cider": mean(cider(found, truth)), METEOR: meteor_score(found, truth)}
    figures |= {f"bleu-{length}": value for length, value in enumerate(bleu(found, truth), start=1)}
    figures["rouge-l"] = mean([rouge_l(one, others) for one, others in zip(found, truth, strict=True)])
    return {name: 100 * value for name, value in figures.items()} | unparsed(rows)


def cider(found: Sequence[Words], truth: Sequence[Sequence[Words]]) -> list[float]:
    """CIDEr-D of each caption with the references of its image, in [0, 10].

    Source: Vedantam et al. 2015.
    """
    references = [[_runs(words) for words in others] for others in truth]
    said_of = [Counter(run for others in references for run in _together(others, place)) for place in range(LONGEST)]
    unknown = math.log(len(truth))
    weights = [{run: unknown - math.log(count) for run, count in part.items()} for part in said_of]
    scores = []
    for words, others in zip(found, references, strict=True):
        mine = _weighed(_runs(words), weights, unknown)
        scores.append(10 * mean(_likeness(mine, _weighed(one, weights, 0.0)) for one in others))
    return scores


def _together(references: Sequence[Runs], place: int) -> Iterable[str]:
    """Each run of a length that any of the references has."""
    return references[0][place] if len(references) == 1 else set().union(*(one[place] for one in references))


@dataclass(frozen=True, slots=True)
class _Weighed:
    """Counts of runs times how telling they are, and squares of their norms, by length; how many pairs there are."""

    values: Sequence[Mapping[str, float]]
    squares: Sequence[float]
    pairs: int


def _weighed(runs: Runs, weights: Sequence[Mapping[str, float]], unknown: float) -> _Weighed:
    """A run that no reference has is as telling as can be, `unknown`."""
    values = [
        {run: count * weight.get(run, unknown) for run, count in part.items()}
        for part, weight in zip(runs, weights, strict=True)
    ]
    return _Weighed(values, [sum((value * value for value in part.values()), 0.0) for part in values], runs[1].total())


def _likeness(mine: _Weighed, other: _Weighed) -> float:
    """The mean over lengths of the cosine of two captions, less where one is longer; what is said too often is cut."""
    cosines = 0.0
    for part, others, one, two in zip(mine.values, other.values, mine.squares, other.squares, strict=True):
        if one and two:
            shared = sum(min(value, others[run]) * others[run] for run, value in part.items() if run in others)
            cosines += shared / math.sqrt(one * two)
    return cosines / LONGEST * math.exp(-((mine.pairs - other.pairs) ** 2) / 72)


def bleu(found: Sequence[Words], truth: Sequence[Sequence[Words]]) -> list[float]:
    """BLEU-1 to BLEU-4 of all captions together, in [0, 1]; the reference nearest in length counts for brevity.

    Source: Papineni et al. 2002.
    """
    counted = [_bleu_counts(words, tuple(references)) for words, references in zip(found, truth, strict=True)]
    right, said, lengths = (list(map(sum, zip(*column, strict=True))) for column in zip(*counted, strict=True))
    length, wanted = lengths
    brevity = math.exp(min(0.0, 1 - wanted / length)) if length else 0.0
    product, scores = 1.0, []
    for number, (hits, tries) in enumerate(zip(right, said, strict=True), start=1):
        product *= hits / tries if tries else 0.0
        scores.append(brevity * product ** (1 / number))
    return scores


@_once
def _bleu_counts(words: Words, references: tuple[Words, ...]) -> tuple[list[int], list[int], tuple[int, int]]:
    """Runs by length that are right and that were said; words said and words of the reference nearest in length."""
    right, said = [], []
    for place, part in enumerate(_runs(words)):
        allowed: Counter[str] = Counter()
        for reference in references:
            allowed |= _runs(reference)[place]
        said.append(part.total())
        right.append((part & allowed).total())
    nearest = min((abs(len(one) - len(words)), len(one)) for one in references)[1]
    return right, said, (len(words), nearest)


@_once
def rouge_l(found: Words, references: tuple[Words, ...]) -> float:
    """The longest common subsequence as a share of caption and reference, in [0, 1], the best share of any reference.

    Source: Lin 2004, with recall weighing 1.2 times as much.
    """
    lengths = [_common(found, reference) for reference in references]
    precision = max(lengths) / max(len(found), 1)
    recall = max(length / max(len(one), 1) for length, one in zip(lengths, references, strict=True))
    weight = 1.2**2
    return (1 + weight) * precision * recall / (recall + weight * precision) if precision and recall else 0.0


def meteor_score(found: Sequence[Words], truth: Sequence[Sequence[Words]]) -> float:
    """METEOR of all captions together, in [0, 1]: see `segue.evals.metrics.meteor` for what of it is computed.

    Raises: ConfigError, as `segue.evals.metrics.meteor.align` does.
    """
    best = (_alignment(words, tuple(others)) for words, others in zip(found, truth, strict=True))
    return sum(best, meteor.Alignment()).score


_alignment = _once(meteor.best_alignment)


@_once
def _runs(words: Words) -> Runs:
    """How often each run of one word, of two, up to `LONGEST`, stands in a text."""
    return tuple(
        Counter(" ".join(words[start : start + length]) for start in range(len(words) - length + 1))
        for length in range(1, LONGEST + 1)
    )


def _common(one: Words, other: Words) -> int:
    """Words of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        diagonal = 0
        for place, partner in enumerate(other, start=1):
            above = row[place]
            row[place] = diagonal + 1 if word == partner else max(above, row[place - 1])
            diagonal = above
    return row[-1]
