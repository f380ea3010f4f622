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
from collections.abc import Mapping, Sequence

from segue.errors import DataError
from segue.evals import meteor
from segue.evals.base import Row
from segue.types import Answer, Sample

METEOR = "meteor (exact+stem)"
LONGEST = 4
"""Words in a row that BLEU and CIDEr compare at most."""

Words = Sequence[str]
Runs = Mapping[tuple[str, ...], int | float]


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


def words(text: str) -> list[str]:
    """The words of a caption in lower case, without punctuation; brackets are words of their own.

    Source: Stanford's PTBTokenizer, as `pycocoevalcap` calls it.
    """
    text = text.lower().replace("’", "'").replace("‘", "'")
    tokens = (token for token in _TOKEN.findall(text) if token not in _PUNCTUATION)
    return [word for token in tokens for word in _APART.get(token, _WRITTEN.get(token, token)).split()]


def score(sample: Sample, answer: Answer) -> Row:
    """What was said, and what people said: `target["references"]`, or else the dialogue's own answer."""
    references = sample.target.get("references") or [sample.messages[-1].text]
    return {"caption": answer.text, "references": list(references), "unparsed": not answer.text.strip()}


def reduce(rows: Sequence[Row]) -> dict[str, float]:
    """`cider`, `meteor (exact+stem)`, `bleu-1` to `bleu-4` and `rouge-l` over all captions, in percent.

    CIDEr weighs words by how few images they are said of, so it means nothing for one image alone, and then is 0.

    Raises: DataError, for no rows, or an image without references.
    """
    if not rows or not all(row["references"] for row in rows):
        raise DataError("there is no caption to score, or an image has no reference; give at least one of each")
    found = [words(row["caption"]) for row in rows]
    truth = [[words(text) for text in row["references"]] for row in rows]
    figures = {"cider": _mean(cider(found, truth)), METEOR: meteor_score(found, truth)}
    figures |= {f"bleu-{length}": value for length, value in enumerate(bleu(found, truth), start=1)}
    figures["rouge-l"] = _mean([rouge_l(one, others) for one, others in zip(found, truth, strict=True)])
    return {name: 100 * value for name, value in figures.items()}


def cider(found: Sequence[Words], truth: Sequence[Sequence[Words]]) -> list[float]:
    """CIDEr-D of each caption with the references of its image, in [0, 10].

    Source: Vedantam et al. 2015.
    """
    references = [[_runs(words) for words in some] for some in truth]
    said_of = Counter(run for some in references for run in {run for one in some for run in one})
    weight = {run: math.log(len(truth)) - math.log(count) for run, count in said_of.items()}
    scores = []
    for words, some in zip(found, references, strict=True):
        mine = _weighed(_runs(words), weight, math.log(len(truth)))
        others = [_weighed(one, weight, 0.0) for one in some]
        scores.append(10 * _mean([_likeness(mine, other) for other in others]))
    return scores


def _weighed(runs: Runs, weight: Runs, unknown: float) -> Runs:
    """Counts of runs times how telling they are; a run that no reference has is as telling as can be.

    Under the empty run stands how long the caption is, in pairs of words.
    """
    pairs = sum(count for run, count in runs.items() if len(run) == 2)
    return {run: count * weight.get(run, unknown) for run, count in runs.items()} | {(): pairs}


def _likeness(mine: Runs, other: Runs) -> float:
    """The mean over lengths of the cosine of two captions, less where one is longer; what is said too often is cut."""
    apart = mine[()] - other[()]
    cosines = []
    for length in range(1, LONGEST + 1):
        shared = sum(
            min(value, other[run]) * other[run] for run, value in mine.items() if len(run) == length and run in other
        )
        size = _norm(mine, length) * _norm(other, length)
        cosines.append(shared / size if size else 0.0)
    return _mean(cosines) * math.exp(-(apart**2) / 72)


def _norm(runs: Runs, length: int) -> float:
    return math.sqrt(sum(value**2 for run, value in runs.items() if len(run) == length))


def bleu(found: Sequence[Words], truth: Sequence[Sequence[Words]]) -> list[float]:
    """BLEU-1 to BLEU-4 of all captions together, in [0, 1]; the reference nearest in length counts for brevity.

    Source: Papineni et al. 2002.
    """
    right, said = [0.0] * LONGEST, [0.0] * LONGEST
    length = wanted = 0
    for words, references in zip(found, truth, strict=True):
        length += len(words)
        wanted += min((abs(len(one) - len(words)), len(one)) for one in references)[1]
        allowed: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            allowed |= _runs(reference)
        for run, count in _runs(words).items():
            said[len(run) - 1] += count
            right[len(run) - 1] += min(count, allowed[run])
    brevity = math.exp(min(0.0, 1 - wanted / length)) if length else 0.0
    product, scores = 1.0, []
    for number, (some, all_) in enumerate(zip(right, said, strict=True), start=1):
        product *= some / all_ if all_ else 0.0
        scores.append(brevity * product ** (1 / number))
    return scores


def rouge_l(found: Words, references: Sequence[Words]) -> float:
    """The longest common subsequence as a share of caption and reference, in [0, 1], the best share of any reference.

    Source: Lin 2004, with recall weighing 1.2 times as much.
    """
    lengths = [_common(found, reference) for reference in references]
    precision = max(lengths) / max(len(found), 1)
    recall = max(length / max(len(one), 1) for length, one in zip(lengths, references, strict=True))
    weight = 1.2**2
    return (1 + weight) * precision * recall / (recall + weight * precision) if precision and recall else 0.0


def meteor_score(found: Sequence[Words], truth: Sequence[Sequence[Words]]) -> float:
    """METEOR of all captions together, in [0, 1]: see `segue.evals.meteor` for what of it is computed.

    Raises: ConfigError, as `segue.evals.meteor.align` does.
    """
    best = (meteor.best_alignment(words, some) for words, some in zip(found, truth, strict=True))
    return sum(best, meteor.Alignment()).score


def _runs(words: Words) -> Counter[tuple[str, ...]]:
    """How often each run of up to `LONGEST` words stands in a text."""
    return Counter(
        tuple(words[start : start + length])
        for length in range(1, LONGEST + 1)
        for start in range(len(words) - length + 1)
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


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
