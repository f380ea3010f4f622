import re
from collections import Counter

import numpy as np
import pytest
from scene_reader import chinese_noun, english_noun, judge, meant, relates, way

import segue
from segue.data.base import checked
from segue.errors import ConfigError, DataError, MediaError
from segue.geometry.notation import parse_grounded
from segue.synth import caption_sample, clip, question_sample, region_sample, scene, segmentation_sample
from segue.synth.drawings import KINDS
from segue.synth.meaning import Noun, denote
from segue.synth.painting import TEXTURES, Look, Pose, paint
from segue.synth.phrases import comparisons, contrasts
from segue.synth.scenes import draw_size, generator
from segue.synth.wording import LANGUAGES, a, vocabulary
from segue.types import Media, Region

SIZE = (96, 128)


@pytest.fixture(scope="module")
def stills():
    return [scene(7, index, size=SIZE) for index in range(8)]


@pytest.fixture(scope="module")
def clips():
    return [clip(7, index, size=(72, 96), frames=6) for index in range(4)]


@pytest.fixture(scope="module")
def scenes(stills, clips):
    return stills + clips


def test_the_same_arguments_draw_the_same_scene_whatever_else_was_drawn():
    np.random.seed(1)
    first = scene(3, 5, size=(64, 64))
    np.random.seed(2)
    scene(3, 6, size=(64, 64))
    again = scene(3, 5, size=(64, 64))
    assert np.array_equal(first.frames, again.frames) and np.array_equal(first.visible, again.visible)
    assert (first.things, first.phrases, first.questions, first.caption) == (
        again.things,
        again.phrases,
        again.questions,
        again.caption,
    )


@pytest.mark.parametrize("make", [scene, clip])
def test_seeds_indices_and_splits_draw_different_scenes(make):
    options = [(1, 0, "train"), (1, 1, "train"), (2, 0, "train"), (1, 0, "test"), (1, 0, "validation")]
    drawn = [make(seed, index, split=split, size=(64, 64), things=(2, 2)) for seed, index, split in options]
    pictures = {one.frames.tobytes() for one in drawn}
    assert len(pictures) == len(drawn)
    assert len({one.group for one in drawn}) == len(drawn)


def test_no_scene_of_the_test_split_turns_up_in_training():
    tested = {_stream("still", "test", 0, index) for index in range(500)}
    trained = {
        _stream(purpose, "train", seed, index)
        for purpose in ("still", "clip")
        for seed in range(3)
        for index in range(500)
    }
    assert len(tested) == 500 and not tested & trained


def _stream(purpose, split, seed, index):
    return generator(purpose, split, seed, index).bytes(16)


def test_sizes_are_drawn_between_128_and_640_and_can_be_given():
    rng = np.random.default_rng(0)
    sizes = [draw_size(rng) for _ in range(50)]
    assert len(set(sizes)) > 40
    assert all(128 <= side <= 640 for size in sizes for side in size)
    assert scene(0, 0, size=(200, 333)).size == (200, 333)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (scene, {"seed": -1}),
        (scene, {"index": -1}),
        (scene, {"split": "holdout"}),
        (scene, {"size": (32, 128)}),
        (scene, {"size": (128, 1280)}),
        (scene, {"things": (0, 2)}),
        (scene, {"things": (5, 2)}),
        (clip, {"frames": 2}),
        (clip, {"things": (1, 2)}),
    ],
)
def test_what_cannot_be_drawn_is_refused(make, options):
    given = {"seed": 0, "index": 0, **options}
    with pytest.raises(ConfigError if options.get("split") is None else (ConfigError, TypeError)):
        make(given.pop("seed"), given.pop("index"), **given)


def test_masks_cover_what_covers_half_a_pixel_and_the_nearer_thing_hides_the_other():
    background = np.zeros((40, 60, 3), np.uint8)
    looks = [Look("square", "red", "plain"), Look("square", "blue", "plain")]
    # the first covers x 10.1 to 30.1 and y 10.3 to 30.7, the second x 22 to 38 and y 22.8 to 38.8
    picture = paint(background, looks, [Pose(20.1, 20.5, 20.2), Pose(30.0, 30.8, 16.0)])
    expected = np.zeros((2, 40, 60), bool)
    expected[0, 10:31, 10:30] = True
    expected[1, 23:39, 22:38] = True
    assert np.array_equal(picture.whole, expected)
    assert np.array_equal(picture.visible[1], expected[1])
    assert np.array_equal(picture.visible[0], expected[0] & ~expected[1])
    assert picture.boxes.tolist() == [[10, 10, 30, 31], [22, 23, 38, 39]]
    assert picture.areas.tolist() == [420, 256]


