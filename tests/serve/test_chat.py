"""The stock client over a real socket."""

import base64
import io
import json
from contextlib import nullcontext

import numpy as np
import openai
import pytest
from PIL import Image
from pycocotools import mask as coco

from segue.geometry.masks import encode
from segue.serve import media, scheduler
from segue.serve.errors import ApiError
from segue.types import Region


def asked(url, text="Where is it?", kind="image_url"):
    return [{"role": "user", "content": [{"type": "text", "text": text}, {"type": kind, kind: url}]}]


def dense(rle):
    return coco.decode({"size": rle["size"], "counts": rle["counts"].encode()}).astype(bool)


class TestAnswers:
    @pytest.mark.parametrize("form", [lambda url: {"url": url, "detail": "auto"}, lambda url: url])
    def test_an_answer_carries_the_regions_that_the_engine_finds(self, server, served_engine, picture, image_url, form):
        found = server.client().chat.completions.create(model="tiny", messages=asked(form(image_url)))
        expected = served_engine.ask(picture(60, 80), "Where is it?")
        message = found.choices[0].message
        assert (message.content, found.choices[0].finish_reason) == (expected.text, "stop")
        assert message.regions_version == 1
        assert message.media == {"kind": "image", "width": 80, "height": 60, "frames": 1, "fps": None}
        region = message.regions[0]
        assert np.array_equal(dense(region["rle"]), expected.regions[0].masks.dense())
        assert region["score"] == expected.regions[0].score and 0 <= region["presence"] <= 1
        assert found.usage.completion_tokens == expected.usage.answer_tokens
        assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens

    def test_a_video_has_masks_for_every_frame(self, server, video_url):
        found = server.client().chat.completions.create(model="tiny", messages=asked(video_url, kind="video_url"))
        message = found.choices[0].message
        assert message.media["kind"] == "video" and message.media["fps"] == 10
        frames = message.regions[0]["frames"]
        assert [(frame["index"], frame["seconds"]) for frame in frames] == [(n, n / 10) for n in range(5)]
        assert {tuple(frame["rle"]["size"]) for frame in frames} == {(60, 80)}

    def test_probabilities_move_the_threshold_without_another_question(self, server, image_url):
        create = server.client().chat.completions.create
        found = create(model="tiny", messages=asked(image_url), extra_body={"probabilities": True})
        region = found.choices[0].message.regions[0]
        levels = Image.open(io.BytesIO(base64.b64decode(region["probabilities"].partition(",")[2])))
        assert np.array_equal(np.array(levels) >= 128, dense(region["rle"]))
        other = create(model="tiny", messages=asked(image_url), extra_body={"threshold": 0.3})
        differ = (np.array(levels) > 0.3 * 255) ^ dense(other.choices[0].message.regions[0]["rle"])
        assert differ.mean() < 0.02

    def test_clients_that_take_turns_get_what_each_gets_alone(self, server, served_engine, picture, png, data_url):
        """One was shown what another had sent, where the dialogue was a global of the server."""
        pixels = picture(60, 80)
        shown = [data_url(png(one)) for one in (pixels, 255 - pixels, pixels[::-1])]
        texts = ["Where is my car?", "Where is my cat, then?", "Where?"]
        dialogues = [asked(url, text) for url, text in zip(shown, texts, strict=True)]

        def answered(messages):
            found = server.client().chat.completions.create(model="tiny", messages=messages)
            message = found.choices[0].message
            return found.usage.model_dump(), message.content, message.media, message.regions

        alone = []
        for messages in dialogues:
            served_engine.forget()
            alone.append(answered(messages))
        assert [answered(messages) for messages in dialogues * 2] == alone * 2
        assert len({regions[0]["rle"]["counts"] for *_, regions in alone}) == 3

    def test_a_dialogue_goes_on_and_needs_no_picture(self, server):
        turns = [("system", "Be brief."), ("user", "One?"), ("assistant", "Two."), ("user", "And?")]
        messages = [{"role": role, "content": text} for role, text in turns]
        found = server.client().chat.completions.create(model="tiny", messages=messages)
        assert found.choices[0].message.media is None and found.choices[0].message.content

    @pytest.mark.parametrize("kept", [{}, {"DIALOGUES_KEPT": 1}, {"TOKENS_KEPT": 100}])
    def test_the_next_turn_under_the_same_key_reads_what_is_new(
        self, serve, served_engine, image_url, monkeypatch, kept
    ):
        for name, value in kept.items():
            monkeypatch.setattr(scheduler, name, value)
        first = asked(image_url)
        turns = [*first, {"role": "assistant", "content": "There."}, {"role": "user", "content": "And what is it?"}]

        def answered(messages, key=None, client="one" * 8):
            create = server.client(api_key=client).chat.completions.create
            found = create(model="tiny", messages=messages, **({} if key is None else {"prompt_cache_key": key}))
            return found.choices[0].message.content, found.usage.prompt_tokens_details.cached_tokens

        with serve(served_engine, keys=("one" * 8, "two" * 8)) as server:
            expected, none = answered(turns)
            assert none == answered(first, "mine")[1] == answered(first, "other")[1] == 0
            assert answered(turns, "mine", client="two" * 8) == (expected, 0)
            text, known = answered(turns, "mine")
            assert text == expected and (known == 0 if kept else known > 64)

    def test_what_real_clients_send_and_means_nothing_is_taken(self, server):
        nothing = ("stream", "functions", "audio", "prediction", "reasoning_effort", "verbosity", "web_search_options")
        body = {"messages": [{"role": "user", "content": "One?"}], **dict.fromkeys((*nothing, "function_call"))}
        with server.http() as http:
            for change in ({}, {"reasoning_effort": "low"}, {"model": None}):
                found = http.post("/v1/chat/completions", json=body | change)
                assert (found.status_code, found.json().get("model")) == (200, "tiny"), found.text

    def test_each_answer_by_chance_has_a_seed_of_its_own_and_says_it(self, server):
        create = server.client().chat.completions.create
        how = {"model": "tiny", "messages": [{"role": "user", "content": "One?"}], "max_tokens": 12}
        found = [create(**how, temperature=2.0) for _ in range(4)]
        assert len({one.seed for one in found}) == 4
        again = create(**how, temperature=2.0, seed=found[0].seed)
        assert again.choices[0].message.content == found[0].choices[0].message.content
        chunks = list(create(**how, temperature=2.0, seed=5, stream=True))
        assert {chunk.seed for chunk in chunks} == {5}
        assert not hasattr(create(**how), "seed"), "there is no chance in it"

    def test_what_asks_for_nothing_is_taken(self, server):
        found = server.client().chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "One?"}],
            n=1,
            logprobs=False,
            user="me",
            store=False,
            presence_penalty=0,
            response_format={"type": "text"},
            seed=3,
        )
        assert found.choices[0].message.content

    def test_length_and_stops_are_kept(self, server, image_url):
        create = server.client().chat.completions.create
        whole = create(model="tiny", messages=asked(image_url)).choices[0].message.content
        cut = create(model="tiny", messages=asked(image_url), max_tokens=1)
        assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 1)
        stopped = create(model="tiny", messages=asked(image_url), stop=whole[2:4]).choices[0]
        assert (stopped.message.content, stopped.finish_reason) == (whole[:2].rstrip(), "stop")

    def test_more_than_is_given_is_told(self, server):
        found = server.client().chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "One?"}], max_completion_tokens=10**6
        )
        assert found.notes == ["max_tokens is 2048, the most this server gives"]

    def test_several_answers_come_of_seeds_that_follow_one_another(self, server, image_url):
        create = server.client().chat.completions.create
        how = {"model": "tiny", "messages": asked(image_url), "temperature": 2.0, "max_tokens": 8}
        alone = [create(**how, seed=seed) for seed in (5, 6)]
        found = create(**how, seed=5, n=2)
        assert [one.message.content for one in found.choices] == [one.choices[0].message.content for one in alone]
        assert found.usage.completion_tokens == sum(one.usage.completion_tokens for one in alone)
        assert found.usage.prompt_tokens == alone[0].usage.prompt_tokens
        texts = ["", ""]
        for chunk in create(**how, seed=5, n=2, stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content
        assert texts == [one.message.content for one in found.choices]

    @pytest.mark.parametrize("stream", [False, True])
    def test_tokens_are_told_with_their_probabilities(self, server, stream):
        how = {"model": "tiny", "messages": [{"role": "user", "content": "One?"}], "max_tokens": 3}
        found = server.client().chat.completions.create(**how, logprobs=True, top_logprobs=2, stream=stream)
        scores = (list(found)[-1] if stream else found).choices[0].logprobs.content
        assert len(scores) == 3 and all(one.logprob == one.top_logprobs[0].logprob <= 0 for one in scores)
        assert all(one.bytes is None or bytes(one.bytes).decode() == one.token for one in scores)

    def test_an_answer_by_a_schema_is_such_json(self, server):
        schema = {"type": "object", "properties": {"count": {"type": "integer", "maximum": 9}}, "required": ["count"]}
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema | {"additionalProperties": False}}}
        for wanted in (form, {"type": "json_object"}):
            found = server.client().chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "One?"}], response_format=wanted, max_tokens=200
            )
            if found.choices[0].finish_reason == "stop":
                assert isinstance(json.loads(found.choices[0].message.content), dict)
        assert found.choices[0].message.content.lstrip().startswith("{")

    def test_a_picture_with_a_name_is_sent_once(self, server, image_url):
        def ask(**part):
            content = [{"type": "image_url", **part}, {"type": "text", "text": "Where?"}]
            return server.client().chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": content}]
            )

        first = ask(image_url=image_url, uuid="mine").choices[0].message
        assert ask(image_url=None, uuid="mine").choices[0].message.regions == first.regions
        with pytest.raises(openai.NotFoundError, match="nothing is kept under this uuid; send it again"):
            ask(image_url=None, uuid="another")

    @pytest.mark.parametrize("part", [{"box": [5, 5, 40, 30]}, {"rle": True}])
    def test_a_region_is_asked_about(self, server, served_engine, picture, image_url, part):
        mask = np.zeros((60, 80), bool)
        mask[5:30, 5:40] = True
        if "rle" in part:
            part = {"rle": {"size": [60, 80], "counts": encode(mask)}}
        content = [*asked(image_url, "What is region1?")[0]["content"], {"type": "region", **part}]
        found = server.client().chat.completions.create(model="tiny", messages=[{"role": "user", "content": content}])
        region = Region(box=np.array([5.0, 5.0, 40.0, 30.0]))
        expected = served_engine.ask(picture(60, 80), "What is region1?", regions=[region])
        assert found.choices[0].message.content == expected.text
        assert found.usage.prompt_tokens == expected.usage.prompt_tokens

    @pytest.mark.parametrize(
        "part", [{}, {"box": [1, 2, 3]}, {"rle": {"size": [60, 80], "counts": "1"}}, {"box": [0] * 4}]
    )
    def test_a_region_that_is_none_is_refused(self, server, image_url, part):
        content = [*asked(image_url)[0]["content"], {"type": "region", **part}]
        with pytest.raises(openai.BadRequestError, match="box|cover|empty"):
            server.client().chat.completions.create(model="tiny", messages=[{"role": "user", "content": content}])


