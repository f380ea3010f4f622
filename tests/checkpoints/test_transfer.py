"""Components of one checkpoint go into a model of another size only by name, and only as far as they fit."""

import json

import pytest
import torch
from safetensors.torch import save_file

from segue import weights
from segue.checkpoints import convert, random_weights, zoo
from segue.checkpoints.folders import OpenedFolder, open_folder
from segue.checkpoints.transfer import TransferSource, transfer
from segue.errors import CheckpointError, ConfigError
from segue.grounding.model import component_of, components, expected
from segue.models import FAMILIES
from segue.models.tokenizers import load_tokenizer
from segue.weights.lazy import Spec, Tensors


def wanted(*names, **options):
    return convert.TransferOptions(components=names or None, **options)


@pytest.fixture
def other_folder(tmp_path):
    """A model of the same size with other weights."""
    return random_weights.random_checkpoint(tmp_path / "other", seed=7)


@pytest.fixture
def larger_file(larger_folder, tmp_path, tensors_of):
    """The larger model as the original's converter to `.pth` writes it."""
    bare = {
        name if name.startswith(("text_hidden_fcs", "grounding")) else f"mllm.model.{name}": tensor
        for name, tensor in tensors_of(larger_folder).items()
    }
    torch.save(bare, tmp_path / "larger.pth")
    return tmp_path / "larger.pth"


def imagined(name, folder):
    """A released model of which only the sizes are there."""
    config = zoo.config_of(name)
    shapes = expected(config)
    specs = {place: Spec(shape, torch.bfloat16) for place, shape in shapes.items()}
    sizes = zoo.Sizes.of_shapes(shapes)
    return OpenedFolder(folder, config, Tensors(specs, lambda place: pytest.fail(f"read {place}")), shapes, sizes)


def test_a_26b_is_not_transferred_into_an_8b_and_one_screen_says_why(tmp_path):
    model = imagined("Sa2VA-InternVL3-8B", tmp_path / "Sa2VA-InternVL3-8B")
    larger = imagined("Sa2VA-26B", tmp_path / "Sa2VA-26B")
    source = TransferSource(larger.folder, larger.tensors, larger.sizes, {"a": 0})
    with pytest.raises(CheckpointError) as error:
        transfer(model, {"a": 0, "b": 1}, source, wanted())
    first, *lines = str(error.value).splitlines()
    assert "Sa2VA-26B (InternViT 3200 wide, 45 deep; InternLM2 6144 wide, 48 deep; SAM 2 Hiera-L)" in first
    assert "Sa2VA-InternVL3-8B (InternViT 1024 wide, 24 deep; Qwen2 3584 wide, 28 deep; SAM 2 Hiera-L)" in first
    assert "vision, connector, language, embeddings, seg_projector cannot be transferred; nothing was loaded" in first
    assert "name what to take over: --components mask_decoder,sam2.encoder,sam2.prompts,sam2.memory" in first
    assert "  seg_projector: 1 of 4 tensors fit (0.0% of the numbers), 3 of another shape, 0 absent" in lines[4]
    assert len(lines) == 9 and "  vision: 0 of 436" in lines[0]
    found = transfer(model, {}, source, wanted("seg_projector", "mask_decoder", min_coverage=0.0))
    assert len(found.loaded) == 132 and "seg_projector.2.bias" in found.loaded
    assert found.report()["fraction"] == pytest.approx(4_215_365 / 8.18e9, rel=0.01)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_larger_model_is_refused_whole_and_gives_its_mask_decoder_by_name(
    official_folder, larger_folder, larger_file, target, tensors_of, kind
):
    source = larger_folder if kind == "folder" else larger_file
    with pytest.raises(
        CheckpointError, match=r"(?s)InternLM2 160 wide.*Qwen2 128 wide.*cannot be transferred.*language: 0"
    ):
        convert.initialise(official_folder, target(), source, wanted())
    assert not target().folder.exists()
    convert.initialise(official_folder, target(), source, wanted("mask_decoder"))
    convert.export(target().folder, target("official"))
    before, larger, after = map(tensors_of, (official_folder, larger_folder, target("official").folder))
    for name, tensor in after.items():
        assert torch.equal(tensor, (larger if ".sam_mask_decoder." in name else before)[name]), name


def test_a_named_component_that_does_not_fit_is_refused_too(official_folder, larger_folder, target):
    with pytest.raises(CheckpointError, match="language cannot be transferred"):
        convert.initialise(official_folder, target(), larger_folder, wanted("language", "mask_decoder"))


def test_nothing_at_all_is_never_enough(official_folder, larger_folder, target):
    with pytest.raises(CheckpointError, match="connector cannot be transferred"):
        convert.initialise(official_folder, target(), larger_folder, wanted("connector", min_coverage=0.0))


def test_a_part_of_a_component_is_taken_only_when_said(official_folder, larger_folder, target):
    found = convert.initialise(official_folder, target(), larger_folder, wanted("seg_projector", min_coverage=0.0))
    (row,) = found.rows
    assert (row.loaded, row.mismatched, found.loaded) == (1, 3, ("seg_projector.2.bias",))