def test_a_thing_partly_outside_has_its_whole_box_and_area():
    picture = paint(np.zeros((40, 60, 3), np.uint8), [Look("square", "red", "plain")], [Pose(0.0, 20.0, 20.0)])
    assert picture.boxes.tolist() == [[-10, 10, 10, 30]] and picture.areas.tolist() == [400]
    assert np.count_nonzero(picture.whole) == np.count_nonzero(picture.visible) == 200
    outside = paint(np.zeros((40, 60, 3), np.uint8), [Look("square", "red", "plain")], [Pose(-50.0, 20.0, 20.0)])
    assert not outside.whole.any() and outside.boxes.tolist() == [[-60, 10, -40, 30]]


def test_pixels_change_only_where_things_are():
    background = np.full((64, 64, 3), 90, np.uint8)
    picture = paint(background, [Look("star", "yellow", "dotted")], [Pose(31.3, 30.2, 36.0, 0.3)])
    changed = (picture.pixels != background).any(axis=2)
    assert (changed & picture.whole[0]).sum() == picture.whole[0].sum()
    rim = np.pad(picture.whole[0], 1)
    near = np.any([np.roll(rim, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)], axis=0)[1:-1, 1:-1]
    assert not (changed & ~near).any()


def test_visible_masks_are_disjoint_and_parts_of_whole_ones(scenes):
    for one in scenes:
        assert (one.visible.sum(axis=0) <= 1).all()
        assert not (one.visible & ~one.whole).any()
        covered = np.array([one.whole[number + 1 :].any(axis=0) for number in range(len(one.things))])
        hidden = one.whole & ~one.visible
        assert not (hidden & ~covered).sum() > 0.02 * one.whole.sum(), "only a nearer thing hides, edge pixels aside"


def test_boxes_are_tight_around_what_is_seen(scenes):
    for one in scenes:
        for box, mask in zip(one.boxes.reshape(-1, 4), one.visible.reshape(-1, *one.size), strict=True):
            assert np.isnan(box).all() == (not mask.any())
            if mask.any():
                left, top, right, bottom = box.astype(int)
                assert mask[top:bottom, left:right].sum() == mask.sum()
                assert mask[[top, bottom - 1], left:right].any(axis=1).all()
                assert mask[top:bottom, [left, right - 1]].any(axis=0).all()


def test_things_in_stills_can_be_seen(stills):
    for one in stills:
        assert (one.visible.sum(axis=(1, 2, 3)) >= 0.55 * one.whole.sum(axis=(1, 2, 3))).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("texture", TEXTURES)
def test_things_show_their_colour(kind, texture):
    background = np.full((64, 64, 3), 90, np.uint8)
    for colour, channel in (("red", 0), ("green", 1), ("blue", 2)):
        picture = paint(background, [Look(kind, colour, texture)], [Pose(32.0, 32.0, 44.0)])
        assert int(picture.pixels[picture.visible[0]].mean(axis=0).argmax()) == channel


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_phrase_means_exactly_its_things(scenes, language):
    for one in scenes:
        for phrase in one.phrases:
            things, number = meant(one, phrase.words[language], language)
            assert things == set(phrase.objects), (one.group, phrase.words[language])
            fits = {"one": len(things) <= 1 or language == "zh", "two": len(things) == 2, "many": len(things) >= 2}
            assert fits[number], (one.group, phrase.words[language])


def test_phrases_are_of_all_kinds_for_one_for_several_and_for_nothing(stills, clips):
    kinds = Counter(phrase.kind for one in stills for phrase in one.phrases)
    assert set(kinds) == {"attribute", "place", "extreme", "relation"}
    kinds = Counter(phrase.kind for one in clips for phrase in one.phrases)
    assert set(kinds) == {"attribute", "motion", "event", "extreme", "relation"}
    for some in (stills, clips):
        counts = Counter(min(2, len(phrase.objects)) for one in some for phrase in one.phrases)
        assert counts[1] > counts[0] > 8 and counts[2] > 4


def test_a_scene_never_has_two_phrases_of_one_meaning(scenes):
    for one in scenes:
        queries = [phrase.query for phrase in one.phrases]
        assert len(set(queries)) == len(queries) >= 5


def test_phrases_vary_in_wording(scenes):
    openings = Counter(phrase.words["en"].split()[0] for one in scenes for phrase in one.phrases)
    assert {"the", "all", "both"} <= set(openings)


