"""How good the masks are: figures over the objects of held-out rows, found with the answers given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segue.data.base import rng_for
from segue.errors import ConfigError, SegueError
from segue.train.batch_stream import parts_of
from segue.train.examples import Row, RowMaker, collate
from segue.train.loss_module import Judged, Learner
from segue.train.recipe import Validation


@dataclass(frozen=True, slots=True)
class Case:
    """A held-out row: from which dataset, which row of it, and the row itself, ready for a model."""

    part: str
    number: int
    row: Row


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found of a case; `frame` is the number of the first frame that the model was shown."""

    part: str
    number: int
    objects: tuple[Judged, ...]
    frame: int = 0

    @property
    def iou(self) -> float:
        """Mean IoU of its objects."""
        return float(np.mean([iou(judged) for judged in self.objects]))


def cases(validation: Validation, make: RowMaker, seed: int, *, rank: int, processes: int) -> list[Case]:
    """This process's share of the held-out rows: the same rows for the same seed, whatever the number of processes.

    Raises: ConfigError, for fewer rows than processes; SegueError, for a row that cannot be used.
    """
    parts = parts_of(validation.data)
    rows = [(part, number) for part in parts for number in range(len(part.dataset))]
    order = sorted(np.random.default_rng([3, seed]).permutation(len(rows))[: validation.limit].tolist())
    if len(order) < processes:
        raise ConfigError(f"{len(order)} validation rows are too few for {processes} processes; give one for each")
    found = []
    for chosen in order[rank::processes]:
        part, number = rows[chosen]
        try:
            row = make(part.dataset.get(number, rng_for(seed, 0, number)))
        except SegueError as error:
            raise type(error)(f"validation: {error}") from error
        if row.truth is not None:
            found.append(Case(part.name, number, row))
    return found


def judge(learner: Learner, held_out: Sequence[Case], make: RowMaker, *, rounds: int) -> list[Verdict]:
    """What the model finds of each case now. Leaves the model in the mode it was in.

    The model is asked `rounds` times, the last case again where there are fewer: where its parameters are spread over
    processes, all must ask equally often.
    """
    was_training = learner.training
    learner.eval()
    verdicts = []
    try:
        for number in range(rounds if held_out else 0):
            case = held_out[min(number, len(held_out) - 1)]
            objects = learner.judge(collate([case.row], make.processor).to(learner.model.device))
            if number < len(held_out):
                verdicts.append(Verdict(case.part, case.number, tuple(objects), _first_frame(case.row)))
    finally:
        learner.train(was_training)
    return verdicts


def _first_frame(row: Row) -> int:
    assert row.truth is not None
    return row.truth.numbers[row.truth.asked[0]]


def iou(judged: Judged) -> float:
    """Shared pixels over those in either mask; nothing found of nothing is 1."""
    union = judged.found + judged.truth - judged.intersection
    return judged.intersection / union if union else 1.0


def figures(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """`mean_iou` and `dice`, means over objects; `ciou`, all shared pixels over all pixels of either; `emitted`, the
    share of objects whose `[SEG]` the model would have said by itself.

    Raises: ConfigError, if there are no objects.
    """
    objects = [judged for verdict in verdicts for judged in verdict.objects]
    if not objects:
        raise ConfigError("none of the validation rows points at anything, so no mask can be judged; give other data")
    shared = sum(judged.intersection for judged in objects)
    union = sum(judged.found + judged.truth - judged.intersection for judged in objects)
    both = [(2 * judged.intersection, judged.found + judged.truth) for judged in objects]
    return {
        "mean_iou": float(np.mean([iou(judged) for judged in objects])),
        "ciou": shared / union if union else 1.0,
        "dice": float(np.mean([double / total if total else 1.0 for double, total in both])),
        "emitted": float(np.mean([judged.is_emitted for judged in objects])),
    }
