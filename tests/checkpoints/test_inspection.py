import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from segue import loading
from segue.checkpoints import inspection, random_weights
from segue.errors import CheckpointError
from segue.models.internvl.known import KNOWN


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return random_weights.random_checkpoint(tmp_path_factory.mktemp("model") / "sound")


@pytest.fixture
def spoilt(sound, tmp_path):
    """Copies the sound folder with its tensors, its config.json or other files changed."""

    def make(*, tensors=None, config=None, files=None, without=()):
        folder = shutil.copytree(sound, tmp_path / "spoilt")
        if tensors is not None:
            changed = {**load_file(folder / "model.safetensors"), **tensors}
            save_file(
                {name: tensor for name, tensor in changed.items() if tensor is not None}, folder / "model.safetensors"
            )
        if config is not None:
            fields = json.loads((folder / "config.json").read_text())
            config(fields)
            (folder / "config.json").write_text(json.dumps(fields))
        for name, text in (files or {}).items():
            (folder / name).write_text(text)
        for name in without:
            (folder / name).unlink()
        return folder

    return make


def test_a_sound_folder_is_described_part_by_part(sound):
    found = inspection.report(sound)
    assert found.is_usable and found.problems == ()
    assert (found.family, found.layout, found.architecture, found.is_exact) == ("internvl", "official", "tiny", True)
    assert (found.template, found.rows, found.policy, found.is_tied) == ("qwen_chat", 273, "upstream", False)
    assert [part.name for part in found.components] == [
        "vision tower",
        "projector",
        "language model",
        "embeddings and head",
        "segmentation projector",
        "SAM 2 image encoder",
        "SAM 2 prompt encoder",
        "SAM 2 mask decoder",
        "SAM 2 memory",
    ]
    parts = {part.name: part for part in found.components}
    assert parts["embeddings and head"].parameters == 2 * 273 * 128 and parts["embeddings and head"].dtypes == ("F32",)
    assert (
        found.parameters * 4 == sum(part.nbytes for part in found.components) < found.weight_bytes < found.folder_bytes
    )
    assert (found.code, found.pickles) == (("auto_map in config.json",), ())
    assert found.lineage["made_from"]["random"] is True


def test_weights_take_half_in_half_precision_but_for_the_mask_decoder(sound):
    found = inspection.report(sound)
    decoder = next(part.parameters for part in found.components if part.name == "SAM 2 mask decoder")
    matrix = 2 * 16  # one saved Gaussian matrix fills two places
    assert found.memory["fp32"] == 4 * (found.parameters + matrix)
    assert found.memory["bf16"] == found.memory["fp16"] == 2 * (found.parameters + matrix) + 2 * decoder
    image = found.working_memory["an image at its largest"]
    assert image["fp32"] == 2 * image["bf16"] > 0


def test_fewer_bits_and_more_objects_are_told_beforehand(sound):
    found = inspection.report(sound)
    assert found.memory["int4"] < found.memory["int8"] < found.memory["bf16"]
    one, many = (found.working_memory[f"a video, {words}"]["fp32"] for words in ("1 object", "16 objects"))
    assert one < many


def test_two_decoders_are_followed_consistently(tmp_path, monkeypatch):
    monkeypatch.setitem(KNOWN, "twin", replace(KNOWN["tiny"], two_decoders=True))
    found = inspection.report(random_weights.random_checkpoint(tmp_path, "twin"))
    assert found.policy == "consistent" and found.components[-1].name == "language mask decoder"
    assert found.is_usable and found.is_exact


def test_mixed_precisions_are_told_per_part(spoilt, sound):
    vision = {
        name: tensor for name, tensor in load_file(sound / "model.safetensors").items() if name.startswith("vision")
    }
    halves = {name: tensor.bfloat16() for name, tensor in vision.items()}
    halves["vision_model.embeddings.class_embedding"] = vision["vision_model.embeddings.class_embedding"]
    found = inspection.report(spoilt(tensors=halves))
    assert found.is_usable and found.components[0].dtypes == ("BF16", "F32")
    assert found.memory == inspection.report(sound).memory


def test_our_own_layout_is_told_as_well_as_the_official_one(sound, tmp_path):
    loading.load(sound, device="cpu", dtype="fp32").save(tmp_path / "own", dtype="bf16")
    found, before = inspection.report(tmp_path / "own"), inspection.report(sound)
    assert (found.layout, found.architecture, found.is_exact, found.is_usable) == ("segue", "tiny", True, True)
    assert [(part.name, part.dtypes) for part in found.components] == [
        (part.name, ("BF16",)) for part in before.components
    ]
    assert (found.memory, found.template, found.rows) == (before.memory, before.template, before.rows)


def test_a_head_that_repeats_the_embeddings_is_told(spoilt):
    def tie(fields):
        fields["tie_word_embeddings"] = True

    found = inspection.report(spoilt(tensors={"language_model.lm_head.weight": None}, config=tie))
    assert found.is_usable and found.is_tied


def test_what_could_run_is_named_and_not_run(spoilt):
    files = {"modeling.py": "raise SystemExit('ran')", "training_args.bin": "not opened"}
    folder = spoilt(files=files, config=lambda fields: fields.update(auto_map={"AutoModel": "modeling.Model"}))
    found = inspection.report(folder)
    assert found.is_usable
    assert (found.code, found.pickles) == (("modeling.py", "auto_map in config.json"), ("training_args.bin",))
    assert all(check.status == "ok" for check in inspection.check_tokenizer(folder))


def cut_config(fields):
    del fields["vision_config"]["hidden_size"]