def answer_of(one, question):
    """The right answer to an English question, found out from the scene's arrays."""
    patterns = {
        r"(?:How many|What is the number of) (.+?)(?: are there)?\?": lambda noun: str(
            len(english_noun(one, f"all {noun}")[0])
        ),
        r"(?:Is there|Can you see) (an? .+)\?": lambda noun: "Yes" if english_noun(one, noun)[0] else "No",
        r"What colou?r (?:is|does) (.+?)(?: have)?\?": lambda noun: only(one, noun).colour.capitalize(),
        r"(?:Is (.+) plain, striped, dotted or checked|What pattern does (.+) have)\?": lambda *noun: only(
            one, next(filter(None, noun))
        ).texture.capitalize(),
        r"Is (.+) on the left or on the right\?|On which side is (.+)\?": lambda *noun: (
            "Left" if judge(one, number_of(one, next(filter(None, noun))), "half", ["left"]) else "Right"
        ),
        r"(?:Which is larger|What is bigger), (.+) or (.+)\?": lambda *nouns: max(
            nouns, key=lambda noun: one.areas[number_of(one, noun), 0]
        ).capitalize(),
        r"Is (.+) (left|right|above|below|behind|in front)(?: of)? (the .+)\?": lambda noun, relation, anchor: (
            "Yes" if relates(one, number_of(one, noun), relation, number_of(one, anchor)) else "No"
        ),
        r"(?:Which way does (.+) move|Where is (.+) going)\?": lambda *noun: direction(one, next(filter(None, noun))),
        r"Does (.+) (leave|come into|disappear|turn|grow|shrink).*\?": lambda noun, verb: happens(one, noun, verb),
        r"(?:What is|What kind of object is) (the .+)\?": lambda noun: only(one, noun).kind.capitalize(),
    }
    for pattern, answer in patterns.items():
        if found := re.fullmatch(pattern, question):
            return answer(*found.groups())
    raise AssertionError(f"nobody understands {question!r}")


def number_of(one, noun):
    (number,), _ = english_noun(one, noun)
    return number


def only(one, noun):
    return one.things[number_of(one, noun)]


def direction(one, noun):
    x, y = way(one, number_of(one, noun))
    if np.hypot(x, y) < 0.07:
        return "It stands still"
    return ("Left" if x < 0 else "Right") if abs(x) > abs(y) else "Up" if y < 0 else "Down"


def happens(one, noun, verb):
    tests = {"leave": "leaves", "come into": "enters", "disappear": "is hidden", "turn": "turns", "grow": "grows"}
    return "Yes" if judge(one, number_of(one, noun), tests.get(verb, "shrinks"), []) else "No"


def test_every_question_has_its_right_answer(scenes):
    for one in scenes:
        assert len(one.questions) >= 3
        for question in one.questions:
            assert question.answers["en"] == answer_of(one, question.words["en"]), (one.group, question.words["en"])


def test_chinese_answers_say_the_same_as_english_ones(scenes):
    pairs = {}
    for one in scenes:
        for question in one.questions:
            if question.kind != "larger":
                pairs.setdefault((question.kind, question.answers["en"]), set()).add(question.answers["zh"])
    assert all(len(answers) == 1 for answers in pairs.values())
    assert pairs["exists", "Yes"] == {"有"} and pairs["exists", "No"] == {"没有"}


def test_what_takes_several_things_is_asked_more_often_where_a_still_is_learned_from(stills):
    asked = [(one, question) for one in stills for question in comparisons(one.facts, np.random.default_rng(0))]
    assert {question.kind for _, question in asked} == {"larger", "count", "relation"}
    assert sum(question.kind == "larger" for _, question in asked) >= len(stills)
    assert all(question.answers["en"] == answer_of(one, question.words["en"]) for one, question in asked)


def test_what_hangs_on_one_look_is_asked_more_often_where_a_scene_is_learned_from_and_half_in_vain(scenes):
    asked = [(one, phrase) for one in scenes for phrase in contrasts(one.facts, np.random.default_rng(0))]
    assert all(denote(phrase.query, one.facts) == phrase.objects for one, phrase in asked)
    assert all(phrase.query.noun.texture not in (None, "plain") for _, phrase in asked if phrase.kind == "attribute")
    for kind in ("attribute", "relation", "motion", "event"):
        in_vain = np.mean([not phrase.objects for _, phrase in asked if phrase.kind == kind])
        assert 0.35 < in_vain < 0.9, kind


