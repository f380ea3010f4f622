"""Questions of foreign harnesses, put to an engine that repeats what it was asked."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from segue.errors import ConfigError, DataError, MediaError
from segue.evals.harnesses import harness_adapter
from segue.evals.harnesses.harness_adapter import HarnessAdapter, HarnessRequest, media_of, options_from
from segue.features import Store
from segue.geometry.qwen_notation import parse
from segue.media import open_media
from segue.options import Options
from segue.types import Media, Message


class Parrot:
    """Says the text it was asked with, and keeps what it was asked about and how."""

    def __init__(self):
        self.asked, self.batches, self.lineage = [], [], {}

    def answer_all(self, dialogues, options, *, rows):
        self.batches.append(len(dialogues))
        return [self._answer(messages, options) for messages in dialogues]

    def _answer(self, messages, options):
        media = next((part for part in messages[-1].parts if isinstance(part, Media)), None)
        self.asked.append((media, options))
        said = messages[-1].text.strip()
        return SimpleNamespace(text=parse(said, (30, 20))[0], raw_text=said)


@pytest.fixture
def adapter():
    return HarnessAdapter(Parrot())


@pytest.fixture
def still(tmp_path):
    def write(name="a.png", size=(30, 20), grey=90):
        Image.new("RGB", size, (grey, grey, grey)).save(tmp_path / name)
        return str(tmp_path / name)

    return write


def test_features_are_kept_unless_the_cache_is_disabled(make_engine, still, tmp_path, monkeypatch):
    monkeypatch.setattr(harness_adapter, "load", lambda model, **how: make_engine())
    request = HarnessRequest("What?", (still(),), Options(prefill="Yes."))
    for enable_cache, counted in ((None, (0, 1)), (True, (1, 0)), (False, None)):
        adapter = HarnessAdapter.load("m", cache_dir=str(tmp_path / "cache"), enable_cache=enable_cache)
        adapter.answer(request)
        usage = getattr(adapter.model.features, "usage", None)
        assert counted == (usage and (usage.hits, usage.misses))
    with pytest.raises(ConfigError, match="cache_dir is not given"):
        HarnessAdapter.load("m", enable_cache=True)


def test_a_text_alone_is_asked_as_it_stands(adapter):
    assert adapter.answer(HarnessRequest("What is <image> in HTML?")) == "What is <image> in HTML?"
    assert adapter.model.asked == [(None, Options())]


def test_a_placeholder_goes_for_the_medium_stands_first(adapter, still):
    assert adapter.answer(HarnessRequest("<image>\nWhat is this? <video>", (still(),))) == "What is this?"
    assert adapter.model.asked[0][0].kind == "image"


def test_several_images_are_a_clip_of_the_first_ones_size_shown_whole(adapter, still):
    pictures = (still("a.png", (30, 20), 10), Image.new("RGB", (60, 60), (200, 0, 0)), still("c.png", (30, 20), 30))
    adapter.answer(HarnessRequest("Which differs?", pictures, Options(frames="first:2")))
    media, options = adapter.model.asked[0]
    assert (media.kind, media.size, media.count, options.frames) == ("video", (20, 30), 3, "first:3")
    assert media.source[0].max() == 10 and media.source[1, ..., 0].min() == 200 and media.source[2].min() == 30


def test_places_in_words_stay_in_them(adapter):
    said = "<ref>The sign</ref><box>(0,0),(499,999)</box> hangs.<|im_end|>"
    assert adapter.answer(HarnessRequest(said)) == "The sign(0,0),(499,999) hangs."
    assert adapter.answer(HarnessRequest("It is <ref>here</ref>.")) == "It is here."


def test_what_is_neither_image_nor_video_is_refused(still):
    with pytest.raises(DataError, match="about a dict; expected images, or the path of a video"):
        media_of([{"array": np.zeros(4), "sampling_rate": 16_000}])
    with pytest.raises(MediaError, match="no such file"):
        media_of(["gone.png"])


def test_38_a_video_and_an_image_are_both_shown_in_their_order(make_engine, still, tmp_path):
    clip, engine = np.zeros((2, 20, 30, 3), np.uint8), make_engine()
    request = HarnessRequest("<video>\n<image>\nWhich?", (clip, still()), Options(max_new_tokens=3, frames="first:2"))
    for hits in (0, 2):
        cache = engine.use_cache(Store(tmp_path / "cache", reserve=0))
        said = HarnessAdapter(engine).answer(request)
        asked = Message("user", (open_media(clip), open_media(request.sources[1]), "\nWhich?"))
        assert said == make_engine().answer([asked], request.options).text.strip()
        assert cache.usage.hits == hits


def test_questions_in_a_row_about_one_file_share_its_medium(adapter, still):
    path, other = still("a.png"), still("b.png")
    for source in (path, path, other, Image.open(path), path):
        adapter.answer(HarnessRequest("?", (source,)))
    first, second, third, fourth, fifth = (media for media, _ in adapter.model.asked)
    assert first is second
    assert len({id(media) for media in (second, third, fourth, fifth)}) == 4


def test_neighbours_are_computed_together_and_answers_keep_their_order(adapter, still):
    clip = np.zeros((2, 20, 30, 3), np.uint8)
    short = Options(max_new_tokens=5)
    questions = [
        HarnessRequest("a", (still("a.png"),)),
        HarnessRequest("b"),
        HarnessRequest("c", (still("b.png"),)),
        HarnessRequest("d", (clip,)),
        HarnessRequest("e", (still("b.png"),), short),
        HarnessRequest("f", (still("b.png"),)),
    ]
    assert list(adapter.answer_all(questions, batch=2)) == list("abcdef")
    assert adapter.model.batches == [2, 2, 1, 1]
    assert [options.max_new_tokens for _, options in adapter.model.asked] == [2048, 2048, 2048, 2048, 5, 2048]


def test_without_a_batch_each_is_computed_on_its_own(adapter, still):
    assert list(adapter.answer_all([HarnessRequest("a", (still(),)), HarnessRequest("b")])) == ["a", "b"]
    assert adapter.model.batches == [1, 1]


@pytest.mark.parametrize(
    ("until", "expected"), [((), "yes. No more\nof it"), (("\n",), "yes. No more"), (("\n", ".", "?"), "yes")]
)
def test_an_answer_ends_before_the_first_stop(adapter, until, expected):
    assert adapter.answer(HarnessRequest("yes. No more\nof it", until=until)) == expected


@pytest.mark.parametrize(
    ("given", "changes", "until"),
    [
        ({}, {}, ()),
        ({"max_new_tokens": 16, "do_sample": False, "temperature": 0.7, "top_p": 0.9}, {"max_new_tokens": 16}, ()),
        ({"temperature": 0.7, "top_p": 0.9, "seed": 3}, {"temperature": 0.7, "top_p": 0.9, "seed": 3}, ()),
        ({"temperature": 0, "top_p": None, "num_beams": 1, "until": ["\n\n", ""]}, {}, ("\n\n",)),
        ({"until": "###"}, {}, ("###",)),
    ],
)
def test_generation_settings_become_options(given, changes, until):
    assert options_from(given, Options(max_tiles=6)) == (Options(max_tiles=6, **changes), until)


def test_settings_without_a_meaning_here_are_told_once(caplog, monkeypatch):
    monkeypatch.setattr(harness_adapter, "_told", set())
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert options_from({"num_beams": 4, "image_aspect_ratio": "pad"}, Options()) == (Options(), ())
    assert [record.getMessage() for record in caplog.records] == [
        "generation settings that mean nothing here are left out: image_aspect_ratio, num_beams"
    ]
