"""What makes two entries one, and what does not."""

import numpy as np
import pytest
import torch
from kept import features, identity

from segue.features import FeatureCache, Identity, Sources, Store, digest, fingerprint, keys
from segue.features.keys import differences
from segue.media import open_media


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(4, 3, generator=generator) for name in ("b.weight", "a.weight", "a.bias")}


def test_25_one_bit_of_one_weight_changes_the_fingerprint():
    before, tensors = fingerprint(weights(), torch.float32), weights()
    tensors["a.weight"].view(torch.int32)[0, 0] ^= 1
    assert fingerprint(tensors, torch.float32) != before


def test_25_precision_and_order_of_a_copy_do_not():
    halves = {name: tensor.half() for name, tensor in weights().items()}
    back = {name: halves[name].float() for name in reversed(halves)}
    assert fingerprint(halves, torch.float16) == fingerprint(back, torch.float16)
    assert fingerprint(halves, torch.float16) != fingerprint(halves, torch.float32)


def test_a_weight_that_changes_its_name_or_shape_changes_the_fingerprint():
    tensors = {"a": torch.arange(6.0).view(2, 3)}
    known = fingerprint(tensors, torch.float32)
    assert fingerprint({"b": tensors["a"]}, torch.float32) != known
    assert fingerprint({"a": tensors["a"].view(3, 2)}, torch.float32) != known


@pytest.mark.parametrize(
    "other",
    [
        identity(fingerprint="1" * 64),
        identity(select_layer=-1),
        identity(select_feature="cls_patch"),
        identity(compute_dtype="F16"),
        Identity(identity().encoder, "projected", identity().preprocess),
        Identity(identity().encoder, "tower", {**identity().preprocess, "resize": "torch_bicubic"}),
        Identity(identity().encoder, "tower", {**identity().preprocess, "mean": [0, 0, 0]}),
        Identity(identity().encoder, "tower", {**identity().preprocess, "decoder": "opencv"}),
    ],
)
def test_27_whatever_decides_a_feature_changes_key_and_namespace(other):
    assert other.key("s", "u").hash != identity().key("s", "u").hash
    assert other.namespace("lossless") != identity().namespace("lossless")
    assert differences(identity().describe(), other.describe())


def test_27_source_and_sampling_change_the_key_and_not_the_namespace():
    known = identity().key("s", "linspace(0,N-1,128)/int").hash
    assert identity().key("t", "linspace(0,N-1,128)/int").hash != known
    assert identity().key("s", "linspace(0,N-1,64)/int").hash != known


def test_27_another_version_of_the_format_is_another_key(monkeypatch):
    known = identity().key("s", "u").hash
    monkeypatch.setattr(keys, "VERSION", keys.VERSION + 1)
    assert identity().key("s", "u").hash != known


def test_the_format_is_part_of_the_namespace():
    assert identity().namespace("int8") != identity().namespace("lossless")


def test_digest_does_not_depend_on_order():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})


def test_26_a_tower_in_two_models_is_one_namespace_and_projected_features_are_not(root):
    store = Store(root, reserve=0)
    first = FeatureCache(store, identity())
    first.put("video", "u", features())
    second = FeatureCache(store, identity())
    assert second.get("video", "u") is not None
    whole = Identity({**identity().encoder, "projector": "1" * 64}, "projected", identity().preprocess)
    other = Identity({**identity().encoder, "projector": "2" * 64}, "projected", identity().preprocess)
    FeatureCache(store, whole).put("video", "u", features())
    assert FeatureCache(store, other).get("video", "u") is None


def test_28_a_video_replaced_in_place_is_another_and_a_moved_one_is_the_same(tmp_path):
    sources, file = Sources(tmp_path / "known"), tmp_path / "a.npy"
    file.write_bytes(b"one")
    before = sources.facts.hash(file)
    moved = file.rename(tmp_path / "b.npy")
    assert sources.facts.hash(moved) == before
    file.write_bytes(b"two")
    assert sources.facts.hash(file) != before


def test_arrays_bytes_and_files_are_told_apart_by_content(tmp_path):
    pixels = np.zeros((2, 8, 6, 3), np.uint8)
    sources = Sources()
    assert sources.hash(open_media(pixels)) == sources.hash(open_media(pixels.copy()))
    assert sources.hash(open_media(pixels)) != sources.hash(open_media(pixels.transpose(0, 2, 1, 3).copy()))