def test_closed_questions_are_answered_yes_and_no_alike(stills):
    asked = [question for one in stills for question in one.questions if question.kind in ("exists", "relation")]
    answers = Counter(question.answers["en"] for question in asked)
    assert set(answers) == {"Yes", "No"} and 0.5 < answers["Yes"] / answers["No"] < 2


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_caption_names_every_thing_in_reading_order(scenes, language):
    for one in scenes:
        text, regions = parse_grounded(one.caption.words[language])
        assert sorted(one.caption.objects) == list(range(len(one.things)))
        for number, region in zip(one.caption.objects, regions, strict=True):
            assert text[slice(*region.span)] == region.phrase
            if language == "en":
                things, _ = meant(one, re.sub("^(an?|another) ", "", region.phrase), language)
            else:
                things, _ = meant(one, region.phrase, language)
            assert number in things, region.phrase
        first = [np.flatnonzero(~np.isnan(one.boxes[number, :, 0]))[0] for number in one.caption.objects]
        centres = [one.boxes[n, f, [0, 2]].sum() for n, f in zip(one.caption.objects, first, strict=True)]
        assert centres == sorted(centres)


def test_the_second_of_two_alike_is_called_another():
    noun, rng = Noun("star", "orange"), np.random.default_rng(0)
    assert (a(noun, "en", rng), a(noun, "en", rng, is_another=True)) == ("an orange star", "another orange star")
    assert (a(noun, "zh", rng), a(noun, "zh", rng, is_another=True)) == ("一颗橙色星星", "另一颗橙色星星")


def test_something_moves_in_every_clip_and_the_rest_stands_still(clips):
    for one in clips:
        ways = np.array([np.hypot(*way(one, number)) for number in range(len(one.things))])
        assert (ways > 0.12).any()
        for number in np.flatnonzero(ways == 0):
            if len(set(one.poses[number])) == 1:
                assert (one.whole[number] == one.whole[number, 0]).all()
        assert len({frame.tobytes() for frame in one.frames}) == len(one.frames)


def test_every_kind_of_motion_and_event_is_told_in_words(clips):
    tests = Counter(phrase.query.test for one in clips for phrase in one.phrases if phrase.objects)
    assert {"moving", "staying", "entering", "hidden", "passing_behind", "turning", "shrinking"} <= set(tests)
    assert {"moving_left", "moving_up"} <= set(tests)


def test_a_hidden_thing_has_a_whole_mask_and_no_visible_one():
    one = next(
        one
        for one in (clip(11, index, size=SIZE) for index in range(30))
        if any(phrase.query.test == "hidden" and phrase.objects for phrase in one.phrases)
    )
    thing = next(phrase.objects[0] for phrase in one.phrases if phrase.query.test == "hidden" and phrase.objects)
    gone = ~one.visible[thing].any(axis=(1, 2))
    assert gone.any() and not gone[[0, -1]].any()
    assert one.whole[thing][gone].any(axis=(1, 2)).all() and np.isnan(one.boxes[thing][gone]).all()


def test_both_languages_have_the_same_keys_and_placeholders():
    english, chinese = vocabulary("en"), vocabulary("zh")
    assert list(english) == list(chinese)
    allowed = {"measure": "nouns"}
    for key in english:
        slots = [
            {allowed.get(slot, slot) for wording in words[key] for slot in re.findall(r"{(\w+)}", wording)} - {"space"}
            for words in (english, chinese)
        ]
        assert slots[0] - {"noun", "nouns"} == slots[1] - {"noun", "nouns"}, key


