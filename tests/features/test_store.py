"""What the store survives: damage, kills, crowds, full and read-only disks, clocks that go backwards."""

import errno
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import fsspec
import pytest
import torch
from kept import features, fresh, identity, kill_at, write_all
from safetensors.torch import load_file

from segue.errors import ConfigError, DataError
from segue.features import FeatureCache, Features, Store, entries, inspection
from segue.features import store as store_module

SPAWNER = multiprocessing.get_context("forkserver")


def the_entry(root):
    (path,) = root.glob("ns/*/*/*.safetensors")
    return path


def equal(found, expected):
    return (
        found is not None
        and torch.equal(found.values, expected.values)
        and torch.equal(found.beside["frame_index"], expected.beside["frame_index"])
    )


def test_what_was_put_is_found_again(cache, root):
    assert cache.get("video", "u") is None
    assert cache.put("video", "u", features()).error == 0
    assert equal(fresh(root).get("video", "u"), features())
    assert (cache.usage.hits, cache.usage.misses) == (0, 1)


def test_36_plain_safetensors_reads_an_entry_by_name(cache, root):
    cache.put("video", "u", features())
    key = identity().key("video", "u").hash
    assert torch.equal(load_file(the_entry(root))[f"{key}/x"], features().values)


def test_36_an_entry_is_two_ranges_of_an_address(cache, root):
    cache.put("video", "u", features())
    content = the_entry(root).read_bytes()
    files = fsspec.filesystem("memory")
    files.pipe("/store/entry", content)
    size = int.from_bytes(content[:8], "little")
    assert size + 8 == entries.PAGE, "the header is the first page"
    head = files.cat_file("/store/entry", 0, entries.PAGE)
    assert b'"x"' not in head
    assert files.cat_file("/store/entry", entries.PAGE) == content[entries.PAGE :]


def test_a_store_at_an_address_is_read_and_not_written(cache, root):
    cache.put("video", "u", features())
    files = fsspec.filesystem("memory")
    files.put(str(root), "/shared", recursive=True)
    far = FeatureCache(Store("memory://shared"), identity())
    assert equal(far.get("video", "u"), features())
    assert far.get("other", "u") is None
    assert far.put("other", "u", features()) is None
    assert any("only read" in problem for problem in far.store.problems)


def test_the_file_weighs_what_its_tensors_and_one_page_do(cache, root):
    cache.put("video", "u", features())
    payload = features().values.nbytes + features().beside["frame_index"].nbytes
    assert the_entry(root).stat().st_size == entries.file_size(payload)


def test_31_a_flipped_bit_anywhere_in_an_entry_is_a_miss(root):
    fresh(root).put("video", "u", features())
    path = the_entry(root)
    sound = path.read_bytes()
    places = random.Random(0).sample(range(len(sound)), 150) + list(range(0, 64, 3)) + [len(sound) - 1]
    for place in places:
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 1 << place % 8]) + sound[place + 1 :])
        cache = fresh(root)
        assert cache.get("video", "u") is None, place
        assert cache.usage.corrupt == 1
        assert len(cache.store.problems) == 1
        assert not path.exists(), "it is in quarantine"
        cache.put("video", "u", features())
        assert equal(cache.get("video", "u"), features())
    assert len(list((root / "quarantine").iterdir())) == len(places)


@pytest.mark.parametrize("keep", [0, 7, 100, 4095, 4096, 5000, -1])
def test_31_a_truncated_entry_is_a_miss(root, keep):
    fresh(root).put("video", "u", features())
    path = the_entry(root)
    path.write_bytes(path.read_bytes()[:keep])
    cache = fresh(root)
    assert cache.get("video", "u") is None
    assert cache.usage.corrupt == 1


def test_31_a_zeroed_tail_of_the_right_length_is_a_miss(root):
    fresh(root).put("video", "u", features())
    path = the_entry(root)
    content = path.read_bytes()
    path.write_bytes(content[:-512] + bytes(512))
    assert fresh(root).get("video", "u") is None


def test_an_entry_under_the_name_of_another_is_a_miss(root):
    cache = fresh(root)
    cache.put("video", "u", features(0))
    cache.put("other", "u", features(1))
    first, second = (cache.store.path(cache.place(identity().key(name, "u"))) for name in ("video", "other"))
    second.write_bytes(first.read_bytes())
    again = fresh(root)
    assert again.get("other", "u") is None
    assert equal(again.get("video", "u"), features(0))


@pytest.mark.parametrize(
    ("facts", "changes"),
    [
        ({}, {"shape": [5]}),
        ({}, {"shape": "3"}),
        ({}, {"dtype": "F33"}),
        ({}, {"data_offsets": [-4, 512]}),
        ({"seconds": "long"}, {}),
        ({"shape": 5}, {}),
    ],
)
def test_an_entry_that_contradicts_itself_under_sound_checksums_is_a_miss(root, facts, changes):
    cache = fresh(root)
    cache.put("video", "u", features())
    path = the_entry(root)
    with path.open("rb") as file:
        head, content = entries.read_head(file), path.read_bytes()
    rows = {name: row | changes for name, row in head.tensors.items()}
    written = entries._header({**head.facts, **facts}, rows)
    path.write_bytes(written + content[head.size :])
    again = fresh(root)
    assert again.get("video", "u") is None and again.usage.corrupt == 1
    assert not inspection.verify(Store(root, reserve=0)).wrong  # it is set aside


