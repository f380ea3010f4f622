"""Both Qwen-VL families through what they share, against the library's own joined classes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from segue import loading
from segue.checkpoints.random_weights import random_checkpoint
from segue.errors import CheckpointError, DataError
from segue.media import open_media
from segue.models.decoding import Decoding, decode
from segue.models.native_resolution.shared import VISUAL_TOKEN, generation, parts
from segue.models.prefill import LastPrompt
from segue.models.protocol import Batch, visual_features
from segue.options import Options
from segue.prepare import collate, prepare, preprocess_media
from segue.types import Message

DEFAULT_TURN = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}{{ '<|im_start|>assistant\n' }}"
)
WITH_SYSTEM = "{% if messages[0]['role'] != 'system' %}{{ '" + DEFAULT_TURN + "' }}{% endif %}" + CHAT_TEMPLATE
WHOLE = {
    "tiny-qwen25-vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
    "tiny-qwen3-vl": (Qwen3VLConfig, Qwen3VLForConditionalGeneration),
}


@pytest.fixture(scope="module", params=list(WHOLE))
def folder(request, tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("model") / request.param, request.param)


@pytest.fixture(scope="module")
def model(folder):
    """An engine of few pixels per image, so that an image is a few dozen tokens; its layers add much to each token."""
    loaded = loading.load(folder, device="cpu", dtype="fp32")
    loaded.model.mllm.config.least_pixels, loaded.model.mllm.config.most_pixels = 40 * 28 * 28, 60 * 28 * 28
    with torch.no_grad():
        for name, parameter in loaded.model.mllm.language_model.named_parameters():
            parameter.mul_(10 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1)
    return loaded


@pytest.fixture(scope="module")
def whole(folder, model):
    """The library's joined class with the same weights."""
    config, build = WHOLE[folder.name]
    mllm = model.model.mllm
    text, vision = mllm.config.text_config.to_dict(), mllm.config.vision_config.to_dict()
    special = {"image_token_id": model.processor.visual_id, "tie_word_embeddings": False}
    library = build(config(text_config=text, vision_config=vision, **special)).eval()
    library.model.visual.load_state_dict(mllm.vision_tower.state_dict())
    language = mllm.language_model.model.state_dict()
    if "norm.weight" not in language:
        language["norm.weight"] = mllm.language_model.norm.weight
    library.model.language_model.load_state_dict(language)
    library.lm_head.load_state_dict(mllm.language_model.lm_head.state_dict())
    return library


@pytest.fixture
def rows(model, picture, clip):
    """Two questions of different length, about an image and a clip."""
    asked = [("What is this?", picture(90, 200)), ("And where does the square go from here?", clip(3))]
    return [prepare([Message.user(text, open_media(pixels))], model.processor) for text, pixels in asked]


def timed(grids):
    return torch.cat([torch.ones_like(grids[:, :1]), grids], dim=1)


@torch.no_grad()
def test_logits_of_padded_rows_with_images_equal_the_librarys(model, whole, rows):
    mllm, batch = model.model.mllm, collate(rows, model.processor)
    _, hidden = mllm.forward(batch)
    theirs = whole(
        input_ids=batch.input_ids,
        attention_mask=batch.attention,
        pixel_values=batch.pixels,
        image_grid_thw=timed(batch.grids),
        mm_token_type_ids=batch.visual_places.int(),
    ).logits
    real = batch.attention.bool()
    assert torch.allclose(mllm.head(hidden)[real], theirs[real], atol=2e-5)
    assert float(theirs[real].std()) > 0.1


@torch.no_grad()
def test_positions_equal_the_librarys(model, whole, rows):
    batch = collate(rows, model.processor)
    theirs, _ = whole.model.get_rope_index(
        batch.input_ids,
        mm_token_type_ids=batch.visual_places.int(),
        image_grid_thw=timed(batch.grids),
        attention_mask=batch.attention,
    )
    real = batch.attention.bool()
    assert torch.equal(model.model.mllm.positions(batch)[:, real], theirs[:, real])


