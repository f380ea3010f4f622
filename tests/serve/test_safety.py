"""Who may ask, and how much: each guard with what it keeps out."""

import asyncio
import re
import signal
import socket
import sys
from contextlib import nullcontext
from pathlib import Path

import openai
import pytest
from pydantic import ValidationError
from starlette.datastructures import Headers

from segue.errors import ConfigError, LimitError, MediaError
from segue.serve.concepts import ConceptRequest
from segue.serve.decoding import Decoders
from segue.serve.errors import ApiError
from segue.serve.guards import OPEN, Keys
from segue.serve.label_studio import TOKEN_VARIABLE, Predict
from segue.serve.overlays import DrawnRegion, OverlayRequest
from segue.serve.responses import InputMessage, ResponsesRequest
from segue.serve.schema import ChatMessage, ChatRequest
from segue.serve.segment import SegmentRequest
from segue.serve.settings import KEYS_VARIABLE, Limits, Settings, read_keys

KEYS = ("first-key-of-someone", "second-key-of-someone")
LIMITED = {"core file size": 0, "file size": 2**25 + 2**20, "address space": Limits().decoder_bytes}
TEXT, INPUT = {"type": "text", "text": "x"}, {"type": "input_text", "text": "x"}
MASK = {"index": 0, "rle": {}}
ONE = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}


@pytest.fixture(scope="module")
def guarded(serve, wordy_once):
    with serve(wordy_once, {"body_bytes": 10_000, "upload_bytes": 20_000}, keys=KEYS) as server:
        yield server


def routes(app):
    """Method and path of each route, with something in the place of its parameters."""
    named = [(route.methods, re.sub(r"\{\w+(:path)?\}", "x", route.path)) for route in app.routes]
    return [(method, path) for methods, path in named for method in methods]


class TestKeys:
    def test_every_route_but_health_and_the_page_asks_for_a_key(self, guarded):
        known = routes(guarded.app)
        assert ("POST", "/v1/chat/completions") in known and ("GET", "/openapi.json") in known
        with guarded.http() as http:
            for method, path in known:
                is_open = path in OPEN or path.startswith("/page/")
                for key in (None, "Bearer wrong", "Bearer", KEYS[0], "Basic " + KEYS[0]):
                    found = http.request(method, path, headers={} if key is None else {"authorization": key})
                    is_refused = found.status_code == 401
                    assert is_refused is not is_open, (method, path, key)
                    assert not is_refused or not found.content or found.json()["error"]["code"] == "invalid_api_key"

    @pytest.mark.parametrize("key", KEYS)
    def test_each_key_is_good(self, guarded, key):
        assert guarded.client(api_key=key).chat.completions.create(**ONE)

    def test_the_client_says_that_a_key_is_wrong(self, guarded):
        with pytest.raises(openai.AuthenticationError, match="no valid API key"):
            guarded.client(api_key=KEYS[0][:-1]).chat.completions.create(**ONE)

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org"])
    def test_an_address_that_others_reach_needs_a_key(self, host):
        with pytest.raises(ConfigError, match="can be reached from other machines"):
            Settings(host=host)
        assert Settings(host=host, keys=KEYS).keys == KEYS and Settings().host == "127.0.0.1"

    @pytest.mark.parametrize("key", ["short", "sixteen letters x", "sixteenlettersxö"])
    def test_a_key_that_could_be_guessed_or_sent_by_nobody_is_refused(self, key):
        with pytest.raises(ConfigError, match="1 of 1 keys"):
            Settings(keys=(key,))

    def test_keys_come_from_a_file_and_the_environment(self, tmp_path, monkeypatch):
        monkeypatch.setenv(KEYS_VARIABLE, f"{KEYS[0]}, ")
        assert read_keys(None) == KEYS[:1]
        (tmp_path / "keys").write_text(f"# mine\n{KEYS[1]}\n\n{KEYS[0]}\n")
        assert read_keys(tmp_path / "keys") == KEYS
        (tmp_path / "keys").write_text("# none\n")
        with pytest.raises(ConfigError, match="holds no key"):
            read_keys(tmp_path / "keys")

    def test_the_time_of_a_comparison_tells_nothing(self, monkeypatch):
        compared = []

        def compare(given, known):
            compared.append(known)
            return given == known

        monkeypatch.setattr("segue.serve.guards.hmac.compare_digest", compare)
        for key in (*KEYS, "wrong"):
            with nullcontext() if key in KEYS else pytest.raises(ApiError):
                Keys(KEYS).client(Headers({"authorization": f"Bearer {key}"}), "127.0.0.1")
        assert len(compared) == 3 * len(KEYS), "each key is compared, whichever fits"

    def test_settings_do_not_print_their_keys(self):
        assert KEYS[0] not in repr(Settings(keys=KEYS))


