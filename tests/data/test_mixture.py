import json
import pickle
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from segue.data.base import Rows
from segue.data.mixture import Mixture, MixturePart, table
from segue.errors import ConfigError, DataError, MediaError
from segue.types import Message, Sample


class Numbers:
    """Rows that say their number and what chance gave them; some cannot be used."""

    def __init__(self, name, rows, bad=(), error=DataError):
        self.name, self._rows, self._bad, self._error = name, rows, set(bad), error

    def __len__(self):
        return self._rows

    def get(self, index, rng):
        if index in self._bad:
            raise self._error(f"{self.name} row {index}: no picture")
        text = f"{self.name} {index} {rng.integers(2**40)}"
        return Sample(text, "chat", (Message("user", ("?",)), Message("assistant", (text,))))


def mix(*parts, seed=0, **options):
    return Mixture(
        [MixturePart(name, Numbers(name, rows), float(weight)) for name, rows, weight in parts], seed, **options
    )


def rows_of(mixture, epoch=0):
    places = [mixture.place(epoch, position) for position in range(len(mixture))]
    return Counter((part.name, row) for part, row in places)


def ids(mixture, epoch=0):
    return [mixture.get(epoch, position).id for position in range(len(mixture))]


def test_an_epoch_draws_every_row_as_often_as_the_weight_says():
    counts = rows_of(mix(("a", 10, 3), ("b", 7, 1), ("c", 4, 2.5), ("d", 8, 0.5)))
    assert {counts["a", row] for row in range(10)} == {3}
    assert {counts["b", row] for row in range(7)} == {1}
    assert sorted(counts["c", row] for row in range(4)) == [2, 2, 3, 3]
    assert sorted(counts["d", row] for row in range(8)) == [0] * 4 + [1] * 4


def test_shorter_length_lists_cannot_hide_the_last_datasets():
    """Upstream's lists forgot the repeats of one dataset, and as many indices at the end were never drawn."""
    mixture = mix(("image", 100, 1), ("video", 20, 10), ("last", 100, 2))
    assert len(mixture) == 100 + 200 + 200
    counts = rows_of(mixture)
    assert sum(counts.values()) == len(mixture)
    assert {counts["last", row] for row in range(100)} == {2}
    (*_, last) = mixture.tallies(1)
    assert (last.asked, last.drawn, last.seen) == (200, 200, 100)


def test_the_same_position_is_the_same_sample_in_any_mixture_of_the_same_seed():
    parts = ("a", 10, 2), ("b", 5, 1)
    assert ids(mix(*parts)) == ids(mix(*parts))
    assert ids(mix(*parts)) != ids(mix(*parts, seed=1))
    backwards = mix(*parts)
    assert [backwards.get(0, position).id for position in reversed(range(25))] == ids(mix(*parts))[::-1]


def test_epochs_differ_and_can_be_asked_for_in_any_order():
    mixture = mix(("a", 10, 2), ("b", 5, 0.4))
    second = ids(mixture, 1)
    assert ids(mixture, 0) != second
    assert ids(mixture, 1) == second
    drawn = [{row for (name, row) in rows_of(mixture, epoch) if name == "b"} for epoch in range(12)]
    assert all(len(rows) == 2 for rows in drawn)
    assert set().union(*drawn) == set(range(5))


def test_a_row_drawn_twice_is_left_to_chance_anew():
    assert len(set(ids(mix(("a", 3, 20))))) == 60


def test_a_copy_in_another_worker_draws_the_same():
    mixture = mix(("a", 10, 2), ("b", 5, 1))
    mixture.get(1, 4)
    copy = pickle.loads(pickle.dumps(mixture))
    assert ids(copy, 3) == ids(mix(("a", 10, 2), ("b", 5, 1)), 3)


def test_the_order_is_written_down_so_that_no_change_of_the_code_moves_it_unseen():
    mixture = mix(("a", 3, 1), ("b", 2, 1.5))
    places = [mixture.place(1, position) for position in range(len(mixture))]
    assert "".join(f"{part.name}{row}" for part, row in places) == "a0b0b1b1a2a1"


def test_datasets_come_mixed_and_not_one_after_the_other():
    mixture = mix(("a", 500, 1), ("b", 500, 1))
    first = Counter(mixture.place(0, position)[0].name for position in range(200))
    assert 70 < first["a"] < 130


def test_tallies_tell_ahead_what_any_point_of_a_run_will_have_drawn():
    mixture = mix(("a", 10, 2), ("b", 4, 1))
    drawn = Counter(mixture.place(0, position)[0].name for position in range(24))
    drawn.update(mixture.place(1, position)[0].name for position in range(7))
    tallies = {tally.name: tally for tally in mixture.tallies(1, 7)}
    assert {name: tally.drawn for name, tally in tallies.items()} == drawn
    assert tallies["a"].seen == 10
    assert [tally.drawn for tally in mixture.tallies(0)] == [0, 0]


@pytest.mark.parametrize(
    ("parts", "options", "message"),
    [
        ([], {}, "one or more"),
        ([("a", 3, 1), ("a", 4, 1)], {}, "each name once"),
        ([("a", 3, 0.3)], {}, "a has 3 rows and weight 0.3, so it would never be drawn"),
        ([("a", 0, 1)], {}, "never be drawn"),
        ([("a", 3, -1)], {}, "never be drawn"),
        ([("a", 3, float("nan"))], {}, "never be drawn"),
        ([("a", 3, 1)], {"on_bad_sample": "skip"}, "needs a file"),
    ],
)
def test_mixtures_that_cannot_be_drawn_from_are_refused(parts, options, message):
    with pytest.raises(ConfigError, match=message):
        mix(*parts, **options)


