"""An engine with a feature cache: equal answers, and nothing decoded or encoded the second time.

Numbers in names are those of the conformance list in docs/cache.md.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import segue
from segue import prepare
from segue.errors import LimitError
from segue.features import FeatureCache, Store
from segue.media import open_media
from segue.types import Message

OPTIONS = segue.Options(frames="uniform:4", max_new_tokens=6)


@pytest.fixture(scope="module")
def folder(longva_folder):
    return longva_folder


@pytest.fixture(scope="module")
def sibling(folder, tmp_path_factory):
    """Writes a model with the same tensors but for one, which is larger by 1."""

    def make(changed):
        other = tmp_path_factory.mktemp("sibling")
        shutil.copytree(folder, other, dirs_exist_ok=True)
        tensors = load_file(folder / "model.safetensors")
        name = next(name for name in tensors if changed in name)
        tensors[name] = tensors[name] + 1
        save_file(tensors, other / "model.safetensors")
        return other

    return make


@pytest.fixture
def video():
    return np.random.default_rng(0).integers(0, 256, (6, 54, 96, 3), dtype=np.uint8)


def cached(folder, root, **options):
    engine = segue.load(folder)
    return engine, engine.use_cache(Store(root, reserve=0), **options)


def answer(engine, medium, text="What is it?"):
    return engine.ask(medium, text, options=OPTIONS).raw_text


@pytest.mark.parametrize(("form", "told"), [("lossless", None), ("int8", "int8, tower")])
def test_features_that_are_not_exact_stand_in_the_lineage(folder, video, tmp_path, form, told):
    engine, _ = cached(folder, tmp_path, form=form)
    assert engine.ask(video, "What is it?", options=OPTIONS).lineage.get("features") == told


@pytest.mark.parametrize("point", ["tower", "projected"])
def test_38_39_the_second_run_decodes_and_encodes_nothing(folder, video, tmp_path, monkeypatch, point):
    expected = [answer(segue.load(folder), medium) for medium in (video, video[0])]
    first, cache = cached(folder, tmp_path / "cache", point=point)
    assert [answer(first, medium) for medium in (video, video[0])] == expected
    assert (cache.usage.hits, cache.usage.misses) == (0, 2)
    second, cache = cached(folder, tmp_path / "cache", point=point)

    def fail(*_, **__):
        raise AssertionError("something was decoded or encoded")

    monkeypatch.setattr(prepare, "read_frames", fail)
    monkeypatch.setattr(second.model.mllm, "tower", fail)
    assert [answer(second, medium) for medium in (video, video[0])] == expected
    assert (cache.usage.hits, cache.usage.misses) == (2, 0)


def test_questions_about_one_medium_are_hits(folder, video, tmp_path):
    engine, cache = cached(folder, tmp_path / "cache")
    medium = open_media(video)
    alone = [answer(segue.load(folder), video, text) for text in ("What?", "Who is it?")]
    assert [answer(engine, medium, text) for text in ("What?", "Who is it?")] == alone
    assert (cache.usage.hits, cache.usage.misses) == (1, 1)


def test_one_step_of_the_tower_and_there_are_no_hits(folder, video, tmp_path):
    engine, _ = cached(folder, tmp_path / "cache")
    answer(engine, video)
    with torch.no_grad():
        engine.model.mllm.vision_tower.encoder.layers[0].mlp.fc1.weight[0, 0] += 1e-3
    engine.forget()
    answer(engine, video)
    assert (engine.features.usage.hits, engine.features.usage.misses) == (0, 1)


@pytest.mark.parametrize(
    ("changed", "hits"),
    [
        ("model.layers.1.mlp.up_proj.weight", 1),
        ("mm_projector.0.weight", 1),
        ("encoder.layers.3.mlp.fc1.weight", 1),
        ("post_layernorm.weight", 1),
        ("encoder.layers.1.mlp.fc1.weight", 0),
        ("patch_embedding.weight", 0),
    ],
)
def test_26_models_share_what_their_towers_have_in_common(folder, sibling, video, tmp_path, changed, hits):
    engine, _ = cached(folder, tmp_path / "cache")
    answer(engine, video)
    other, cache = cached(sibling(changed), tmp_path / "cache")
    assert answer(other, video) == answer(segue.load(sibling(changed)), video)
    assert cache.usage.hits == hits


def test_26_projected_features_are_not_shared_with_another_projector(folder, sibling, video, tmp_path):
    engine, _ = cached(folder, tmp_path / "cache", point="projected")
    answer(engine, video)
    other, cache = cached(sibling("mm_projector.2.bias"), tmp_path / "cache", point="projected")
    answer(other, video)
    assert cache.usage.hits == 0


def test_27_another_plan_of_frames_is_a_miss(folder, video, tmp_path):
    engine, cache = cached(folder, tmp_path / "cache")
    for plan in ("uniform:4", "uniform:3", "first:4", "uniform:4"):
        engine.ask(video, "What?", options=segue.Options(frames=plan, max_new_tokens=2))
    assert (cache.usage.hits, cache.usage.misses) == (1, 3)


def test_28_a_video_replaced_under_its_name_is_a_miss_and_a_moved_one_a_hit(folder, tmp_path, monkeypatch):
    from PIL import Image

    def write(place, seed):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for number, frame in enumerate(np.random.default_rng(seed).integers(0, 256, (4, 54, 96, 3), dtype=np.uint8)):
            Image.fromarray(frame).save(place / f"{number}.png")

    write(tmp_path / "clip", 0)
    engine, cache = cached(folder, tmp_path / "cache")
    answer(engine, tmp_path / "clip")
    moved = (tmp_path / "clip").rename(tmp_path / "moved")
    answer(engine, moved)
    assert (cache.usage.hits, cache.usage.misses) == (1, 1)
    write(moved, 1)
    assert answer(engine, moved) == answer(segue.load(folder), moved)
    assert (cache.usage.hits, cache.usage.misses) == (1, 2)


def test_31_a_damaged_entry_is_computed_anew(folder, video, tmp_path):
    engine, _ = cached(folder, tmp_path / "cache")
    expected = answer(engine, video)
    path = next((tmp_path / "cache").glob("ns/*/*/*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    again, cache = cached(folder, tmp_path / "cache")
    assert answer(again, video) == expected
    assert cache.usage.corrupt == 1
    assert next((tmp_path / "cache").glob("ns/*/*/*.safetensors")).is_file()


def test_int8_keeps_the_error_below_one_percent(folder, video, tmp_path):
    engine, cache = cached(folder, tmp_path / "cache", form="int8")
    answer(engine, video)
    (found,) = cache.store.entries()
    assert 0 < cache.store.head(found.place).facts["loss"]["error"] < 0.01


def test_a_sa2va_uses_the_cache_too(tmp_path):
    frame = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    options = segue.Options(max_new_tokens=4)
    expected = segue.load("demo").ask(frame, "What is it?", options=options).raw_text
    for hits in (0, 1):
        engine, cache = cached("demo", tmp_path / "cache")
        assert engine.ask(frame, "What is it?", options=options).raw_text == expected
        assert cache.usage.hits == hits
    assert isinstance(engine.features, FeatureCache)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_14_38_44_logits_are_those_without_a_cache(folder, video, tmp_path, dtype):
    question = [Message.user("What is it?", open_media(video))]
    expected = segue.load(folder, dtype=dtype).logits(question, OPTIONS)
    for point in ("tower", "projected"):
        for hits in (0, 1):
            engine = segue.load(folder, dtype=dtype)
            cache = engine.use_cache(Store(tmp_path / "cache", reserve=0), point=point)
            assert torch.equal(engine.logits(question, OPTIONS), expected)
            assert cache.usage.hits == hits


def test_42_a_cache_of_another_tower_is_told_and_not_used(folder, sibling, video, tmp_path):
    engine, cache = cached(folder, tmp_path / "cache")
    answer(engine, video)
    assert not cache.store.problems
    for changed, told in (("mm_projector.0.weight", False), ("layers.1.mlp.fc1.weight", True)):
        _, cache = cached(sibling(changed), tmp_path / "cache")
        assert any("encoder.fingerprint: " in line for line in cache.store.problems) == told


def test_13_a_prompt_beyond_the_models_positions_is_refused_before_anything_is_decoded(folder, video, monkeypatch):
    engine, read = segue.load(folder), prepare.read_frames
    text = engine.model.config.get_text_config()
    monkeypatch.setattr(engine.model.mllm, "tower", lambda *_: pytest.fail("something was encoded"))
    text.max_position_embeddings = 20  # a frame has 4 tokens
    with pytest.raises(LimitError, match=r"the prompt has \d+ tokens and the model 20 positions; shorten it"):
        answer(engine, video)

    def read_black(media, plan):
        assert media.count == 1, "something was decoded"
        return read(media, plan)

    monkeypatch.setattr(prepare, "read_frames", read_black)
    text.max_position_embeddings = 15
    with pytest.raises(LimitError, match="has 16 tokens and the model 15 positions; shorten it, or show fewer frames"):
        answer(engine, video)


@pytest.mark.parametrize("change", [{"image_grid_pinpoints": [[112, 56]]}, {"mm_spatial_pool_stride": 4}])
def test_27_the_same_tower_shown_tiles_of_another_layout_shares_nothing(folder, video, tmp_path, change):
    engine, _ = cached(folder, tmp_path / "cache")
    answer(engine, video[0])
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    raw = json.loads((other / "config.json").read_text("utf-8"))
    (other / "config.json").write_text(json.dumps(raw | change), "utf-8")
    alone = segue.load(other).ask(video[0], "What is it?", options=OPTIONS)
    kept, cache = cached(other, tmp_path / "cache")
    found = kept.ask(video[0], "What is it?", options=OPTIONS)
    assert (found.usage.visual_tokens, found.raw_text) == (alone.usage.visual_tokens, alone.raw_text)
    assert cache.usage.hits == 0
