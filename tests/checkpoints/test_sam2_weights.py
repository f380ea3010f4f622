"""SAM 2's own weights given beside a checkpoint that has only the decoder that learned language."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from segue import weights
from segue.checkpoints.random_weights import random_checkpoint
from segue.errors import CheckpointError, ConfigError
from segue.loading import load
from segue.models.internvl.known import KNOWN
from segue.options import Options

SAM2 = "grounding_encoder.sam2_model."
MODIFIED, ORIGINAL = f"{SAM2}sam_mask_decoder_modified.", f"{SAM2}sam_mask_decoder."
RECORDED = Path(__file__).parents[3] / "shared" / "golden" / "sa2va_i"
ASKED = Options(prefill="It is [SEG] and [SEG].", keep_logits=True)


def without_original_decoder(tensors):
    """The checkpoint that it would be without SAM 2's own decoder: the one that learned language has its name."""
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(ORIGINAL)}
    return {name.replace(MODIFIED, ORIGINAL): tensor for name, tensor in rest.items()}


def sam2_alone(tensors):
    """SAM 2 as it was published."""
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(SAM2) and MODIFIED not in name}
    return {name.removeprefix(SAM2).replace("g_weight", "gamma"): tensor for name, tensor in own.items()}


def parted(folder, file, out):
    """A one-decoder checkpoint and SAM 2's own tensors, made of a folder with both decoders."""
    tensors = load_file(folder / file)
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors", "outputs*", "inputs*"))
    save_file(without_original_decoder(tensors), out / "model.safetensors", metadata={"format": "pt"})
    return out, sam2_alone(tensors)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A checkpoint with both decoders."""
    with pytest.MonkeyPatch.context() as patch:
        twin = replace(KNOWN["tiny"], two_decoders=True)
        patch.setitem(KNOWN, "twin", twin)
        return random_checkpoint(tmp_path_factory.mktemp("both") / "twin", "twin")


@pytest.fixture(scope="module")
def parts(both, tmp_path_factory):
    """The same as a checkpoint with one, and SAM 2."""
    return parted(both, "model.safetensors", tmp_path_factory.mktemp("parts") / "one")


@pytest.fixture
def given(parts, tmp_path):
    """Writes SAM 2's file, perhaps with other tensors."""

    def write(kind="pt", **changed):
        tensors = {**parts[1], **changed}
        tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        path = tmp_path / f"sam2.{kind}"
        torch.save({"model": tensors}, path) if kind == "pt" else save_file(tensors, path)
        return path

    return write


def plain(folder, **choices):
    return load(folder, device="cpu", dtype="fp32", **choices)


@pytest.mark.parametrize("kind", ["pt", "safetensors", "folder"])
def test_a_checkpoint_with_sam2_beside_it_is_the_one_that_carries_both(both, parts, given, clip, kind):
    whole, joined = plain(both), plain(parts[0], sam2=both if kind == "folder" else given(kind))
    one, other = (engine.ask(clip(7), "Where?", options=ASKED) for engine in (whole, joined))
    assert other.lineage["request"]["policy"] == "consistent" and other.lineage["request"]["frames"] == "uniform:5"
    for region, same in zip(one.regions, other.regions, strict=True):
        assert region.masks.rles == same.masks.rles
    expected, found = whole.model.state_dict(), joined.model.state_dict()
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)


def test_images_are_answered_as_without_it(parts, given, picture):
    alone, joined = plain(parts[0]), plain(parts[0], sam2=given())
    one, other = (engine.ask(picture(), "Where?", options=ASKED) for engine in (alone, joined))
    assert [region.masks.rles for region in one.regions] == [region.masks.rles for region in other.regions]


def test_the_lineage_says_what_lay_beside(parts, given):
    path = given()
    alone, joined = plain(parts[0]).lineage, plain(parts[0], sam2=path).lineage
    assert joined["sam2"]["files"] == {"sam2.pt": weights.file_hash(path)}
    assert joined["sam2"]["memory_changed"] == 0 and joined["sam2"]["tensors"] == len(
        plain(parts[0]).model.grounder.sam2.state_dict()
    )
    assert joined["model_hash"] != alone["model_hash"] and "sam2" not in alone


def test_such_a_model_is_saved_with_both_decoders(parts, given, both, tmp_path, clip):
    plain(parts[0], sam2=given()).save(tmp_path / "saved")
    one, other = (plain(folder).ask(clip(6), "Where?", options=ASKED) for folder in (both, tmp_path / "saved"))
    assert [region.masks.rles for region in one.regions] == [region.masks.rles for region in other.regions]


def test_a_model_in_half_precision_knows_its_sam2(parts, given):
    joined = load(parts[0], device="cpu", dtype="bf16", sam2=given())
    decoder = joined.model.grounder.sam2.mask_decoder
    assert {parameter.dtype for parameter in decoder.parameters()} == {torch.float32}
    assert joined.model.grounder.sam2.no_memory_embedding.dtype == torch.bfloat16


def test_a_memory_that_training_changed_becomes_sam2s_own(parts, given, tmp_path):
    name = "maskmem_tpos_enc"
    engine = plain(parts[0], sam2=given(**{name: parts[1][name] + 1}))
    place = engine.model.grounder.sam2.memory_temporal_positional_encoding
    assert torch.equal(place, parts[1][name] + 1) and engine.lineage["sam2"]["memory_changed"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"no_obj_ptr": None}, r"missing: grounder.sam2.no_object_pointer \[1, 32\]"),
        ({"no_obj_ptr": torch.zeros(1, 16)}, r"misshapen: grounder.sam2.no_object_pointer is \[1, 16\]"),
        ({"no_obj_embed_spatial": torch.zeros(1)}, r"(?s)no SAM 2 checkpoint .*unexpected: no_obj_embed_spatial \[1\]"),
        (
            {"no_mem_embed": torch.ones(1, 1, 32)},
            r"(?s)another SAM 2 .*other numbers: grounder.sam2.no_memory_embedding",
        ),
    ],
)
def test_another_sam2_is_refused_with_the_tensors_that_say_so(parts, given, change, message):
    with pytest.raises(CheckpointError, match=message):
        plain(parts[0], sam2=given(**change))


def test_a_model_with_both_decoders_needs_no_other(both, given):
    with pytest.raises(ConfigError, match="carries SAM 2's own mask decoder already"):
        plain(both, sam2=given())


def test_the_decoder_that_learned_language_is_no_sam2_of_its_own(parts):
    with pytest.raises(ConfigError, match="has the mask decoder that learned language and not SAM 2's own"):
        plain(parts[0], sam2=parts[0])


def test_the_consistent_policy_without_it_says_how_to_get_it(parts, clip):
    with pytest.raises(ConfigError, match="--sam2"):
        plain(parts[0]).ask(clip(2), "Where?", options=Options(policy="consistent"))


@pytest.mark.parity
@pytest.mark.skipif(not (RECORDED / "manifest.json").is_file(), reason="the large recordings are not here")
def test_a_recorded_sa2va_i_taken_apart_and_joined_is_the_recorded_model(tmp_path):
    """Whose masks `tests/test_parity.py` replays."""
    folder, tensors = parted(RECORDED, "weights.safetensors", tmp_path / "one")
    assert not any("modified" in name for name in tensors)
    save_file(tensors, tmp_path / "sam2.safetensors")
    whole, joined = plain(RECORDED), plain(folder, sam2=tmp_path / "sam2.safetensors")
    assert joined.ask(None, "Who?").lineage["request"]["policy"] == whole.ask(None, "Who?").lineage["request"]["policy"]
    expected, found = whole.model.state_dict(), joined.model.state_dict()
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)
