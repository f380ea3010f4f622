import inspect
import json
import weakref
from dataclasses import asdict, replace
from itertools import zip_longest

import numpy as np
import pytest
import torch
from PIL import Image

from segue import engine as engine_module
from segue.encoder import MemoryStore
from segue.engine import Engine, Request
from segue.errors import ConfigError, DataError
from segue.geometry.masks import at_threshold
from segue.grounding.following import decode_prompts, encode
from segue.loading import load
from segue.media import open_media
from segue.options import Options
from segue.types import Failed, Finished, FrameMasks, Message, ObjectsFound, Region, TextDelta

ONE = Options(prefill="It is [SEG].", keep_logits=True)
TWO = replace(ONE, prefill="It is [SEG] and [SEG].")
FIVE = replace(ONE, prefill="Here: " + ", ".join(["[SEG]"] * 5) + ".")
END = "<|im_end|>"


@pytest.fixture
def image(picture):
    """Two tiles wide: with its thumbnail 48 visual tokens."""
    return open_media(picture(60, 120))


@pytest.fixture
def count_calls(engine, engine_i):
    """Counts what goes through a module: one entry per call, the length of its first argument.

    What other tests asked about is forgotten.
    """
    hooks = []
    engine.forget()
    engine_i.forget()

    def watch(module):
        calls = []
        hooks.append(module.register_forward_pre_hook(lambda _, arguments: calls.append(len(arguments[0]))))
        return calls

    yield watch
    for hook in hooks:
        hook.remove()


def rles(answer):
    return [region.masks.rles for region in answer.regions]


def same(one, other):
    """Whether two answers say the same and point at the same pixels."""
    return (one.text, one.raw_text, rles(one)) == (other.text, other.raw_text, rles(other))


class TestImage:
    @pytest.mark.parametrize(
        ("reply", "text", "objects"),
        [
            ("Nothing is there.", "Nothing is there.", 0),
            ("Sure, it is [SEG].", "Sure, it is.", 1),
            ("[SEG], [SEG] [SEG]", "", 3),
        ],
    )
    def test_an_answer_has_a_mask_for_every_object_it_points_at(self, engine, teach, image, reply, text, objects):
        messages = [Message.user("Please segment the cat.", image)]
        teach(engine, [messages], [reply + END])
        answer = engine.answer(messages)
        assert (answer.text, answer.raw_text, answer.stop_reason) == (text, reply + END, "stop")
        assert len(answer.regions) == objects
        for region in answer.regions:
            assert region.masks.dense(0).shape == (60, 120)
            assert region.masks.dense(0).dtype == bool
            assert 0 <= region.score == region.scores[0] <= 1
            assert 0 <= region.presence[0] <= 1
        assert answer.media is image

    def test_a_mask_is_what_sam2_finds_for_the_state_on_its_own_seg_token(self, engine, image):
        answer = engine.ask(image, "Where?", options=TWO)
        example = engine_module.prepare([Message.user("Where?", image)], engine.processor, prefill=TWO.prefill)
        with torch.no_grad():
            batch = engine_module.collate([example], engine.processor)
            _, hidden = engine.model.mllm.forward(batch)
            prompts = engine.model.prompts(hidden[0, example.ids == engine.processor.seg_id])
            grounder = engine.model.grounder
            found = decode_prompts(grounder, encode(grounder, [image.source]), prompts)
        for number, region in enumerate(answer.regions):
            assert np.allclose(region.masks.logits[0], found.logits[number], atol=1e-3)
            assert region.score == pytest.approx(float(found.iou[number]), abs=1e-4)
        assert not np.allclose(*(region.masks.logits for region in answer.regions), atol=0.1)

    def test_an_answer_given_by_the_caller_has_the_masks_that_decoding_it_would_have(self, engine, teach, image):
        messages, reply = [Message.user("Please segment the cat.", image)], "Sure, [SEG] and [SEG]." + END
        teach(engine, [messages], [reply])
        decoded = engine.answer(messages, Options(keep_logits=True))
        given = engine.answer(messages, replace(ONE, prefill=reply.removesuffix(END)))
        assert (given.text, given.raw_text + END, given.stop_reason) == (decoded.text, reply, "prefilled")
        for one, other in zip(decoded.regions, given.regions, strict=True):
            assert np.allclose(one.masks.logits, other.masks.logits, atol=1e-3)
            assert (one.masks.dense() == other.masks.dense()).mean() > 0.999

    def test_an_object_named_by_the_last_token_under_the_length_limit_is_found(self, engine, teach, image):
        messages = [Message.user("Please segment the cat.", image)]
        teach(engine, [messages], ["It is [SEG]." + END])
        whole = engine.answer(messages)
        cut = engine.answer(messages, Options(max_new_tokens=len("It is ") + 1))
        assert (cut.raw_text, cut.stop_reason) == ("It is [SEG]", "length")
        assert rles(cut) == rles(whole)

    def test_phrases_and_their_places_in_the_text_belong_to_their_masks(self, engine, image):
        options = replace(ONE, prefill="<p> A dog </p> [SEG] sees <p> the cat </p> [SEG], then [SEG].")
        answer = engine.ask(image, "Describe.", options=options)
        assert [region.phrase for region in answer.regions] == ["A dog", "the cat", ""]
        spans = [region.span for region in answer.regions[:2]]
        assert [answer.text[start:stop] for start, stop in spans] == ["A dog", "the cat"]
        assert len({region.masks.logits.tobytes() for region in answer.regions}) == 3

    @pytest.mark.parametrize("prefill", ["", "Nothing."])
    def test_a_given_answer_that_points_at_nothing_has_no_regions(self, engine, image, prefill):
        answer = engine.ask(image, "Where?", options=Options(prefill=prefill))
        assert (answer.text, answer.regions, answer.stop_reason) == (prefill, (), "prefilled")

    @pytest.mark.parametrize(("prefill", "objects"), [("It means nothing.", 0), ("It is [SEG].", 1)])
    def test_a_seg_token_in_the_question_points_at_nothing(self, engine, image, prefill, objects):
        answer = engine.ask(image, "What does [SEG] mean, and [SEG]?", options=Options(prefill=prefill))
        assert len(answer.regions) == objects

    def test_without_objects_nothing_goes_through_sam2(self, engine, image, count_calls):
        seen = count_calls(engine.model.grounder.sam2.vision_encoder)
        engine.ask(image, "Where?", options=Options(prefill="Nowhere."))
        assert seen == []

    @pytest.mark.parametrize("options", [ONE, FIVE])
    def test_an_image_goes_through_tower_and_sam2_once_however_many_objects_there_are(
        self, engine, image, count_calls, options
    ):
        tower, sam2 = (
            count_calls(engine.model.mllm.vision_tower),
            count_calls(engine.model.grounder.sam2.vision_encoder),
        )
        engine.ask(image, "Where?", options=options)
        assert (len(tower), sam2) == (1, [1])

    def test_a_second_question_about_an_image_reuses_what_was_computed_from_it_alone(self, engine, image, count_calls):
        tower, sam2 = (
            count_calls(engine.model.mllm.vision_tower),
            count_calls(engine.model.grounder.sam2.vision_encoder),
        )
        first = engine.ask(image, "Where is the cat?", options=ONE)
        second = engine.ask(image, "And the dog?", options=ONE)
        assert (len(tower), sam2) == (1, [1])
        assert rles(first) != rles(second)

    def test_what_was_asked_before_changes_nothing(self, engine, picture):
        images = [open_media(picture(60, 60, seed)) for seed in (1, 2)]
        questions = [(0, "a"), (1, "a"), (0, "b"), (0, "a"), (1, "b")]
        mixed = [engine.ask(images[number], text, options=ONE) for number, text in questions]
        for answer, (number, text) in zip(mixed, questions, strict=True):
            assert same(answer, engine.ask(picture(60, 60, number + 1), text, options=ONE))
        assert not same(mixed[0], mixed[1])

    def test_fewer_tiles_are_another_question(self, engine, image):
        tokens = [
            engine.ask(image, "a", options=replace(ONE, max_tiles=count)).usage.visual_tokens for count in (12, 1, 12)
        ]
        assert tokens == [3 * 16, 16, 3 * 16]

    def test_an_image_may_be_a_file_an_array_or_a_medium(self, engine, picture, tmp_path):
        Image.fromarray(picture(60, 120)).save(tmp_path / "a.png")
        sources = [tmp_path / "a.png", str(tmp_path / "a.png"), picture(60, 120), open_media(picture(60, 120))]
        answers = [engine.ask(source, "Where?", options=ONE) for source in sources]
        assert all(same(answer, answers[0]) for answer in answers)

    @pytest.mark.parametrize("shape", [(1, 1), (1, 300), (200, 3)])
    def test_images_of_extreme_shapes_have_masks_of_their_size(self, engine, shape):
        answer = engine.ask(np.full((*shape, 3), 90, np.uint8), "Where?", options=ONE)
        assert answer.regions[0].masks.dense().shape == shape

    def test_regions_that_are_marked_are_spoken_of(self, engine, image):
        region = Region(box=np.array([0.0, 0.0, 60.0, 30.0]))
        answer = engine.ask(image, "What is region1?", regions=(region,), options=Options(prefill="A cat."))
        (prompt,) = answer.lineage["request"]["prompts"]
        assert "region1<vp><IMG_CONTEXT>*4</vp>.\n\nWhat is region1?" in prompt
        assert answer.usage.visual_tokens == 3 * 16 + 4
        assert answer.text == "A cat."

    def test_usage_counts_tokens_and_frames(self, engine, teach, image):
        messages = [Message.user("Hi", image)]
        teach(engine, [messages], ["A [SEG]" + END])
        usage = engine.answer(messages).usage
        prompt = len("<|im_start|>") // 12 + len("user\n") + 3 * 16 + 2 + len("\nHi") + 1 + 1 + 1 + len("assistant\n")
        assert (usage.prompt_tokens, usage.visual_tokens, usage.answer_tokens) == (prompt, 3 * 16, 4)
        assert usage.encoded_frames == 1
        assert set(usage.seconds) == {"vision", "language", "masks"}

    def test_a_dialogue_goes_on_about_its_image(self, engine, teach, image):
        first = Message.user("Where is the cat?", image)
        dialogue = [first, Message("assistant", ("It is [SEG].",)), Message.user("And the dog?")]
        teach(engine, [dialogue], ["There: [SEG]." + END])
        answer = engine.answer(dialogue)
        assert (answer.raw_text, len(answer.regions)) == ("There: [SEG]." + END, 1)
        (prompt,) = answer.lineage["request"]["prompts"]
        assert prompt.endswith(
            "It is [SEG].<|im_end|>\n<|im_start|>user\nAnd the dog?<|im_end|>\n<|im_start|>assistant\n"
        )


