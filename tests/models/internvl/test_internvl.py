import json

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from segue.errors import CheckpointError, ConfigError, DataError
from segue.models.internvl.family import (
    FAMILY,
    InternVLMLLM,
    InternVLMLLMConfig,
    InternVLProcessor,
    architecture,
    claims,
    covered_cells,
    pixel_shuffle,
)
from segue.models.protocol import Batch
from segue.models.tiling import resize, tile

MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def mllm(engine):
    return engine.model.mllm


@pytest.fixture(scope="module")
def processor(byte_tokenizer, tmp_path_factory):
    """Of full-size tiles: 448 pixels, 256 tokens."""
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer.save_pretrained(folder)
    config = InternVLMLLMConfig(text_config={"model_type": "qwen2", "vocab_size": len(byte_tokenizer)})
    return InternVLProcessor.load(folder, config, "qwen_chat")


def test_pixel_shuffle_folds_blocks_of_four_neighbours_in_place():
    patches = torch.arange(16.0).view(1, 16, 1)
    folded = pixel_shuffle(patches, 0.5, "v2")
    assert folded.tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]]


def test_pixel_shuffle_of_the_first_version_leaves_rows_and_columns_swapped():
    patches = torch.randn(2, 36, 8)
    second = pixel_shuffle(patches, 0.5, "v2")
    assert torch.equal(pixel_shuffle(patches, 0.5, "v1").view(2, 3, 3, 32).transpose(1, 2).flatten(1, 2), second)


def test_another_pixel_shuffle_version_is_refused():
    with pytest.raises(ConfigError, match="'v3'.*v1 and v2"):
        pixel_shuffle(torch.zeros(1, 4, 4), 0.5, "v3")


@torch.no_grad()
def test_a_tiles_features_stand_together_and_depend_on_it_alone(mllm):
    pixels = torch.randn(3, 3, 112, 112)
    features = mllm.project(mllm.tower(pixels))
    assert features.shape == (3 * 16, 64)
    assert torch.allclose(features[16:32], mllm.project(mllm.tower(pixels[1:2])), atol=1e-5)


@torch.no_grad()
def test_a_tiles_features_stand_row_by_row(mllm):
    # what happens in one cell is felt most in that cell's own feature
    pixels = torch.zeros(1, 3, 112, 112)
    changed = pixels.clone()
    changed[:, :, 28:56, 84:112] = 3  # cell in row 1, column 3 of 4 x 4
    difference = (mllm.project(mllm.tower(changed)) - mllm.project(mllm.tower(pixels))).norm(dim=-1)
    assert int(difference.argmax()) == 1 * 4 + 3


@torch.no_grad()
def test_the_tower_layer_that_the_configuration_selects_is_read(tiny_config, randomise):
    config = tiny_config().mllm_config
    config.select_layer = -2
    mllm = randomise(InternVLMLLM(config)).eval()
    pixels = torch.randn(1, 3, 112, 112)
    hidden = mllm.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    expected = mllm.projector(pixel_shuffle(hidden, 0.5, "v2"))[0]
    assert torch.allclose(mllm.project(mllm.tower(pixels)), expected, atol=1e-6)


@pytest.fixture
def batch():
    """Two rows with three visual tokens, whose features are given out of order and one of them twice."""
    places = torch.tensor([[False, True, False, True], [False, False, True, False]])
    return Batch(
        input_ids=torch.arange(8).view(2, 4),
        attention=torch.ones(2, 4, dtype=torch.long),
        visual_places=places,
        visual_rows=torch.tensor([2, 0, 2]),
    )


@torch.no_grad()
def test_features_are_written_over_the_visual_tokens_in_reading_order(mllm, batch):
    features = torch.randn(3, 64)
    embeddings = mllm.prompt(batch.with_features(features)).embeddings
    assert torch.equal(embeddings[batch.visual_places], features[[2, 0, 2]])
    table = mllm.get_input_embeddings()(batch.input_ids)
    assert torch.equal(embeddings[~batch.visual_places], table[~batch.visual_places])


def test_a_batch_of_text_alone_needs_no_features(mllm):
    batch = Batch(torch.ones(1, 3, dtype=torch.long), torch.ones(1, 3, dtype=torch.long))
    assert torch.equal(mllm.prompt(batch).embeddings, mllm.get_input_embeddings()(batch.input_ids))


def test_visual_tokens_without_features_are_refused(mllm, batch):
    with pytest.raises(DataError, match="3 visual tokens have no features"):
        mllm.prompt(batch)


