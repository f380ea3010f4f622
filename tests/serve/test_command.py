"""`segue serve` as a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import time

import httpx2
import pytest


@pytest.fixture
def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_it_serves_until_sigterm_and_says_where(official_folder, free_port, image_url):
    command = [sys.executable, "-m", "segue.cli.main", "serve", "-m", str(official_folder), "--port", str(free_port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ})
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{free_port}", timeout=60) as http:
            for _ in range(1200):
                try:
                    if http.get("/ready").status_code == 200:
                        break
                except httpx2.ConnectError:
                    assert process.poll() is None, process.stderr.read()
                time.sleep(0.1)
            parts = [{"type": "image_url", "image_url": image_url}, {"type": "text", "text": "Where?"}]
            body = {"model": official_folder.name, "messages": [{"role": "user", "content": parts}]}
            assert http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["regions"]
        process.send_signal(signal.SIGTERM)
        told = process.communicate(timeout=60)[1]
    finally:
        process.kill()
        process.wait()
    assert f"serving {official_folder.name} on http://127.0.0.1:{free_port}/ (no key asked for)" in told
    assert "Traceback" not in told and process.returncode in (0, -signal.SIGTERM)


def test_a_public_address_without_a_key_is_refused_before_anything_is_loaded():
    command = [sys.executable, "-m", "segue.cli.main", "serve", "-m", "demo", "--host", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "can be reached from other machines and there is no key" in done.stderr
