"""METEOR without synonyms and paraphrases: words agree if they, or their stems, are the same.

Source: Denkowski and Lavie 2014 (Meteor 1.5), with its English parameters but for delta: all words weigh the same.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from segue.errors import ConfigError

ALPHA, BETA, GAMMA = 0.85, 0.2, 0.6
STEM = 0.6
"""What a pair of words with one stem counts, where a pair of equal words counts 1."""
_PIECE = re.compile(
    r"""
    -[lr][rsc]b-                            # a bracket in words
  | -?\d+(?:[.,]\d+)*(?![^\W_])             # numbers
  | [^\W_]+(?:[.,][^\W_]+)+\.?              # u.s. and www.where.net
  | (?<=[^\W_])'[^\W_]+                     # n't is n and 't
  | [^\W_]+ | [^\w\s-] | _
    """,
    re.VERBOSE,
)
BEAM = 200
"""How many ways of pairing words are followed at once."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """How the words of a caption and of a reference were paired. Alignments add up, as the scorer adds them.

    `equal` of the pairs are of equal words, the others of words with one stem. `chunks` are runs of pairs that follow
    one another in both texts, 0 if the texts agree from end to end.
    """

    found: int = 0
    truth: int = 0
    pairs: int = 0
    equal: int = 0
    chunks: int = 0

    def __add__(self, other: Alignment) -> Alignment:
        return Alignment(
            self.found + other.found,
            self.truth + other.truth,
            self.pairs + other.pairs,
            self.equal + other.equal,
            self.chunks + other.chunks,
        )

    @property
    def score(self) -> float:
        """METEOR, in [0, 1]."""
        if not self.pairs:
            return 0.0
        agreement = self.equal + STEM * (self.pairs - self.equal)
        precision, recall = agreement / self.found, agreement / self.truth
        mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
        return mean * (1 - GAMMA * (self.chunks / self.pairs) ** BETA)


def best_alignment(found: Sequence[str], references: Iterable[Sequence[str]]) -> Alignment:
    """The alignment with the reference that gives the highest score, the first of equals.

    What hyphens, slashes and apostrophes join is taken apart first, as the original's `-norm` does.
    """
    pieces = _pieces(found)
    return max((align(pieces, _pieces(reference)) for reference in references), key=lambda one: one.score)


def _pieces(words: Sequence[str]) -> list[str]:
    return [piece for word in words for piece in _PIECE.findall(word)]


@dataclass(frozen=True, slots=True)
class _Path:
    """Pairs of the words so far: which words of the reference are taken (a bit each), and which would go on from the
    last pair, -1 where the last word has none."""

    taken: int = 0
    expected: int = -1
    equal: int = 0
    pairs: int = 0
    chunks: int = 0
    moved: int = 0

    def rank(self) -> tuple[int, int, int, int]:
        """Higher is better."""
        return self.equal, -self.chunks, self.pairs, -self.moved


def align(found: Sequence[str], truth: Sequence[str]) -> Alignment:
    """Pair the words of two texts one to one.

    Of all ways that with most equal words counts, then that with fewest runs, most pairs and shortest ways.

    Raises: ConfigError, without snowballstemmer, which the extra `eval` brings.
    """
    stems, true_stems = [stem(word) for word in found], [stem(word) for word in truth]
    partners = [
        [
            (other, word == truth[other])
            for other in range(len(truth))
            if word == truth[other] or stems[place] == true_stems[other]
        ]
        for place, word in enumerate(found)
    ]
    wanted = Counter(other for some in partners for other, _ in some)
    paths = [_Path()]
    for place, some in enumerate(partners):
        is_sure = len(some) == 1 and wanted[some[0][0]] == 1
        steps = (new for path in paths for new in _steps(path, place, some, is_sure))
        paths = sorted(steps, key=_Path.rank, reverse=True)[:BEAM]
    best = paths[0]
    is_same = best.pairs == len(found) == len(truth) and best.chunks == 1
    return Alignment(len(found), len(truth), best.pairs, best.equal, 0 if is_same else best.chunks)


def _steps(path: _Path, place: int, partners: Sequence[tuple[int, bool]], is_sure: bool) -> Iterable[_Path]:
    for other, is_equal in partners:
        if not path.taken >> other & 1:
            yield _Path(
                path.taken | 1 << other,
                other + 1,
                path.equal + is_equal,
                path.pairs + 1,
                path.chunks + (other != path.expected),
                path.moved + abs(other - place),
            )
    if not is_sure:
        yield _Path(path.taken, -1, path.equal, path.pairs, path.chunks, path.moved)


@cache
def stem(word: str) -> str:
    """What a word and its forms have in common, by the rules of Snowball for English.

    Raises: ConfigError, without snowballstemmer, which the extra `eval` brings.
    """
    stemmed: str = _stemmer()(word)
    return stemmed


@cache
def _stemmer() -> Callable[[str], str]:
    try:
        from snowballstemmer import stemmer
    except ModuleNotFoundError as error:
        raise ConfigError("METEOR needs snowballstemmer; install it with: pip install 'segue[eval]'") from error
    stem: Callable[[str], str] = stemmer("english").stemWord
    return stem
