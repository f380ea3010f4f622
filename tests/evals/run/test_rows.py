"""Lines on the disk: what counts of them, and what is refused."""

import pytest

from segue.errors import DataError
from segue.evals.run import rows
from segue.files import mend


def ok(index, **more):
    return {"index": index, "id": f"id{index}", "status": "ok", **more}


def failed(index):
    return {"index": index, "id": f"id{index}", "status": "failed", "error": "no", "kind": "DataError"}


def put(path, *lines, torn=b""):
    path.write_bytes(b"".join(map(rows.encode, lines)) + torn)


def test_files_of_all_shards_count_together_in_the_order_of_the_data(tmp_path):
    put(tmp_path / "rows-1-of-2.jsonl", ok(3), ok(1))
    put(tmp_path / "rows-0-of-2.jsonl", ok(2), ok(0))
    put(tmp_path / "rows-notes.jsonl", ok(9))
    assert list(rows.gathered(tmp_path)) == [0, 1, 2, 3]


def test_a_torn_last_line_is_no_line_and_is_cut_off_before_others_follow(tmp_path):
    path = tmp_path / "rows.jsonl"
    put(path, ok(0), torn=rows.encode(ok(1))[:-1])
    assert list(rows.gathered(tmp_path)) == [0]
    mend(path)
    rows.add(path, ok(2))
    assert list(rows.gathered(tmp_path)) == [0, 2]


def test_an_answer_counts_over_a_failure_and_never_twice(tmp_path):
    put(tmp_path / "rows.jsonl", failed(0), ok(0, row={"x": 1}), failed(1), failed(1))
    found = rows.gathered(tmp_path)
    assert (found[0]["status"], found[1]["status"]) == ("ok", "failed")
    put(tmp_path / "rows-0-of-2.jsonl", ok(0))
    with pytest.raises(DataError, match=r"answers row 0 \(id0\), which is answered already"):
        rows.gathered(tmp_path)


def test_a_failure_after_an_answer_takes_nothing_away(tmp_path):
    put(tmp_path / "rows.jsonl", ok(0), failed(0))
    assert rows.gathered(tmp_path)[0]["status"] == "ok"


def test_two_rows_of_one_id_are_refused(tmp_path):
    put(tmp_path / "rows.jsonl", ok(0), {**ok(1), "id": "id0"})
    with pytest.raises(DataError, match="rows 0 and 1 have one id"):
        rows.gathered(tmp_path)


@pytest.mark.parametrize("text", [b"nonsense\n", b"[]\n", b'{"index": 0, "id": "a"}\n', b"\n"])
def test_a_line_in_the_middle_that_is_none_of_ours_is_named(tmp_path, text):
    (tmp_path / "rows.jsonl").write_bytes(rows.encode(ok(0)) + text + rows.encode(ok(1)))
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2 is damaged"):
        rows.gathered(tmp_path)


def test_a_value_that_json_cannot_hold_is_refused_before_it_is_written():
    with pytest.raises(DataError, match="the row of id0 holds a value"):
        rows.encode(ok(0, row={"iou": float("nan")}))


def test_what_is_kept_of_a_line_is_for_the_reader_to_say(tmp_path):
    put(tmp_path / "rows.jsonl", ok(0, answer="long"))
    assert rows.gathered(tmp_path, lambda line: {"id": line["id"], "status": line["status"]}) == {
        0: {"id": "id0", "status": "ok"}
    }