@pytest.mark.parametrize("name", ["STORE.json", "ns/*/NAMESPACE.json", "refs/*.json", "stats/*.json"])
def test_a_flipped_bit_in_any_other_file_changes_no_feature(root, name):
    cache = fresh(root)
    cache.put("video", "u", features())
    cache.store.write_ref("data", cache.namespace, [identity().key("video", "u").hash])
    cache.get("video", "u")
    cache.write_usage()
    (path,) = root.glob(name)
    sound = path.read_bytes()
    for place in range(0, len(sound), max(1, len(sound) // 25)):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 1 << place % 8]) + sound[place + 1 :])
        try:
            again = fresh(root)
        except ConfigError as error:  # a format number that has become another one
            assert "format" in str(error)
            continue
        again.store.refs(), again.store.stats(), again.store.describe(again.namespace)
        assert equal(again.get("video", "u"), features())


def ended(target, *arguments):
    child = SPAWNER.Process(target=target, args=arguments)
    child.start()
    child.join()
    return child.exitcode


def test_30_a_writer_killed_at_any_line_leaves_whole_entries_or_none(tmp_path):
    assert ended(kill_at, tmp_path / "whole", 0) == 0
    total = int((tmp_path / "lines").read_text())
    root = tmp_path / "store"
    seen = set()
    kills, chance = 0, random.Random(0)
    while kills < 100:
        lines = chance.randrange(1, total)
        kills += ended(kill_at, root, lines) == -signal.SIGKILL
        cache = fresh(root)
        there = [cache.has(f"video{number}", "u") for number in range(4)]
        for number in (number for number, is_there in enumerate(there) if is_there):
            assert equal(cache.get(f"video{number}", "u"), features(number)), lines
        assert not cache.store.problems
        seen.add(sum(there))
        if all(there):  # begin anew
            for path in root.glob("ns/*/*/*.safetensors"):
                path.unlink()
    assert len(seen) > 1, "it was killed before, between and after entries"
    kill_at(root, 0)
    names = {path.relative_to(root) for path in root.glob("ns/*/*/*")}
    assert names == {path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").glob("ns/*/*/*")}


def test_what_killed_writers_left_is_removed_once_it_is_old(root):
    store = Store(root, reserve=0)
    (root / "tmp").mkdir()
    for name, age in (("old", 2 * store_module.DAY), ("new", 60), ("future", -store_module.DAY)):
        file = root / "tmp" / name
        file.write_bytes(b"half")
        os.utime(file, (time.time() - age,) * 2)
    assert store.clean() == 1
    assert sorted(path.name for path in (root / "tmp").iterdir()) == ["future", "new"]


@pytest.mark.parametrize("parts", [1, 8])
def test_32_eight_writers_of_one_store(root, tmp_path, parts):
    children = [SPAWNER.Process(target=write_all, args=(root, part, parts, tmp_path / "log")) for part in range(8)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 8
    computed = (tmp_path / "log").read_text().split()
    assert len(set(computed)) == 12
    assert parts == 1 or len(computed) == 12, "each is computed once where the work is shared out"
    cache = fresh(root)
    assert all(equal(cache.get(f"video{number}", "u"), features(number)) for number in range(12))
    assert len(list(cache.store.entries())) == 12
    assert not list((root / "tmp").iterdir())


def test_a_full_disk_ends_keeping_and_nothing_else(root, monkeypatch):
    cache = fresh(root)
    cache.put("video", "u", features(0))

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert cache.put("other", "u", features(1)) is None
    assert cache.store.is_full
    assert [problem for problem in cache.store.problems if "No space left" in problem]
    monkeypatch.undo()
    assert not list((root / "tmp").iterdir())
    assert equal(cache.get("video", "u"), features(0))
    assert cache.get("other", "u") is None


def test_33_the_reserve_of_the_disk_is_respected(root):
    cache = FeatureCache(Store(root, reserve=1 << 60), identity())
    assert cache.put("video", "u", features()) is None
    assert cache.store.is_full
    assert "left free" in cache.store.problems[0]


def test_33_a_budget_stops_and_what_is_there_is_still_used(root):
    weight = entries.file_size(features().values.nbytes + 24)
    cache = fresh(root, budget=2 * weight)
    kept = [cache.put(f"video{number}", "u", features(number)) for number in range(4)]
    assert [loss is not None for loss in kept] == [True, True, False, False]
    assert len(cache.store.problems) == 1
    assert equal(cache.get("video0", "u"), features(0))


def test_33_a_budget_that_evicts_removes_what_was_used_longest_ago(root, monkeypatch):
    clock = iter(range(1_000, 2_000))
    monkeypatch.setattr(store_module, "time", lambda: float(next(clock)))
    weight = entries.file_size(features().values.nbytes + 24)
    cache = fresh(root, budget=2 * weight, evicts=True)
    for number in range(2):
        cache.put(f"video{number}", "u", features(number))
        cache.get(f"video{number}", "u")
    cache.get("video0", "u")
    cache.put("video2", "u", features(2))
    assert [cache.has(f"video{number}", "u") for number in range(3)] == [True, False, True]
    assert not cache.store.problems


def test_33_pinned_datasets_are_never_evicted(root):
    weight = entries.file_size(features().values.nbytes + 24)
    cache = fresh(root, budget=2 * weight, evicts=True)
    for number in range(2):
        cache.put(f"video{number}", "u", features(number))
    keys = [identity().key(f"video{number}", "u").hash for number in range(2)]
    cache.store.write_ref("data", cache.namespace, keys, pinned=True)
    assert cache.put("video2", "u", features(2)) is None
    assert all(cache.has(f"video{number}", "u") for number in range(2))


def test_33_an_entry_that_is_evicted_while_it_is_read_is_read_to_its_end(cache, root):
    cache.put("video", "u", features())
    with the_entry(root).open("rb") as file:
        cache.store.evict(1 << 40)
        assert not list(cache.store.entries())
        assert entries.read(file).facts["mode"] == "lossless"


def test_a_read_only_cache_is_read(root, monkeypatch):
    fresh(root).put("video", "u", features())

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    sound = the_entry(root).read_bytes()
    for owner, name in ((Path, "mkdir"), (Path, "replace"), (Path, "write_text"), (Path, "unlink"), (os, "utime")):
        monkeypatch.setattr(owner, name, refuse)
    cache = fresh(root)
    assert equal(cache.get("video", "u"), features())
    assert cache.put("other", "u", features(1)) is None
    cache.write_usage()
    assert len(cache.store.problems) == 1
    assert "Read-only" in cache.store.problems[0]
    monkeypatch.undo()
    the_entry(root).write_bytes(sound[:-1])
    for name in ("mkdir", "replace"):
        monkeypatch.setattr(Path, name, refuse)
    again = fresh(root)
    assert again.get("video", "u") is None
    assert again.get("video", "u") is None, "it stays where it is and is not believed"
    assert again.usage.corrupt == 2


def test_a_folder_that_cannot_be_made_is_a_cache_that_finds_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    cache = fresh(tmp_path / "file" / "store")
    assert cache.get("video", "u") is None
    assert cache.put("video", "u", features()) is None
    assert cache.store.problems


def test_a_clock_that_goes_backwards_changes_no_feature(root, monkeypatch):
    clock = iter(range(10_000_000, 0, -1_000))
    monkeypatch.setattr(store_module, "time", lambda: float(next(clock)))
    weight = entries.file_size(features().values.nbytes + 24)
    cache = fresh(root, budget=3 * weight, evicts=True)
    for number in range(9):
        cache.put(f"video{number}", "u", features(number))
        assert equal(cache.get(f"video{number}", "u"), features(number))
    assert cache.store.clean() == 0
    assert len(list(cache.store.entries())) == 3


def test_20_what_is_not_finite_is_refused_and_counted(cache, root):
    broken = Features(torch.full((1, 2, 4), float("nan")))
    assert cache.put("video", "u", broken) is None
    assert "8 of 8" in cache.store.problems[0]
    assert cache.usage.refused == 1
    assert not list(cache.store.entries())


def test_features_of_another_precision_are_refused(cache):
    with pytest.raises(DataError, match="float16"):
        cache.put("video", "u", Features(features().values.half()))


def test_somebody_elses_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="holds other files"):
        Store(tmp_path)


def test_a_store_of_a_later_format_is_refused(root):
    Store(root, reserve=0)
    (root / "STORE.json").write_text('{"segue": "features", "format": 2}')
    with pytest.raises(ConfigError, match="format 2"):
        Store(root)


def test_37_the_list_of_entries_is_the_files_alone(root):
    cache = fresh(root)
    for number in range(5):
        cache.put(f"video{number}", "u", features(number))
    before = sorted((found.place.key, found.nbytes) for found in cache.store.entries())
    for name in ("stats", "refs"):
        for path in (root / name).glob("*"):
            path.unlink()
    (root / "STORE.json").unlink()
    assert sorted((found.place.key, found.nbytes) for found in Store(root, reserve=0).entries()) == before


def test_41_every_run_writes_down_what_it_found(cache, root):
    cache.put("video", "u", features(), seconds=3.0)
    cache.get("video", "u")
    cache.get("other", "u")
    cache.write_usage()
    other = fresh(root)
    other.get("video", "u")
    other.write_usage()
    rows = Store(root).stats()
    assert sorted((row["hits"], row["absent"]) for row in rows) == [(1, 0), (1, 1)]
    assert 2.5 < cache.usage.saved_seconds <= 3
