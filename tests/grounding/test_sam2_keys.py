"""Original SAM 2 names, as Sa2VA saves them, against the places of the library's modules."""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from segue import weights
from segue.checkpoints.zoo import HIERA_L_WIDTH
from segue.errors import CheckpointError
from segue.grounding import sam2
from segue.models.known import TINY_SAM2
from segue.weights import Stored
from segue.weights.keys import compiled, match

TABLE = sam2.key_table("grounding_encoder.sam2_model.", "sam2.", "language_decoder.")


def places(sizes=None, *, two_decoders=False):
    with torch.device("meta"):
        module = sam2.LanguageSam2(sam2.architecture(sizes), two_decoders=two_decoders)
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def headers(shapes):
    return {name: Stored(Path("model.safetensors"), "F32", shape) for name, shape in shapes.items()}


def part(name):
    inner = name.removeprefix("grounding_encoder.sam2_model.")
    known = ("image_encoder.trunk", "image_encoder.neck", "memory_attention", "memory_encoder", "sam_prompt_encoder")
    return next(
        (start for start in (*known, "sam_mask_decoder_modified", "sam_mask_decoder") if inner.startswith(start)), "top"
    )


@pytest.fixture(scope="module")
def hiera_l():
    return weights.upstream_shapes(places(), TABLE)


def test_the_released_sam2_has_900_tensors_in_898_places(hiera_l):
    assert (len(hiera_l), len(places())) == (900, 898)
    assert hiera_l["grounding_encoder.sam2_model.image_encoder.trunk.pos_embed"][1] == HIERA_L_WIDTH


def test_every_part_has_as_many_tensors_and_parameters_as_the_released_one(hiera_l):
    tensors = Counter(map(part, hiera_l))
    numbers = Counter()
    for name, shape in hiera_l.items():
        numbers[part(name)] += math.prod(shape)
    assert numbers.total() == 224_430_386
    assert {name: (tensors[name], numbers[name]) for name in tensors if name != "top"} == {
        "image_encoder.trunk": (586, 212_149_296),
        "image_encoder.neck": (8, 553_984),
        "memory_attention": (106, 5_922_304),
        "memory_encoder": (40, 1_384_608),
        "sam_prompt_encoder": (17, 6_476),
        "sam_mask_decoder": (131, 4_215_109),
    }


@pytest.mark.parametrize(("two_decoders", "more"), [(False, 0), (True, 131)])
def test_names_and_places_belong_together_and_a_second_decoder_adds_its_own(two_decoders, more):
    expected = places(TINY_SAM2, two_decoders=two_decoders)
    shapes = weights.upstream_shapes(expected, TABLE)
    writes, report = weights.check(headers(shapes), expected, TABLE)
    assert report.total == len(shapes) == 344 + more
    assert {place for write in writes for place in write.places} == set(expected)
    assert sum(part(name) == "sam_mask_decoder_modified" for name in shapes) == more


def test_upstream_tensors_fill_the_module_and_come_back_as_they_were(tmp_path):
    module = sam2.LanguageSam2(sam2.architecture(TINY_SAM2), two_decoders=True)
    shapes = weights.upstream_shapes(places(TINY_SAM2, two_decoders=True), TABLE)
    draws = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=draws) for name, shape in shapes.items()}
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "model.safetensors")
    weights.load(module, tmp_path, TABLE)
    back = weights.to_upstream(module.state_dict(), TABLE, tensors)
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_one_gaussian_matrix_fills_both_of_its_places():
    name = "grounding_encoder.sam2_model.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    assert match(name, compiled(TABLE)).places == (
        "sam2.prompt_encoder.shared_embedding.positional_embedding",
        "sam2.shared_image_embedding.positional_embedding",
    )


@pytest.mark.parametrize("row", range(4))
def test_a_missing_row_of_the_point_embeddings_is_missed_by_its_own_name(row):
    expected = places(TINY_SAM2)
    name = f"grounding_encoder.sam2_model.sam_prompt_encoder.point_embeddings.{row}.weight"
    rest = {key: stored for key, stored in headers(weights.upstream_shapes(expected, TABLE)).items() if key != name}
    with pytest.raises(CheckpointError) as error:
        weights.check(rest, expected, TABLE)
    assert str(error.value).splitlines()[1:] == [f"  missing: {name} [1, 32]"]


def test_both_spellings_of_the_fusers_scale_are_understood_but_not_together():
    expected = places(TINY_SAM2)
    shapes = weights.upstream_shapes(expected, TABLE)
    start = "grounding_encoder.sam2_model.memory_encoder.fuser.layers.0."
    assert start + "g_weight" in shapes
    old = {name.replace("g_weight", "gamma"): shape for name, shape in shapes.items()}
    assert weights.check(headers(old), expected, TABLE)[1].total == len(shapes)
    with pytest.raises(CheckpointError, match="twice: .*gamma and .*g_weight"):
        weights.check(headers(shapes | {start + "gamma": (32,)}), expected, TABLE)


@pytest.mark.parametrize(
    "name", ["no_obj_embed_spatial", "obj_ptr_tpos_proj.weight", "sam_mask_decoder.unknown.weight"]
)
def test_what_sam2_1_adds_is_refused(name):
    assert match("grounding_encoder.sam2_model." + name, compiled(TABLE)) is None
