"""LongVA apart from its recording. Numbers in names are those of the conformance list in docs/cache.md."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segue import weights
from segue.errors import CheckpointError, ConfigError, DataError
from segue.features import fingerprint
from segue.media import open_media
from segue.models.decoding import Decoding, decode
from segue.models.longva import family as longva
from segue.models.longva import preprocessing
from segue.models.longva.model import LongVAMLLM, pooled
from segue.models.longva.processor import VISUAL_TOKEN, LongVAProcessor, with_visual_token
from segue.models.protocol import Batch
from segue.models.templates import template
from segue.prepare import collate, prepare
from segue.types import Message

GOLDEN = Path(__file__).parents[2] / "golden" / "longva"


@pytest.fixture(scope="module")
def official():
    """The recording's config.json, with the tower's sizes."""
    return weights.read_json(GOLDEN / "config.json") | {
        "vision_config": weights.read_json(GOLDEN / "vision_config.json")
    }


@pytest.fixture(scope="module")
def model(official):
    config = longva.architecture(official)
    loaded = LongVAMLLM(config).eval().requires_grad_(False)
    weights.load(loaded, GOLDEN, longva.key_table(config))
    return loaded


@pytest.fixture(scope="module")
def processor(official, byte_tokenizer):
    import copy

    tokenizer = copy.deepcopy(byte_tokenizer)
    return LongVAProcessor(
        tokenizer, template("qwen_1_5"), longva.architecture(official), with_visual_token(tokenizer), (2,)
    )


def picture(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_1_every_tensor_of_the_real_size_has_a_place():
    raw = {
        "model_type": "llava_qwen",
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e9,
        "max_position_embeddings": 224000,
    }
    assert longva.claims(raw)
    with torch.device("meta"):
        whole = LongVAMLLM(longva.architecture(raw))
    tensors = {name: tensor for name, tensor in whole.state_dict().items() if tensor.is_floating_point()}
    assert len(tensors) == 734
    assert sum(tensor.numel() for tensor in tensors.values()) == 7_935_646_208
    assert sum(name.startswith("vision_tower.") for name in tensors) == 391
    assert whole.config.frame_tokens == 144
    assert len(whole.below("tower")) == 391 - 16 - 2
    assert whole.config.vocabulary == 151_646


def test_1_what_old_checkpoints_bring_along_is_ignored_and_told(official, tmp_path, caplog):
    from safetensors.torch import load_file, save_file

    tensors = load_file(GOLDEN / "model.safetensors")
    prefix = "model.vision_tower.vision_tower.vision_model."
    save_file(tensors | {prefix + "embeddings.position_ids": torch.arange(17)}, tmp_path / "model.safetensors")
    config = longva.architecture(official)
    weights.load(LongVAMLLM(config), tmp_path, longva.key_table(config))
    assert "position_ids" in caplog.text
    save_file(tensors | {"model.vision_resampler.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    weights.load(LongVAMLLM(config), tmp_path, longva.key_table(config))
    save_file(tensors | {"model.layers.0.extra": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="unexpected"):
        weights.load(LongVAMLLM(config), tmp_path, longva.key_table(config))


def test_10_theta_is_kept_through_a_save(model, tmp_path):
    assert model.config.text_config.rope_parameters["rope_theta"] == 1e9
    model.save_pretrained(tmp_path)
    again = LongVAMLLM.from_pretrained(tmp_path)
    assert again.config.text_config.rope_parameters["rope_theta"] == 1e9
    assert torch.equal(again.language_model.model.rotary_emb.inv_freq, model.language_model.model.rotary_emb.inv_freq)
    assert again.language_model.model.rotary_emb.inv_freq[1] == pytest.approx(1e9 ** (-1 / 8), rel=1e-6)


def test_10_a_config_without_theta_is_refused(official):
    with pytest.raises(ConfigError, match="rope_theta"):
        longva.architecture({name: value for name, value in official.items() if name != "rope_theta"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mm_projector_type", "linear"),
        ("mm_vision_select_feature", "cls_patch"),
        ("mm_patch_merge_type", "spatial_unpad"),
        ("image_aspect_ratio", "pad"),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("image_grid_pinpoints", "(1x1),...,(7x7)"),
    ],
)
def test_another_way_of_seeing_is_refused(official, field, value):
    with pytest.raises(ConfigError, match=field if field != "rope_scaling" else "rope"):
        longva.architecture(official | {field: value})


def test_pool_and_resolutions_may_be_missing_or_text(official):
    without = {name: value for name, value in official.items() if not name.startswith("mm_spatial_pool")}
    assert (longva.architecture(without).pool, longva.architecture(without).pool_mode) == (2, "average")
    text = longva.architecture(official | {"image_grid_pinpoints": "[(56, 112), (112, 56)]"})
    assert text.resolutions == [[56, 112], [112, 56]]


@pytest.mark.parity
@pytest.mark.parametrize(("shape", "size"), [((96, 54), (56, 56)), ((54, 97), (56, 56)), ((56, 56), (56, 56))])
def test_longva_long_side_is_cut_and_its_ends_are_lost(shape, size):
    image = Image.fromarray(picture(*shape))
    assert preprocessing.cropped(image, 56).size == size
    if shape == (96, 54):
        scaled = image.resize((int(56 * 96 / 54), 56), Image.Resampling.BICUBIC)
        left = (scaled.size[0] - 56) // 2
        assert scaled.crop((left, 0, left + 56, 56)).tobytes() == preprocessing.cropped(image, 56).tobytes()


@pytest.mark.parametrize(
    ("size", "best"),
    [((150, 100), (112, 112)), ((60, 140), (56, 168)), ((30, 30), (56, 112)), ((56, 112), (56, 112))],
)
def test_3_the_best_resolution_keeps_most_pixels_and_wastes_least(official, size, best):
    offered = [tuple(one) for one in official["image_grid_pinpoints"]]
    assert preprocessing.best_resolution(size, offered) == best


def test_3_the_first_of_two_equal_resolutions_wins():
    assert preprocessing.best_resolution((100, 100), [(56, 112), (112, 56)]) == (56, 112)


def test_longva_overview_unused_and_tiles_in_order(processor, model):
    vision = processor.image(picture(150, 100), max_tiles=12)
    assert vision.pixels.shape == (4, 3, 56, 56)
    assert vision.num_features == 4 * 4 == vision.text.count(VISUAL_TOKEN)
    whole = model.project(model.tower(vision.pixels), vision.grids)
    one_by_one = torch.cat([model.project(model.tower(tile[None])) for tile in vision.pixels])
    assert torch.allclose(whole, one_by_one, atol=1e-6)


def test_fewer_tiles_than_published_leave_out_the_largest_resolutions(processor):
    assert len(processor.image(picture(150, 100), max_tiles=12).pixels) == 4
    assert len(processor.image(picture(150, 100), max_tiles=6).pixels) == 2
    assert len(processor.image(picture(150, 100), max_tiles=1).pixels) == 2, "the least there is"


def test_6_one_square_without_resolutions_is_not_pooled(official, byte_tokenizer, processor):
    plain = replace(processor, config=longva.architecture(official | {"image_aspect_ratio": None}))
    vision = plain.image(picture(150, 100), max_tiles=12)
    assert vision.num_features == 16
    assert vision.grids.tolist() == [[1, 1]]


@pytest.mark.parametrize("size", [(1, 201), (402, 2)])
def test_a_frame_more_than_200_times_as_long_as_wide_is_refused(size):
    assert preprocessing.cropped(Image.new("RGB", (1, 200)), 56).size == (56, 56)
    with pytest.raises(DataError, match="expected sides of at most 1 to 200"):
        preprocessing.cropped(Image.new("RGB", size), 56)


def test_an_image_without_a_pixel_to_show_is_refused():
    with pytest.raises(DataError, match="no image"):
        preprocessing.normalised([])


def test_regions_are_refused(processor):
    with pytest.raises(DataError, match="no region prompts"):
        processor.regions(processor.image(picture(60, 60), max_tiles=12), np.ones((1, 60, 60), bool))


@pytest.mark.parity
def test_12_longva_system_message_and_media_stand_before_the_text(processor):
    video = open_media(np.stack([picture(96, 54, seed) for seed in range(3)]))
    image = open_media(picture(150, 100))
    opening = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    ending = "<|im_end|>\n<|im_start|>assistant\n"

    def prompt(*parts):
        example = prepare([Message("user", parts)], processor, frames="uniform:128")
        return processor.tokenizer.decode(example.ids.tolist(), skip_special_tokens=False)

    frames, tiles = VISUAL_TOKEN * 3 * 4, VISUAL_TOKEN * 4 * 4
    assert prompt("What?") == f"{opening}What?{ending}"
    assert prompt(video, "\nWhat?") == f"{opening}{frames}\nWhat?{ending}"
    assert prompt("Before.\n", video, "\nWhat?") == f"{opening}{frames}Before.\n\nWhat?{ending}"
    assert prompt(video, image, "\nWhat?") == f"{opening}{frames}{tiles}\nWhat?{ending}"
    literal = prompt(video, "\nWhat is <image>?")
    assert literal.count(VISUAL_TOKEN) == 12
    typed = prepare([Message("user", (video, f"\nWhat is {VISUAL_TOKEN}?"))], processor, frames="uniform:128")
    assert typed.ids.tolist().count(processor.visual_id) == 12


def test_40_a_video_of_fewer_frames_than_asked_for_has_its_own(processor):
    video = open_media(np.stack([picture(96, 54, seed) for seed in range(3)]))
    example = prepare([Message.user("What?", video)], processor, frames="uniform:128")
    assert example.num_visual_tokens == 3 * 4


def test_14_features_given_are_features_computed(model, processor):
    video = open_media(np.stack([picture(96, 54, seed) for seed in range(3)]))
    example = prepare([Message.user("What?", video)], processor, frames="uniform:3")
    row = replace(example, ids=example.ids.clamp(max=319))
    batch = collate([example], processor)
    batch = replace(batch, input_ids=row.ids[None])
    states = model.tower(batch.pixels)
    first = model.head(model.forward(batch)[1])
    from_states = replace(batch, pixels=None, states=states)
    from_features = batch.with_features(model.project(states, batch.grids))
    for given in (from_states, from_features):
        assert torch.equal(model.head(model.forward(given)[1]), first)


def test_15_pooling_before_the_last_linear_layer_is_the_same(model):
    states = torch.randn(3, 16, 32, generator=torch.Generator().manual_seed(0))
    first, activation, last = model.projector
    early = last(pooled(activation(first(states)), 2, "average"))
    assert torch.allclose(early, pooled(model.projector(states), 2, "average"), atol=1e-5)
    before = pooled(states, 2, "average")
    assert not torch.allclose(model.projector(before), early, atol=1e-3), (
        "pooling before the projector is another model"
    )


@pytest.mark.parametrize(("mode", "expected"), [("average", [3.0, 5.0, 13.0, 15.0]), ("max", [6.0, 8.0, 16.0, 18.0])])
def test_11_a_row_and_a_column_too_many_are_left_out(mode, expected):
    grid = torch.arange(25.0).view(1, 25, 1)
    assert pooled(grid, 2, mode).flatten().tolist() == expected


def test_11_an_unknown_pooling_is_refused():
    with pytest.raises(ConfigError, match="median"):
        pooled(torch.zeros(1, 4, 1), 2, "median")


def test_grids_that_do_not_count_the_tiles_are_refused(model):
    with pytest.raises(DataError, match="3 tiles"):
        model.project(torch.zeros(3, 16, 32), torch.tensor([[2, 2]]))


def test_16_upstream_names_are_given_back(model):
    from safetensors.torch import load_file

    tensors = load_file(GOLDEN / "model.safetensors")
    back = weights.to_upstream(model.state_dict(), longva.key_table(model.config), tensors)
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_25_the_fingerprint_sees_what_decides_a_feature_and_nothing_else(model):
    before = fingerprint(model.below("tower"), torch.float32)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def changed(name):
        tensor = model.get_parameter(name)
        with torch.no_grad():
            tensor.view(-1)[0] += 1
        return fingerprint(model.below("tower"), torch.float32) != before

    try:
        assert not changed("vision_tower.encoder.layers.3.mlp.fc1.weight")
        assert not changed("vision_tower.post_layernorm.weight")
        assert not changed("projector.0.weight")
        assert not changed("language_model.lm_head.weight")
        assert changed("vision_tower.encoder.layers.2.mlp.fc1.weight")
    finally:
        model.load_state_dict(state)
    assert fingerprint(model.below("projected"), torch.float32) != before


def test_the_unused_layer_is_not_run(model, monkeypatch):
    def fail(*_):
        raise AssertionError

    monkeypatch.setattr(model.vision_tower.encoder.layers[3], "forward", fail)
    model.tower(torch.zeros(1, 3, 56, 56))


@pytest.mark.parity
def test_longva_spare_rows_are_never_chosen(official):
    config = longva.architecture(official)
    config.vocabulary = 300
    generator = torch.manual_seed(0)
    model = LongVAMLLM(config)
    assert generator is not None
    scores = model.head(torch.randn(4, 64))
    assert torch.isneginf(scores[:, 300:]).all()
    assert scores[:, :300].isfinite().all()


def test_9_greedy_ids_are_the_same_without_a_kv_cache(model):
    ids = torch.tensor([[57, 210, 10, 291, 211, 197, 312]])
    decoding = Decoding(is_over=lambda ids: False, seg_id=None, max_new_tokens=6)
    cached = decode(model, Batch(ids, torch.ones_like(ids)), decoding)[0].ids
    for _ in range(6):
        _, hidden = model.forward(Batch(ids, torch.ones_like(ids)))
        ids = torch.cat([ids, model.head(hidden[:, -1:]).argmax(-1)], dim=1)
    assert ids[0, -6:].tolist() == cached
