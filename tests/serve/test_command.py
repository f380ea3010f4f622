"""`segue serve` as a process of its own."""

import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from running import served

from segue.cli.main import main


@pytest.fixture
def serve_optimised(official_folder, free_port, monkeypatch):
    """A client of a server under `python -O`, with its key."""
    monkeypatch.setenv("SEGUE_API_KEYS", "a-key-of-somebody")
    with served(official_folder, free_port, python=["-O"]) as (_, http):
        http.headers["authorization"] = "Bearer a-key-of-somebody"
        yield http


def test_it_says_where_it_serves_and_sigterm_loses_nothing_that_was_accepted(official_folder, free_port, image_url):
    parts = [{"type": "image_url", "image_url": image_url}, {"type": "text", "text": "Where?"}]
    asked = {"model": official_folder.name, "messages": [{"role": "user", "content": parts}]}
    long = asked | {"temperature": 2.0, "max_tokens": 100}
    with served(official_folder, free_port) as (process, http), ThreadPoolExecutor(12) as clients:
        first = http.post("/v1/chat/completions", json=asked).json()
        assert first["choices"][0]["message"]["regions"]
        waiting = [clients.submit(http.post, "/v1/chat/completions", json=long | {"seed": seed}) for seed in range(12)]
        while sum(answer.done() for answer in waiting) + in_work(http) < 12:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        answers = [answer.result() for answer in waiting]
        told = process.communicate(timeout=60)[1]
    assert [answer.status_code for answer in answers] == [200] * 12
    assert all(answer.json()["choices"][0]["finish_reason"] for answer in answers)
    assert f"serving {official_folder.name} on http://127.0.0.1:{free_port}/ (no key asked for)" in told
    assert "Traceback" not in told and process.returncode in (0, -signal.SIGTERM)


def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(official_folder, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as left:
        main(["serve", "-m", str(official_folder), "--port", str(taken.getsockname()[1])])
    assert left.value.code == 2
    told = capsys.readouterr().err
    assert re.search(r"cannot listen on 127.0.0.1:\d+: Address already in use; .*--port", told)
    assert "serving" not in told


def in_work(http):
    """Requests that are answered or wait."""
    counted = re.findall(r"^segue_num_requests_\w+ ([\d.]+)$", http.get("/metrics").text, re.MULTILINE)
    return sum(map(float, counted))


@pytest.mark.slow  # under -O every module is compiled anew
def test_guards_hold_without_asserts(serve_optimised, image_url):
    image, text = {"type": "image_url", "image_url": image_url}, {"type": "text", "text": "Where?"}
    region = {"type": "region", "rle": {"size": [60, 80], "counts": [4800, 1]}}
    refused = [
        ({"messages": [{"role": "user", "content": [image, region, text]}]}, 400),
        ({"messages": [{"role": "user", "content": "x"}] * 65}, 400),
        ({"messages": [{"role": "user", "content": [image] * 9}]}, 400),
        ({"messages": [{"role": "user", "content": [image | {"image_url": "http://127.0.0.1/a.png"}]}]}, 400),
        ({"messages": [{"role": "user", "content": [image | {"image_url": "file:///etc/passwd"}]}]}, 400),
        ({"messages": [{"role": "user", "content": [image | {"image_url": "data:image/png;base64,aGVsbG8="}]}]}, 400),
        ({"messages": [{"role": "user", "content": "x"}], "n": 9}, 400),
        ({"messages": [{"role": "user", "content": "x"}], "model": "other"}, 404),
    ]
    for change, status in refused:
        found = serve_optimised.post("/v1/chat/completions", json={"model": "tiny"} | change)
        assert found.status_code == status, (change, found.text)
    for headers in ({"host": "evil.example"}, {"origin": "http://evil.example"}, {"authorization": "Bearer wrong"}):
        assert serve_optimised.get("/v1/models", headers=headers).status_code in (400, 401, 403)
    assert serve_optimised.get("/v1/files/file-1").status_code == 404