class TestText:
    def test_a_dialogue_without_an_image_is_answered_in_words(self, engine, teach):
        messages = [Message.user("Hello?")]
        teach(engine, [messages], ["Hi there." + END])
        answer = engine.answer(messages)
        assert (answer.text, answer.regions, answer.media) == ("Hi there.", (), None)
        assert answer.usage.visual_tokens == answer.usage.encoded_frames == 0

    def test_an_answer_that_points_without_an_image_is_still_an_answer(self, engine, teach):
        messages = [Message.user("Hello?")]
        teach(engine, [messages], ["It is [SEG]." + END])
        answer = engine.answer(messages)
        assert answer.raw_text == "It is [SEG]." + END
        assert all(region.masks is None for region in answer.regions)

    def test_a_stop_text_of_several_tokens_ends_the_answer_and_is_not_shown(self, make_engine, teach, image):
        phi = make_engine(template="phi3_chat")
        messages = [Message.user("Where?", image)]
        teach(phi, [messages], ["It is [SEG].<|end|> and more"])
        answer = phi.answer(messages)
        assert (answer.text, answer.raw_text, answer.stop_reason) == ("It is.", "It is [SEG].<|end|>", "stop")
        assert len(answer.regions) == 1

    def test_sampling_follows_the_seed_and_leaves_the_global_random_state_alone(self, engine, image):
        hot = Options(temperature=3.0, max_new_tokens=12)
        torch.manual_seed(1)
        before = torch.get_rng_state()
        said = [engine.ask(image, "Where?", options=replace(hot, seed=seed)).raw_text for seed in (5, 5, 6)]
        assert said[0] == said[1] != said[2]
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize(
        "change",
        [
            {"threshold": 0.0},
            {"threshold": 1.0},
            {"threshold": float("nan")},
            {"max_new_tokens": 0},
            {"max_tiles": 0},
            {"max_tiles": 65},
            {"temperature": -1.0},
            {"top_p": 0.0},
            {"top_p": 1.1},
            {"seed": 2**64},
            {"frames": "every second one"},
            {"frames": "first:0"},
        ],
    )
    def test_options_out_of_range_are_refused(self, engine, clip, change):
        with pytest.raises(ConfigError):
            engine.ask(clip(2), "Where?", options=Options(**change))

    def test_a_plan_of_frames_that_is_no_text_is_refused(self):
        options = Options()
        object.__setattr__(options, "frames", 3)  # tests check types before the options could
        with pytest.raises(ConfigError, match="frames is 3; expected text: auto, first:k"):
            options.__post_init__()

    @pytest.mark.parametrize(
        ("name", "value", "told"),
        [
            ("stop", "END", r"stop is a list of texts, and 'END' is one text; write \['END'\]"),
            ("stop", (3,), "a text to stop at, 3, is none"),
            ("threshold", "0.5", "threshold is '0.5'; expected a number"),
            ("max_new_tokens", 2.5, "max_new_tokens is 2.5; expected a whole number"),
            ("prefill", 3, "prefill is 3; expected text"),
            ("json_schema", {"type": "object"}, r"json_schema is {'type': 'object'}; .* json.dumps"),
        ],
    )
    def test_options_of_another_type_are_refused(self, name, value, told):
        options = Options()
        object.__setattr__(options, name, value)  # tests check types before the options could
        with pytest.raises(ConfigError, match=told):
            options.__post_init__()

    def test_numbers_of_numpy_become_numbers_that_json_can_hold(self):
        options = Options()
        given = {"threshold": np.float32(0.25), "max_new_tokens": np.int64(30), "likeliest": np.int64(5)}
        for name, value in given.items():
            object.__setattr__(options, name, value)
        options.__post_init__()
        assert json.loads(json.dumps(asdict(options)))["threshold"] == 0.25
        assert (options.max_new_tokens, options.likeliest) == (30, 5)

    @pytest.mark.parametrize(
        "change",
        [
            {"temperature": -1.0},
            {"temperature": float("nan")},
            {"temperature": float("inf")},
            {"top_p": 0.0},
            {"seed": 2**64},
        ],
    )
    def test_sampling_out_of_range_is_refused_before_it_could_end_the_requests_beside_it(self, change):
        with pytest.raises(ConfigError, match="out of range"):
            Options(**change)