class TestWhoCalls:
    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({}, 200),
            ({"host": "LOCALHOST:99"}, 200),
            ({"host": "evil.example"}, 400),
            ({"host": "127.0.0.1.evil.example"}, 400),
            ({"host": "[::1]:80"}, 200),
            ({"host": ""}, 400),
            ({"host": "localhost", "origin": "http://localhost"}, 200),
            ({"host": "localhost", "origin": "http://evil.example"}, 403),
            ({"host": "localhost", "origin": "null"}, 403),
        ],
    )
    def test_other_names_and_other_origins_are_refused(self, guarded, headers, status):
        with guarded.http() as http:
            assert http.get("/health", headers=headers).status_code == status

    def test_no_other_origin_may_read_an_answer(self, guarded):
        with guarded.http() as http:
            found = http.options("/v1/models", headers={"origin": guarded.url, "access-control-request-method": "GET"})
            assert not [name for name in found.headers if name.startswith("access-control")]

    @pytest.mark.parametrize(("given", "is_kept"), [("mine-1", True), ("a b", False), ("x" * 65, False)])
    def test_an_id_of_the_client_is_kept_if_it_is_harmless(self, guarded, given, is_kept):
        with guarded.http() as http:
            found = http.get("/health", headers={"x-request-id": given}).headers["x-request-id"]
        assert (found == given) is is_kept and found

    @pytest.mark.parametrize("path", ["/", "/health"])
    def test_a_probe_by_head_is_answered_as_by_get(self, guarded, path):
        with guarded.http() as http:
            found = http.head(path)
        assert (found.status_code, found.content) == (200, b"")

    def test_answers_are_not_guessed_at_or_kept_by_browsers(self, guarded):
        with guarded.http() as http:
            headers = http.get("/health").headers
        assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")
        assert "server" not in headers or "uvicorn" in headers["server"]

    def test_a_key_has_a_rate_of_its_own(self, serve, wordy):
        with serve(wordy, keys=KEYS, requests_per_minute=2) as server:
            first, second = (server.client(api_key=key) for key in KEYS)
            for _ in range(2):
                first.chat.completions.create(**ONE)
            with pytest.raises(openai.RateLimitError, match="2 requests a minute") as caught:
                first.chat.completions.create(**ONE)
            assert 1 <= int(caught.value.response.headers["retry-after"]) <= 30
            second.chat.completions.create(**ONE)


