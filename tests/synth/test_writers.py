"""What is generated and written in a form comes back from our reader of that form: the same masks, the same words."""

from dataclasses import replace

import numpy as np
import pytest

from segue.data.base import rng_for
from segue.data.prompts import clean_phrase
from segue.datasets import DATASETS
from segue.errors import ConfigError, MediaError
from segue.geometry.notation import parse_grounded
from segue.media import read_frames, read_image
from segue.progress import NoProgress
from segue.synth import Caption, clip, scene
from segue.synth.vessels import vessels
from segue.synth.writers import FORMATS, region_caption
from segue.synth.writers.base import Order
from segue.synth.writing import Request, write

SIZE = (96, 128)
STILLS = [scene(5, index, size=SIZE) for index in range(2)]
CLIPS = [clip(5, index, size=SIZE) for index in range(2)]
OPTIONS = {
    "refcoco": {"referents": None},
    "ref_vos": {"frames": None, "expressions": None},
    "ref_sav": {"frames": None, "expressions": None},
    "video_chat": {"frames": 100},
}


def written(root, name, **asked):
    """The samples that come back, in order."""
    request = Request(format=name, **{"count": 2, "seed": 5, "size": SIZE, "languages": ("en", "zh"), **asked})
    write(root, request)
    form = FORMATS[name]
    split = "val" if form.dataset == "folder" and request.split == "validation" else "train"
    data = DATASETS[form.dataset](root, split, **dict(form.options), **OPTIONS.get(name, {}))
    return [data.get(row, rng_for(0, 0, 0)) for row in range(len(data))]


def marks(sample):
    """Masks by phrase, on all frames shown."""
    return {
        region.phrase: np.stack([region.masks.dense(place) for place in range(len(region.masks))])
        for region in sample.regions
    }


def truth(made, clean=clean_phrase):
    """Masks by phrase for all that means something."""
    return {
        clean(words): made.visible[list(phrase.objects)].any(axis=0)
        for phrase in made.phrases
        for words in phrase.words.values()
        if phrase.objects
    }


def assert_same(found, meant):
    assert found.keys() == meant.keys() and meant
    for phrase, masks in meant.items():
        assert np.array_equal(found[phrase], masks), phrase


def media_of(sample):
    return next(part for message in sample.messages for part in message.parts if not isinstance(part, str))


@pytest.mark.parametrize("name", ["finetune", "coco", "pictures"])
def test_marks_come_back_from_my_folder(tmp_path, name):
    samples = [sample for sample in written(tmp_path / "out", name) if sample.regions]
    assert len(samples) == len(STILLS)
    for sample, made in zip(sorted(samples, key=lambda sample: sample.id), STILLS, strict=True):
        assert_same(marks(sample), truth(made))
        assert np.array_equal(read_image(media_of(sample)), made.frames[0])


def test_finetune_tells_what_is_not_there_too(tmp_path):
    samples = [sample for sample in written(tmp_path / "out", "finetune") if not sample.regions]
    for sample, made in zip(samples, STILLS, strict=True):
        absent = [words for phrase in made.phrases if not phrase.objects for words in phrase.words.values()]
        asked = " ".join(message.text for message in sample.messages if message.role == "user")
        assert all(clean_phrase(words) in asked for words in absent) and absent


@pytest.mark.parametrize("name", ["finetune", "pictures", "coco"])
def test_vessels_come_back_with_their_patients(tmp_path, name):
    samples = written(tmp_path / "out", name, kind="vessels", count=5, split="validation", languages=("en",))
    made = [vessels(5, index, split="validation", size=SIZE) for index in range(5)]
    for sample, one in zip(sorted(samples, key=lambda sample: sample.id), made, strict=True):
        assert_same(marks(sample), {"vessel": one.mask[None]})
        assert sample.group == one.group


def test_refcoco_gives_back_what_is_said_of_single_things(tmp_path):
    for sample, made in zip(written(tmp_path / "out", "refcoco"), STILLS, strict=True):
        single = {
            clean_phrase(words): made.visible[phrase.objects[0]]
            for phrase in made.phrases
            for words in phrase.words.values()
            if len(phrase.objects) == 1
        }
        assert_same(marks(sample), single)


def test_ref_vos_gives_back_every_expression_on_every_frame(tmp_path):
    for sample, made in zip(written(tmp_path / "out", "ref_vos"), CLIPS, strict=True):
        assert_same(marks(sample), truth(made))
        assert np.array_equal(read_frames(media_of(sample), range(len(made.frames))).pixels, made.frames)
        absent = sum(2 for phrase in made.phrases if not phrase.objects)
        assert len(sample.messages) == 2 * (len(sample.regions) + absent)