class TestStream:
    def test_text_comes_first_then_objects_then_masks_then_the_answer(self, engine, teach, image):
        messages = [Message.user("Where?", image)]
        teach(engine, [messages], ["Voilà, 日本 😀 [SEG]." + END])
        events = list(engine.stream_answer(messages))
        texts = [event.text for event in events if isinstance(event, TextDelta)]
        objects, masks, finished = events[len(texts) :]
        assert "".join(texts) == finished.answer.raw_text == "Voilà, 日本 😀 [SEG]." + END
        assert "\ufffd" not in "".join(texts)
        assert (objects.media, len(objects.regions), objects.regions[0].masks) == (image, 1, None)
        assert np.array_equal(masks.masks[0], finished.answer.regions[0].masks.dense())
        assert np.array_equal(masks.image, image.source)

    def test_a_text_cut_inside_a_character_is_streamed_to_its_end(self, engine, teach, image):
        messages = [Message.user("Where?", image)]
        teach(engine, [messages], ["A 日" + END])
        events = list(engine.stream_answer(messages, Options(max_new_tokens=4)))
        texts = [event.text for event in events if isinstance(event, TextDelta)]
        assert "".join(texts) == events[-1].answer.raw_text

    def test_an_answer_without_objects_has_no_other_events(self, engine, image):
        kinds = [
            type(event) for event in engine.stream_answer([Message.user("Where?", image)], Options(prefill="Nowhere."))
        ]
        assert kinds == [TextDelta, Finished]

    def test_a_videos_masks_come_frame_by_frame_and_are_those_of_the_answer(self, engine, clip):
        frames = clip(6)
        media = open_media(frames)
        events = list(engine.stream_answer([Message.user("Where?", media)], TWO))
        kinds = [type(event) for event in events]
        assert kinds == [TextDelta, ObjectsFound, *[FrameMasks] * 6, Finished]
        answer = events[-1].answer
        for number, event in enumerate(events[2:-1]):
            assert event.index == number
            assert np.array_equal(event.image, frames[number])
            for masks, region in zip(event.masks, answer.regions, strict=True):
                assert np.array_equal(masks, region.masks.dense(number))
        assert same(answer, engine.ask(media, "Where?", options=TWO))

    def test_a_stream_that_is_closed_does_no_more_work(self, engine, clip, count_calls):
        sam2 = count_calls(engine.model.grounder.sam2.vision_encoder)
        events = engine.stream_answer([Message.user("Where?", open_media(clip(9)))], ONE)
        while not isinstance(next(events), FrameMasks):
            pass
        done = len(sam2)
        events.close()
        assert done == len(sam2) == 5  # the frames that were shown
        assert list(events) == []

    def test_a_stream_that_is_closed_while_it_speaks_says_no_more(self, engine, teach, image):
        messages = [Message.user("Where?", image)]
        teach(engine, [messages], ["It is far away." + END])
        passes = []
        hook = engine.model.mllm.language_model.model.register_forward_hook(lambda *_: passes.append(1))
        events = engine.stream_answer(messages)
        next(events), next(events)
        events.close()
        hook.remove()
        assert len(passes) == 2
        assert engine.answer(messages).text == "It is far away."

    def test_streams_of_two_engines_with_tokenizers_of_their_own_do_not_disturb_each_other(
        self, engine, official_folder, clip
    ):
        engines = [engine, load(official_folder, device="cpu", dtype="fp32")]
        assert engines[0].processor.visual_id != engines[1].processor.visual_id
        messages, options = [Message.user("Where?", open_media(clip(4)))], [TWO, Options()]
        alone = [each.answer(messages, settings) for each, settings in zip(engines, options, strict=True)]
        streams = [each.stream_answer(messages, settings) for each, settings in zip(engines, options, strict=True)]
        events = list(zip_longest(*streams))
        together = [[event for event in column if event is not None][-1].answer for column in zip(*events, strict=True)]
        assert [same(one, other) for one, other in zip(together, alone, strict=True)] == [True, True]

    def test_two_streams_of_one_engine_do_not_disturb_each_other(self, engine, clip, picture):
        dialogues = [[Message.user("a", open_media(clip(4)))], [Message.user("b", open_media(clip(4)[::-1].copy()))]]
        alone = [engine.answer(messages, ONE) for messages in dialogues]
        pairs = list(zip(*(engine.stream_answer(messages, ONE) for messages in dialogues), strict=True))
        assert [same(one.answer, other) for one, other in zip(pairs[-1], alone, strict=True)] == [True, True]
        assert not same(*alone)

    def test_a_stream_forgets_a_frame_before_it_reads_the_next(self, engine, clip, monkeypatch):
        grounder, frames = engine.model.grounder, []
        encode_frame = grounder.encode

        def watched(pixels):
            encoded = encode_frame(pixels)
            frames.append(weakref.ref(encoded.top))
            return encoded

        monkeypatch.setattr(grounder, "encode", watched)
        alive = []
        for event in engine.stream_answer(
            [Message.user("a", open_media(clip(6)))], Options(prefill="[SEG]", frames="first:1")
        ):
            if isinstance(event, FrameMasks):
                alive.append(sum(frame() is not None for frame in frames))
        assert len(frames) == 6
        assert max(alive) <= 1


