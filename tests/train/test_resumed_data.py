"""What a run keeps of its data, and by what its checkpoints are compared."""

from functools import partial

from segue.checkpoints.adapters import rank
from segue.data.base import Rows
from segue.train.run import fingerprint


def rows(*words):
    return Rows("x", [{"image": "a.png", "text": word} for word in words], make=lambda row, rng: row)


def test_a_changed_label_or_a_row_less_is_another_fingerprint():
    assert fingerprint(rows("red", "blue")) == fingerprint(rows("red", "blue"))
    assert len({fingerprint(rows(*words)) for words in (("red", "blue"), ("red", "green"), ("red",))}) == 3


def test_where_a_process_has_the_functions_of_rows_is_no_change():
    def made(size):  # a new function each time, as in a new process
        return Rows("x", [{"image": "a.png", "read": (lambda: 0), "pixels": partial(lambda: 0, size)}], make=tuple)

    first, second = made(1), made(1)
    assert repr(first.rows) != repr(second.rows)
    assert fingerprint(first) == fingerprint(second) != fingerprint(made(2))


def test_a_mask_that_is_never_asked_for_does_not_make_the_best_checkpoint():
    fine, silent = {"mean_iou": 0.7, "emitted": 1.0}, {"mean_iou": 0.9, "emitted": 0.1}
    assert rank(fine, "mean_iou") > rank(silent, "mean_iou")
    assert rank(silent, "emitted") == 0.1
