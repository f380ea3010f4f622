"""A training checkpoint of the original becomes a model folder."""

import json

import pytest
import torch
from safetensors.torch import save_file

from segue import loading, weights
from segue.checkpoints import convert, zoo
from segue.checkpoints.folders import open_folder
from segue.checkpoints.model_folder import key_table
from segue.checkpoints.upstream_training import find_place, spellings
from segue.errors import CheckpointError, ConfigError
from segue.grounding.model import expected
from segue.media import open_media
from segue.models.tokenizers import load_tokenizer
from segue.weights.keys import compiled

PEFT = "mllm.model.language_model.base_model.model."
EMBEDDINGS, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
SAM2 = "grounding_encoder.sam2_model."


class Hub:
    """Stands for mmengine's message hub, which a restricted reader has no class for."""


def trained(tensors, *, rank=4, modules_to_save=True, seed=0):
    """What the original's trainer saves of a model with these official tensors, all of it moved."""
    draws = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in tensors.items():
        inside = PEFT + name.removeprefix("language_model.").removesuffix(".weight")
        if name.startswith("language_model.model.layers.") and tensor.ndim == 2:
            state[f"{inside}.lora_A.default.weight"] = torch.randn(rank, tensor.shape[1], generator=draws)
            state[f"{inside}.lora_B.default.weight"] = torch.randn(tensor.shape[0], rank, generator=draws) * 0.02
        elif any(word in name for word in ("embed_tokens", "lm_head", "tok_embeddings", "language_model.output")):
            state[f"{inside}.modules_to_save.default.weight" if modules_to_save else f"{inside}.weight"] = tensor + 0.5
        elif name.startswith("mlp1."):
            state["mllm.model." + name] = tensor + 0.25
        elif name.startswith(("text_hidden_fcs.", SAM2 + "sam_mask_decoder.")):
            state[name] = tensor + 0.125
    return state


def moved(tensors, state, scale=2.0):
    """What a model is after training: the same by hand, from the official tensors."""
    after = dict(tensors)
    for name, tensor in state.items():
        bare = name.replace(PEFT, "language_model.").removeprefix("mllm.model.").replace(".modules_to_save.default", "")
        if ".lora_B." in name:
            target = bare.replace(".lora_B.default", "")
            after[target] = tensors[target] + scale * (tensor @ state[name.replace("lora_B", "lora_A")])
        elif ".lora_A." not in name:
            after[bare] = tensor
    return after


@pytest.fixture
def checkpoint(tmp_path):
    """Writes `iter_1.pth` as mmengine does."""

    def write(state, **beside):
        whole = {"meta": {"seed": 1}, "state_dict": state, "message_hub": Hub(), "param_schedulers": [{"step": 1}]}
        torch.save({**whole, **beside}, tmp_path / "iter_1.pth")
        return tmp_path / "iter_1.pth"

    return write


@pytest.fixture
def brought_in(checkpoint, target, tensors_of):
    """Imports a state and gives back the official tensors of the result."""

    def run(state, base, **said):
        found = convert.import_training(checkpoint(state), target("model"), convert.TrainingOptions(base=base, **said))
        convert.export(target("model").folder, target("official"))
        return tensors_of(target("official").folder), found

    return run


def altered(folder, tmp_path, tensors, config=None):
    """A copy of a model folder with other tensors, and a changed config."""
    copy = tmp_path / "altered"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "lineage.json").unlink()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, copy / "model.safetensors")
    if config:
        (copy / "config.json").write_text(json.dumps(config(json.loads((copy / "config.json").read_text()))))
    return copy


@pytest.mark.parametrize("modules_to_save", [True, False], ids=["second generation", "first generation"])
@pytest.mark.parametrize("layout", ["official", "ours"])
def test_lora_is_added_exactly_and_what_is_whole_replaces(
    official_folder, brought_in, tensors_of, same_tensors, target, modules_to_save, layout
):
    base, before = official_folder, tensors_of(official_folder)
    if layout == "ours":
        convert.import_folder(official_folder, target("base"))
        base = target("base").folder
    state = trained(before, modules_to_save=modules_to_save)
    after, found = brought_in(state, base)
    assert same_tensors(after, moved(before, state))
    assert {row.component: row.loaded for row in found.rows if row.loaded} == {
        **{"connector": 6, "language": 14, "embeddings": 2, "seg_projector": 4, "mask_decoder": 131}
    }
    assert found.notes == ("beside the tensors, unread: meta, message_hub, param_schedulers",)