def test_positions_outside_an_epoch_do_not_exist():
    for position in (-1, 3):
        with pytest.raises(IndexError):
            mix(("a", 3, 1)).get(0, position)


# --- bad samples


def bad_mix(tmp_path, bad, rows=1000, **options):
    parts = [MixturePart("a", Numbers("a", rows, bad)), MixturePart("b", Numbers("b", 50))]
    return Mixture(parts, 0, on_bad_sample="skip", skipped=tmp_path / "run/skipped.jsonl", **options)


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "run/skipped.jsonl").read_text().split("\n") if line]


def test_a_bad_sample_ends_the_run_if_nothing_else_is_said():
    mixture = Mixture([MixturePart("a", Numbers("a", 3, [1], MediaError))], 0)
    with pytest.raises(MediaError, match="a row 1: no picture"):
        ids(mixture)


def test_a_skipped_sample_leaves_its_position_empty_and_is_written_down(tmp_path):
    mixture = bad_mix(tmp_path, [7])
    good = Mixture([MixturePart("a", Numbers("a", 1000)), MixturePart("b", Numbers("b", 50))], 0)
    samples = [mixture.get(0, position) for position in range(len(mixture))]
    (empty,) = [position for position, sample in enumerate(samples) if sample is None]
    assert lines(tmp_path) == [
        {"part": "a", "row": 7, "epoch": 0, "position": empty, "kind": "DataError", "error": "a row 7: no picture"}
    ]
    others = [good.get(0, position).id for position in range(len(good)) if position != empty]
    assert [sample.id for sample in samples if sample is not None] == others, "nothing else moves or stands in"


def test_a_row_counts_once_however_often_it_is_met_and_by_whom(tmp_path):
    for _ in range(2):
        mixture = bad_mix(tmp_path, [7], 20)
        for epoch in range(3):
            assert sum(mixture.get(epoch, position) is None for position in range(len(mixture))) == 1
    assert len(lines(tmp_path)) == 1
    tally = mixture.tallies(1)[0]
    assert (tally.skipped, tally.reasons) == (1, (("DataError", 1),))


@pytest.mark.parametrize(
    ("rows", "ceiling", "allowed"),
    [(1000, 0.001, 1), (100, 0.001, 1), (2000, 0.001, 2), (1000, 0.0, 1), (2, 0.9, 1), (1, 0.9, 0)],
)
def test_one_bad_row_more_than_the_ceiling_ends_the_run(tmp_path, rows, ceiling, allowed):
    mixture = bad_mix(tmp_path, range(allowed + 1), rows, ceiling=ceiling)
    with pytest.raises(DataError, match=f"a has more bad rows than the {allowed} of {rows} .*no picture.*segue doctor"):
        [mixture.get(0, position) for position in range(len(mixture))]
    assert allowed == 0 or len(lines(tmp_path)) == allowed


def test_a_sample_that_turns_out_bad_later_is_refused_by_the_same_rule(tmp_path):
    mixture = bad_mix(tmp_path, [])
    mixture.refuse(0, 3, MediaError("cut.jpg is damaged"))
    assert lines(tmp_path)[0]["kind"] == "MediaError"
    with pytest.raises(MediaError, match="cut.jpg"):
        mix(("a", 10, 1)).refuse(0, 3, MediaError("cut.jpg is damaged"))


def test_text_of_any_language_and_a_damaged_line_are_read_back_or_told(tmp_path):
    mixture = bad_mix(tmp_path, [])
    mixture.refuse(0, 3, MediaError("血管\u2028\udcff.jpg"))
    assert sum(tally.skipped for tally in mixture.tallies(0)) == 1
    assert lines(tmp_path)[0]["error"] == "血管\u2028\udcff.jpg"
    with (tmp_path / "run/skipped.jsonl").open("a") as file:
        file.write('{"part": "a", ')
    with pytest.raises(DataError, match="damaged line"):
        mixture.tallies(0)


def test_the_table_has_a_line_for_every_dataset(tmp_path):
    mixture = bad_mix(tmp_path, [7])
    for position in range(len(mixture)):
        mixture.get(0, position)
    header, first, second = table(mixture.tallies(1)).split("\n")
    assert header.split() == "dataset rows weight asked drawn rows seen skipped".split()  # noqa: SIM905
    assert first.split() == "a 1000 1 1000 1000 100% 1 (1 DataError)".split()  # noqa: SIM905
    assert second.split() == "b 50 1 50 50 100% 0".split()  # noqa: SIM905


def test_shares_of_a_long_run_are_exact():
    mixture = mix(("a", 30, 1.5), ("b", 10, 0.3))
    tallies = {tally.name: tally for tally in mixture.tallies(100)}
    assert Fraction(tallies["a"].drawn, tallies["b"].drawn) == Fraction(45, 3)
    assert (tallies["b"].seen, np.sum([tally.drawn for tally in tallies.values()])) == (10, 4800)


def test_datasets_of_rows_can_be_mixed():
    rows = Rows("r", ["x", "y"], lambda row, rng: Numbers(row, 1).get(0, rng))
    assert {sample.split()[0] for sample in ids(Mixture([MixturePart("r", rows)], 0))} == {"x", "y"}