def test_a_deeper_model_of_the_same_width_is_not_the_same_model(official_folder, tmp_path, target, tensors_of):
    deep = tmp_path / "deep"
    deep.mkdir()
    for file in official_folder.iterdir():
        (deep / file.name).write_bytes(file.read_bytes())
    config = json.loads((deep / "config.json").read_text())
    config["llm_config"]["num_hidden_layers"] = 3
    (deep / "config.json").write_text(json.dumps(config))
    tensors = tensors_of(deep)
    more = {
        name.replace("layers.1.", "layers.2."): t.clone()
        for name, t in tensors.items()
        if "language_model.model.layers.1." in name
    }
    save_file({**tensors, **more}, deep / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"(?s)language cannot be transferred.*language: 25 of 25.*12 without a place"
    ):
        convert.initialise(official_folder, target(), deep, wanted("language"))
    assert (
        convert.initialise(official_folder, target(), deep, wanted("language", min_coverage=0.5)).rows[0].unused == 12
    )


def test_the_same_architecture_is_taken_over_whole_without_naming_anything(
    official_folder, other_folder, target, tensors_of, same_tensors
):
    found = convert.initialise(official_folder, target(), other_folder, wanted())
    assert all(row.fraction == 1 for row in found.rows) and found.kept == ()
    convert.export(target().folder, target("official"))
    assert same_tensors(tensors_of(target("official").folder), tensors_of(other_folder))


def test_the_account_is_written_with_the_model(official_folder, other_folder, target):
    found = convert.initialise(official_folder, target(), other_folder, wanted("vision", "sam2.memory"))
    report = weights.read_json(target().folder / "load_report.json")
    assert report == found.report()
    assert [row["component"] for row in report["components"]] == ["vision", "sam2.memory"]
    assert report["kept"] == [
        *("connector", "language", "embeddings", "seg_projector", "mask_decoder", "sam2.encoder", "sam2.prompts")
    ]
    made_from = weights.read_json(target().folder / "lineage.json")["made_from"]
    assert made_from["components"] == ["vision", "sam2.memory"] and made_from["source"]["name"] == "other"


def test_tables_of_another_vocabulary_are_matched_by_the_tokens_text(official_folder, other_folder, target, tensors_of):
    path = other_folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    swapped = {"[SEG]": "<p>", "<p>": "[SEG]", "</vp>": "<other>"}
    for token in tokenizer["added_tokens"]:
        token["content"] = swapped.get(token["content"], token["content"])
    path.write_text(json.dumps(tokenizer))
    ids, theirs = load_tokenizer(official_folder).get_vocab(), load_tokenizer(other_folder).get_vocab()
    assert ids["[SEG]"] != theirs["[SEG]"] and "</vp>" not in theirs
    with pytest.raises(CheckpointError, match=r"embeddings cannot be transferred"):
        convert.initialise(official_folder, target(), other_folder, wanted())
    found = convert.initialise(official_folder, target(), other_folder, wanted("embeddings"))
    assert found.rows[0].loaded_numbers == 2 * 272 * 128
    table = open_folder(target().folder).tensors.read("mllm.language_model.lm_head.weight")
    ours, other = (tensors_of(folder)["language_model.lm_head.weight"] for folder in (official_folder, other_folder))
    assert torch.equal(table[ids["[SEG]"]], other[theirs["[SEG]"]])
    assert torch.equal(table[ids["</vp>"]], ours[ids["</vp>"]])
    assert torch.equal(table[:256], other[:256])


def test_a_model_in_memory_is_filled_where_it_is_asked_and_nowhere_else(make_engine, other_folder, tmp_path, teach):
    engine, other = make_engine(seed=1), make_engine(seed=2)
    other.save(tmp_path / "saved")
    before = {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}
    found = convert.init_from(
        engine.model, engine.processor.tokenizer, tmp_path / "saved", wanted("mask_decoder", "connector")
    )
    parts = components(FAMILIES["internvl"])
    theirs = other.model.state_dict()
    for name, tensor in engine.model.state_dict().items():
        is_asked = component_of(name, parts) in ("mask_decoder", "connector")
        assert torch.equal(tensor, (theirs if is_asked else before)[name]), name
    assert len(found.loaded) == 131 + 6


def test_a_model_in_memory_stays_as_it_is_where_less_fits_than_asked(make_engine, larger_folder):
    engine = make_engine(seed=1)
    before = {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}
    with pytest.raises(CheckpointError, match="cannot be transferred"):
        convert.init_from(engine.model, engine.processor.tokenizer, larger_folder)
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.model.state_dict().items())


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (wanted("llm"), "unknown component llm; the model has vision, connector, language, embeddings, seg_projector"),
        (convert.TransferOptions(components=[]), "no component is named"),
        (wanted("vision", min_coverage=2.0), "the least coverage 2.0 is no share; expected 0 to 1"),
        (wanted("language_decoder"), "unknown component language_decoder"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused(official_folder, other_folder, target, asked, words):
    with pytest.raises(ConfigError, match=words):
        convert.initialise(official_folder, target(), other_folder, asked)


def test_a_training_checkpoint_is_no_source_of_components(official_folder, target, tmp_path):
    name = "mllm.model.language_model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    torch.save({"state_dict": {name: torch.zeros(2, 128)}}, tmp_path / "iter_9.pth")
    with pytest.raises(CheckpointError, match=r"LoRA pairs.*segue convert import iter_9.pth OUT --base MODEL"):
        convert.initialise(official_folder, target(), tmp_path / "iter_9.pth", wanted())


@pytest.mark.parametrize("name", ["Sa2VA-InternVL3-8B", "Sa2VA-i-1B"])
def test_every_tensor_belongs_to_a_component(name):
    config = zoo.config_of(name)
    parts = components(FAMILIES[config.family])
    found = {component_of(place, parts) for place in expected(config)}
    assert None not in found and found == set(parts) - ({"language_decoder"} if not config.two_decoders else set())
