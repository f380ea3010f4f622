"""Requests and media at random: what a server is sent may be refused, and never breaks it."""

import json
import random

import pytest

pytestmark = pytest.mark.slow
VALUES = [
    *(
        None,
        True,
        0,
        -1,
        1,
        10**30,
        1e308,
        0.5,
        "",
        "a",
        "auto",
        "first:3",
        "\x00",
        "\ud800",
        "😀" * 10,
        "tiny",
        "user",
    ),
    *([], {}, [[]], ["a"], {"url": "x"}, {"file_id": "file-1"}),
]
KEYS = ("type", "text", "image_url", "video_url", "url", "role", "content", "file", "file_id", "x")
FIELDS = (
    *("model", "messages", "stream", "stream_options", "max_tokens", "temperature", "top_p", "seed", "stop", "n"),
    *("threshold", "frames", "policy", "max_tiles", "probabilities", "tools", "image", "video", "phrases", "phrase"),
)


class Draws(random.Random):
    """Mutated bytes and JSON."""

    def mutated(self, data):
        data = bytearray(data)
        for _ in range(self.randint(1, 8)):
            place = self.randrange(len(data))
            kind = self.random()
            if kind < 0.6:
                data[place] = self.randrange(256)
            elif kind < 0.8:
                del data[place : place + self.randint(1, 20)]
            else:
                data[place:place] = self.randbytes(self.randint(1, 20))
            data = data or bytearray(b"x")
        return bytes(data)

    def value(self, depth=0):
        kind = self.random()
        if kind < 0.6 or depth > 3:
            return self.choice(VALUES)
        if kind < 0.8:
            return [self.value(depth + 1) for _ in range(self.randint(0, 4))]
        return {self.choice(KEYS): self.value(depth + 1) for _ in range(self.randint(0, 4))}


@pytest.mark.parametrize("seed", range(10))
def test_random_requests_and_media_are_answered_or_refused(serve, wordy, png, picture, clip, data_url, seed):
    draws, media = Draws(seed), [png(picture(20, 30)), png(clip(3, 20, 30))]

    def url():
        return data_url(draws.mutated(draws.choice(media)))

    def chat():
        parts = [{"type": "text", "text": "a"}, {"type": draws.choice(("image_url", "video_url"))}]
        parts[1][parts[1]["type"]] = url()
        return {"model": "tiny", "messages": [{"role": "user", "content": parts}], "max_tokens": 2}

    routes = {
        "/v1/chat/completions": chat,
        "/v1/segment": lambda: {"image": url(), "phrases": ["a"]},
        "/v1/video/sessions": lambda: {"video": url()},
        "/v1/video/sessions/x/follow": dict,
        "/v1/video/sessions/x/phrases": lambda: {"phrase": "a"},
    }
    with serve(wordy, {"deadline_seconds": 10.0}) as server, server.http() as http:
        for _ in range(1000):
            path = draws.choice(list(routes))
            body = routes[path]() | {draws.choice(FIELDS): draws.value() for _ in range(draws.randint(0, 3))}
            content = json.dumps(body).encode()
            content = draws.mutated(content) if draws.random() < 0.05 else content
            found = http.post(path, content=content, headers={"content-type": "application/json"})
            assert found.status_code < 500, (path, content[:2000], found.text)
        for _ in range(100):
            found = http.post("/v1/files", files={"file": ("a", draws.mutated(draws.choice(media)))})
            assert found.status_code < 500, found.text
        server.wait_idle()
        assert http.get("/ready").status_code == 200
