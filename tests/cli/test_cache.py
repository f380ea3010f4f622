"""`segue cache` as its users see it."""

import json

import pytest
import torch

from segue.cli import cache
from segue.features import FeatureCache, Features, Identity, Store

IDENTITY = Identity({"family": "clip_vision", "fingerprint": "0" * 64, "compute_dtype": "F32"}, "tower", {})


@pytest.fixture
def filled(tmp_path):
    cache = FeatureCache(Store(tmp_path / "cache", reserve=0), IDENTITY)
    for number in range(3):
        cache.put(f"video{number}", "u", Features(torch.full((2, 4, 8), float(number))), seconds=1.0)
    cache.store.write_ref("videos", cache.namespace, [IDENTITY.key("video0", "u").hash])
    cache.get("video0", "u")
    cache.write_usage()
    return tmp_path / "cache"


def test_stats_for_people_and_for_programs(run_segue, filled):
    shown = run_segue("cache", "stats", filled)
    assert shown.exit_code == 0 and shown.stderr == f"reading what {filled} holds\n"
    assert all(
        word in shown.stdout for word in ("clip_vision", "000000000000", "tower", "lossless", "videos", "100.0 %")
    )
    found = json.loads(run_segue("cache", "stats", filled, "--json").stdout)
    assert found["namespaces"][0]["entries"] == 3
    assert found["totals"]["hits"] == 1


@pytest.mark.parametrize("shard", ["2/2", "0/0", "-1/2"])
def test_a_shard_is_one_of_several_or_nothing_is_made(run_segue, tmp_path, shard):
    run = run_segue("cache", "build", "mme", "--cache", tmp_path / "cache", "-m", "demo", f"--shard={shard}")
    assert run.exit_code == 2 and "is no shard" in run.stderr and not (tmp_path / "cache").exists()


def test_verify_says_by_its_exit_code_that_something_is_wrong(run_segue, filled):
    assert run_segue("cache", "verify", filled).exit_code == 0
    path = next(filled.glob("ns/*/*/*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])
    result = run_segue("cache", "verify", filled, "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["sound"] == 2
    assert run_segue("cache", "verify", filled).exit_code == 0, "it was set aside"


def test_prune_tells_first_and_then_does(run_segue, filled):
    told = json.loads(run_segue("cache", "prune", filled, "--dataset", "videos", "--dry-run", "--json").stdout)
    assert told["entries"] == 1
    assert len(list(filled.glob("ns/*/*/*.safetensors"))) == 3
    assert "1 entries" in run_segue("cache", "prune", filled, "--dataset", "videos").stdout
    assert len(list(filled.glob("ns/*/*/*.safetensors"))) == 2


def test_inspect_tells_what_an_entry_is_made_of(run_segue, filled):
    key = IDENTITY.key("video1", "u").hash
    (row,) = json.loads(run_segue("cache", "inspect", filled, key[:12], "--json").stdout)
    assert row["key_object"]["source"] == "video1"
    assert row["loss"] == {"error": 0.0, "peak": 0.0}


def test_why_a_model_does_not_find_an_entry_is_json_where_that_is_asked_for(run_segue, filled, monkeypatch):
    monkeypatch.setattr(cache, "load_model", lambda *_: None)
    monkeypatch.setattr(cache, "_explain", lambda *_: ["it has another dtype"])
    run = run_segue("cache", "inspect", filled, "a.png", "--model", "demo", "--json")
    assert json.loads(run.stdout) == ["it has another dtype"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("stats", "nowhere"), "no feature cache"),
        (("stats", "s3://bucket/cache"), "is an address"),
        (("prune", "CACHE"), "say what is to go"),
        (("prune", "CACHE", "--dataset", "x"), "knows no dataset 'x'"),
        (("prune", "CACHE", "--namespace", "x"), "no namespace 'x'"),
        (("prune", "CACHE", "--budget", "much"), "'much' is no size"),
        (("inspect", "CACHE", "ffff"), "no entry of ffff"),
    ],
)
def test_a_mistake_is_one_line(run_segue, filled, words, message):
    result = run_segue("cache", *(filled if word == "CACHE" else word for word in words))
    assert result.exit_code == 2
    assert message in result.stderr