def test_fused_and_grouped_tensors_are_moved_as_the_language_model_holds_them(
    larger_folder, brought_in, tensors_of, same_tensors
):
    before = tensors_of(larger_folder)
    state = trained(before)
    assert any("attention.wqkv.lora_B" in name for name in state)
    after, _ = brought_in(state, larger_folder)
    assert all(torch.allclose(after[name], tensor, atol=1e-6) for name, tensor in moved(before, state).items())


def test_a_trained_head_may_itself_be_moved_by_lora(larger_folder, brought_in, tensors_of):
    before = tensors_of(larger_folder)
    down, up = torch.randn(2, 160), torch.randn(273, 2)
    state = {
        PEFT + "output.base_layer.weight": before["language_model.output.weight"] + 1,
        PEFT + "output.lora_A.default.weight": down,
        PEFT + "output.lora_B.default.weight": up,
    }
    after, _ = brought_in(state, larger_folder)
    assert torch.equal(
        after["language_model.output.weight"], before["language_model.output.weight"] + 1 + 2.0 * (up @ down)
    )


@pytest.mark.parametrize(("alpha", "scale"), [(None, 2.0), (4.0, 1.0), (1.0, 0.25)])
def test_alpha_is_twice_the_rank_unless_it_is_given(
    official_folder, brought_in, tensors_of, same_tensors, alpha, scale
):
    before = tensors_of(official_folder)
    state = trained(before)
    after, _ = brought_in(state, official_folder, alpha=alpha)
    assert same_tensors(after, moved(before, state, scale))


def test_a_bare_dict_of_the_whole_model_is_understood_with_its_name_for_gamma(
    official_folder, checkpoint, target, tensors_of, same_tensors, tmp_path
):
    new = {name: tensor + 0.5 for name, tensor in tensors_of(official_folder).items()}
    bare = {
        (name if name.startswith(("text_hidden_fcs", "grounding")) else f"mllm.model.{name}").replace(
            "g_weight", "gamma"
        ): t
        for name, t in new.items()
    }
    torch.save(bare, tmp_path / "bare.pth")
    found = convert.import_training(
        tmp_path / "bare.pth", target("model"), convert.TrainingOptions(base=official_folder)
    )
    convert.export(target("model").folder, target("official"))
    assert same_tensors(tensors_of(target("official").folder), new)
    assert all(row.fraction == 1 for row in found.rows) and found.notes == ()


def test_the_model_answers_from_the_trained_weights(official_folder, checkpoint, target, tensors_of, picture):
    state = {name: t for name, t in trained(tensors_of(official_folder)).items() if "sam_mask_decoder" in name}
    convert.import_training(checkpoint(state), target(), convert.TrainingOptions(base=official_folder))
    answers = [
        loading.load(folder, device="cpu", dtype="fp32").ask(open_media(picture()), "Where?").regions[0].masks.rles
        for folder in (official_folder, target().folder)
    ]
    assert answers[0] != answers[1]


def grown(tensors, rows=5):
    """The tables with rows for new tokens, each row of a number of its own."""
    fresh = torch.arange(1.0, rows + 1)[:, None].expand(rows, 128)
    return {name: torch.cat([tensors[name], fresh]) for name in (EMBEDDINGS, HEAD)}


@pytest.fixture
def plain_base(official_folder, tmp_path, tensors_of):
    """A base as training began from: without the five tokens, and rows for them."""
    tensors = tensors_of(official_folder)
    cut = {name: tensor[:-5] if name in (EMBEDDINGS, HEAD) else tensor for name, tensor in tensors.items()}

    def config(fields):
        return {**fields, "llm_config": {**fields["llm_config"], "vocab_size": 268}}

    folder = altered(official_folder, tmp_path, cut, config)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = tokenizer["added_tokens"][:-5]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert len(load_tokenizer(folder)) == 268
    return folder


