"""Files that mean harm: each is refused in one line, from what it says of itself."""

import json
import os
import shutil
import struct
import zipfile
from pathlib import Path

import pytest

from segue import config, weights
from segue.checkpoints import model_folder
from segue.checkpoints.pth import open_pth
from segue.cli.console import visible
from segue.errors import CheckpointError, ConfigError, DataError
from segue.models import templates, tokenizers
from segue.models.decoding import check_computed
from segue.models.tokenizers import load_chat_template, load_tokenizer
from segue.pickled import read_pickled
from segue.prepare import _check_turns as check_turns
from segue.types import Message

DEEP = b"\x85" * 3_000  # a tuple in a tuple in a tuple ...


def pth(path, pickled, *members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickled)
        for name, data in members:
            archive.writestr(name, data)
    return path


PICKLES = {
    "a deep key": (b"\x80\x02}()" + DEEP + b"I1\nu.", (), "key that is a tuple"),
    "a deep name": (b"\x80\x02}X\x0a\0\0\0state_dict}()" + DEEP + b"I1\nus.", (), "key that is a tuple"),
    "nothing": (b"}.", (), "holds no tensor"),
    "a bomb": (b"}.", (("a/byteorder", b"\0" * 1_000_000),), "expected a word"),
    "no end": (b"\x80\x02}(", (), "no readable checkpoint"),
}


@pytest.mark.parametrize(("pickled", "members", "message"), PICKLES.values(), ids=PICKLES)
def test_pickles_of_any_form_are_refused(tmp_path, pickled, members, message):
    with pytest.raises(CheckpointError, match=message):
        open_pth(pth(tmp_path / "x.pth", pickled, *members))


def test_a_deep_key_of_an_annotation_is_refused(tmp_path):
    (tmp_path / "refs(unc).p").write_bytes(b"\x80\x02}()" + DEEP + b"I1\nu.")
    with pytest.raises(DataError, match="key that is a tuple"):
        read_pickled(tmp_path / "refs(unc).p")


@pytest.fixture
def model(official_folder, tmp_path):
    """A whole model folder that a test spoils."""
    return Path(shutil.copytree(official_folder, tmp_path / "model"))


def rewrite(folder, change):
    """The folder's weights with a changed header and changed data."""
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    head, data = json.loads(raw[8 : 8 + length]), bytearray(raw[8 + length :])
    change(head, data)
    text = json.dumps(head).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))


def relabelled(head, _):
    for name, entry in head.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            entry["dtype"] = "I32"


def without_numbers(head, data):
    start, _ = next(entry for name, entry in head.items() if name.endswith("norm.weight"))["data_offsets"]
    data[start : start + 4] = struct.pack("<f", float("nan"))


def many_axes(head, _):
    entry = next(entry for name, entry in head.items() if name != "__metadata__")
    entry["shape"] = entry["shape"] + [1] * 300_000


@pytest.mark.parametrize(
    ("change", "message"),
    [(relabelled, "type no model computes with"), (without_numbers, "NaN or infinite"), (many_axes, "axes; at most")],
)
def test_weights_that_cannot_be_a_models_are_refused(model, change, message):
    import torch

    rewrite(model, change)
    with pytest.raises(CheckpointError, match=message):
        model_folder.load(model, dtype=torch.float32, device="cpu")


CONFIGS = {
    "text": (lambda made: made["llm_config"].update(hidden_size="128"), "hidden_size"),
    "a layer that is not there": (lambda made: made.update(select_layer=99), "select_layer is 99"),
    "a huge vocabulary": (lambda made: made["llm_config"].update(vocab_size=10**12), "no model has more"),
    "a million layers": (lambda made: made["llm_config"].update(num_hidden_layers=10**6), "no model has more"),
    "deep": (lambda made: made.update(a=[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]), "nested too deeply"),
}