class TestSizes:
    @pytest.mark.parametrize("is_stated", [True, False])
    @pytest.mark.parametrize(
        ("path", "kind", "most"),
        [
            ("/v1/chat/completions", "application/json", 10_000),
            ("/v1/segment", "application/json", 10_000),
            ("/v1/files", "multipart/form-data; boundary=x", 20_000),
        ],
    )
    def test_a_body_that_is_too_large_is_refused_while_it_comes(self, guarded, is_stated, path, kind, most):
        head = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'

        def pieces():
            yield head if path == "/v1/files" else b""
            for _ in range(10_000):
                yield b" " * 1000

        headers = {"authorization": f"Bearer {KEYS[0]}", "content-type": kind}
        with guarded.http() as http:
            content = b" " * (most + 1) if is_stated else pieces()
            found = http.post(path, content=content, headers=headers)
        assert (found.status_code, found.json()["error"]["code"]) == (413, "body_too_large")

    def test_a_body_that_says_it_is_too_large_is_not_waited_for(self, guarded):
        head = f"POST /v1/segment HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEYS[0]}\r\n"
        with socket.create_connection(guarded.url.removeprefix("http://").split(":"), timeout=60) as client:
            client.sendall(f"{head}content-length: 10001\r\n\r\n".encode())
            assert client.recv(1000).startswith(b"HTTP/1.1 413 ")

    def test_counts_are_checked_before_anything_is_decoded(self, serve, wordy, image_url):
        part = {"type": "image_url", "image_url": image_url}
        with serve(wordy, {"media": 2, "letters": 10}) as server:
            server.context.media._decoders = None  # whoever decodes fails
            create = server.client().chat.completions.create
            with pytest.raises(openai.BadRequestError, match="3 images and videos; at most 2"):
                create(model="tiny", messages=[{"role": "user", "content": [part] * 3}])
            with pytest.raises(openai.BadRequestError, match="11 letters; at most 10"):
                create(model="tiny", messages=[{"role": "user", "content": "x" * 11}])
            box = {"type": "region", "box": [0, 0, 1, 1]}
            with pytest.raises(openai.BadRequestError, match="17 regions; at most 16"):
                create(model="tiny", messages=[{"role": "user", "content": [part, *[box] * 17]}])

    @pytest.mark.parametrize(
        ("model", "field"),
        [(ChatRequest, "messages"), (ChatRequest, "stop"), (ChatMessage, "content"), (ResponsesRequest, "input"),
         (InputMessage, "content"), (SegmentRequest, "phrases"), (OverlayRequest, "regions"), (DrawnRegion, "frames"),
         (ConceptRequest, "prompts"), (Predict, "tasks")],
    )  # fmt: skip
    def test_a_list_of_nonsense_is_refused_at_its_first_item(self, model, field):
        with pytest.raises(ValidationError) as caught:
            model.model_validate({field: [1] * 1000})
        assert not [one for one in caught.value.errors() if 1 in one["loc"]]

    @pytest.mark.parametrize(
        ("path", "body", "param", "text"),
        [
            ("chat/completions", {"messages": [{"role": "user", "content": "x"}] * 5000}, "messages", "5,000 items"),
            ("chat/completions", {"messages": [{"role": "user", "content": [TEXT] * 2500}] * 2}, "messages", "5,000 p"),
            ("responses", {"input": [{"role": "user", "content": [INPUT] * 2500}] * 2}, "input", "5,000 parts in all"),
            ("segment", {"phrases": ["x"] * 5000, "image": "data:,"}, "phrases", "5,000 items; at most 4,096"),
            ("files/file-1/overlay", {"regions": [{"frames": [MASK] * 4000}] * 26}, "regions", "104,000 masks in all"),
        ],
    )
    def test_lists_of_many_good_items_are_counted_before_they_are_read(self, server, path, body, param, text):
        with server.http() as http:
            found = http.post(f"/v1/{path}", json={"model": "tiny"} | body if "overlay" not in path else body)
        error = found.json()["error"]
        assert (found.status_code, error["code"], error["param"]) == (400, "limit_exceeded", param)
        assert text in error["message"]

    def test_a_body_of_too_many_values_is_refused_while_it_comes(self, serve, wordy):
        with serve(wordy, {"body_values": 20}) as server, server.http() as http:
            assert http.post("/v1/chat/completions", json=ONE).status_code == 200
            found = http.post("/v1/chat/completions", json=ONE | {"metadata": dict.fromkeys(map(str, range(20)))})
        assert (found.status_code, found.json()["error"]["code"]) == (413, "body_too_large")

    def test_a_request_of_unknown_fields_is_refused_once(self):
        with pytest.raises(ValidationError, match="1,000 fields; at most 100") as caught:
            SegmentRequest.model_validate({str(number): 1 for number in range(1000)})
        assert caught.value.error_count() == 1

    @pytest.mark.parametrize(
        ("body", "field"),
        [(rb'"stop": "\ud800"', None), (rb'"\ud800": 1', None), (rb'"' + b"x" * 1000 + b'": 1', "x" * 100)],
    )
    def test_letters_that_are_no_text_are_one_clients_error(self, server, body, field):
        whole = rb'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1, %s}' % body
        with server.http() as http:
            found = http.post("/v1/chat/completions", content=whole, headers={"content-type": "application/json"})
        assert (found.status_code, found.json()["error"]["param"]) == (400, field)

    @pytest.mark.parametrize(
        ("limits", "kind", "text"),
        [
            ({"pixels": 4000}, "image_url", "80x60, 4,800 pixels"),
            ({"frames": 4}, "video_url", "more than 4 frames"),
            ({"decoded_bytes": 50_000}, "video_url", "72,000 bytes when decoded"),
            ({"frames_shown": 2}, "video_url", "are 3 of this video; at most 2"),
            ({"frames_with_probabilities": 4}, "video_url", "up to 4 frames"),
        ],
    )
    def test_media_beyond_a_limit_are_refused(self, serve, wordy, image_url, video_url, limits, kind, text):
        url = image_url if kind == "image_url" else video_url
        messages = [{"role": "user", "content": [{"type": kind, kind: url}]}]
        extra = {"frames": "uniform:3", "probabilities": True}
        with serve(wordy, limits) as server, pytest.raises(openai.BadRequestError, match=text):
            server.client().chat.completions.create(model="tiny", messages=messages, extra_body=extra)

    @pytest.mark.parametrize(
        ("limits", "kind", "path", "expected"),
        [
            ({}, "image", "readme", "expected JPEG, PNG, WebP or GIF"),
            ({}, "video", "readme", "expected MP4, MOV, MKV, WebM, or an animated GIF, WebP or PNG"),
            ({"pixels": 4000}, "image", "still", "at most 4,000 are allowed: make it smaller"),
            ({"frames": 4}, "video", "clip", "the most allowed: cut it"),
        ],
    )
    def test_errors_name_what_a_client_can_do(self, serve, wordy, image_url, video_url, limits, kind, path, expected):
        sent = {"readme": "data:;base64,aGVsbG8=", "still": image_url, "clip": video_url}[path]
        with serve(wordy, limits) as server, server.http() as http:
            found = http.post("/v1/segment", json={kind: sent, "phrases": ["x"]}).json()["error"]
        assert found["message"].endswith(expected) and found["param"] == kind


