"""Several models of one server, and those that leave memory while nobody asks."""

import time

import openai
import pytest

from segue import loading
from segue.checkpoints.random_weights import random_checkpoint
from segue.options import Options

FIVE = Options(max_new_tokens=5)


def say(server, model="tiny"):
    messages = [{"role": "user", "content": "One?"}]
    found = server.client().chat.completions.create(model=model, messages=messages, max_tokens=5)
    assert found.model == model
    return found.choices[0].message.content


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    folder = random_checkpoint(tmp_path_factory.mktemp("plain") / "plain", "tiny", grounder=False)
    return loading.load(folder, device="cpu", dtype="fp32")


def test_each_model_answers_to_its_name(serve, served_engine, talker, image_url):
    with serve(served_engine, others={"talker": talker}) as server, server.http() as http:
        assert [(model.id, model.can_segment) for model in server.client().models.list()] == [
            ("tiny", True),
            ("talker", False),
        ]
        assert say(server) == served_engine.ask(None, "One?", options=FIVE).text
        assert say(server, "talker") == talker.ask(None, "One?", options=FIVE).text
        body = {"image": image_url, "phrases": ["dog"]}
        assert http.post("/v1/segment", json=body).json()["model"] == "tiny"
        assert "no grounder" in http.post("/v1/segment", json=body | {"model": "talker"}).json()["error"]["message"]
        with pytest.raises(openai.NotFoundError, match="this server has 'tiny', 'talker'"):
            say(server, "other")


def test_a_model_that_nobody_asks_leaves_memory_and_comes_back(serve, official_folder):
    def load(_name="tiny"):
        if fails:
            raise OSError("the disk of the server is gone")
        return loading.load(official_folder, device="cpu", dtype="fp32")

    def weights():
        return sum(one.numel() for one in server.context.scheduler.engine.model.parameters())

    def rest():
        for _ in range(500):
            if not weights():
                return
            time.sleep(0.02)
        raise AssertionError("the weights stay")

    fails = []
    with serve(load(), load=load, idle_seconds=0.2) as server:
        first = say(server)
        rest()
        with server.http() as http:
            assert http.get("/ready").status_code == 200 and http.get("/v1/models").json()["data"][0]["can_segment"]
        assert say(server) == first and weights()
        rest()
        fails.append(1)
        with pytest.raises(openai.InternalServerError, match="internal error") as caught:
            say(server)
        assert "disk" not in str(caught.value)
        fails.clear()
        assert say(server) == first
