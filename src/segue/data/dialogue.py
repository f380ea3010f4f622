"""Dialogues of samples: questions for masks with their answers, and recorded conversations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from segue.data import shapes
from segue.data.annotation_io import field
from segue.data.prompts import sample_wording, segment_question
from segue.errors import DataError
from segue.types import MaskTrack, Media, Message, Region

MaskQuestion = tuple[str, str, MaskTrack | None]
"""Something to be segmented: its phrase, the question for it, and its masks, or None where nothing fits the phrase."""


def segmentation(
    media: Media, asked: Sequence[MaskQuestion], rng: np.random.Generator
) -> tuple[tuple[Message, ...], tuple[Region, ...]]:
    """A dialogue that asks for one mask a turn, and the regions that its answers point at.

    What is not there is answered in words alone, without `[SEG]` and without a region.

    Raises: DataError, if nothing is asked.
    """
    turns = [
        (question, sample_wording("absent_answers" if masks is None else "segment_answers", rng))
        for _, question, masks in asked
    ]
    regions = [shapes.region(phrase, masks) for phrase, _, masks in asked if masks is not None]
    return dialogue(turns, media), tuple(regions)


def mask_question(phrase: str, masks: MaskTrack | None, rng: np.random.Generator) -> MaskQuestion:
    """A phrase and its masks with one of the usual questions."""
    return phrase, segment_question(phrase, rng), masks


def query(
    media: Media, phrase: str, prompt: str, masks: MaskTrack | None
) -> tuple[tuple[Message, ...], tuple[Region, ...]]:
    """A question as an evaluation asks it, `{phrase}` in its prompt filled in, and the region that is meant.

    Where nothing fits the phrase, or the truth is not known, the answer is empty.
    """
    answer = Message("assistant", () if masks is None else ("[SEG]",))
    messages = Message.user(prompt.replace("{phrase}", phrase), media), answer
    return messages, () if masks is None else (shapes.region(phrase, masks),)


def dialogue(
    turns: Sequence[tuple[str, str]], media: Media | None, regions: tuple[Region, ...] = ()
) -> tuple[Message, ...]:
    """Questions and answers as messages; medium and region prompts stand in the first question.

    Raises: DataError, if there are no turns, or an `<image>` stands where there is no medium to put.
    """
    if not turns:
        raise DataError("the dialogue has no question with an answer; there is nothing to learn")
    messages = []
    for number, (question, answer) in enumerate(turns):
        messages.append(Message.user(question, None if number else media, () if number else regions))
        messages.append(Message("assistant", (answer,)))
    return tuple(messages)


def recorded_turns(conversation: object, clean: Callable[[str], str] = str) -> list[tuple[str, str]]:
    """The questions and answers of a LLaVA-style list of {"from": "human" | "gpt", "value": text}.

    Answers before the first question are dropped, questions in a row are joined by line breaks, and a question
    without an answer at the end is dropped. `clean` is applied to every text; space around texts is cut.

    Raises: DataError, if it is no such list, or an answer follows an answer.
    """
    if not isinstance(conversation, list):
        raise DataError(f"a conversation is {str(conversation)[:60]!r}; expected a list of messages")
    turns: list[tuple[str, str]] = []
    asked: list[str] = []
    for number, message in enumerate(conversation):
        role = field(message, "from", str, f"message {number}")
        text = clean(field(message, "value", str, f"message {number}")).strip()
        if role == "human":
            asked.append(text)
        elif role != "gpt":
            raise DataError(f"message {number} is from {role!r}; expected 'human' or 'gpt'")
        elif asked:
            turns.append(("\n".join(asked), text))
            asked = []
        elif turns:
            raise DataError(f"message {number} is an answer after an answer; a question must stand between them")
    return turns