@pytest.mark.parametrize(("change", "message"), CONFIGS.values(), ids=CONFIGS)
def test_a_configuration_is_refused_before_anything_is_built(model, change, message):
    made = json.loads((model / "config.json").read_text())
    change(made)
    (model / "config.json").write_text(json.dumps(made))
    with pytest.raises(ConfigError, match=message) as caught:
        model_folder.plan(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer_config.json"])
def test_pipes_in_a_model_folder_are_refused(model, name):
    (model / name).unlink(missing_ok=True)
    os.mkfifo(model / name)
    with pytest.raises(CheckpointError, match=r"pipe|no weights"):
        model_folder.plan(model)
        load_tokenizer(model)


def test_a_lora_adapter_alone_says_what_it_is(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    for read in (model_folder.plan, weights.checkpoint_files):
        with pytest.raises(CheckpointError, match="LoRA adapter"):
            read(tmp_path)


def test_names_saved_by_data_parallel_say_so(model):
    def prefixed(head, _):
        for name in [name for name in head if name != "__metadata__"]:
            head[f"module.{name}"] = head.pop(name)

    rewrite(model, prefixed)
    layout, places = model_folder.plan(model)
    with pytest.raises(CheckpointError, match=r"--strip module\."):
        weights.check(weights.read_headers(model), places, layout.table)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: " + "[" * 900 + "]" * 900, "nested more than"), ("a: &x [1]\nb: *x", "alias"), ("? [a]\n: 1", "recipe")],
)
def test_recipes_that_are_none(tmp_path, text, message):
    (tmp_path / "recipe.yaml").write_text(text)
    from segue.train.recipe import TrainRecipe

    with pytest.raises(ConfigError, match=message):
        config.load(TrainRecipe, tmp_path / "recipe.yaml")


def test_an_error_shows_nothing_of_a_file_that_is_no_recipe(tmp_path):
    (tmp_path / "secret").write_text("password " * 1000)
    (tmp_path / "recipe.yaml").write_text("base: secret")
    from segue.train.recipe import TrainRecipe

    with pytest.raises(ConfigError) as caught:
        config.load(TrainRecipe, tmp_path / "recipe.yaml")
    assert str(caught.value).count("password") < 10


class Renders:
    def __init__(self, made):
        self.made = made

    def apply_chat_template(self, conversation, *, tokenize, add_generation_prompt):
        return self.made()


def endless():
    while True:
        pass


@pytest.mark.parametrize(
    ("made", "message"), [(endless, "more than 0.2 seconds"), (lambda: "a" * 2_000_000, "characters")]
)
def test_chat_templates_have_bounds(monkeypatch, made, message):
    monkeypatch.setattr(templates, "MAX_SECONDS", 0.2)
    with pytest.raises(CheckpointError, match=message):
        templates.opening(Renders(made), templates.template("qwen_chat"), "")


def test_a_chat_template_that_multiplies_is_refused(tmp_path):
    (tmp_path / "chat_template.jinja").write_text("{{ 'a' * 10000000000 }}")
    with pytest.raises(CheckpointError, match="multiplies"):
        load_chat_template(tmp_path)


def test_a_tokenizer_that_multiplies_text_is_refused(model):
    from tokenizers import Tokenizer, models, normalizers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("a", "a" * 1000)])
    tokenizer.save(str(model / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="replaces text by 1,000 characters"):
        load_tokenizer(model)


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(a|a)*b", r"a*a*a*b", r"(a)\1", r"(?:[^b]+c?){5,}"])
def test_a_tokenizer_that_may_search_for_ever_is_refused(model, pattern):
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated")])
    tokenizer.save(str(model / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="may never end"):
        load_tokenizer(model)


def test_the_patterns_of_published_tokenizers_pass():
    qwen = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tiktoken = r"'(?i:[sdmt]|ll)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s"
    assert not any(map(tokenizers._is_slow, (qwen, tiktoken)))


def test_words_that_are_no_text_are_refused():
    with pytest.raises(DataError, match="no text"):
        check_turns([Message.user("the \udcba\udcec")])


def test_a_computation_that_gives_nan_is_no_answer():
    import torch

    check_computed(torch.tensor([1.0, float("-inf")]), "in a test")
    with pytest.raises(CheckpointError, match="computes NaN"):
        check_computed(torch.tensor([1.0, float("nan")]), "in a test")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;owned\x07\x1b[2J.safetensors", "\\x1b]0;owned\\x07\\x1b[2J.safetensors"),
        ("\x9b2J", "\\x9b2J"),
        ("a\u202egnp.exe", "a\\u202egnp.exe"),
        ("\udcff", "\\udcff"),
        ("红色的方块, déjà\tvu\n", "红色的方块, déjà\tvu\n"),
    ],
)
def test_what_would_steer_a_terminal_is_shown(text, shown):
    assert visible(text) == shown