@pytest.mark.parametrize("rows", [torch.tensor([0, 1]), torch.tensor([0, 1, 2, 2])])
def test_visual_tokens_and_features_that_differ_in_number_are_refused(mllm, batch, rows):
    wrong = Batch(batch.input_ids, batch.attention, None, None, batch.visual_places, rows)
    with pytest.raises(DataError, match=f"3 visual tokens for {len(rows)} features"):
        mllm.prompt(wrong.with_features(torch.randn(3, 64)))


@torch.no_grad()
def test_the_loss_is_the_mean_cross_entropy_of_all_labelled_tokens(mllm):
    ids = torch.randint(0, 260, (2, 6))
    labels = ids.clone()
    labels[0, :4] = -100
    labels[1, :2] = -100
    loss, hidden = mllm.forward(Batch(ids, torch.ones_like(ids), labels))
    scores = mllm.language_model.lm_head(hidden).log_softmax(-1)
    wanted = [(0, 4), (0, 5), (1, 2), (1, 3), (1, 4), (1, 5)]
    expected = -sum(scores[row, place - 1, ids[row, place]] for row, place in wanted) / 6
    assert torch.allclose(loss, expected, atol=1e-5)
    assert mllm.forward(Batch(ids, torch.ones_like(ids)))[0] is None


@torch.no_grad()
def test_states_are_those_after_the_final_norm(mllm):
    ids = torch.randint(0, 260, (1, 5))
    _, hidden = mllm.forward(Batch(ids, torch.ones_like(ids)))
    library = mllm.language_model(input_ids=ids, output_hidden_states=True)
    assert torch.allclose(hidden, library.hidden_states[-1], atol=1e-6)
    assert torch.allclose(mllm.language_model.lm_head(hidden), library.logits, atol=1e-5)


@torch.no_grad()
def test_rows_padded_on_the_left_have_the_states_of_single_rows(mllm):
    ids = torch.randint(0, 260, (1, 5))
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
    attention = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    _, hidden = mllm.forward(Batch(padded, attention))
    _, single = mllm.forward(Batch(ids, torch.ones_like(ids)))
    assert torch.allclose(hidden[:, 3:], single, atol=1e-5)


def block(tokens):
    return "<img>" + "<IMG_CONTEXT>" * tokens + "</img>"


@pytest.mark.parametrize(("height", "width", "tiles"), [(448, 448, 1), (60, 80, 13), (300, 600, 3)])
def test_parity_image_blocks_of_one_image_share_a_pair_and_nothing_is_added_after_it(
    processor, picture, height, width, tiles
):
    visual = processor.image(picture(height, width), max_tiles=12)
    assert visual.text == block(tiles * 256)
    assert visual.rows.tolist() == list(range(tiles * 256))
    assert visual.pixels.shape == (tiles, 3, 448, 448)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_parity_image_blocks_of_frames_have_a_pair_each_joined_by_line_breaks(processor, clip, count):
    visual = processor.frames(clip(count))
    assert visual.text == "\n".join([block(256)] * count)
    assert visual.pixels.shape == (count, 3, 448, 448)


def test_tiles_are_normalised_in_float32_with_imagenets_numbers(processor, picture):
    from PIL import Image

    image = picture(60, 120)
    visual = processor.image(image, max_tiles=12)
    squares = np.stack([np.asarray(square) for square in tile(Image.fromarray(image))])
    expected = (squares / 255 - MEAN) / DEVIATION
    assert visual.pixels.dtype == torch.float32
    assert np.abs(visual.pixels.permute(0, 2, 3, 1).numpy() - expected).max() < 1e-6


def test_frames_are_squeezed_into_one_tile_each(processor, clip):
    from PIL import Image

    frames = clip(2)
    pixels = processor.frames(frames).pixels[1].permute(1, 2, 0).numpy()
    expected = (np.asarray(resize(Image.fromarray(frames[1]), 448, 448)) / 255 - MEAN) / DEVIATION
    assert np.abs(pixels - expected).max() < 1e-6


def region(top, bottom, left, right, size=(64, 64)):
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def test_parity_region_cells_last_tile_are_repeated_region_by_region(processor, picture):
    visual = processor.image(picture(300, 600), max_tiles=12)  # two tiles and a thumbnail
    masks = np.stack([region(0, 300, 0, 20, (300, 600)), region(0, 10, 0, 150, (300, 600))])
    marked = processor.regions(visual, masks)
    first = 2 * 256  # the thumbnail's first token
    left_column, top_corner = [first + 16 * row for row in range(16)], [first, first + 1, first + 2, first + 3]
    assert marked.rows.tolist() == [*range(768), *left_column, *top_corner]
    assert torch.equal(marked.pixels, visual.pixels)