def test_ref_sav_gives_back_descriptions_on_every_fourth_frame_of_a_video(tmp_path):
    for sample, made in zip(written(tmp_path / "out", "ref_sav"), CLIPS, strict=True):
        assert sample.frames == (0, 4)
        whole = truth(made, clean=str)
        assert_same(marks(sample), {phrase: masks[[0, 4]] for phrase, masks in whole.items()})


@pytest.mark.parametrize(("name", "made"), [("image_chat", STILLS), ("video_chat", CLIPS)])
def test_conversations_come_back_word_for_word(tmp_path, name, made):
    samples = written(tmp_path / "out", name)
    expected = [(one, language) for one in made for language in ("en", "zh")]
    for sample, (one, language) in zip(samples, expected, strict=True):
        turns = [(question.words[language], question.answers[language]) for question in one.questions]
        texts = [message.text.strip() for message in sample.messages]
        assert list(zip(texts[::2], texts[1::2], strict=True)) == turns
        assert media_of(sample).count == len(one.frames)


def test_grounded_captions_come_back_with_a_mask_for_each_phrase(tmp_path):
    samples = written(tmp_path / "out", "gcg")
    expected = [(one, language) for one in STILLS for language in ("en", "zh")]
    for sample, (one, language) in zip(samples, expected, strict=True):
        text, spoken = parse_grounded(one.caption.words[language])
        assert parse_grounded(sample.messages[-1].text)[0] == text
        for region, said, thing in zip(sample.regions, spoken, one.caption.objects, strict=True):
            assert (region.phrase, region.span) == (said.phrase, said.span)
            assert np.array_equal(region.masks.dense(0), one.visible[thing, 0])


def test_a_phrase_that_comes_twice_in_a_caption_keeps_both_masks(tmp_path):
    caption = Caption({"en": "Here are <p> a thing </p> [SEG] and <p> a thing </p> [SEG]."}, (1, 0))
    FORMATS["gcg"].write(tmp_path, Order("train", ("en",)), iter([replace(STILLS[0], caption=caption)]))
    sample = DATASETS["gcg"](tmp_path, "train", variant="grandf").get(0, rng_for(0, 0, 0))
    assert [region.phrase for region in sample.regions] == ["a thing"] * 2
    assert [int(region.masks.dense(0).sum()) for region in sample.regions] == [
        int(STILLS[0].visible[thing, 0].sum()) for thing in (1, 0)
    ]


def test_region_descriptions_come_back_with_the_region_they_are_of(tmp_path):
    samples = written(tmp_path / "out", "region_caption")
    expected = [(one, language) for one in STILLS for language in ("en", "zh")]
    for sample, (one, language) in zip(samples, expected, strict=True):
        prompts = [part for part in sample.messages[0].parts if hasattr(part, "masks")]
        for prompt, mask in zip(prompts, one.visible[:, 0], strict=True):
            assert np.array_equal(prompt.masks.dense(0), mask)
        said = [region_caption.description(one, number, language) for number in range(len(one.things))]
        assert [message.text for message in sample.messages if message.role == "assistant"] == said


# --- what is refused, and what is left when things go wrong


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"format": "finetune", "frames": 8}, "holds images, not 8 frames"),
        ({"format": "refcoco", "kind": "vessels"}, "choose finetune, coco, pictures"),
        ({"format": "ref_sav", "frames": 4}, "too short for ref_sav"),
        ({"format": "video_chat", "size": (97, 128)}, "sides are even"),
        ({"format": "fintune"}, "did you mean 'finetune'"),
        ({"format": "coco", "count": 0}, "0 drawings"),
    ],
)
def test_what_a_form_cannot_hold_is_refused_before_anything_is_written(asked, text):
    with pytest.raises(ConfigError, match=text):
        Request(**asked)


def test_a_folder_that_is_there_stays_unless_it_may_be_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("precious")
    request = Request(format="finetune", count=1, size=SIZE)
    with pytest.raises(MediaError, match="there already"):
        write(tmp_path / "out", request)
    with pytest.raises(MediaError, match=r"holds mine\.txt"):
        write(tmp_path / "out", request, overwrite=True)
    assert (tmp_path / "out/mine.txt").read_text() == "precious"
    (tmp_path / "out/mine.txt").rename(tmp_path / "mine.txt")
    write(tmp_path / "out", request, overwrite=True)
    write(tmp_path / "out", request, overwrite=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["annotations.json", "images"]


def test_a_run_that_is_cut_short_leaves_nothing(tmp_path):
    class Stopping(NoProgress):
        def step(self, failure: str | None = None) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", Request(format="finetune", count=3, size=SIZE), progress=Stopping())
    assert list(tmp_path.iterdir()) == []