class TestStreams:
    def stream(self, server, **options):
        return list(server.client().chat.completions.create(model="tiny", stream=True, **options))

    def test_pieces_are_the_whole_answer_and_the_last_has_its_regions(self, server, image_url):
        whole = server.client().chat.completions.create(model="tiny", messages=asked(image_url)).choices[0].message
        chunks = self.stream(server, messages=asked(image_url))
        assert chunks[0].choices[0].delta.role == "assistant"
        assert "".join(chunk.choices[0].delta.content for chunk in chunks) == whole.content
        assert [chunk.choices[0].finish_reason for chunk in chunks][-2:] == [None, "stop"]
        assert chunks[-1].choices[0].delta.regions == whole.regions
        assert len({chunk.id for chunk in chunks}) == 1

    def test_frames_come_as_they_are_followed(self, server, video_url):
        chunks = self.stream(server, messages=asked(video_url, kind="video_url"))
        deltas = [chunk.choices[0].delta for chunk in chunks]
        frames = [delta.frame for delta in deltas if getattr(delta, "frame", None)]
        assert [frame["index"] for frame in frames] == list(range(5))
        assert [frame["regions"][0]["rle"] for frame in frames] == [
            frame["rle"] for frame in deltas[-1].regions[0]["frames"]
        ]

    def test_usage_is_a_chunk_of_its_own_where_asked_for(self, server):
        messages = [{"role": "user", "content": "One?"}]
        chunks = self.stream(server, messages=messages, stream_options={"include_usage": True})
        assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0
        assert {chunk.usage for chunk in chunks[:-1]} == {None}
        assert all("usage" not in chunk.model_fields_set for chunk in self.stream(server, messages=messages))

    def test_what_breaks_on_the_way_is_an_error_of_the_stream(self, server, served_engine, monkeypatch):
        def broken(*_):
            raise RuntimeError("a secret of the server")

        monkeypatch.setattr(served_engine._answering, "_finish", broken)
        with pytest.raises(openai.APIError, match="internal error; request id") as caught:
            self.stream(server, messages=[{"role": "user", "content": "One?"}])
        assert "secret" not in str(caught.value)


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "kind", "text"),
        [
            ({"model": "gpt"}, openai.NotFoundError, "no model 'gpt'"),
            ({"temperature": 3}, openai.BadRequestError, "temperature: Input should be less than or equal to 2"),
            ({"temperature": "hot"}, openai.BadRequestError, "temperature"),
            ({"n": 9}, openai.BadRequestError, "n is 9; at most 8"),
            ({"top_logprobs": 2}, openai.BadRequestError, "top_logprobs needs logprobs"),
            ({"response_format": {"type": "json_schema"}}, openai.BadRequestError, "json_schema with a schema"),
            ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, openai.BadRequestError, "uuid"),
            ({"tools": [{"type": "function"}]}, openai.BadRequestError, "tools is not supported"),
            ({"extra_body": {"colour": 1}}, openai.BadRequestError, "unknown parameter 'colour'"),
            ({"extra_body": {"frames": "all"}}, openai.BadRequestError, "frames"),
            ({"extra_body": {"policy": "consistent"}}, openai.BadRequestError, "consistent"),
            ({"stop": ["a"] * 5}, openai.BadRequestError, "one to four"),
            ({"messages": []}, openai.BadRequestError, "messages"),
            ({"messages": [{"role": "assistant", "content": "I"}]}, openai.BadRequestError, "turn"),
            ({"messages": asked("https://a.b/c.png")}, openai.BadRequestError, "fetches nothing"),
            ({"messages": asked("file:///etc/passwd")}, openai.BadRequestError, "fetches nothing"),
            ({"messages": asked("data:image/png;base64,!!!")}, openai.BadRequestError, "base64"),
            ({"messages": asked("data:image/png;base64,aGVsbG8=")}, openai.BadRequestError, "no image or video"),
            ({"messages": asked("x") * 65}, openai.BadRequestError, "65 messages; at most 64"),
        ],
    )
    @pytest.mark.parametrize("stream", [False, True])
    def test_a_bad_request_says_what_is_wrong(self, server, change, kind, text, stream):
        request = {"model": "tiny", "messages": [{"role": "user", "content": "One?"}], "stream": stream} | change
        with pytest.raises(kind, match=text) as caught:
            server.client().chat.completions.create(**request)
        error = caught.value
        assert error.type in ("invalid_request_error", "not_found_error")
        assert error.response.headers["x-request-id"] == error.request_id

    @pytest.mark.parametrize(
        ("text", "expected"),
        [("aGVsbG8gd29ybGQh", b"hello world!"), ("aGVs\nbG8gd2\r\n9ybGQ=\n", b"hello world"), ("", b""),
         ("aA==aGVs", None), ("aGVsaA==", b"helh"),
         ("aGVsbG8", None), ("aGV sbG8=", None), ("aGVsbG8_", None), ("ä", None)],
    )  # fmt: skip
    @pytest.mark.parametrize("piece", [4, 8, 2**22])
    def test_base64_is_read_in_pieces_with_or_without_line_breaks(self, monkeypatch, piece, text, expected):
        monkeypatch.setattr(media, "PIECE", piece)
        with nullcontext() if expected is not None else pytest.raises(ApiError, match="not a base64 data URL"):
            assert media._from_data_url(f"data:image/png;base64,{text}", "url") == expected

    @pytest.mark.parametrize(
        ("name", "value"),
        [("presence_penalty", 1), ("logit_bias", {"5": 1}), ("tools", [{}]), ("functions", [{}]), ("audio", {})],
    )
    def test_what_is_not_supported_is_named_for_programs_too(self, server, name, value):
        with pytest.raises(openai.BadRequestError, match=f"{name} is not supported") as caught:
            server.client().chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "x"}], extra_body={name: value}
            )
        assert (caught.value.param, caught.value.code) == (name, "invalid_value")

    def test_more_answers_than_the_queue_ever_takes_are_not_worth_asking_again(self, serve, wordy):
        with serve(wordy, {"waiting": 2}) as server, pytest.raises(openai.BadRequestError, match="n is 3; at most 2"):
            server.client().chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x"}], n=3)

    def test_an_image_where_a_video_is_expected_is_refused_and_the_other_way_round(self, server, image_url):
        with pytest.raises(openai.BadRequestError, match="it is an image"):
            server.client().chat.completions.create(model="tiny", messages=asked(image_url, kind="video_url"))

    @pytest.mark.parametrize("body", ["", "[]", "{", '{"model": NaN', '{"a":' * 100_000, "nul\0"])
    def test_a_body_that_is_no_request_is_a_400(self, server, body):
        with server.http() as http:
            found = http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
        assert found.status_code == 400 and found.json()["error"]["type"] == "invalid_request_error"

    def test_a_mistake_of_ours_says_its_id_and_nothing_else_and_is_not_tried_again(
        self, server, served_engine, monkeypatch
    ):
        calls = []

        def broken(*_):
            calls.append(1)
            raise RuntimeError("a secret of the server")

        monkeypatch.setattr(served_engine._answering, "_finish", broken)
        with pytest.raises(openai.InternalServerError, match="internal error; request id") as caught:
            server.client(max_retries=2).chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "One?"}]
            )
        assert "secret" not in str(caught.value) and len(calls) == 1
        monkeypatch.undo()
        assert server.client().chat.completions.create(model="tiny", messages=[{"role": "user", "content": "One?"}])


def test_models_are_listed(server):
    client = server.client()
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").can_segment
    with pytest.raises(openai.NotFoundError, match="no model"):
        client.models.retrieve("other")


@pytest.mark.parametrize("architecture", ["tiny", "tiny-qwen-vl"])
def test_a_model_without_a_grounder_talks_and_draws_no_lots_unless_it_is_told_to(serve, tmp_path, architecture):
    from segue import loading
    from segue.checkpoints.random_weights import random_checkpoint

    folder = random_checkpoint(tmp_path / "plain", architecture, grounder=False)
    asked = {"messages": [{"role": "user", "content": "<img>/etc/passwd</img> One?"}], "max_tokens": 5}
    with serve(loading.load(folder, device="cpu", dtype="fp32")) as server:
        create = server.client().chat.completions.create
        first, second = (create(model="tiny", **asked).choices[0] for _ in range(2))
    assert first.finish_reason == "length" and first.message.content == second.message.content