def test_new_tokens_get_the_rows_behind_the_bases_in_the_order_of_training(plain_base, checkpoint, target, tensors_of):
    tables = grown(tensors_of(plain_base))
    state = {
        PEFT + name.removeprefix("language_model.").replace(".weight", ".modules_to_save.default.weight"): t
        for name, t in tables.items()
    }
    convert.import_training(checkpoint(state), target(), convert.TrainingOptions(base=plain_base))
    tokenizer = load_tokenizer(target().folder)
    assert [tokenizer.encode(token) for token in ("[SEG]", "<p>", "</p>", "<vp>", "</vp>")] == [
        [268 + n] for n in range(5)
    ]
    opened = open_folder(target().folder)
    assert opened.config.get_text_config().vocab_size == 273
    for place in opened.tables:
        assert opened.tensors.read(place)[-5:, 0].tolist() == [1, 2, 3, 4, 5]


def test_rows_that_neither_file_has_are_the_mean_and_told(plain_base, checkpoint, target, tensors_of):
    tables = grown(tensors_of(plain_base))
    state = {PEFT + "lm_head.modules_to_save.default.weight": tables[HEAD]}
    found = convert.import_training(checkpoint(state), target(), convert.TrainingOptions(base=plain_base))
    embedded = open_folder(target().folder).tensors.read("mllm.language_model.model.embed_tokens.weight")
    assert torch.allclose(embedded[-1], embedded[:268].mean(0)) and embedded.shape == (273, 128)
    assert any(
        "5 rows of mllm.language_model.model.embed_tokens.weight are in neither file" in note for note in found.notes
    )


@pytest.mark.parametrize(
    ("rows", "words"),
    [((2, 2), "270 rows and the tokenizer .* 273 tokens, 5 of them new"), ((5, 6), "tables of different")],
)
def test_tables_that_no_vocabulary_fits_are_refused(plain_base, checkpoint, target, tensors_of, rows, words):
    before = tensors_of(plain_base)
    state = {
        PEFT + name.removeprefix("language_model."): grown(before, n)[name]
        for name, n in zip((EMBEDDINGS, HEAD), rows, strict=True)
    }
    with pytest.raises(CheckpointError, match=words):
        convert.import_training(checkpoint(state), target(), convert.TrainingOptions(base=plain_base))


def test_a_tied_base_is_untied_by_training_and_stays_so(official_folder, tmp_path, checkpoint, target, tensors_of):
    tensors = tensors_of(official_folder)
    del tensors[HEAD]
    base = altered(official_folder, tmp_path, tensors, lambda fields: {**fields, "tie_word_embeddings": True})
    state = {
        PEFT + "model.embed_tokens.modules_to_save.default.weight": tensors[EMBEDDINGS] + 1,
        PEFT + "lm_head.modules_to_save.default.weight": tensors[EMBEDDINGS] + 2,
    }
    convert.import_training(checkpoint(state), target(), convert.TrainingOptions(base=base))
    loaded = loading.load(target().folder, device="cpu", dtype="fp32").model
    assert not loaded.config.tie_word_embeddings and not loaded.config.get_text_config().tie_word_embeddings
    table, head = loaded.mllm.language_model.model.embed_tokens.weight, loaded.mllm.language_model.lm_head.weight
    assert torch.allclose(table + 1, head)


LAYER = PEFT + "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({LAYER + ".lora_B.default.weight": None}, ["half: ", "no other half"]),
        (
            {LAYER + ".lora_A.default.weight": torch.zeros(3, 128)},
            ["misshapen: the halves for language_model.model.layers.0"],
        ),
        ({LAYER + ".lora_A.default.weight": torch.zeros(4, 130)}, [r"makes [128, 130], the base needs [128, 128]"]),
        (
            {LAYER + ".weight": torch.zeros(2, 2), "what.is.this": torch.zeros(3)},
            ["unexpected: what.is.this [3]", "makes [2, 2]"],
        ),
        (
            {"text_hidden_fcs.0.bias": torch.zeros(7)},
            ["misshapen: text_hidden_fcs.0.bias makes [7], the base needs [128]"],
        ),
        ({"mlp1.1.bias": torch.zeros(128)}, ["twice: "]),
        ({LAYER + ".lora_A.other.weight": torch.zeros(4, 128)}, ["twice: "]),
    ],
)
def test_every_tensor_without_a_place_is_named_and_nothing_is_written(
    official_folder, checkpoint, target, tensors_of, change, words
):
    state = {name: t for name, t in {**trained(tensors_of(official_folder)), **change}.items() if t is not None}
    with pytest.raises(CheckpointError) as error:
        convert.import_training(checkpoint(state), target(), convert.TrainingOptions(base=official_folder))
    assert "nothing was written, take as base the model that this training began from" in str(error.value)
    assert words[0] in str(error.value)
    assert not target().folder.exists()