class TestVideo:
    @pytest.mark.parametrize(
        ("name", "policy", "resolved", "shown"),
        [
            ("engine", "auto", "upstream", [0, 1, 2, 3, 4]),
            ("engine", "upstream", "upstream", [0, 1, 2, 3, 4]),
            ("engine_i", "auto", "consistent", [0, 2, 4, 6, 8]),
            ("engine_i", "consistent", "consistent", [0, 2, 4, 6, 8]),
            ("engine_i", "upstream", "upstream", [0, 1, 2, 3, 4]),
        ],
    )
    def test_auto_takes_the_policy_of_the_checkpoint_with_its_own_frames(
        self, request, clip, name, policy, resolved, shown
    ):
        asked = request.getfixturevalue(name)
        answer = asked.ask(clip(9), "Where?", options=replace(ONE, policy=policy))
        request = answer.lineage["request"]
        assert (request["policy"], request["frames_shown"]) == (resolved, shown)
        assert len(answer.regions[0].masks) == 9

    def test_the_two_policies_differ_where_both_can_be_had(self, engine_i, clip):
        media = open_media(clip(6))
        one, other = (
            engine_i.ask(media, "a", options=replace(ONE, policy=p, frames="0,2")) for p in ("upstream", "consistent")
        )
        assert rles(one) != rles(other)

    def test_the_consistent_policy_without_its_decoders_is_refused_before_any_work(self, engine, image, count_calls):
        tower = count_calls(engine.model.mllm.vision_tower)
        with pytest.raises(ConfigError, match="needs a checkpoint with both mask decoders"):
            engine.ask(image, "Where?", options=replace(ONE, policy="consistent"))
        assert tower == []

    @pytest.mark.parametrize(
        ("plan", "count", "shown"),
        [
            ("first:2", 6, [0, 1]),
            ("first:5", 3, [0, 1, 2]),
            ("uniform:3", 6, [0, 2, 5]),
            ("uniform:5", 3, [0, 0, 1, 1, 2]),
            ("0,4", 6, [0, 4]),
            ("3,5", 6, [3, 5]),
            ("5", 6, [5]),
            ("auto", 1, [0]),
            ("uniform:5", 1, [0, 0, 0, 0, 0]),
        ],
    )
    @pytest.mark.parametrize("policy", ["upstream", "consistent"])
    def test_every_frame_has_a_mask_whichever_were_shown(self, engine_i, clip, count_calls, plan, count, shown, policy):
        tower, sam2 = (
            count_calls(engine_i.model.mllm.vision_tower),
            count_calls(engine_i.model.grounder.sam2.vision_encoder),
        )
        answer = engine_i.ask(clip(count), "Where?", options=replace(ONE, frames=plan, policy=policy))
        if plan != "auto":
            assert answer.lineage["request"]["frames_shown"] == shown
        assert answer.regions[0].masks.index.tolist() == list(range(count))
        assert answer.regions[0].masks.logits.shape == (count, 64, 64)
        assert np.isfinite(answer.regions[0].masks.logits).all()
        assert tower == [len(set(shown))]
        assert sum(sam2) == count

    @pytest.mark.parametrize("options", [ONE, FIVE])
    def test_a_videos_frames_go_through_sam2_once_however_many_objects_there_are(
        self, engine, clip, count_calls, options
    ):
        sam2 = count_calls(engine.model.grounder.sam2.vision_encoder)
        answer = engine.ask(clip(6), "Where?", options=options)
        assert (sum(sam2), answer.usage.encoded_frames) == (6, 6)

    def test_a_video_of_one_frame_has_the_mask_of_the_image_for_the_same_prompt(self, engine, clip):
        answer = engine.ask(clip(1), "Where?", options=ONE)
        as_image = engine.ask(clip(1)[0], "Where?", options=replace(ONE, max_tiles=1))
        assert np.allclose(answer.regions[0].masks.logits, as_image.regions[0].masks.logits, atol=1e-3)

    def test_objects_followed_together_are_those_followed_alone(self, engine, clip):
        media = open_media(clip(6))
        both = engine.ask(media, "Where?", options=TWO)
        first = engine.ask(media, "Where?", options=replace(ONE, prefill="It is [SEG]"))
        together, alone = both.regions[0].masks.logits, first.regions[0].masks.logits
        assert np.abs(together - alone).max() < 2e-3 * np.abs(alone).max()

    def test_more_objects_than_are_followed_at_once_are_all_followed(self, engine, clip):
        answer = engine.ask(clip(3), "Where?", options=replace(ONE, prefill="[SEG] " * 9, frames="first:1"))
        assert [len(region.masks) for region in answer.regions] == [3] * 9
        assert len({region.masks.logits[2].tobytes() for region in answer.regions}) == 9

    def test_a_decoded_answer_about_a_video_has_the_masks_of_the_same_answer_given(self, engine, teach, clip):
        messages, reply = [Message.user("Please segment it.", open_media(clip(6)))], "It is [SEG]." + END
        teach(engine, [messages], [reply])
        decoded, given = (
            engine.answer(messages, Options(keep_logits=True)),
            engine.answer(messages, replace(ONE, prefill=reply.removesuffix(END))),
        )
        assert decoded.raw_text == reply
        one, other = decoded.regions[0].masks.logits, given.regions[0].masks.logits
        assert np.abs(one - other).max() < 2e-3 * np.abs(one).max()

    def test_a_frame_folder_is_a_video(self, engine, clip, tmp_path):
        for number, frame in enumerate(clip(3)):
            Image.fromarray(frame).save(tmp_path / f"{number:05d}.png")
        assert same(engine.ask(tmp_path, "a", options=ONE), engine.ask(clip(3), "a", options=ONE))


