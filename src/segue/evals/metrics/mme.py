"""MME: two questions with yes or no about each image; a subtask's score is its accuracy plus that of whole images.

Source: Fu et al. 2023 and MME's own tool.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segue.evals.base import Row
from segue.evals.metrics.figures import grouped, mean, percent, some, unparsed
from segue.files import atomic_folder
from segue.types import Answer, Sample

PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")

_OPENING = 4


def yes_or_no(text: str) -> str | None:
    """The answer in lower case if it is yes or no; else whichever of the two stands in its first four letters."""
    said = text.strip().lower()
    return next((word for word in ("yes", "no") if word in said[:_OPENING]), None)


def score(sample: Sample, answer: Answer) -> Row:
    """Whether the answer is `target["truth"]`; the row names subtask and image."""
    said = yes_or_no(answer.text)
    return {
        **sample.target,
        "answer": answer.text.strip(),
        "correct": float(said == sample.target["truth"].lower()),
        "unparsed": said is None,
    }


def reduce(rows: Sequence[Row]) -> dict[str, float]:
    """The score of each subtask, at most 200, and the sums `perception`, `cognition` and `total`.

    A subtask without rows adds nothing.
    """
    scores = {subtask: _score(part) for subtask, part in grouped(some(rows), "subtask").items()}
    perception = sum(scores.get(subtask, 0.0) for subtask in PERCEPTION)
    cognition = sum(scores.get(subtask, 0.0) for subtask in COGNITION)
    return {"perception": perception, "cognition": cognition, "total": perception + cognition} | scores | unparsed(rows)


def submit(rows: Sequence[Row], path: Path) -> Path:
    """A folder with a text for each subtask, as MME's own tool reads it: image, question, truth, answer, a tab apart.

    An older folder of such texts is replaced.

    Raises: MediaError, if something else is there or it cannot be written.
    """
    subtasks = grouped(some(rows), "subtask")
    with atomic_folder(path, replaces={f"{subtask}.txt" for subtask in (*PERCEPTION, *COGNITION, *subtasks)}) as folder:
        for subtask, part in subtasks.items():
            lines = (
                "\t".join((row["image"], row["question"], row["truth"], " ".join(row["answer"].split())))
                for row in part
            )
            text = "".join(f"{line}\n" for line in lines)
            (folder / f"{subtask}.txt").write_text(text, encoding="utf-8", errors="backslashreplace")
    return path


def _score(rows: Sequence[Row]) -> float:
    images = grouped(rows, "group").values()
    return percent(rows) + 100 * mean(all(row["correct"] for row in image) for image in images)