def test_the_untrained_copies_that_peft_keeps_are_left_out_and_counted(
    official_folder, brought_in, tensors_of, same_tensors
):
    before = tensors_of(official_folder)
    state = trained(before)
    extra = {PEFT + "lm_head.original_module.weight": before[HEAD]}
    after, found = brought_in({**state, **extra}, official_folder)
    assert same_tensors(after, moved(before, state))
    assert sum(row.unused for row in found.rows) == 1


def test_parts_that_training_usually_changes_are_told_where_they_are_missing(official_folder, brought_in, tensors_of):
    state = {name: t for name, t in trained(tensors_of(official_folder)).items() if "mlp1" in name}
    _, found = brought_in(state, official_folder)
    told = [note.split(":")[0] for note in found.notes if "nothing of it in the file" in note]
    assert told == ["language", "embeddings", "seg_projector", "mask_decoder"]


def test_pairs_that_training_has_not_moved_are_told(official_folder, brought_in, tensors_of):
    state = {name: t * 0 if "lora_B" in name else t for name, t in trained(tensors_of(official_folder)).items()}
    _, found = brought_in(state, official_folder)
    assert "14 LoRA pairs have a B of zeros, so training has not moved their targets" in found.notes


def test_a_change_that_the_precision_swallows_is_an_error(official_folder, checkpoint, target, tensors_of, tmp_path):
    state = {name: t * 1e-12 if "lora_B" in name else t for name, t in trained(tensors_of(official_folder)).items()}
    with pytest.raises(
        CheckpointError, match=r"(?s)14 of 14 tensors .* came out as they were.*try --dtype fp32.*q_proj"
    ):
        convert.import_training(checkpoint(state), target(dtype="bf16"), convert.TrainingOptions(base=official_folder))
    assert not target().folder.exists() and not list(tmp_path.glob(".segue-*"))


def test_a_merge_that_is_left_out_is_found_by_reading_back(
    official_folder, checkpoint, target, tensors_of, monkeypatch
):
    from segue.checkpoints.upstream_training import Merge

    monkeypatch.setattr(Merge, "_merged", Merge.unmoved)
    with pytest.raises(CheckpointError, match="training would be lost"):
        convert.import_training(
            checkpoint(trained(tensors_of(official_folder))), target(), convert.TrainingOptions(base=official_folder)
        )


def without_grounding(folder, tmp_path, tensors, **language):
    """The InternVL that a Sa2VA was made from."""
    kept = {name: t for name, t in tensors.items() if not name.startswith(("grounding_encoder", "text_hidden_fcs"))}

    def config(fields):
        inner = {**fields["llm_config"], **language}
        return {**fields, "template": None, "architectures": ["InternVLChatModel"], "llm_config": inner}

    return altered(folder, tmp_path, kept, config)


def sam2_file(path, tensors):
    """SAM 2's own file with these weights."""
    own = {
        name.removeprefix(SAM2).replace("g_weight", "gamma"): t for name, t in tensors.items() if name.startswith(SAM2)
    }
    torch.save({"model": own}, path)
    return path


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_internvl_becomes_a_base_with_sam2_from_elsewhere(
    official_folder, brought_in, tensors_of, same_tensors, tmp_path, kind
):
    before = tensors_of(official_folder)
    base = without_grounding(official_folder, tmp_path, before)
    state = trained(before)
    sam2 = official_folder if kind == "folder" else sam2_file(tmp_path / "sam2.pt", before)
    after, _ = brought_in(state, base, sam2=sam2)
    assert same_tensors(after, moved(before, state))