@torch.no_grad()
def test_greedy_decoding_of_a_padded_batch_equals_a_full_forward_per_token(model, rows):
    mllm, batch = model.model.mllm, collate(rows, model.processor)
    decoding = Decoding(is_over=lambda ids: False, seg_id=None, max_new_tokens=4)
    generations = decode(mllm, batch, decoding)
    generations = decode(mllm, batch, replace(decoding, seg_id=generations[0].ids[1]))
    for row, said in zip(rows, generations, strict=True):
        ids = torch.cat([row.ids, torch.tensor(said.ids)])
        longer = replace(row, ids=ids, labels=torch.full_like(ids, -100))
        _, hidden = mllm.forward(collate([longer], model.processor))
        states = hidden[0, len(row.ids) - 1 :]
        assert mllm.head(states[:-1]).argmax(-1).tolist() == said.ids
        wanted = torch.tensor(said.ids) == generations[0].ids[1]
        assert torch.allclose(said.seg_hidden, states[1:][wanted], atol=2e-4)
    assert len(generations[0].seg_hidden) >= 1


@torch.no_grad()
def test_an_image_that_rows_share_is_encoded_once_and_read_by_each(model, picture):
    media = open_media(picture(90, 200))
    shown = preprocess_media(media, model.processor, frames="first:5", key=("the picture", "whole"))
    first, second = (
        prepare([Message.user(text, media)], model.processor, media=[shown]) for text in ("What is this?", "Where?")
    )
    batch, alone = collate([first, second], model.processor), collate([second], model.processor)
    mllm = model.model.mllm
    assert torch.equal(batch.pixels, alone.pixels) and torch.equal(batch.grids, alone.grids)
    features = visual_features(mllm, batch)
    both, one = (mllm.forward(each.with_features(features))[1] for each in (batch, alone))
    assert torch.allclose(both[1, -len(second.ids) :], one[0], atol=1e-4)


def test_the_loss_is_the_mean_over_labelled_tokens_and_reaches_the_tower(model, rows):
    mllm, batch = model.model.mllm, collate(rows, model.processor)
    labels = torch.full_like(batch.input_ids, -100)
    labels[0, -1], labels[1, -3] = batch.input_ids[0, -1], batch.input_ids[1, -3]
    merger = mllm.vision_tower.merger
    try:
        merger.requires_grad_(True)
        features = visual_features(mllm, batch)
        loss, hidden = mllm.forward(replace(batch, labels=labels).with_features(features))
        loss.backward()
        scores = mllm.head(hidden).log_softmax(-1)
        wanted = [scores[0, -2, labels[0, -1]], scores[1, -4, labels[1, -3]]]
        assert float(loss.detach()) == pytest.approx(-float(sum(wanted).detach()) / 2, rel=1e-5)
        assert all(float(parameter.grad.abs().sum()) > 0 for parameter in merger.parameters() if parameter.ndim > 1)
    finally:
        merger.requires_grad_(False).zero_grad()


def test_parity_images_first_a_medium_stands_before_its_text_with_nothing_between(model, picture):
    media = open_media(picture(90, 200))
    ids = prepare([Message.user("Look: <image> what is this?", media)], model.processor).ids
    text = model.processor.tokenizer.decode(ids.tolist(), skip_special_tokens=False)
    assert text.startswith(f"<|im_start|>user\n<|vision_start|>{VISUAL_TOKEN}")
    assert text.endswith(f"{VISUAL_TOKEN}<|vision_end|>Look:  what is this?<|im_end|>\n<|im_start|>assistant\n")


def test_parity_frames_as_images_each_has_a_grid_and_a_pair_of_its_own_with_nothing_between(model, clip):
    vision = model.processor.frames(clip(3))
    alone = model.processor.image(clip(3)[1], max_tiles=12)
    assert len(vision.grids) == 3 and vision.text == alone.text * 3
    count = len(alone.pixels)
    assert torch.equal(vision.pixels[count : 2 * count], alone.pixels)