@pytest.mark.parametrize(
    ("masks", "counts"),
    [
        ([region(0, 64, 0, 64)], [256]),
        ([region(0, 4, 0, 4), region(8, 16, 0, 64)], [1, 32]),
        ([region(60, 64, 60, 64), region(0, 64, 0, 4), region(0, 8, 0, 8)], [1, 16, 4]),
    ],
)
def test_the_sentence_about_regions_names_each_with_as_many_tokens_as_cells(processor, picture, masks, counts):
    marked = processor.regions(processor.image(picture(64, 64), max_tiles=1), np.stack(masks))
    marks = ", ".join(f"region{number}<vp>{'<IMG_CONTEXT>' * count}</vp>" for number, count in enumerate(counts, 1))
    assert marked.text == block(256) + f"\nThere are {len(masks)} part regions in the picture: {marks}.\n"
    assert len(marked.rows) == 256 + sum(counts)


@pytest.mark.parametrize("size", [(16, 16), (37, 91), (480, 640), (9, 200)])
def test_covered_cells_are_those_of_nearest_sampling(size):
    mask = np.random.default_rng(0).random(size) > 0.5
    rows, columns = (np.arange(16) * side // 16 for side in size)
    assert covered_cells(mask, 16).tolist() == np.flatnonzero(mask[np.ix_(rows, columns)]).tolist()


@pytest.mark.parametrize(
    ("top", "left", "cell"),
    [(1, 1, 0), (13, 21, 1 * 16 + 2), (159, 159, 255), (29, 1, 2 * 16)],
)
def test_a_region_that_falls_between_the_samples_keeps_the_cell_that_holds_most_of_it(top, left, cell):
    assert covered_cells(region(top, top + 1, left, left + 1, (160, 160)), 16).tolist() == [cell]


def test_an_empty_region_is_refused():
    with pytest.raises(DataError, match="mask is empty"):
        covered_cells(np.zeros((8, 8), bool), 16)


@pytest.fixture
def folder(tmp_path, byte_tokenizer):
    """Writes a tokenizer whose file passed through `change`."""

    def write(change=lambda content: content, **settings):
        byte_tokenizer.save_pretrained(tmp_path)
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"} | settings))
        return tmp_path

    return write


def language(kind, rows):
    return InternVLMLLMConfig(text_config={"model_type": kind, "vocab_size": rows})


@pytest.mark.parametrize(("kind", "begins"), [("qwen2", ()), ("qwen3", ()), ("llama", ("<|im_start|>",))])
def test_parity_no_system_message_nor_anything_but_internlm2s_begin_of_text_comes_first(
    folder, byte_tokenizer, kind, begins
):
    path = folder(bos_token="<|im_start|>")
    processor = InternVLProcessor.load(path, language(kind, len(byte_tokenizer)), "internlm2_chat")
    assert processor.bos_ids == tuple(byte_tokenizer.convert_tokens_to_ids(list(begins)))
    assert processor.eos_ids == (byte_tokenizer.eos_token_id,)


def without(token):
    def change(content):
        content["added_tokens"] = [entry for entry in content["added_tokens"] if entry["content"] != token]
        return content

    return change


@pytest.mark.parametrize("token", ["<IMG_CONTEXT>", "<img>", "</img>"])
def test_a_tokenizer_without_a_token_that_the_family_speaks_in_is_refused(folder, byte_tokenizer, token):
    with pytest.raises(CheckpointError, match=f"reads {token!r} as"):
        InternVLProcessor.load(folder(without(token)), language("qwen2", len(byte_tokenizer)), "qwen_chat")


def test_a_tokenizer_without_a_segmentation_token_asks_for_no_masks(folder, byte_tokenizer):
    processor = InternVLProcessor.load(folder(without("[SEG]")), language("qwen2", len(byte_tokenizer)), "qwen_chat")
    assert processor.seg_id is None


def test_a_segmentation_token_without_a_row_in_the_embeddings_is_refused(folder, byte_tokenizer):
    rows = byte_tokenizer.convert_tokens_to_ids("[SEG]")
    with pytest.raises(CheckpointError, match=rf"\[SEG\]' has id {rows} and the model {rows} embedding rows"):
        InternVLProcessor.load(folder(), language("qwen2", rows), "qwen_chat")


def test_a_tokenizer_with_more_tokens_than_embedding_rows_is_refused(folder, byte_tokenizer):
    with pytest.raises(CheckpointError, match="embedding rows"):
        InternVLProcessor.load(folder(), language("qwen2", len(byte_tokenizer) - 1), "qwen_chat")


def test_more_embedding_rows_than_tokens_are_allowed(folder, byte_tokenizer):
    processor = InternVLProcessor.load(folder(), language("qwen2", len(byte_tokenizer) + 64), "qwen_chat")
    assert processor.seg_id == byte_tokenizer.convert_tokens_to_ids("[SEG]")


def test_a_begin_of_text_token_that_internlm2_lacks_is_refused(folder, byte_tokenizer):
    with pytest.raises(CheckpointError, match="begin"):
        InternVLProcessor.load(folder(), language("llama", len(byte_tokenizer)), "internlm2_chat")


def test_a_saved_tokenizer_is_the_loaded_one(processor, tmp_path):
    processor.save(tmp_path)
    again = InternVLProcessor.load(tmp_path, language("qwen2", 300), "qwen_chat")
    assert (again.seg_id, again.visual_id, again.eos_ids) == (processor.seg_id, processor.visual_id, processor.eos_ids)
    assert isinstance(again.tokenizer, PreTrainedTokenizerFast)


OFFICIAL = {
    "model_type": "sa2va_chat",
    "vision_config": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "llm_config": {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 48,
        "num_attention_heads": 4,
        "vocab_size": 99,
    },
}


@pytest.mark.parametrize(
    ("config", "is_ours"),
    [
        (OFFICIAL, True),
        ({"model_type": "sa2va_chat", "text_config": {}, "vision_config": {}}, False),
        ({"model_type": "qwen2"}, False),
        ({}, False),
    ],
)
def test_a_config_is_judged_by_what_it_holds(config, is_ours):
    assert claims(config) == is_ours


@pytest.mark.parametrize(
    ("vision", "fields"),
    [
        ({}, {"attention_bias": True, "use_qk_norm": False, "norm_type": "layer_norm"}),
        (
            {"qkv_bias": False, "qk_normalization": True, "norm_type": "rms_norm"},
            {"attention_bias": False, "use_qk_norm": True, "norm_type": "rms_norm"},
        ),
    ],
)
def test_both_styles_of_vision_tower_are_read_and_end_without_a_norm(vision, fields):
    config = architecture(OFFICIAL | {"vision_config": OFFICIAL["vision_config"] | vision}).vision_config
    assert {name: getattr(config, name) for name in fields} == fields
    assert config.use_mean_pooling


@pytest.mark.parametrize(
    ("named", "kind"),
    [("Qwen2ForCausalLM", "qwen2"), ("Qwen3ForCausalLM", "qwen3"), ("InternLM2ForCausalLM", "llama")],
)
def test_the_language_model_is_read_and_its_head_never_tied(named, kind):
    llm = OFFICIAL["llm_config"] | {"architectures": [named], "tie_word_embeddings": True}
    config = architecture(OFFICIAL | {"llm_config": llm, "tie_word_embeddings": True})
    assert config.text_config.model_type == kind
    assert not config.text_config.tie_word_embeddings
    assert not config.tie_word_embeddings


def test_dynamic_rope_scaling_is_kept():
    llm = OFFICIAL["llm_config"] | {"rope_theta": 1e6, "rope_scaling": {"type": "dynamic", "factor": 2.0}}
    text = architecture(OFFICIAL | {"llm_config": llm}).text_config
    assert text.rope_parameters == {"rope_theta": 1e6, "rope_type": "dynamic", "factor": 2.0}


@pytest.mark.parametrize("architectures", [["Phi3ForCausalLM"], [], None])
def test_a_language_model_that_no_checkpoint_has_is_refused(architectures):
    llm = OFFICIAL["llm_config"] | {"architectures": architectures}
    with pytest.raises(ConfigError, match="language model.*Qwen2ForCausalLM"):
        architecture(OFFICIAL | {"llm_config": llm})


def test_parity_video_first_five_frames_are_the_familys_plan():
    assert FAMILY.video_frames == "first:5"


def test_the_family_groups_all_its_parameters_once(engine):
    named = [
        [group for group, prefixes in FAMILY.groups.items() if name.startswith(prefixes)]
        for name, _ in engine.model.named_parameters()
        if name.startswith("mllm.")
    ]
    assert {len(groups) for groups in named} == {1}
