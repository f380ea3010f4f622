"""What lies in a store, whether it is whole, why something was missed, what can go."""

import pytest
from kept import features, fresh, identity

from segue.features import FeatureCache, Store
from segue.features import inspection as looking
from segue.features.inspection import Pruning


@pytest.fixture
def filled(root):
    """Five entries of the same size: three of dataset a, two of dataset b, one in both."""
    cache = fresh(root)
    for number in range(4):
        cache.put(f"video{number}", "u", features(number))
    keys = [identity().key(f"video{number}", "u").hash for number in range(4)]
    cache.store.write_ref("a", cache.namespace, keys[:3])
    cache.store.write_ref("b", cache.namespace, keys[2:], pinned=True)
    return cache


def names(filled, gone):
    keys = {identity().key(f"video{number}", "u").hash: number for number in range(4)}
    return sorted(keys[one.place.key] for one in gone)


def test_a_store_is_listed_by_namespace_and_dataset(filled):
    (space,) = looking.spaces(filled.store)
    assert (space.count, space.identity["point"]) == (4, "tower")
    rows = {row["dataset"]: (row["media"], row["there"], row["pinned"]) for row in looking.datasets(filled.store)}
    assert rows == {"a": (3, 3, False), "b": (2, 2, True)}
    assert sum(row["bytes"] for row in looking.datasets(filled.store)) == space.nbytes // 4 * 5


def test_the_runs_are_added_up(filled):
    filled.get("video0", "u")
    filled.write_usage()
    other = fresh(filled.store.folder)
    other.get("nothing", "u")
    other.write_usage()
    found = looking.totals(filled.store)
    assert (found["hits"], found["absent"]) == (1, 1)


def test_verifying_finds_and_sets_aside_what_is_damaged(filled, root):
    first, second, *_ = root.glob("ns/*/*/*.safetensors")
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(content)
    second.write_bytes(second.read_bytes()[:-1])
    found = looking.verify(Store(root, reserve=0))
    assert found.sound == 2
    assert sorted(line.split(":")[0] for line in found.wrong) == sorted(map(str, (first, second)))
    assert not first.exists()
    assert looking.verify(Store(root, reserve=0)).wrong == []


def test_43_an_entry_with_the_features_of_another_is_found(filled, root):
    first, second, *_ = root.glob("ns/*/*/*.safetensors")
    first.write_bytes(second.read_bytes())
    found = looking.verify(Store(root, reserve=0))
    assert len(found.wrong) == 1
    assert "key object" in found.wrong[0]


def test_42_a_miss_is_explained_by_what_the_nearest_entry_has_else(filled):
    other = identity(fingerprint="1" * 64).key("video0", "u")
    assert looking.explain(filled.store, identity().key("video0", "u").parts) == []
    first, second = looking.explain(filled.store, other.parts)
    assert "is of this medium" in first
    assert second.startswith("encoder.fingerprint: 000000000000... is not 111111111111...")
    assert "sampling: u is not v" in looking.explain(filled.store, identity().key("video0", "v").parts)
    assert "no entry is of this medium" in looking.explain(filled.store, identity().key("x", "u").parts)[0]


def test_a_miss_of_an_empty_store_is_explained(root):
    assert looking.explain(Store(root, reserve=0), {}) == ["the store has no entries"]


@pytest.mark.parametrize(
    ("pruning", "gone"),
    [
        (Pruning(dataset="a"), [0, 1]),
        (Pruning(dataset="b"), [3]),
        (Pruning(days=0.0), [0, 1]),
        (Pruning(days=1.0), []),
        (Pruning(budget=10**9), []),
        (Pruning(budget=0), [0, 1]),
        (Pruning(dataset="c"), []),
    ],
)
def test_prune_takes_what_it_is_told_and_leaves_what_others_use(filled, pruning, gone):
    assert names(filled, looking.to_prune(filled.store, pruning)) == gone


def test_prune_takes_a_namespace(filled, root):
    other = FeatureCache(Store(root, reserve=0), identity(select_layer=-1))
    other.put("video0", "u", features())
    gone = looking.to_prune(filled.store, Pruning(namespace=other.namespace))
    assert [one.place.namespace for one in gone] == [other.namespace]
    assert sum(filled.store.remove(one) for one in gone) == gone[0].nbytes