def test_no_wording_leaves_a_placeholder_open(scenes):
    for one in scenes:
        said = [words for spoken in (*one.phrases, *one.questions, one.caption) for words in spoken.words.values()]
        said += [words for question in one.questions for words in question.answers.values()]
        assert not [text for text in said if re.search(r"[{}|]|  |^\s|\s$|\ba [aeiou]", text)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_segmentation_sample_has_one_mask_per_mark_from_left_to_right(scenes, language):
    for one in scenes:
        numbers = range(len(one.phrases))
        sample = segmentation_sample(one, numbers, np.random.default_rng(0), language=language)
        assert checked(sample).task == "segment" and sample.group == one.group
        assert [message.role for message in sample.messages] == ["user", "assistant"] * len(one.phrases)
        assert [part for message in sample.messages for part in message.parts if isinstance(part, Media)]
        position = 0
        for phrase, message in zip(one.phrases, sample.messages[1::2], strict=True):
            assert message.text.count("[SEG]") == len(phrase.objects)
            regions = sample.regions[position : position + len(phrase.objects)]
            assert len(parse_grounded(message.text)[1]) == len(regions)
            assert {region.masks.dense(0).tobytes() for region in regions} == {
                one.visible[number, 0].tobytes() for number in phrase.objects
            }
            assert [region.box[0] + region.box[2] for region in regions] == sorted(
                region.box[0] + region.box[2] for region in regions
            )
            assert all(len(region.masks) == len(one.frames) for region in regions)
            position += len(phrase.objects)


def test_questions_mention_the_phrase_and_only_the_first_brings_the_medium(stills):
    sample = segmentation_sample(stills[0], [0, 1], np.random.default_rng(1))
    first, second = sample.messages[0], sample.messages[2]
    assert stills[0].phrases[0].words["en"] in first.text and stills[0].phrases[1].words["en"] in second.text
    assert sum(isinstance(part, Media) for part in first.parts) == 1
    assert not any(isinstance(part, Media) for part in second.parts)


def test_a_question_sample_points_at_nothing(stills):
    sample = question_sample(stills[0], [0, 1], language="zh")
    assert (checked(sample).task, sample.regions, len(sample.messages)) == ("chat", (), 4)
    assert sample.messages[1].text == stills[0].questions[0].answers["zh"]


def test_a_caption_sample_has_phrases_with_their_masks(scenes):
    for one in scenes:
        sample = caption_sample(one, np.random.default_rng(0))
        assert len(checked(sample).regions) == len(one.things)
        text, spoken = parse_grounded(sample.messages[-1].text)
        for region, said, number in zip(sample.regions, spoken, one.caption.objects, strict=True):
            assert (region.phrase, region.span) == (said.phrase, said.span) and region.phrase in text
            assert np.array_equal(region.masks.dense(0), one.visible[number, 0])


@pytest.mark.parametrize(("language", "read"), [("en", english_noun), ("zh", chinese_noun)])
def test_a_region_sample_says_what_was_marked(stills, language, read):
    for one in stills:
        for number in range(len(one.things)):
            sample = region_sample(one, number, np.random.default_rng(0), language=language)
            assert checked(sample).regions == ()
            (region,) = (part for part in sample.messages[0].parts if isinstance(part, Region))
            assert np.array_equal(region.masks.dense(0), one.visible[number, 0])
            said = sample.messages[1].text
            assert said[-1] in ".。"
            assert number in read(one, said[:-1].lower())[0]


def test_region_prompts_are_for_stills(clips):
    with pytest.raises(DataError, match="stills only"):
        region_sample(clips[0], 0, np.random.default_rng(0))


def test_sample_ids_differ(stills):
    one, rng = stills[0], np.random.default_rng(0)
    samples = [
        segmentation_sample(one, [0], rng),
        segmentation_sample(one, [1], rng),
        segmentation_sample(one, [0], rng, language="zh"),
        question_sample(one, [0]),
        caption_sample(one, rng),
        region_sample(one, 0, rng),
    ]
    assert len({sample.id for sample in samples}) == len(samples)
    assert {sample.group for sample in samples} == {one.group}


def test_masks_are_those_of_the_frames_shown(clips):
    one = clips[0]
    numbers = [number for number, phrase in enumerate(one.phrases) if phrase.objects]
    sample = checked(segmentation_sample(one, numbers, np.random.default_rng(0), frames=[1, 3, 5]))
    assert sample.frames == (1, 3, 5)
    assert sample.regions[0].masks.index.tolist() == [1, 3, 5]
    masks = {region.masks.dense(1).tobytes() for region in sample.regions}
    assert masks <= {mask.tobytes() for mask in one.visible[:, 3]}


def test_media_of_scenes_can_be_opened_as_any_other(stills, clips):
    assert (stills[0].media.kind, stills[0].media.size) == ("image", SIZE)
    assert (clips[0].media.kind, clips[0].media.count) == ("video", 6)
    with pytest.raises(MediaError):
        from segue.media import read_image

        read_image(clips[0].media)


def test_scripts_with_the_former_name_go_on_and_are_told_the_new_one():
    with pytest.warns(FutureWarning, match=r"segue\.data\.synth is segue\.synth now: import scene from there"):
        from segue.data.synth import scene
    assert scene is segue.synth.scene
    with pytest.raises(ImportError, match="nothing_like_it"):
        from segue.data.synth import nothing_like_it  # noqa: F401