class TestThreshold:
    @pytest.mark.parametrize("threshold", [0.05, 0.5, 0.8])
    @pytest.mark.parametrize("kind", ["image", "video"])
    def test_a_threshold_moved_afterwards_gives_the_masks_of_a_run_with_it(self, engine, image, clip, threshold, kind):
        media = image if kind == "image" else open_media(clip(3))
        kept = engine.ask(media, "Where?", options=replace(TWO, frames="0,1"))
        run = engine.ask(media, "Where?", options=replace(TWO, frames="0,1", threshold=threshold))
        assert [at_threshold(region.masks, threshold).rles for region in kept.regions] == rles(run)
        assert (rles(run) == rles(kept)) == (threshold == 0.5)

    def test_logits_are_kept_on_request_only(self, engine, image, clip):
        assert engine.ask(image, "a", options=replace(ONE, keep_logits=False)).regions[0].masks.logits is None
        kept = engine.ask(image, "a", options=ONE).regions[0].masks.logits
        assert (kept.shape, kept.dtype) == ((1, 64, 64), np.float32)

    def test_an_answer_drawn_anew_says_at_which_threshold(self, engine, image):
        moved = engine.ask(image, "Where?", options=ONE).at_threshold(0.25)
        assert moved.lineage["request"]["threshold"] == 0.25 and moved.lineage["request"]["keep_logits"]


class TestSegment:
    def test_phrases_are_asked_for_one_by_one_and_followed_together(self, engine, teach, clip, count_calls):
        media = open_media(clip(6))
        questions = [
            [Message.user(f"Please segment {phrase}.", media)] for phrase in ("the cat", "a ghost", "the dogs")
        ]
        teach(engine, questions, ["It is [SEG]." + END, "No." + END, "Here: [SEG] and [SEG]." + END])
        tower, sam2 = (
            count_calls(engine.model.mllm.vision_tower),
            count_calls(engine.model.grounder.sam2.vision_encoder),
        )
        answer = engine.segment(media, ["the cat", "a ghost", "the dogs"])
        assert [region.phrase for region in answer.regions] == ["the cat", "the dogs", "the dogs"]
        assert answer.lineage["not_found"] == ["a ghost"]
        assert answer.text.split("\n")[1] == "No."
        assert (tower, sum(sam2)) == ([5], 6)
        alone = [engine.answer(messages).regions for messages in questions]
        assert [r.masks.rles for regions in alone for r in regions] == rles(answer)

    def test_what_is_shown_is_read_once_for_all_phrases(self, engine, clip):
        media, read = open_media(clip(6)), []
        language = engine.model.mllm.language_model.model
        hook = language.register_forward_pre_hook(
            lambda _, args, named: read.append(named["inputs_embeds"].shape), with_kwargs=True
        )
        engine.segment(media, ["the cat", "a ghost", "the dogs"], Options(max_new_tokens=1))
        hook.remove()
        prompts = [length for rows, length, _ in read if rows == 1]
        assert prompts[0] > 5 * 16 and all(0 < length < prompts[0] - 5 * 16 for length in prompts[1:3])

    def test_a_phrase_that_the_model_wrote_itself_wins_and_its_place_counts_over_all_answers(self, engine, image):
        options = replace(ONE, prefill="See <p> it </p> [SEG].")
        answer = engine.segment(image, ["x", "y"], options)
        assert [region.phrase for region in answer.regions] == ["it", "it"]
        assert [answer.text[slice(*region.span)] for region in answer.regions] == ["it", "it"]
        assert answer.regions[0].span != answer.regions[1].span

    @pytest.mark.parametrize(
        ("kind", "ending"), [("image", "Please segment a {b}\\ in this image."), ("video", "Please segment a {b}\\.")]
    )
    def test_the_question_is_the_familys_for_the_medium(self, engine, image, clip, kind, ending):
        media = image if kind == "image" else open_media(clip(2))
        answer = engine.segment(media, ["a {b}\\"], ONE)
        (prompt,) = answer.lineage["request"]["prompts"]
        assert prompt.endswith(f"\n{ending}<|im_end|>\n<|im_start|>assistant\n")

    def test_everything_found_leaves_nothing_to_report(self, engine, image):
        assert "not_found" not in engine.segment(image, ["x"], ONE).lineage

    def test_nothing_to_segment_is_refused(self, engine, image):
        with pytest.raises(DataError, match=r"answers to compare are a list, and 'a cat' is text; write \['a cat'\]"):
            engine.score([Message.user("Who?", image)], "a cat")
        for phrases, told in (([], "there is no phrase"), ([" "], "is empty"), ("the cat", r"write \['the cat'\]")):
            with pytest.raises(DataError, match=told):
                engine.segment(image, phrases)

    @pytest.mark.parametrize("messages", [Message.user("Who?"), "Who?", [{"role": "user", "content": "Who?"}]])
    def test_what_is_no_dialogue_is_refused(self, engine, messages):
        request = Request([])
        request.dialogues = [messages]  # tests check types before a request could
        all_of = inspect.unwrap(Engine.answer_all)
        for ask in (request.__post_init__, lambda: all_of(engine, [messages])):
            with pytest.raises(DataError, match="a dialogue is a list of messages"):
                ask()

    def test_options_that_are_none_are_refused(self, image):
        request = Request([[Message.user("Who?", image)]])
        request.options = {"threshold": 0.3}
        with pytest.raises(ConfigError, match="the options are {'threshold': 0.3}; write segue.Options"):
            request.__post_init__()

    def test_a_reply_without_a_seg_token_is_refused(self, engine, image):
        with pytest.raises(ConfigError, match="'It is.' asks for no mask"):
            engine.segment(image, ["x"], Options(prefill="It is."))

    def test_pixels_are_taken_as_they_are_held_and_a_stream_ends_with_the_answer(self, engine, picture):
        pixels = picture(60, 60)
        answer = engine.segment(torch.tensor(pixels).permute(2, 0, 1), ["x"], ONE)
        assert same(answer, engine.segment(open_media(pixels), ["x"], ONE))
        assert same(answer, list(engine.stream_segment(pixels, ["x"], ONE))[-1].answer)
        asked = list(engine.stream(pixels, "Where?", options=ONE))[-1].answer
        assert same(asked, engine.ask(pixels, "Where?", options=ONE))


