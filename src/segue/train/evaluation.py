"""How good the masks are: figures over the objects of held-out rows, found with the answers given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segue.data.base import rng_for
from segue.errors import ConfigError, SegueError
from segue.train.batch_stream import parts_of
from segue.train.examples import RowMaker, TrainRow, collate
from segue.train.loss_module import LossModule, ObjectResult
from segue.train.recipe import Validation

POINTLESS = "none of the validation rows points at anything, so no mask can be evaluated; give other data"


@dataclass(frozen=True, slots=True)
class ValidationRow:
    """A held-out row: from which dataset, which row of it, and the row itself, ready for a model."""

    part: str
    number: int
    row: TrainRow


@dataclass(frozen=True, slots=True)
class SampleResult:
    """What was found of a validation row; `frame` is the number of the first frame that the model was shown."""

    part: str
    number: int
    objects: tuple[ObjectResult, ...]
    frame: int = 0

    @property
    def iou(self) -> float:
        """Mean IoU of its objects."""
        return float(np.mean([one.iou for one in self.objects]))


def validation_rows(
    validation: Validation, make: RowMaker, seed: int, *, rank: int, processes: int
) -> list[ValidationRow]:
    """This process's share of the held-out rows: the same rows for the same seed, whatever the number of processes.

    Raises: ConfigError, for fewer rows than processes; SegueError, for a row that cannot be used.
    """
    parts = parts_of(validation.data)
    rows = [(part, number) for part in parts for number in range(len(part.dataset))]
    order = sorted(np.random.default_rng([3, seed]).permutation(len(rows))[: validation.limit].tolist())
    if len(order) < processes:
        raise ConfigError(f"{len(order)} validation rows are too few for {processes} processes; give one for each")
    found = []
    for place in order[rank::processes]:
        part, number = rows[place]
        try:
            row = make(part.dataset.get(number, rng_for(seed, 0, number)))
        except SegueError as error:
            raise type(error)(f"validation: {error}") from error
        if row.truth is not None:
            found.append(ValidationRow(part.name, number, row))
    return found


def evaluate(
    loss_module: LossModule, held_out: Sequence[ValidationRow], make: RowMaker, *, rounds: int
) -> list[SampleResult]:
    """What the model finds of each row now. Leaves the model in the mode it was in.

    The model is asked `rounds` times, the last row again where there are fewer: where its parameters are spread over
    processes, all must ask equally often.
    """
    was_training = loss_module.training
    loss_module.eval()
    results = []
    try:
        for number in range(rounds if held_out else 0):
            one = held_out[min(number, len(held_out) - 1)]
            objects = loss_module.evaluate(collate([one.row], make.processor).to(loss_module.model.device))
            if number < len(held_out):
                results.append(SampleResult(one.part, one.number, tuple(objects), _first_frame(one.row)))
    finally:
        loss_module.train(was_training)
    return results


def _first_frame(row: TrainRow) -> int:
    assert row.truth is not None
    return row.truth.numbers[row.truth.prompted[0]]


def figures(results: Sequence[SampleResult]) -> dict[str, float]:
    """`mean_iou` and `dice`, means over objects; `ciou`, all shared pixels over all pixels of either; `emitted`, the
    share of objects whose `[SEG]` the model would say next, given the true answer up to it. That is more than `segue
    evaluate` finds, where the model begins its answer by itself.

    Raises: ConfigError, if there are no objects.
    """
    objects = [one for result in results for one in result.objects]
    if not objects:
        raise ConfigError(POINTLESS)
    shared, union = (sum(getattr(one, name) for one in objects) for name in ("intersection", "union"))
    return {
        "mean_iou": float(np.mean([one.iou for one in objects])),
        "ciou": shared / union if union else 1.0,
        "dice": float(np.mean([one.dice for one in objects])),
        "emitted": float(np.mean([one.is_emitted for one in objects])),
    }
