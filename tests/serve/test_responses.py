"""OpenAI's newer form, by the stock client, and Roboflow's."""

import base64
import json

import openai
import pytest


def asked(url, text="Where is it?"):
    return [
        {"role": "user", "content": [{"type": "input_text", "text": text}, {"type": "input_image", "image_url": url}]}
    ]


class TestResponses:
    def test_a_response_says_what_a_completion_says(self, server, image_url):
        client = server.client()
        parts = [{"type": "text", "text": "Where is it?"}, {"type": "image_url", "image_url": image_url}]
        chat = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": parts}])
        found = client.responses.create(model="tiny", input=asked(image_url))
        assert found.output_text == chat.choices[0].message.content
        assert found.output[0].regions == chat.choices[0].message.regions
        assert (found.status, found.store, found.usage.total_tokens) == ("completed", False, chat.usage.total_tokens)

    def test_a_stream_tells_the_same_in_the_order_that_clients_count_on(self, server, image_url):
        client = server.client()
        whole = client.responses.create(model="tiny", input=asked(image_url))
        with client.responses.stream(model="tiny", input=asked(image_url)) as stream:
            events = list(stream)
            final = stream.get_final_response()
        assert final.output_text == whole.output_text and final.output[0].regions == whole.output[0].regions
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert (
            "".join(event.delta for event in events if event.type == "response.output_text.delta") == final.output_text
        )
        plain = [event.type for event in client.responses.create(model="tiny", input="One?", stream=True)]
        assert plain[:4] == [
            f"response.{name}" for name in ("created", "in_progress", "output_item.added", "content_part.added")
        ]
        assert plain[-1] == "response.completed"

    def test_a_dialogue_goes_on_with_what_was_answered(self, server, image_url):
        client = server.client()
        first = client.responses.create(model="tiny", input=asked(image_url), instructions="Be brief.")
        turns = [*asked(image_url), *first.output, {"role": "user", "content": "And?"}]
        assert client.responses.create(model="tiny", input=turns).output_text

    def test_scores_come_where_they_are_included_and_a_chance_says_its_seed(self, server):
        create = server.client().responses.create
        found = create(input="One?", include=["message.output_text.logprobs"], max_output_tokens=2)
        assert (found.model, len(found.output[0].content[0].logprobs)) == ("tiny", 2) and not hasattr(found, "seed")
        first = create(input="One?", temperature=2.0, max_output_tokens=12)
        again = create(input="One?", temperature=2.0, max_output_tokens=12, extra_body={"seed": first.seed})
        assert first.output_text == again.output_text
        with pytest.raises(openai.BadRequestError, match="include") as caught:
            create(input="One?", include=["file_search_call.results"])
        assert caught.value.param.startswith("include")

    def test_length_schema_and_scores_are_kept(self, server):
        create = server.client().responses.create
        cut = create(model="tiny", input="One?", max_output_tokens=1, top_logprobs=2)
        assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert len(cut.output[0].content[0].logprobs[0].top_logprobs) == 2
        form = {"type": "json_schema", "name": "a", "schema": {"enum": ["red", "green"]}, "strict": True}
        assert json.loads(create(model="tiny", input="One?", text={"format": form}).output_text) in ("red", "green")

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"previous_response_id": "resp_1"}, "previous_response_id is not supported"),
            ({"tools": [{"type": "web_search"}]}, "tools is not supported"),
            ({"input": []}, "input"),
            ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "image_url or a file_id"),
            ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "schema"),
        ],
    )
    @pytest.mark.parametrize("stream", [False, True])
    def test_a_bad_request_says_what_is_wrong(self, server, change, text, stream):
        with pytest.raises(openai.BadRequestError, match=text):
            server.client().responses.create(**({"model": "tiny", "input": "One?", "stream": stream} | change))

    @pytest.mark.parametrize("change", [{"name": "\ud800"}, {"schema": {"enum": ["\ud800"]}}])
    def test_a_schema_that_is_no_text_is_refused_before_it_is_followed(self, server, change):
        form = {"type": "json_schema", "name": "a", "schema": {"enum": ["a"]}} | change
        body = json.dumps({"model": "tiny", "input": "One?", "text": {"format": form}})
        with server.http() as http:
            found = http.post("/v1/responses", content=body, headers={"content-type": "application/json"})
        assert (found.status_code, found.json()["error"]["param"]) == (400, "text.format")

    def test_what_breaks_on_the_way_is_an_error_of_the_stream(self, server, served_engine, monkeypatch):
        def broken(*_):
            raise RuntimeError("a secret of the server")

        monkeypatch.setattr(served_engine._answering, "_finish", broken)
        with pytest.raises(openai.APIError, match="internal error; request id") as caught:
            list(server.client().responses.create(model="tiny", input="One?", stream=True))
        assert "secret" not in str(caught.value)
        with server.http() as http:
            body = {"model": "tiny", "input": "One?", "stream": True}
            last = http.post("/v1/responses", json=body).text.strip().rpartition("\n\n")[2]
        assert last.startswith("event: error\ndata: {") and '"type": "error", "param": null' in last


class TestConcepts:
    def ask(self, server, image_url, **change):
        image = {"type": "base64", "value": image_url.partition(",")[2]}
        prompts = [{"type": "text", "text": "dog"}, {"type": "text", "text": "cat"}, {"type": "text", "text": "dog"}]
        body = {"model_id": "sam3/sam3_final", "image": image, "prompts": prompts, "format": "rle"} | change
        with server.http() as http:
            return http.post("/sam3/concept_segment", json=body)

    def test_masks_are_those_of_segment_in_their_form(self, server, image_url):
        found = self.ask(server, image_url, output_prob_thresh=0.0).json()
        with server.http() as http:
            body = {"image": image_url, "phrases": ["dog", "cat"]}
            regions = http.post("/v1/segment", json=body).json()["regions"]
        told = [one["predictions"] for one in found["prompt_results"]]
        expected = [{"masks": one["rle"], "confidence": one["score"], "format": "rle"} for one in regions]
        assert told == [[expected[0]], [expected[1]], [expected[0]]]
        assert found["prompt_results"][1]["echo"] == {"prompt_index": 1, "type": "text", "text": "cat", "num_boxes": 0}

    def test_polygons_are_points_as_theirs(self, server, image_url):
        told = self.ask(server, image_url, format="polygon", output_prob_thresh=0.0).json()["prompt_results"][0]
        [prediction] = told["predictions"]
        assert prediction["format"] == "polygon" and all(
            len(point) == 2 for one in prediction["masks"] for point in one
        )

    def test_what_scores_less_than_asked_for_is_left_out(self, server, image_url):
        assert all(
            not one["predictions"]
            for one in self.ask(server, image_url, output_prob_thresh=1.0).json()["prompt_results"]
        )

    @pytest.mark.parametrize(
        "change",
        [
            {"prompts": [{"type": "visual", "boxes": [{"x": 1, "y": 1, "width": 2, "height": 2}]}]},
            {"prompts": []},
            {"image": {"type": "url", "value": "http://127.0.0.1/a.png"}},
            {"image": {"type": "numpy", "value": base64.b64encode(b"x").decode()}},
        ],
    )
    def test_what_is_not_answered_is_refused(self, server, image_url, change):
        assert self.ask(server, image_url, **change).status_code == 400