class TestQuestionsAboutOneMedium:
    def test_each_has_the_answer_that_it_has_alone_and_every_frame_is_encoded_once(
        self, engine, teach, clip, count_calls
    ):
        media = open_media(clip(6))
        dialogues = [[Message.user(text, media)] for text in ("The cat?", "A ghost?", "See <p> it </p>?")]
        teach(engine, dialogues, ["It is [SEG]." + END, "No." + END, "<p> Two </p> [SEG] and [SEG]." + END])
        sam2 = count_calls(engine.model.grounder.sam2.vision_encoder)
        together = engine.answer_each(dialogues)
        assert sum(sam2) == 6
        for one, other in zip(together, map(engine.answer, dialogues), strict=True):
            assert (one.text, one.raw_text, one.lineage) == (other.text, other.raw_text, other.lineage)
            assert rles(one) == rles(other)
            assert [region.span for region in one.regions] == [region.span for region in other.regions]

    def test_boxes_in_words_belong_to_the_answer_that_gives_them(self, engine, teach, image):
        dialogues = [[Message.user(text, image)] for text in ("Where?", "What?")]
        teach(engine, dialogues, ["<box>[[0, 0, 500, 500]]</box>" + END, "It is [SEG]." + END])
        boxed, masked = engine.answer_each(dialogues)
        assert [region.masks is None for region in boxed.regions] == [True]
        assert [region.masks is None for region in masked.regions] == [False]

    def test_questions_without_a_medium_are_answered_in_words(self, engine, teach):
        dialogues = [[Message.user("Hello?")]]
        teach(engine, dialogues, ["Hi." + END])
        assert engine.answer_each(dialogues)[0].text == "Hi."

    def test_other_media_and_no_questions_are_refused(self, engine, image, picture):
        other = [Message.user("What?", open_media(picture(40, 40)))]
        with pytest.raises(DataError, match="2 questions cannot be asked together"):
            engine.answer_each([[Message.user("What?", image)], other])
        with pytest.raises(DataError, match="0 questions"):
            engine.answer_each([])


class TestBatch:
    @pytest.fixture
    def dialogues(self, picture):
        images = [
            open_media(picture(60, 60)),
            open_media(picture(50, 100, seed=3)),
            open_media(picture(100, 50, seed=5)),
        ]
        texts = ["What?", "Please segment the cat and the rest.", "Where is everything?"]
        rows = [[Message.user(text, image)] for text, image in zip(texts, images, strict=True)]
        return [*rows, [Message.user("No image here.")], [Message.user("Again?", images[1])]]

    def test_answers_computed_together_are_those_asked_one_by_one(self, engine, teach, dialogues):
        replies = ["Nothing.", "The cat is [SEG].", "Here: [SEG], [SEG] and [SEG].", "Hi.", "[SEG]"]
        teach(engine, dialogues, [reply + END for reply in replies])
        options = Options(keep_logits=True)
        together = engine.answer_all(dialogues, options)
        alone = [engine.answer(messages, options) for messages in dialogues]
        assert [answer.raw_text for answer in together] == [reply + END for reply in replies]
        for one, other in zip(together, alone, strict=True):
            assert (one.text, one.stop_reason, len(one.regions)) == (other.text, other.stop_reason, len(other.regions))
            for a, b in zip(one.regions, other.regions, strict=True):
                assert np.allclose(a.masks.logits, b.masks.logits, atol=1e-2)
                assert (a.masks.dense() == b.masks.dense()).mean() > 0.999
            assert one.lineage == other.lineage
            assert one.media is other.media

    def test_given_answers_computed_together_are_those_given_one_by_one(self, engine, dialogues):
        rows = dialogues[:3]
        together = engine.answer_all(rows, TWO)
        for one, other in zip(together, [engine.answer(messages, TWO) for messages in rows], strict=True):
            assert one.text == other.text
            for a, b in zip(one.regions, other.regions, strict=True):
                assert np.allclose(a.masks.logits, b.masks.logits, atol=1e-2)

    def test_only_images_with_objects_go_through_sam2(self, engine, teach, dialogues, count_calls):
        teach(engine, dialogues[:3], [reply + END for reply in ("Nothing.", "[SEG]", "[SEG] [SEG]")])
        sam2 = count_calls(engine.model.grounder.sam2.vision_encoder)
        engine.answer_all(dialogues[:3])
        assert sum(sam2) == 2

    def test_videos_and_images_mix(self, engine, teach, dialogues, clip):
        rows = [*dialogues, [Message.user("And here?", open_media(clip(6)))]]
        teach(engine, rows, [f"{reply}{END}" for reply in ("a", "[SEG]", "b", "c", "[SEG] d", "It is [SEG].")])
        together = engine.answer_all(rows)
        assert all(same(one, other) for one, other in zip(together, map(engine.answer, rows), strict=True))
        assert [len(region.masks) for region in together[-1].regions] == [6]

    def test_a_batch_of_nothing_has_no_answers(self, engine):
        assert engine.answer_all([]) == []


class TestStop:
    @pytest.mark.parametrize(
        ("stop", "text"),
        [((" far",), "It is"), (("way", "is"), "It "), (("It is",), ""), (("nowhere",), "It is far away.")],
    )
    def test_an_answer_ends_before_a_text_that_the_caller_stops_at(self, engine, teach, image, stop, text):
        messages = [Message.user("Where?", image)]
        teach(engine, [messages], ["It is far away." + END])
        answer = engine.answer(messages, Options(stop=stop))
        assert (answer.text, answer.stop_reason) == (text.rstrip(), "stop")

    def test_objects_named_before_the_stop_have_masks(self, engine, teach, image):
        messages = [Message.user("Where?", image)]
        teach(engine, [messages], ["[SEG]. More [SEG]" + END])
        answer = engine.answer(messages, Options(stop=(" More",)))
        assert [region.masks is not None for region in answer.regions] == [True]

    def test_an_empty_stop_is_refused(self):
        with pytest.raises(ConfigError, match="empty"):
            Options(stop=("",))