@pytest.mark.parametrize(("size", "most"), [((30, 30), 12), ((900, 1200), 12), ((900, 1200), 3), ((900, 1200), 24)])
def test_an_image_has_as_many_pixels_as_its_tiles_allow(model, picture, size, most):
    config = model.model.mllm.config
    vision = model.processor.image(picture(*size), max_tiles=most)
    unit = config.vision_config.patch_size
    pixels = int(vision.grids.prod()) * unit**2
    most_pixels = config.most_pixels * most / 12
    assert min(config.least_pixels, most_pixels) * 0.5 <= pixels <= most_pixels
    assert vision.num_features == len(vision.rows) == int(vision.grids.prod()) // 4


@pytest.mark.parametrize(("jinja", "opening"), [(CHAT_TEMPLATE, ""), (WITH_SYSTEM, DEFAULT_TURN)])
def test_parity_template_opening_a_default_system_turn_is_the_checkpoints_word(folder, model, jinja, opening, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text(jinja)
    asked = loading.load(tmp_path, device="cpu", dtype="fp32")
    ids = prepare([Message.user("hello")], asked.processor).ids
    turn = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert asked.processor.tokenizer.decode(ids.tolist()) == opening + turn
    own = prepare([Message("system", ("Be brief.",)), Message.user("hello")], asked.processor).ids
    assert asked.processor.tokenizer.decode(own.tolist()).count("<|im_start|>system") == 1
    asked.save(tmp_path / "own")
    again = loading.load(tmp_path / "own", device="cpu", dtype="fp32")
    assert again.processor.template == asked.processor.template
    assert again.model.config.mllm_config.most_pixels == asked.model.config.mllm_config.most_pixels


def test_a_chat_template_of_another_form_is_refused(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("USER: {{ messages[0]['content'][1]['text'] }}")
    with pytest.raises(CheckpointError, match="writes a question as 'USER: a question'; expected it to end in"):
        loading.load(tmp_path, device="cpu", dtype="fp32")


def test_region_prompts_are_refused(model, picture):
    vision = model.processor.image(picture(90, 120), max_tiles=12)
    with pytest.raises(DataError, match="1 regions are marked, and this family knows no region prompts"):
        model.processor.regions(vision, np.ones((1, 90, 120), bool))


def test_patches_without_grids_are_refused(model):
    with pytest.raises(DataError, match="4 patches came without the grids"):
        model.model.mllm.tower(torch.zeros(4, 1176))


@torch.no_grad()
def test_text_alone_stands_at_the_same_place_along_every_axis(model):
    ids = torch.arange(6)[None]
    batch = Batch(ids, torch.tensor([[0, 0, 1, 1, 1, 1]]))
    assert model.model.mllm.positions(batch).tolist() == [[[0, 0, 0, 1, 2, 3]]] * 3
    _, padded = model.model.mllm.forward(batch)
    _, single = model.model.mllm.forward(Batch(ids[:, 2:], torch.ones(1, 4, dtype=torch.long)))
    assert torch.allclose(padded[:, 2:], single, atol=1e-5)


def test_several_images_answered_as_one_batch_equal_single_answers(model, picture):
    dialogues = [[Message.user("a", open_media(picture(90, 200)))], [Message.user("b", open_media(picture(120, 90)))]]
    together = model.answer_all(dialogues, Options(prefill="It is [SEG]."))
    alone = [model.answer(messages, Options(prefill="It is [SEG].")) for messages in dialogues]
    for one, other in zip(together, alone, strict=True):
        assert np.mean(one.regions[0].masks.dense() == other.regions[0].masks.dense()) > 0.999


def test_questions_about_one_image_read_it_once_and_are_answered_as_alone(model, picture):
    media, read = open_media(picture(300, 200)), []
    asked = ("what this is", "where the left one stands", "who it is")
    dialogues = [
        [Message.user(f"Say in a few words, and no more of them than you need, {one}.", media)] for one in asked
    ]
    settings = Options(max_new_tokens=8, keep_logits=True)

    def said(answer):
        return answer.regions[0].masks.logits[0]

    alone = [said(model.answer(messages, settings)) for messages in dialogues]
    layer = model.model.mllm.language_model.model.layers[0]
    hook = layer.register_forward_hook(lambda *call: read.append(tuple(call[2].shape[:2])))
    together = [said(answer) for answer in model.answer_each(dialogues, settings)]
    hook.remove()
    assert np.allclose(together, alone, atol=1e-4) and not np.allclose(alone[0], alone[1], atol=1e-3)
    (rows, whole), (others, rest), *steps = read
    assert (rows, others) == (1, 2) and rest < 64 < whole and all(count == 1 for _, count in steps)


def test_the_next_turn_of_a_dialogue_reads_what_came_since_and_is_answered_as_one_read_anew(model, picture):
    dialogue = [Message.user("What is on the left side of the picture?", open_media(picture(300, 200)))]
    last, read = LastPrompt(), []
    settings, layer = Options(max_new_tokens=8, keep_logits=True), model.model.mllm.language_model.model.layers[0]
    for question in ("And what is on the right?", "Above?", None):
        anew = model.answer(dialogue, settings)
        hook = layer.register_forward_hook(lambda *call: read.append(call[2].shape[1]))
        *_, finished = model.stream_answer(dialogue, settings, last_prompt=last)
        hook.remove()
        masks = [one.regions[0].masks.logits for one in (finished.answer, anew)]
        assert finished.answer.raw_text == anew.raw_text and np.allclose(*masks, atol=1e-4)
        dialogue += [Message("assistant", (anew.text,)), Message.user(question or "")]
    first, *others = [count for count in read if count > 1]
    assert len(others) == 2 and max(others) < 64 < first


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({}, None),
        ({"vision_config": {}, "llm_config": {}}, None),
        ({"vision_config": {"hidden_size": 8}, "text_config": {}, "architectures": ["Llava"]}, None),
        ({"vision_config": {"hidden_size": 8}, "architectures": ["Sa2VAChatModelQwen"]}, "qwen2_5_vl"),
        ({"vision_config": {"fullatt_block_indexes": [7]}}, "qwen2_5_vl"),
        ({"vision_config": {}, "text_config": {"model_type": "qwen2_5_vl_text"}}, "qwen2_5_vl"),
        ({"vision_config": {"deepstack_visual_indexes": [5]}, "text_config": {}}, "qwen3_vl"),
        ({"vision_config": {"model_type": "qwen3_vl"}, "architectures": ["Sa2VAChatModelQwen"]}, "qwen3_vl"),
    ],
)
def test_a_config_is_claimed_by_its_content(config, found):
    assert generation(config) == found


def test_text_fields_at_the_top_level_are_understood_as_nested_ones():
    text = {
        "hidden_size": 8,
        "vocab_size": 5,
        "rope_theta": 7.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [1]},
    }
    flat, nested = {"vision_config": {"depth": 2}, **text}, {"vision_config": {"depth": 2}, "text_config": text}
    assert parts(flat) == parts(nested)
    rope = {"rope_type": "default", "rope_theta": 7.0, "mrope_section": [1]}
    assert parts(flat)["text_config"]["rope_parameters"] == rope
    assert parts(flat)["vision_config"] == {"depth": 2}


def test_a_rope_that_is_stretched_stays_so():
    text = {"rope_theta": 7.0, "rope_scaling": {"type": "yarn", "factor": 4.0, "mrope_section": [1]}}
    rope = parts({"vision_config": {}, "text_config": text})["text_config"]["rope_parameters"]
    assert rope == {"rope_type": "yarn", "rope_theta": 7.0, "factor": 4.0, "mrope_section": [1]}