class TestDecoders:
    @pytest.fixture
    def still(self, png, picture, tmp_path):
        (tmp_path / "still.png").write_bytes(png(picture(20, 30)))
        return tmp_path / "still.png"

    def test_a_decoder_that_is_killed_is_one_clients_error(self, still, tmp_path, picture):
        async def run():
            decoders = Decoders(Limits(), tmp_path)
            for _ in range(2):
                await decoders.decode(still, "image")
            for _ in range(2):
                process = decoders._free._queue[0]
                process.send_signal(signal.SIGSTOP)
                work = asyncio.ensure_future(decoders.decode(still, "image"))
                await asyncio.sleep(0.1)
                process.kill()
                with pytest.raises(MediaError, match="damaged, or needs too much memory"):
                    await work
            found = [await decoders.decode(still, "image") for _ in range(2)]
            await decoders.close()
            return found

        assert [media.source.tolist() for media in asyncio.run(run())] == [picture(20, 30).tolist()] * 2

    @pytest.mark.parametrize(
        ("limits", "error", "text"),
        [
            ({"decode_seconds": 0.0}, LimitError, "not decoded in 0 seconds"),
            ({"decoder_bytes": 2**24}, MediaError, "needs too much memory"),
        ],
    )
    def test_a_decoder_that_takes_too_long_or_too_much_is_ended(self, still, tmp_path, limits, error, text):
        async def run():
            decoders = Decoders(Limits(**limits), tmp_path)
            with pytest.raises(error, match=text):
                await decoders.decode(still, "image")
            await decoders.close()

        asyncio.run(run())
        assert [path.name for path in tmp_path.iterdir()] == ["still.png"]

    @pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
    def test_a_decoder_has_limits_and_no_keys(self, still, tmp_path, monkeypatch):
        async def run():
            decoders = Decoders(Limits(decoded_bytes=2**25), tmp_path)
            await decoders.decode(still, "image")
            [process] = [one for one in decoders._free._queue if one is not None]
            place = Path(f"/proc/{process.pid}")
            found = (place / "limits").read_text(), (place / "environ").read_bytes()
            await decoders.close()
            return found

        for name in (KEYS_VARIABLE, TOKEN_VARIABLE, "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, KEYS[0])
        limits, environment = asyncio.run(run())
        soft = {name: re.search(rf"^Max {name} +(\d+) +(\d+)", limits, re.MULTILINE).groups() for name in LIMITED}
        assert soft == {name: (str(most),) * 2 for name, most in LIMITED.items()}
        assert KEYS[0].encode() not in environment and b"PATH=" in environment

    @pytest.mark.parametrize(
        "array",
        ["np.zeros((1, 4, 4, 3), np.float32)", "np.zeros((4, 4, 3), np.uint8)", "np.zeros((1, 4, 4, 4), np.uint8)",
         "np.array([{}] * 3, object)"],
    )  # fmt: skip
    def test_a_decoder_that_was_taken_over_hands_over_nothing_but_pixels(self, still, tmp_path, monkeypatch, array):
        code = f"""
import json, sys
import numpy as np
for line in sys.stdin:
    np.save(json.loads(line)["target"], {array})
    print(json.dumps({{"kind": "image", "fps": None, "notes": []}}), flush=True)
"""

        async def start(self):
            pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
            return await asyncio.create_subprocess_exec(sys.executable, "-c", code, **pipes)

        async def run():
            decoders = Decoders(Limits(), tmp_path)
            with pytest.raises(MediaError, match="cannot be decoded"):
                await decoders.decode(still, "image")
            await decoders.close()

        monkeypatch.setattr(Decoders, "_start", start)
        asyncio.run(run())