def odd_heads(fields):
    fields["llm_config"]["num_attention_heads"] = 7


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tensors": {"mlp1.1.bias": None}}, ["1 missing", "missing: mlp1.1.bias [128]"]),
        ({"tensors": {"mlp1.9.bias": torch.zeros(3)}}, ["1 unexpected", "unexpected: mlp1.9.bias [3]"]),
        (
            {"tensors": {"mlp1.1.bias": torch.zeros(3)}},
            ["1 misshapen", "mlp1.1.bias is [3] in the file, the architecture needs [128]"],
        ),
        (
            {"config": lambda fields: fields["llm_config"].update(num_hidden_layers=3)},
            ["a model like tiny", "those of tiny"],
        ),
        ({"config": lambda fields: fields.pop("llm_config")}, ["no model family claims this config.json"]),
        ({"config": lambda fields: fields.update(template="vicuna")}, ["unknown chat template 'vicuna'"]),
        ({"config": cut_config}, ["lacks a field", "'hidden_size'"]),
        ({"config": odd_heads}, ["config.json"]),
        ({"without": ["config.json"]}, ["config.json cannot be read"]),
        ({"without": ["model.safetensors"]}, ["holds no weights"]),
        ({"without": ["model.safetensors"], "files": {"pytorch_model.bin": ""}}, ["only pickled weights"]),
        ({"without": ["tokenizer.json"]}, ["has no tokenizer; expected one of tokenizer.json"]),
        ({"files": {"model.safetensors": "PK\x03\x04......"}}, ["is a pickle under another name"]),
        ({"files": {"sam2_config.json": "{"}}, ["sam2_config.json"]),
    ],
)
def test_a_folder_that_does_not_fit_is_still_reported_and_says_why(spoilt, change, words):
    found = inspection.report(spoilt(**change))
    assert not found.is_usable
    text = "\n".join(found.problems)
    assert [word for word in words if word not in text] == []


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="is not a folder"):
        inspection.report(tmp_path / "nowhere")


def test_lineage_that_cannot_be_read_stops_nothing(spoilt):
    found = inspection.report(spoilt(files={"lineage.json": "["}))
    assert found.is_usable and "unreadable" in found.lineage


def test_every_tensor_is_read_once_and_bad_numbers_are_counted(spoilt):
    nothing, infinite = torch.zeros(128, 128), torch.zeros(128)
    infinite[3] = torch.inf
    folder = spoilt(tensors={"text_hidden_fcs.0.weight": nothing, "text_hidden_fcs.0.bias": infinite})
    found = {tensor.name: tensor for tensor in inspection.scan(folder)}
    assert len(found) == 427 and found["mlp1.1.bias"].fault == ""
    assert found["text_hidden_fcs.0.bias"].fault == "1 of 128 numbers are NaN or infinite"
    assert found["text_hidden_fcs.0.weight"].is_zero and not found["text_hidden_fcs.2.bias"].is_zero


@pytest.mark.parametrize(
    ("tensor", "fault"),
    [
        (torch.tensor([[1.0, torch.nan]]), "1 of 2 numbers are NaN or infinite"),
        (torch.tensor([[0.0, 0.0]]), "all zeros"),
        (torch.zeros(4), ""),
        (torch.zeros(1, 1), ""),
        (torch.zeros(0, 3), ""),
        (torch.zeros(2, 2, dtype=torch.int64), ""),
        (torch.ones(2, 2).to(torch.float8_e4m3fn), ""),
        (torch.tensor([-np.inf]).bfloat16(), "1 of 1 numbers are NaN or infinite"),
    ],
)
def test_what_is_wrong_with_a_tensor_is_said_in_a_few_words(tensor, fault):
    assert inspection.fault(tensor) == fault


def test_faults_beyond_the_first_chunk_are_found(monkeypatch):
    monkeypatch.setattr(inspection, "_CHUNK", 4)
    numbers = torch.zeros(3, 3)
    numbers[2, 2] = 1
    assert inspection.fault(numbers) == ""
    numbers[2, 2] = torch.nan
    assert inspection.fault(numbers).startswith("1 of 9")


def rewritten(folder, change):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    change(tokenizer)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return {check.name: check for check in inspection.check_tokenizer(folder)}


def renamed(old, new):
    def change(tokenizer):
        for token in tokenizer["added_tokens"]:
            token["content"] = new if token["content"] == old else token["content"]

    return change


def test_a_sound_tokenizer_knows_every_token_and_has_as_many_as_rows(sound):
    checks = {check.name: check for check in inspection.check_tokenizer(sound)}
    assert {check.status for check in checks.values()} == {"ok"}
    assert checks["tokenizer"].value == "273 tokens, as many as embedding rows"
    assert checks["[SEG]"].value == "one token, id 268"
    assert checks["template"].value.startswith("qwen_chat; an answer ends at <|im_end|> (one token)")


@pytest.mark.parametrize(
    ("change", "name", "status", "words"),
    [
        (renamed("[SEG]", "[SEC]"), "tokenizer", "problem", "'[SEG]'"),
        (renamed("<vp>", "<wp>"), "<vp>", "problem", "'<vp>'"),
        (lambda tokenizer: tokenizer["added_tokens"].pop(), "tokenizer", "note", "1 embedding row"),
        (lambda tokenizer: tokenizer.pop("model"), "tokenizer", "problem", "cannot be read"),
    ],
)
def test_a_tokenizer_of_another_model_is_found_out(spoilt, change, name, status, words):
    checks = rewritten(spoilt(), change)
    assert checks[name].status == status and words in checks[name].value