class TestRun:
    @pytest.fixture
    def asked(self, picture):
        return [[Message.user(text, open_media(picture(60, 60, seed)))] for seed, text in enumerate(("a", "bc", "def"))]

    def answers(self, events):
        return {request: event.answer for request, event in events if isinstance(event, Finished)}

    def test_requests_that_come_while_others_are_answered_have_the_answers_they_have_alone(
        self, engine, teach, asked, clip
    ):
        asked = [*asked, [Message.user("And here?", open_media(clip(4)))]]
        teach(engine, asked, [reply + END for reply in ("A long answer. [SEG]", "No.", "[SEG] [SEG]", "It is [SEG].")])
        requests = [Request([messages]) for messages in asked]
        waiting = [requests[0], None, None, requests[1], None, requests[2], requests[3]]
        found = self.answers(engine.run(waiting, rows=2))
        for request, messages in zip(requests, asked, strict=True):
            assert same(found[request], engine.answer(messages))

    def test_no_more_rows_are_decoded_together_than_allowed_and_no_request_is_taken_early(self, engine, teach, asked):
        teach(engine, asked, ["Yes." + END] * 3)
        sizes, taken = [], []
        hook = engine.model.mllm.language_model.model.register_forward_pre_hook(
            lambda _, __, named: sizes.append(len(named["inputs_embeds"])), with_kwargs=True
        )

        def coming():
            for messages in asked:
                taken.append(len(sizes))
                yield Request([messages])

        found = self.answers(engine.run(coming(), rows=1))
        hook.remove()
        assert len(found) == 3 and max(sizes) == 1
        assert taken[0] == 0 < taken[1] < taken[2]

    def test_rows_that_are_over_make_room_at_once(self, engine, teach, asked):
        teach(engine, asked, ["A much longer answer." + END, "No." + END, "Yes." + END])
        requests = [Request([messages]) for messages in asked]
        assert list(self.answers(engine.run(requests, rows=2))) == [requests[1], requests[2], requests[0]]

    def test_a_request_that_fails_does_not_end_the_others(self, engine, teach, asked, tmp_path):
        teach(engine, asked, ["Yes." + END] * 3)
        gone = replace(open_media(asked[0][0].parts[0].source), source=tmp_path / "gone.png")
        bad = [Request([[Message.user("a", gone)]]), Request([]), Request([asked[0]], Options(frames="first:0"))]
        requests = [Request([asked[1]]), *bad, Request([asked[2]])]
        events = list(engine.run(requests))
        failed = {request: event.error for request, event in events if isinstance(event, Failed)}
        assert set(failed) == set(bad[:2])
        assert [answer.text for answer in self.answers(events).values()] == ["Yes."] * 3

    def test_no_rows_at_all_are_refused(self, engine, asked):
        with pytest.raises(ConfigError, match="0 dialogues cannot be decoded together"):
            list(engine.run([Request([asked[0]])], rows=0))

    def test_of_images_asked_about_together_only_the_last_stays_in_memory(self, make_engine, asked):
        engine = make_engine()
        list(engine.run([Request([messages], ONE) for messages in asked]))
        (kept,) = engine.features._kept.values()
        encoded = engine.encoder._seen.encoded
        for tensor in (kept.values, engine.encoder._seen.shown.vision.features, encoded.top, *encoded.fine):
            assert tensor.untyped_storage().nbytes() == tensor.nbytes

    def test_a_cancelled_request_ends_with_what_was_said_and_the_others_go_on(self, engine, teach, asked):
        teach(engine, asked, ["It is far away." + END, "It is [SEG]." + END, "So it is." + END])
        requests = [Request([messages]) for messages in asked]
        found = {}
        for request, event in engine.run(requests, rows=2):
            requests[0].is_cancelled = requests[2].is_cancelled = True
            if isinstance(event, Finished):
                found[request] = event.answer
        assert [found[request].stop_reason for request in requests] == ["cancelled", "stop", "cancelled"]
        assert len(found[requests[0]].text) in (1, 2) and found[requests[2]].text == ""
        assert same(found[requests[1]], engine.answer(asked[1]))

    def test_dialogues_that_wait_when_their_request_is_cancelled_are_never_read(self, engine, teach, asked):
        image = asked[0][0].parts[0]
        dialogues = [[Message.user(text, image)] for text in ("x", "y", "z")]
        teach(engine, [*dialogues, asked[1]], ["A long answer." + END] * 3 + ["No." + END])
        requests = [Request(dialogues), Request([asked[1]])]
        answers = []
        for request, event in engine.run(requests, rows=1):
            requests[0].is_cancelled = True
            answers += [(request, event.answer.stop_reason)] if isinstance(event, Finished) else []
        assert answers == [(requests[0], "cancelled")] * 3 + [(requests[1], "stop")]

    def test_a_video_that_is_cancelled_while_it_is_followed_keeps_the_frames_so_far(self, engine, clip):
        request = Request([[Message.user("Where?", open_media(clip(6)))]], ONE)
        for _, event in engine.run([request]):
            if isinstance(event, FrameMasks) and event.index == 1:
                request.is_cancelled = True
        assert len(event.answer.regions[0].masks) == 2

    def test_words_of_others_go_on_while_a_video_is_followed(self, engine, teach, asked, clip):
        about_video = [Message.user("Where?", open_media(clip(6)))]
        teach(engine, [about_video, asked[1]], ["[SEG]" + END, "A much longer answer." + END])
        video, words = Request([about_video]), Request([asked[1]])
        events = list(engine.run([video, words]))
        frames = [at for at, (request, event) in enumerate(events) if isinstance(event, FrameMasks)]
        text = [at for at, (request, event) in enumerate(events) if request is words and isinstance(event, TextDelta)]
        assert len([at for at in text if frames[0] < at < frames[-1]]) >= 4
        assert same(self.answers(events)[video], engine.answer(about_video))

    def test_videos_that_are_followed_take_the_place_of_rows(self, engine, teach, asked, clip):
        dialogues = [[Message.user("Where?", open_media(clip(count)))] for count in (5, 6)]
        teach(engine, dialogues, ["[SEG]" + END] * 2)
        first, second = (Request([messages]) for messages in dialogues)
        events = [(request, type(event)) for request, event in engine.run([first, second], rows=1)]
        assert events.index((first, Finished)) < events.index((second, TextDelta))

    def test_nothing_is_kept_of_a_request_that_is_over_while_the_next_one_is_waited_for(self, engine, clip, tmp_path):
        class Dialogues(list):
            """A list that can be referred to weakly."""

        gone = replace(open_media(clip(1)[0]), source=tmp_path / "gone.png")
        media, kept = [open_media(clip(1)[0]), open_media(clip(3)), gone], []

        def coming():
            for one in media:
                dialogues = Dialogues([[Message.user("Where?", one)]])
                request, reference = Request(dialogues, ONE), weakref.ref(dialogues)
                del dialogues
                yield request
                del request
                kept.append(reference())

        ended = []
        for told in engine.run(coming(), rows=1):
            ended += [type(told[1])] if isinstance(told[1], Finished | Failed) else []
            del told
        assert (ended, kept) == ([Finished, Finished, Failed], [None] * 3)

    def test_text_of_several_dialogues_comes_one_after_another(self, engine, teach, asked):
        image = asked[0][0].parts[0]
        dialogues = [[Message.user(text, image)] for text in ("x", "y")]
        teach(engine, dialogues, ["A long answer." + END, "No." + END])
        events = engine.run([Request(dialogues)])
        texts = [event.text for _, event in events if isinstance(event, TextDelta)]
        assert "".join(texts) == f"A long answer.{END}No.{END}"
        assert len(texts) > 10

    def test_a_row_beyond_the_trained_length_is_decoded_alone(self, make_engine, picture):
        rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
        stretched = make_engine(rope_parameters=rope, max_position_embeddings=70)
        texts = ("a", "b" * 60, "c")
        asked = [[Message.user(text, open_media(picture(60, 60, seed)))] for seed, text in enumerate(texts)]
        options = Options(max_new_tokens=6)
        together = stretched.answer_all(asked, options)
        assert [answer.raw_text for answer in together] == [
            stretched.answer(messages, options).raw_text for messages in asked
        ]


