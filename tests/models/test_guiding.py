"""Answers that a schema holds, and what is told of how likely their tokens were."""

import json

import pytest
import torch

from segue.errors import ConfigError
from segue.models.guiding import Guides
from segue.options import Options
from segue.requests import Request
from segue.types import Finished, Message

SCHEMA = {
    "type": "object",
    "properties": {"count": {"type": "integer", "maximum": 99}, "colour": {"enum": ["red", "green"]}},
    "required": ["count", "colour"],
    "additionalProperties": False,
}


def schema(**change):
    return json.dumps(SCHEMA | change)


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_an_answer_by_a_schema_is_such_json_whatever_the_model_would_say(engine, temperature):
    for seed in range(3):
        options = Options(json_schema=schema(), max_new_tokens=200, temperature=temperature, seed=seed)
        answer = engine.ask(None, "How many?", options=options)
        assert answer.stop_reason == "stop"
        found = json.loads(answer.text)
        assert found["count"] <= 99 and found["colour"] in ("red", "green") and len(found) == 2


@pytest.mark.parametrize("space", " \n")
def test_a_model_that_says_nothing_but_spaces_comes_to_its_end(byte_tokenizer, space):
    end = byte_tokenizer.eos_token_id
    guide, said = Guides(byte_tokenizer, end)(schema()), []
    [wanted] = byte_tokenizer.encode(space, add_special_tokens=False)
    while guide.end is None:
        assert len(said) < 100, byte_tokenizer.decode(said)
        logits = torch.linspace(1.0, 0.0, len(byte_tokenizer))
        logits[wanted] = 2.0
        guide.restrict(logits)
        said.append(int(logits.argmax()))
        guide.take(said[-1])
    found = json.loads(byte_tokenizer.decode(said, skip_special_tokens=True))
    assert found["colour"] in ("red", "green")


def test_rows_beside_it_say_what_they_say_alone(engine):
    def asked(**options):
        return Request([[Message.user("How many?")]], Options(max_new_tokens=12, **options))

    requests = [asked(), asked(json_schema=schema()), asked(temperature=1.0, seed=3)]
    together = {request: event for request, event in engine.run(requests) if isinstance(event, Finished)}
    for request in requests:
        assert together[request].answer.raw_text == engine.answer(*request.dialogues, request.options).raw_text


def test_an_answer_that_is_cut_says_so(engine):
    answer = engine.ask(None, "How many?", options=Options(json_schema=schema(), max_new_tokens=3))
    assert answer.stop_reason == "length" and answer.text.startswith("{")


@pytest.mark.parametrize(
    "change", [{"type": "nothing"}, {"properties": 1}, {"properties": {"a": {"$ref": "http://localhost/x"}}}]
)
def test_a_schema_that_cannot_be_followed_is_one_line(engine, change):
    with pytest.raises(ConfigError, match="JSON schema cannot be followed") as caught:
        engine.ask(None, "How many?", options=Options(json_schema=schema(**change)))
    assert "\n" not in str(caught.value)


class TestScores:
    def test_each_token_has_its_log_probability_and_the_likeliest_in_its_place(self, engine):
        answer = engine.ask(None, "One?", options=Options(max_new_tokens=4, likeliest=2))
        assert "".join(one.text for one in answer.scores).strip() == answer.raw_text
        assert len(answer.scores) == answer.usage.answer_tokens
        for one in answer.scores:
            (best, score), other = one.likeliest
            assert (one.text, one.logprob) == (best, score) and other[1] <= score <= 0

    def test_none_are_kept_where_none_are_asked_for(self, engine):
        assert engine.ask(None, "One?", options=Options(max_new_tokens=4)).scores == ()
        assert engine.ask(None, "One?", options=Options(max_new_tokens=1, likeliest=0)).scores[0].likeliest == ()

    @pytest.mark.parametrize("likeliest", [-1, 21])
    def test_more_than_twenty_are_refused(self, likeliest):
        with pytest.raises(ConfigError, match="likeliest"):
            Options(likeliest=likeliest)
