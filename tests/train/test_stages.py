import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from segue import loading, weights
from segue.checkpoints import adapters
from segue.checkpoints.locate import base_of
from segue.checkpoints.merge import merge
from segue.errors import CheckpointError, ConfigError
from segue.train import checkpoints, stages
from segue.train.recipe import Lora, ParameterGroup, Stage, Validation
from segue.train.run import train


@pytest.fixture
def loaded(official_folder):
    return loading.load(official_folder, device="cpu")


def stage(**groups):
    made = {name: ParameterGroup(how=how) for name, how in groups.items()}
    return Stage(name="s", steps=1, groups=made, lora=Lora(rank=4, alpha=8.0, dropout=0.0))


def switch_on(loaded, **groups):
    return stages.switch_on(loaded.model, stage(**groups), loaded.processor, seed=0)


def test_lora_lies_beside_every_linear_layer_of_the_language_model_but_the_head(loaded):
    trainable = switch_on(loaded, language="lora")
    # rank x (in + out) of q, k, v, o, gate, up and down, in both layers
    width, kv, inner = 128, 32, 192
    per_layer = 4 * (2 * (width + width) + 2 * (width + kv) + 3 * (width + inner))
    assert trainable.count == {"language": 2 * per_layer}
    assert not any("lm_head" in name for name in trainable.lora["target_modules"])


def test_full_groups_learn_every_number_and_all_else_is_frozen(loaded):
    trainable = switch_on(loaded, mask_decoder="full", connector="full")
    decoder = sum(p.numel() for p in loaded.model.grounder.sam2.mask_decoder.parameters())
    assert trainable.count["mask_decoder"] == decoder
    assert sum(p.numel() for p in loaded.model.parameters() if p.requires_grad) == sum(trainable.count.values())


def test_rows_let_only_the_new_tokens_learn(loaded):
    model, new = loaded.model, [268, 269, 270, 271, 272]
    ids = torch.tensor([[1, 2, 268, 270]])
    before = model.mllm.language_model(ids).logits
    trainable = switch_on(loaded, embeddings="rows")
    assert trainable.token_ids == tuple(new) and trainable.count == {"embeddings": 2 * 5 * 128}
    torch.testing.assert_close(model.mllm.language_model(ids).logits, before)
    with torch.no_grad():
        model.mllm.language_model.lm_head.rows += 1.0
        model.mllm.get_input_embeddings().rows += 1.0
    embedded = model.mllm.get_input_embeddings()(ids)[0]
    torch.testing.assert_close(embedded[:2], model.mllm.get_input_embeddings().weight[[1, 2]])
    torch.testing.assert_close(embedded[2:], model.mllm.get_input_embeddings().weight[[268, 270]] + 1.0)


def test_the_same_seed_gives_the_same_first_weights_and_leaves_the_random_state(official_folder):
    state = torch.random.get_rng_state()
    first = [
        next(iter(switch_on(loading.load(official_folder), language="lora").groups["language"].values()))
        for _ in range(2)
    ]
    torch.testing.assert_close(*first)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("groups", "text"),
    [
        ({"languages": "full"}, "no group 'languages'; it has vision"),
        ({"language_decoder": "full"}, "'language_decoder' holds nothing in this model"),
        ({"embeddings": "lora"}, "'embeddings' has no linear layer for LoRA"),
        ({"language": "rows"}, "only the group of embeddings and head has rows"),
    ],
)
def test_groups_that_cannot_learn_so_are_refused(loaded, groups, text):
    with pytest.raises(ConfigError, match=text):
        switch_on(loaded, **groups)


def test_four_bits_keep_the_layers_close_and_learn_by_lora(loaded):
    pytest.importorskip("bitsandbytes", reason="needs the extra `quant`")
    ids = torch.tensor([[1, 2, 3]])
    before = loaded.model.mllm.language_model(ids).logits
    four = Stage(name="s", steps=1, groups={"language": ParameterGroup(how="lora")}, lora=Lora(rank=4, quantize="4bit"))
    trainable = stages.switch_on(loaded.model, four, loaded.processor, seed=0)
    after = loaded.model.mllm.language_model(ids).logits
    assert torch.nn.functional.cosine_similarity(before.flatten(), after.flatten(), dim=0) > 0.95
    after.sum().backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in trainable.groups["language"].values())