class TestFeatures:
    def test_kept_features_take_the_place_of_decoding_and_encoding(
        self, engine, make_engine, teach, clip, picture, monkeypatch, count_calls, tmp_path
    ):
        Image.fromarray(picture(60, 120)).save(tmp_path / "a.png")
        media = [open_media(tmp_path / "a.png"), open_media(clip(6))]
        other, store = make_engine(), MemoryStore(2)
        other.encoder.features = store
        dialogues = [[Message.user("What?", one)] for one in media]
        teach(engine, dialogues, ["Nothing." + END, "It moves." + END])
        teach(other, dialogues, ["Nothing." + END, "It moves." + END])
        first = other.answer_all(dialogues)
        kept = make_engine()
        kept.encoder.features = store
        teach(kept, dialogues, ["Nothing." + END, "It moves." + END])
        decodes, tower = [], count_calls(kept.model.mllm.vision_tower)
        monkeypatch.setattr("segue.prepare.read_frames", lambda *_: decodes.append(1))
        second = kept.answer_all([[Message.user("What?", open_media(tmp_path / "a.png"))], dialogues[1]])
        assert decodes == tower == []
        assert [answer.text for answer in second] == [answer.text for answer in first] == ["Nothing.", "It moves."]

    def test_a_medium_is_known_by_its_content_and_how_it_is_shown(self, engine, picture, count_calls, tmp_path):
        Image.fromarray(picture(60, 120)).save(tmp_path / "a.png")
        Image.fromarray(picture(60, 120)).save(tmp_path / "copy.png")
        tower = count_calls(engine.model.mllm.vision_tower)
        plain = Options(prefill="Yes.")
        for source in (tmp_path / "a.png", tmp_path / "copy.png", tmp_path / "a.png"):
            engine.ask(source, "What?", options=plain)
        assert len(tower) == 1
        engine.ask(tmp_path / "a.png", "What?", options=replace(plain, max_tiles=1))
        assert len(tower) == 2
        pixels = picture(60, 120)
        media = open_media(pixels)
        engine.ask(media, "What?", options=plain)
        pixels[:] = 7  # the same array, other content
        engine.ask(media, "What?", options=plain)
        assert len(tower) == 4

    def test_the_fingerprint_of_a_point_changes_with_the_weights_below_it_alone(self, make_engine):
        asked = make_engine(seed=3)
        points = ("tower", "projected")
        before = [asked.encoder.fingerprint(point) for point in points]
        with torch.no_grad():
            asked.model.mllm.language_model.lm_head.weight.add_(1)
            assert [asked.encoder.fingerprint(point) for point in points] == before
            asked.model.mllm.projector[1].weight.add_(1)
        changed = [asked.encoder.fingerprint(point) for point in points]
        assert changed[0] == before[0] and changed[1] != before[1] and before[0] != before[1]


class TestKeptMasks:
    def test_an_answer_without_kept_masks_has_scores_and_a_stream_that_had_the_masks(self, engine, clip):
        media = open_media(clip(6))
        options = replace(ONE, keep_logits=False, keep_masks=False)
        events = list(engine.stream_answer([Message.user("Where?", media)], options))
        (region,) = events[-1].answer.regions
        assert region.masks is None and len(region.scores) == len(region.presence) == 6
        assert sum(isinstance(event, FrameMasks) for event in events) == 6

    def test_logits_cannot_be_kept_without_the_masks_that_hold_them(self):
        with pytest.raises(ConfigError, match="keep_logits needs keep_masks"):
            Options(keep_logits=True, keep_masks=False)


def test_a_model_without_its_weights_is_refused(make_engine, image, tmp_path):
    unloaded, messages = make_engine(), [Message.user("Who?", image)]
    unloaded.unload()
    asked = (
        lambda: unloaded.segment(image, ["x"]),
        lambda: unloaded.score(messages, ["a"]),
        lambda: unloaded.logits(messages),
        lambda: unloaded.save(tmp_path / "saved"),
    )
    for ask in asked:
        with pytest.raises(ConfigError, match="has let go of its weights.*; load it anew"):
            ask()


def test_a_box_in_words_becomes_a_region_without_masks_after_those_of_seg(engine, picture):
    reply = "Sure, [SEG] in <box>[[250,500,500,1000]]</box>.<|im_end|>"
    answer = engine.ask(picture(height=80, width=120), "Where is it?", options=Options(prefill=reply))
    found, box = answer.regions
    assert found.masks is not None and box.masks is None
    assert box.box.tolist() == [30, 40, 60, 80]


def test_a_model_is_shown_no_more_tiles_and_the_frames_that_it_was_trained_on_unless_told(make_engine, picture, clip):
    usual, trained = make_engine(), make_engine()
    trained.model.config.video_frames = "uniform:2"
    trained = Engine(trained.model, replace(trained.processor, most_tiles=1), trained.lineage)
    tokens = [engine.ask(picture(60, 120), "a", options=ONE).usage.visual_tokens for engine in (usual, trained)]
    assert tokens == [3 * 16, 16]
    shown = [
        engine.ask(clip(6), "a", options=replace(ONE, frames=plan)).lineage["request"]["frames_shown"]
        for engine, plan in ((usual, "auto"), (trained, "auto"), (trained, "first:3"))
    ]
    assert shown == [[0, 1, 2, 3, 4], [0, 5], [0, 1, 2]]


def test_of_several_images_the_last_is_the_one_that_is_found_in_and_all_are_shown(engine, picture):
    first, second = (open_media(picture(seed=seed)) for seed in (1, 4))
    options = Options(prefill="It is [SEG].", keep_logits=True)

    def asked(*media):
        answer = engine.answer([Message("user", (*media, "\nWhere?"))], options)
        assert answer.media is media[-1] and len(answer.regions) == 1
        return answer

    both, alone = asked(first, second), asked(second)
    assert both.usage.visual_tokens == 2 * alone.usage.visual_tokens
    assert not np.array_equal(both.regions[0].masks.logits, alone.regions[0].masks.logits)
    # the same whatever was asked before, and in a batch
    assert np.array_equal(asked(first, second).regions[0].masks.logits, both.regions[0].masks.logits)
    (batched,) = engine.answer_all([[Message("user", (first, second, "\nWhere?"))]], options)
    np.testing.assert_allclose(batched.regions[0].masks.logits, both.regions[0].masks.logits, atol=1e-4)