def test_an_internvl_whose_head_repeats_its_embeddings_serves_as_well(
    official_folder, brought_in, tensors_of, tmp_path
):
    before = {name: t for name, t in tensors_of(official_folder).items() if name != HEAD}
    base = without_grounding(official_folder, tmp_path, before, tie_word_embeddings=True)
    state = {name: t for name, t in trained(before).items() if "embed_tokens" not in name}
    after, _ = brought_in(state, base, sam2=official_folder)
    assert torch.equal(after[HEAD], before[EMBEDDINGS])


def test_what_neither_base_nor_file_has_is_named(official_folder, checkpoint, target, tensors_of, tmp_path):
    before = tensors_of(official_folder)
    base = without_grounding(official_folder, tmp_path, before)
    with pytest.raises(
        CheckpointError, match=r"(?s)give SAM 2's weights by --sam2.*missing: grounder.sam2.vision_encoder"
    ):
        convert.import_training(checkpoint(trained(before)), target(), convert.TrainingOptions(base=base))


def test_two_sam2_are_one_too_many(official_folder, checkpoint, target, tensors_of):
    said = convert.TrainingOptions(base=official_folder, sam2=official_folder)
    with pytest.raises(ConfigError, match="has SAM 2 already"):
        convert.import_training(checkpoint(trained(tensors_of(official_folder))), target(), said)


def test_a_file_that_is_not_sam2_is_refused(official_folder, checkpoint, target, tensors_of, tmp_path):
    before = tensors_of(official_folder)
    base = without_grounding(official_folder, tmp_path, before)
    torch.save({"model": {"no_obj_embed_spatial": torch.zeros(1)}}, tmp_path / "sam21.pt")
    with pytest.raises(CheckpointError, match=r"no SAM 2 checkpoint .*\n  unexpected: no_obj_embed_spatial \[1\]"):
        convert.import_training(
            checkpoint(trained(before)), target(), convert.TrainingOptions(base=base, sam2=tmp_path / "sam21.pt")
        )


@pytest.mark.parametrize("chat", ["phi3_chat", None])
def test_the_template_is_the_one_said_or_the_bases(official_folder, checkpoint, target, tensors_of, chat):
    said = convert.TrainingOptions(base=official_folder, template=chat)
    convert.import_training(checkpoint(trained(tensors_of(official_folder))), target(), said)
    assert weights.read_json(target().folder / "config.json")["template"] == (chat or "qwen_chat")


def test_a_lineage_names_file_base_and_lora(official_folder, checkpoint, target, tensors_of):
    path = checkpoint(trained(tensors_of(official_folder)))
    convert.import_training(path, target(), convert.TrainingOptions(base=official_folder))
    made_from = weights.read_json(target().folder / "lineage.json")["made_from"]
    assert made_from["source"]["files"] == {"iter_1.pth": weights.file_hash(path)}
    assert made_from["base"]["model_hash"] == weights.read_json(official_folder / "lineage.json")["model_hash"]
    assert made_from["lora"] == {"pairs": 14, "ranks": [4], "scales": [2.0], "untrained": 0}
    report = weights.read_json(target().folder / "load_report.json")
    assert {row["component"]: row["fraction"] for row in report["components"]}["mask_decoder"] == 1.0


def test_names_of_the_qwen_trainer_lose_their_wrappers_too():
    name = "mllm.model.base_model.model.model.language_model.layers.3.self_attn.q_proj"
    assert "model.model.language_model.layers.3.self_attn.q_proj" in spellings(name)
    assert "model.lm_head" in spellings("mllm.model.base_model.model.lm_head")
    assert "lm_head.weight" in spellings("module.mllm.model.lm_head.weight")
    assert "lm_head.weight" in spellings("_orig_mod.module.mllm.model.lm_head.weight")


def test_the_names_of_a_trained_8b_all_have_a_place():
    config = zoo.config_of("Sa2VA-InternVL3-8B")
    rules, places = compiled(key_table(config)), expected(config)
    layers = [f"{PEFT}model.layers.{n}.{part}.weight" for n in (0, 27) for part in ("self_attn.k_proj", "mlp.up_proj")]
    for name in (*layers, PEFT + "lm_head.weight", "mllm.model.mlp1.3.bias", SAM2 + "sam_mask_decoder.conv_s0.bias"):
        assert find_place(name, rules, places) is not None, name
    assert find_place(PEFT + "model.layers.28.mlp.up_proj.weight", rules, places) is None
