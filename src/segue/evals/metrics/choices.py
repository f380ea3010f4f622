"""Which option an answer chooses: the rules by which letters are taken from text, and the scores that use them.

Options are `target["options"]`, texts without letters; the right one is `target["letter"]`. A rule gives a letter, or
None where the answer chooses nothing: such an answer is wrong and counts as unparsed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from segue.data.questions import LETTERS
from segue.evals.base import Row, Score
from segue.types import Answer, Sample

Rule = Callable[[str, Sequence[str]], str | None]
"""Takes the letter of one of the options from an answer."""

_OPENING = re.compile(r"[\s\"'*(\[]*([A-Z])\s*(?:[.):,\]*\"']|$)")
# Chinese has no spaces around a letter: 答案是B
_IN_WORD = r"(?![\u4e00-\u9fff])[\w']"
_SAID = re.compile(rf"\b(?:answer|option|choice)\b(?:\s+is)?\s*:?[\s\"'*(\[]*([A-Z])(?!{_IN_WORD})", re.IGNORECASE)
_ALONE = re.compile(rf"(?<!{_IN_WORD})([A-Z])(?!{_IN_WORD})")
_ARTICLE = re.compile(r"\b[Aa](?=\s+(?!(?:and|as|because|is|or|since|was)\b)[a-z])")
_PHRASES = re.compile(
    r"(The (best|correct) (answer|option) is|The answer is|The answer|Best (answer|option):|Answer:|Option:)"
)
_TAGGED = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL)


def stated(text: str, options: Sequence[str]) -> str | None:
    """The letter that an answer states: the first of these that is one of the options.

    A letter that opens the answer and stands alone or before a mark ("B", "(B) cat", "B. cat"); the last one after
    "answer", "option" or "choice"; the only letter of an option that stands alone; the letter of the only option whose
    whole text occurs. "A" or "a" before a word is an article, but not before "is", "or", "because" and their like.
    """
    letters = LETTERS[: len(options)]
    plain = _ARTICLE.sub("", text)
    opening = _OPENING.match(text)
    # other letters that stand alone are words, such as "I"
    said = [letter.upper() for letter in _SAID.findall(plain) if letter.upper() in letters]
    alone = set(_ALONE.findall(plain)) & set(letters)
    if opening and opening[1] in letters:
        return opening[1]
    if said:
        return said[-1]
    return alone.pop() if len(alone) == 1 else _quoted(text, options)


def first_capital(text: str, options: Sequence[str]) -> str | None:
    """The first capital letter of an option anywhere in the answer, behind an opening such as "The best answer is".

    Source: the evaluation of Video-MME; two openings are run together there by a missing comma, see `answer_openings`
    in the table of parity.
    """
    found = re.search(f"[{LETTERS[: len(options)]}]", _PHRASES.sub("", text.strip()))
    return found[0] if found else None


def tagged(text: str, options: Sequence[str]) -> str | None:
    """What stands in the last `<answer>` and `</answer>`, read as `stated`; without them nothing is chosen.

    Source: the evaluation of Video-Holmes; see `letter_order` in the table of parity.
    """
    inside = _TAGGED.findall(text)
    return stated(inside[-1], options) if inside else None


def behind_answer(text: str, options: Sequence[str]) -> str | None:
    """What follows the last "Answer:", or the whole text without one, read as `stated`."""
    return stated(text.rpartition("Answer:")[2], options)


def named(text: str, options: Sequence[str]) -> str | None:
    """The option of the form "Caption A: words" that an answer names by its name, its letter, its words or all of it.

    Source: the evaluation of TempCompass's caption matching.
    """
    said = text.strip().removesuffix(".").casefold()
    chosen = []
    for letter, option in zip(LETTERS, options, strict=False):  # more letters
        name, _, words = option.strip().partition(": ")
        names = {part.removesuffix(".").casefold() for part in (option.strip(), name, words, name.rpartition(" ")[2])}
        if said and (said in names or said.startswith(f"{name.casefold()}:")):
            chosen.append(letter)
    return chosen[0] if len(chosen) == 1 else None


def yes_or_no(text: str) -> str | None:
    """Whether an answer begins with yes or no, in any case."""
    return next((word for word in ("yes", "no") if text.strip().lower().startswith(word)), None)


def multiple_choice(rule: Rule) -> Score:
    """Makes a score: the letter that `rule` takes from the answer against `target["letter"]`.

    What else the target holds is kept in the row, for figures by group and for submissions.
    """

    def score(sample: Sample, answer: Answer) -> Row:
        letter = rule(answer.text, sample.target["options"])
        return {
            **sample.target,
            "answer": answer.text.strip(),
            "chosen": letter or "",
            "correct": float(letter is not None and letter == sample.target.get("letter")),
            "unparsed": letter is None,
        }

    return score


def _quoted(text: str, options: Sequence[str]) -> str | None:
    said = " ".join(text.casefold().split())
    found = [
        letter
        for letter, option in zip(LETTERS, options, strict=False)  # more letters
        if option.strip() and re.search(rf"(?<!\w){re.escape(' '.join(option.casefold().split()))}(?!\w)", said)
    ]
    return found[0] if len(found) == 1 else None
