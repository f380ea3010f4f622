"""Pairs from the web: what each rule drops, and that a run cut short comes to the same."""

import json
import os
from collections import Counter

import pytest

from segue.errors import ConfigError, DataError
from segue.own_data import cleaning
from segue.own_data.cleaning import Rules, clean
from segue.progress import NoProgress

GOOD = {"image": "1.png", "width": 200, "height": 100, "text": "A red boat on the sea"}


@pytest.mark.parametrize(
    ("change", "reason", "without"),
    [
        ({"width": 900}, "most_oblong", {"most_oblong": None}),
        ({"width": 30, "height": 30}, "least_side", {"least_side": None}),
        ({"text": "Красная лодка в море"}, "languages", {"languages": False}),
        ({"text": "красная boat on the sea"}, "languages", {"languages": False}),
        ({"text": "A red boat 🚤 on the sea"}, "emoji", {"emoji": False}),
        ({"text": "boat"}, "least_letters", {"least_letters": None}),
        ({"text": "boat " * 300}, "most_letters", {"most_letters": None}),
        ({"text": "<PERSON> on a red boat"}, "special_tags", {"special_tags": False}),
    ],
)
def test_each_rule_drops_its_own_and_can_be_left_out(tmp_path, change, reason, without):
    assert clean(GOOD | change, Rules(), tmp_path)[0] == reason
    assert clean(GOOD | change, Rules(**without), tmp_path)[0] is None


@pytest.mark.parametrize(("score", "reason"), [(0.2, "least_clip"), (0.3, None), (None, "least_clip")])
def test_a_score_below_the_bound_or_none_at_all_is_dropped(tmp_path, score, reason):
    assert clean(GOOD | {"clip_score": score}, Rules(least_clip=0.28), tmp_path)[0] == reason
    assert clean(GOOD | {"clip_score": score}, Rules(), tmp_path)[0] is None


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("A <b>red</b> boat &amp; a man<br/>", "A red boat a man"),
        ("一艘红色的小船, 在海上!", "一艘红色的小船, 在海上!"),
        ("A boat!!!!! see http://x.org/a?b=1 or IMG_0012.JPG now", "A boat see or now"),
        ("Café “Zoë” – 20 € · 5′", "Café “Zoë” – 20 € · 5′"),
        ("1 < 2 and a boat", "1 < 2 and a boat"),
    ],
)
def test_html_and_odd_patterns_are_taken_out(tmp_path, text, kept):
    reason, record = clean(GOOD | {"text": text}, Rules(), tmp_path)
    assert (reason, record["text"]) == (None, kept)


def test_of_several_texts_the_longest_is_kept(tmp_path):
    record = {name: value for name, value in GOOD.items() if name != "text"}
    assert clean(record | {"texts": ["a boat", "a red boat", "boat"]}, Rules(), tmp_path)[1]["text"] == "a red boat"
    for wrong in ({}, {"texts": []}, {"texts": [1]}, {"text": 5}):
        with pytest.raises(DataError):
            clean(record | wrong, Rules(), tmp_path)


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    """Sixty records in chunks of some ten, and three lines that are none."""
    monkeypatch.setattr(cleaning, "CHUNK", 1000)
    texts = ["A red boat on the sea", "boat", "A 🚤 on the sea"]
    lines = [json.dumps(GOOD | {"image": f"{number}.png", "text": texts[number % 3]}) for number in range(60)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join([*lines, "{not json", "3", "null"]), encoding="utf-8")
    return file


COUNTS = Counter(kept=20, least_letters=20, emoji=20, unreadable=3)


@pytest.fixture
def cut_short(pairs, tmp_path, monkeypatch):
    """A run that ended in the middle."""
    whole = tmp_path / "whole"
    cleaning.run(pairs, tmp_path, whole, Rules())
    parts = sorted((whole / cleaning.PARTS).glob("*.json"))
    assert len(parts) > 4
    for part in parts[2:]:
        part.unlink()
    (whole / cleaning.KEPT).unlink()
    return whole


def test_a_run_cut_short_goes_on_where_it_was(pairs, cut_short, tmp_path):
    started = []
    progress = NoProgress()
    progress.start = lambda total, done=0: started.append((total, done))
    counts = cleaning.run(pairs, tmp_path, cut_short, Rules(), progress=progress)
    assert counts == COUNTS and started == [(len(list((cut_short / cleaning.PARTS).glob("*.json"))), 2)]
    kept = [json.loads(line) for line in (cut_short / cleaning.KEPT).read_text("utf-8").splitlines()]
    assert [row["image"] for row in kept] == [f"{number}.png" for number in range(0, 60, 3)]
    dropped = [json.loads(line) for line in (cut_short / cleaning.DROPPED).read_text("utf-8").splitlines()]
    assert Counter(row["reason"] for row in dropped) + Counter(kept=20) == COUNTS
    assert json.loads((cut_short / cleaning.COUNTS).read_text("utf-8")) == COUNTS


def test_a_byte_order_mark_costs_no_record(pairs, tmp_path):
    pairs.write_bytes(b"\xef\xbb\xbf" + pairs.read_bytes())
    assert cleaning.run(pairs, tmp_path, tmp_path / "marked", Rules()) == COUNTS


def test_two_shards_are_one_run(pairs, cut_short, tmp_path):
    cleaning.run(pairs, tmp_path, cut_short, Rules())
    first, last = (cleaning.run(pairs, tmp_path, tmp_path / "shared", Rules(), shard=(one, 2)) for one in (1, 0))
    assert (first, last) == (None, COUNTS)
    for name in (cleaning.KEPT, cleaning.DROPPED, cleaning.COUNTS):
        assert (tmp_path / "shared" / name).read_bytes() == (cut_short / name).read_bytes()


@pytest.mark.parametrize("change", ["rules", "root", "time"])
def test_a_folder_of_other_rules_another_root_or_what_the_file_was_is_refused(cut_short, pairs, tmp_path, change):
    rules, root = Rules(emoji=change != "rules"), tmp_path / "other" if change == "root" else tmp_path
    if change == "time":
        os.utime(pairs, (1, 1))
    with pytest.raises(ConfigError, match="other rules"):
        cleaning.run(pairs, root, cut_short, rules)


def test_a_part_that_is_gone_is_made_again(cut_short, pairs, tmp_path):
    (cut_short / cleaning.PARTS / "000000.kept").unlink()
    assert cleaning.run(pairs, tmp_path, cut_short, Rules()) == COUNTS


@pytest.mark.parametrize("name", [cleaning.RULES, "parts/000000.json"])
def test_what_is_damaged_is_told(cut_short, pairs, tmp_path, name):
    (cut_short / name).write_text("{")
    with pytest.raises(DataError, match="is damaged; delete it"):
        cleaning.run(pairs, tmp_path, cut_short, Rules())


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(DataError, match=r"gone\.jsonl cannot be read"):
        cleaning.run(tmp_path / "gone.jsonl", tmp_path, tmp_path / "out", Rules())