def test_a_run_on_four_bits_is_judged_goes_on_exactly_and_merges_into_the_whole_base(make_recipe, watcher, tmp_path):
    pytest.importorskip("bitsandbytes", reason="needs the extra `quant`")
    recipe = make_recipe(stage={"steps": 2, "lora": Lora(rank=4, alpha=8.0, quantize="4bit")}, save_every=1)
    recipe = replace(recipe, validation=Validation(data=recipe.data, every=1, limit=1))
    whole = train(recipe, watcher, device="cpu").best
    again = replace(recipe, output=tmp_path / "again")
    train(again, watcher, device="cpu", limit=1)
    train(again, watcher, device="cpu", resume=True)
    one, other = (
        checkpoints.read_all(out / "checkpoints/step-000002" / adapters.TENSORS)
        for out in (recipe.output, again.output)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    merged = merge(whole, tmp_path / "merged", dtype="fp32")
    ids = torch.tensor([[5, 9, 268, 77]])
    found = [learner_logits(loading.load(folder, device="cpu").model, ids) for folder in (whole, merged.folder)]
    assert torch.allclose(*found, atol=1e-5)


@pytest.fixture
def checkpoint(make_recipe, watcher):
    return train(make_recipe(stage={"rate": 1e-2}), watcher, device="cpu").best


def learner_logits(model, ids):
    with torch.no_grad():
        return model.mllm.language_model(ids).logits


def test_folded_weights_say_what_the_adapters_said(make_recipe, checkpoint):
    recipe = make_recipe()
    ids = torch.tensor([[5, 9, 268, 77]])
    beside = loading.load(recipe.model, device="cpu")
    stages.switch_on(beside.model, recipe.stages[0], beside.processor, seed=0)
    stored = checkpoints.read_all(checkpoint / adapters.TENSORS)
    with torch.no_grad():
        for name, parameter in beside.model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(stored[stages.stored_name(name)])
    beside.model.eval()
    folded = loading.load(checkpoint, device="cpu")
    torch.testing.assert_close(learner_logits(folded.model, ids), learner_logits(beside.model, ids))
    assert not torch.allclose(learner_logits(folded.model, ids), learner_logits(loading.load(recipe.model).model, ids))


def test_a_merged_model_is_the_checkpoint_in_one_folder(checkpoint, tmp_path):
    made = merge(checkpoint, tmp_path / "merged", dtype="fp32")
    one, other = loading.load(checkpoint, device="cpu"), loading.load(made.folder, device="cpu")
    states = one.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert (made.folded, other.lineage["model_hash"]) == (14, made.model_hash)
    text = (made.folder / "lineage.json").read_text()
    assert '"base_hash"' in text and '"step": 2' in text


def test_merging_refuses_to_lose_what_was_learned(checkpoint, tmp_path):
    record = adapters.read(checkpoint)
    stored = checkpoints.read_all(checkpoint / adapters.TENSORS)
    faint = {name: tensor * 1e-12 if name.endswith("lora_B") else tensor for name, tensor in stored.items()}
    processor = loading.load(checkpoint).processor
    checkpoints.write(tmp_path / "faint", record, faint, processor)
    with pytest.raises(CheckpointError, match="would lose what 14 layers learned"):
        merge(tmp_path / "faint", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_tied_embeddings_after_merge_are_two_tables_as_they_were_learned(
    make_recipe, official_folder, watcher, tmp_path
):
    """The base says that its head repeats its embeddings, and has no head; training parts them for good."""
    base = tmp_path / "tied"
    shutil.copytree(official_folder, base)
    tensors = load_file(base / "model.safetensors")
    del tensors["language_model.lm_head.weight"]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    fields = weights.read_json(base / "config.json")
    (base / "config.json").write_text(json.dumps({**fields, "tie_word_embeddings": True}))
    run = train(make_recipe(model=str(base), stage={"steps": 1, "rate": 1e-2}), watcher, device="cpu").run
    merge(run, tmp_path / "merged", dtype="fp32")
    merged, beside = (loading.load(folder, device="cpu").model for folder in (tmp_path / "merged", run))
    table, head = (merged.mllm.language_model.get_input_embeddings().weight, merged.mllm.language_model.lm_head.weight)
    assert not torch.equal(table[268], head[268]) and torch.equal(table[:200], head[:200])
    assert torch.equal(head, beside.mllm.language_model.lm_head.weight)
    assert not weights.read_json(tmp_path / "merged" / "config.json").get("tie_word_embeddings", False)


def test_another_base_is_refused(checkpoint, make_recipe):
    from segue.checkpoints.random_weights import random_checkpoint

    folder = base_of(checkpoint, adapters.read(checkpoint))
    elsewhere = random_checkpoint(checkpoint.parent / "other", seed=3)
    record = (checkpoint / adapters.RECORD).read_text().replace(str(folder), str(elsewhere))
    (checkpoint / adapters.RECORD).write_text(record)
    with pytest.raises(CheckpointError, match="was trained on .* with the hash .* bring back the base"):
        loading.load(checkpoint)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("gone", "needs its base"),
        ("damaged", "is not the file that was written"),
        ("format", "is of format 2, this version reads 1"),
        ("misfit", "does not fit its base"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused(checkpoint, change, text):
    record, tensors = checkpoint / adapters.RECORD, checkpoint / adapters.TENSORS
    if change == "gone":
        folder = str(base_of(checkpoint, adapters.read(checkpoint)))
        record.write_text(record.read_text().replace(folder, "/nowhere/at/all"))
    elif change == "damaged":
        tensors.write_bytes(tensors.read_bytes()[:-4] + b"abcd")
    elif change == "format":
        record.write_text(record.read_text().replace('"format": 1', '"format": 2'))
    else:
        record.write_text(record.read_text().replace('"r": 4', '"r": 8'))
    with pytest.raises(CheckpointError, match=text):
        loading.load(checkpoint)
