import json

import pytest
import torch

from segue import weights
from segue.weights import Rule, lazy
from segue.weights.keys import compiled, match
from segue.weights.lazy import Spec, Tensors

TABLE = [
    Rule(
        r"(\d)\.qkv",
        tuple(rf"layer.\1.{part}" for part in "qkv"),
        split=lambda fused: fused.chunk(3),
        join=lambda parts: torch.cat(list(parts)),
    ),
    *(Rule(rf"row\.{row}", ("table",), row=row) for row in range(2)),
    Rule(r"noise", ("here", "there")),
]


def held(**tensors) -> Tensors:
    return Tensors({name: Spec(tuple(t.shape), t.dtype) for name, t in tensors.items()}, tensors.__getitem__)


@pytest.fixture
def upstream():
    return {
        "0.qkv": torch.arange(12.0).view(6, 2),
        "row.1": torch.full((1, 3), 1.0),
        "row.0": torch.zeros(1, 3),
        "noise": torch.ones(4).half(),
    }


def natively(tensors, **options) -> Tensors:
    rules = compiled(TABLE)
    return lazy.native(held(**tensors), [write for name in tensors if (write := match(name, rules))], **options)


def test_upstream_tensors_come_apart_and_together_as_the_key_table_says(upstream):
    found = natively(upstream, tied={"again": "table"})
    assert found.shapes == {
        **{f"layer.0.{part}": (2, 2) for part in "qkv"},
        **{"table": (2, 3), "here": (4,), "there": (4,), "again": (2, 3)},
    }
    assert found.read("layer.0.k").tolist() == [[4, 5], [6, 7]]
    assert found.read("table").tolist() == found.read("again").tolist() == [[0, 0, 0], [1, 1, 1]]
    assert all(found.read(name).dtype == spec.dtype for name, spec in found.specs.items())
    back = lazy.upstream(found, TABLE, {name: tuple(tensor.shape) for name, tensor in upstream.items()})
    assert all(torch.equal(back.read(name), tensor) for name, tensor in upstream.items())


def test_a_place_that_has_a_tensor_of_its_own_is_not_tied(upstream):
    assert natively(upstream, tied={"here": "table"}).read("here").tolist() == [1, 1, 1, 1]


def test_casting_changes_floating_tensors_alone_and_when_they_are_read():
    mixed = held(a=torch.ones(2), b=torch.ones(2).int()).cast(lambda name: torch.bfloat16)
    assert {name: spec.dtype for name, spec in mixed.specs.items()} == {"a": torch.bfloat16, "b": torch.int32}
    assert mixed.read("a").dtype == torch.bfloat16 and mixed.read("b").dtype == torch.int32
    assert mixed.nbytes == 4 + 8


def test_shards_are_filled_in_order_and_a_tensor_is_never_cut(tmp_path):
    tensors = held(a=torch.ones(2), b=torch.ones(2), c=torch.ones(9), d=torch.ones(1))
    told = []
    digests = lazy.write_shards(tmp_path, tensors, advance=told.append, shard_bytes=16)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert [file[:11] for file in index["weight_map"].values()] == ["model-00001"] * 2 + ["model-00002", "model-00003"]
    assert index["metadata"]["total_size"] == sum(told) == 56
    assert digests["a"] == digests["b"] != digests["c"]
    assert set(weights.read_headers(tmp_path)) == set("abcd")
    assert all(file.stat().st_mode & 0o777 == 0o644 for file in tmp_path.glob("*.safetensors"))


def test_tensors_that_share_memory_are_written_each_by_itself(tmp_path):
    whole = torch.arange(6.0).view(2, 3)
    lazy.write_shards(tmp_path, held(whole=whole, turned=whole.t(), first=whole[:1]), advance=lambda _: None)
    read = lazy.stored(weights.read_headers(tmp_path)).read
    assert torch.equal(read("turned"), whole.t()) and torch.equal(read("first"), whole[:1])


@pytest.mark.parametrize("tensor", [torch.tensor(3.0), torch.empty(0), torch.ones(2, 3).t(), torch.ones(2).bfloat16()])
def test_a_digest_is_of_the_numbers_whatever_the_shape_or_layout(tensor):
    assert lazy.digest(tensor) == lazy.digest(tensor.contiguous().flatten())
