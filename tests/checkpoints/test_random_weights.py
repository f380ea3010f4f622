import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from segue import loading, weights
from segue.checkpoints import random_weights, zoo
from segue.checkpoints.model_folder import key_table, load, read_layout
from segue.checkpoints.official import official_config
from segue.errors import CheckpointError
from segue.grounding.model import expected
from segue.media import open_media
from segue.types import FrameMasks, Message
from segue.weights import Stored

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
RECORDINGS = [
    *("sa2va_internvl_qwen2", "sa2va_internvl_internlm2", "sa2va_internvl_qwen3", "sa2va_i"),
    *("sa2va_qwen25vl", "sa2va_qwen3vl"),
]
TINY = ["tiny", "tiny-qwen25-vl", "tiny-qwen3-vl"]
GAUSSIAN = "grounding_encoder.sam2_model.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return random_weights.random_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.mark.parametrize("name", zoo.known())
def test_official_names_and_places_of_every_known_architecture_belong_together(name):
    config = zoo.config_of(name)
    places, table = expected(config), key_table(config)
    shapes = weights.upstream_shapes(places, table)
    headers = {key: Stored(Path("model.safetensors"), "F32", shape) for key, shape in shapes.items()}
    writes, report = weights.check(headers, places, table)
    filled = [(place, write.row) for write in writes for place in write.places]
    assert len(filled) == len(set(filled)) and {place for place, _ in filled} == set(places)
    assert report.fresh == report.tied == ()
    if getattr(config.mllm_config, "gptq_group", None):
        return  # what is packed in 4 bits has other counts
    assert (
        round((sum(map(math.prod, shapes.values())) - math.prod(shapes.get(GAUSSIAN, (0,)))) / 1e9, 3)
        == zoo.find(name)[1].billions
    )


def test_the_8b_on_internvl3_is_the_exported_one_to_the_last_parameter():
    shapes = random_weights.official_shapes(zoo.config_of("Sa2VA-InternVL3-8B"))
    # the export counts parameters; the random-Fourier matrix is a buffer
    assert sum(math.prod(shape) for name, shape in shapes.items() if name != GAUSSIAN) == 8_182_606_130
    assert len(shapes) == 1589


@pytest.mark.parametrize(
    ("name", "tensors", "tower"),
    [
        ("Sa2VA-Qwen2_5-VL-3B", 1729, 668.7),
        ("Sa2VA-Qwen2_5-VL-7B", 1633, 676.6),
        ("Sa2VA-Qwen3-VL-2B", 1530, 407.0),
        ("Sa2VA-Qwen3-VL-4B", 1618, 415.3),
    ],
)
def test_a_released_qwen_vl_has_as_many_tensors_as_its_export_and_a_tower_of_the_published_size(name, tensors, tower):
    shapes = random_weights.official_shapes(zoo.config_of(name))
    seen = [math.prod(shape) for key, shape in shapes.items() if key.startswith("model.model.visual.")]
    assert len(shapes) == tensors and round(sum(seen) / 1e6, 1) == tower
    language = zoo.config_of(name).get_text_config()
    rows, width = language.vocab_size, language.hidden_size
    assert shapes["model.lm_head.weight"] == (rows, width)
    assert shapes["model.model.language_model.embed_tokens.weight"] == (rows, width)
    assert shapes["model.model.language_model.norm.weight"] == (width,)


@pytest.mark.parity
@pytest.mark.parametrize("name", RECORDINGS)
def test_official_names_and_shapes_are_those_that_the_original_code_saved(name):
    if not (GOLDEN / name).is_dir():
        pytest.skip(f"no recording {name}")
    recorded = json.loads((GOLDEN / name / "manifest.json").read_text())["weights"]
    shapes = random_weights.official_shapes(read_layout(GOLDEN / name).config)
    assert {key: list(shape) for key, shape in shapes.items()} == recorded


def test_a_random_checkpoint_is_small_and_follows_from_its_seed(tiny, tmp_path):
    again = random_weights.random_checkpoint(tmp_path / "again")
    other = random_weights.random_checkpoint(tmp_path / "other", seed=1)
    digest = {
        folder: {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
        for folder in (tiny, again, other)
    }
    assert digest[tiny] == digest[again]
    assert digest[tiny]["model.safetensors"] != digest[other]["model.safetensors"]
    assert sum(file.stat().st_size for file in tiny.iterdir()) < 10e6
    assert weights.read_json(tiny / "lineage.json")["made_from"] == {"random": True, "architecture": "tiny", "seed": 0}


def test_a_random_checkpoint_leaves_the_global_generator_alone(tmp_path):
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    random_weights.random_checkpoint(tmp_path)
    assert torch.equal(torch.rand(1), wanted)


@pytest.mark.parametrize("name", TINY)
def test_a_random_model_answers_with_an_object_whose_mask_is_neither_empty_nor_everything(name, tmp_path):
    model = loading.load(random_weights.random_checkpoint(tmp_path, name), device="cpu", dtype="fp32")
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    image[20:40, 30:50] = (250, 20, 20)
    media = open_media(image)
    events = list(model.stream_answer([Message.user("Please segment the square in this image.", media)]))
    assert [event.masks.shape for event in events if isinstance(event, FrameMasks)] == [(1, 60, 80)]
    assert all(0.01 < event.masks.mean() < 0.99 for event in events if isinstance(event, FrameMasks))
    assert events[-1].answer.raw_text == random_weights.ANSWER and events[-1].answer.stop_reason == "stop"
    assert all(tensor.isfinite().all() for tensor in model.model.state_dict().values())


@pytest.mark.parametrize("name", TINY)
def test_every_token_of_the_answer_has_one_successor(name, tmp_path):
    tokenizer = random_weights.write_tokenizer(tmp_path, zoo.config_of(name).special_tokens)
    ids = tokenizer.encode("\n" + random_weights.ANSWER).ids
    assert len(set(ids)) == len(ids)
    assert max(ids) < zoo.config_of(name).get_text_config().vocab_size == tokenizer.get_vocab_size()


def test_weights_of_another_size_are_refused_before_anything_is_built(tiny, tmp_path, monkeypatch):
    for file in tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(official_config(zoo.config_of("Sa2VA-InternVL3-8B"), {})))
    monkeypatch.setattr("segue.grounding.model.build", lambda *_, **__: pytest.fail("built a model"))
    with pytest.raises(CheckpointError) as error:
        load(tmp_path, dtype=torch.float32, device="cpu")
    first = str(error.value).splitlines()[0]
    assert "config.json describes Sa2VA-InternVL3-8B (InternViT 1024 wide, 24 deep; Qwen2 3584 wide, 28 deep)" in first
    assert "the weights are those of tiny (InternViT 64 wide, 3 deep; Qwen2 128 wide, 2 deep; SAM 2 16 wide)" in first
    assert "take config.json and weights from one checkpoint" in first
