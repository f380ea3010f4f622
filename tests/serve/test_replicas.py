"""Replicas and the front of them: with a Ray that is not there, and on a real one, which takes a minute to start."""

import asyncio
import base64
import hashlib
import io
import json
import os
import re
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, nullcontext
from itertools import cycle
from pathlib import Path
from types import ModuleType, SimpleNamespace

import openai
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from running import listening, served

from segue.errors import ConfigError
from segue.jobs import ray_runner
from segue.serve import sessions
from segue.serve.app import create_app
from segue.serve.replicas import Replica, front, started
from segue.serve.settings import MIB, Limits, Settings

KEYS = ("first-key-of-someone", "second-key-of-someone")
SESSIONS = "/v1/video/sessions"


class DeathError(Exception):
    """What a Ray that is not there raises for a dead replica."""


class Handle:
    """What Ray Serve's handle is to the front: two replicas take turns; those in `dying` die as they answer.

    `handed` says which of them each request went to, and with which session.
    """

    def __init__(self, ones):
        self.ones, self.turns, self.handed, self.dying = ones, cycle((0, 1)), [], set()

    def options(self, *, stream, multiplexed_model_id):
        assert stream
        return SimpleNamespace(answer=SimpleNamespace(remote=self.remote))

    def remote(self, scope, body, session):
        number = next(self.turns)
        self.handed.append((number, session))
        return Messages(self.messages(number, scope, body, session))

    async def messages(self, number, *asked):
        count = 0
        async for message in self.ones[number].answer(*asked):
            if number in self.dying and count == self.dying[number]:
                raise DeathError
            count += 1
            yield message

    def broadcast(self, name):
        return SimpleNamespace(results_async=lambda: asyncio.gather(*(getattr(one, name)() for one in self.ones)))


class Messages:
    """A response of Ray Serve: an iterator that can be cancelled."""

    def __init__(self, messages):
        self._messages, self._coming = messages, None

    async def __anext__(self):
        self._coming = asyncio.ensure_future(anext(self._messages))
        return await self._coming

    def cancel(self):
        self._coming.cancel()


@pytest.fixture
def behind(tmp_path):
    """A server in front of two replicas of an engine: `with behind(engine) as (server, handle)`."""

    @contextmanager
    def run(engine, limits=None, **settings):
        limits = Limits(**(limits or {}))

        def build(inner, shared):
            return create_app(engine, inner, model="tiny", shared=shared)

        handle = Handle([Replica(build, Settings(limits=limits), tmp_path) for _ in range(2)])
        handle.dying = {}
        app = front(handle, Settings(limits=limits, **settings), tmp_path, DeathError)

        @asynccontextmanager
        async def lifespan(_):
            for one in handle.ones:
                await one.check_health()
            yield
            for one in handle.ones:
                await one.close()

        app.router.lifespan_context = lifespan
        with listening(app) as server:
            yield server, handle

    return run


def same(answer):
    """What has to be the same, whoever answers; what is known of a prompt, each replica knows for itself."""
    if isinstance(answer, dict):
        return {
            key: same(value)
            for key, value in answer.items()
            if key not in ("id", "created", "created_at", "expires_at", "prompt_tokens_details")
        }
    return [same(one) for one in answer] if isinstance(answer, list) else answer


def asked(http, image_url, video_url):
    """Status and body of many requests, those among them that go on with what others began."""
    parts = [{"type": "image_url", "image_url": image_url, "uuid": "mine"}, {"type": "text", "text": "Where?"}]
    again = [{"type": "image_url", "image_url": None, "uuid": "mine"}, {"type": "text", "text": "Where?"}]
    bodies = [{"model": "tiny", "messages": [{"role": "user", "content": content}]} for content in (parts, again, "x")]
    found = [http.post("/v1/chat/completions", json=body) for body in bodies]
    found += [http.post("/v1/segment", json={"image": image_url, "phrases": ["dog"]}) for _ in range(2)]
    found += [http.post("/v1/segment", json={"image": "no address", "phrases": ["dog"]}), http.get("/nowhere")]
    found += [http.post("/v1/chat/completions", content="{"), http.get("/v1/models"), http.get("/"), http.get("/ready")]
    file = http.post("/v1/files", files={"file": ("a.png", io.BytesIO(_decoded(video_url)))})
    found += [file, http.get("/v1/files"), http.get(f"/v1/files/{file.json()['id']}/frames/2")]
    began = http.post(SESSIONS, json={"video": {"file_id": file.json()["id"]}})
    path = f"{SESSIONS}/{began.json()['id']}"
    found += [began, http.delete(f"/v1/files/{file.json()['id']}"), http.get("/v1/files")]
    found += [http.post(f"{path}/phrases", json={"phrase": phrase}) for phrase in ("dog", "cat")]
    found += [http.post(f"{path}/follow", json={}) for _ in range(2)]
    found += [http.get(path), http.delete(path), http.get(path)]
    return [(one.status_code, _body(one)) for one in found]


def _decoded(url):
    return base64.b64decode(url.partition(",")[2])


def _body(response):
    if response.headers["content-type"] == "application/json":
        return same(response.json())
    if response.headers["content-type"].startswith("application/x-ndjson"):
        return [same(json.loads(one)) for one in response.text.splitlines()]
    return response.content


def test_two_replicas_answer_as_one_server_does(behind, serve, served_engine, image_url, video_url):
    with serve(served_engine) as single, single.http() as http:
        expected = asked(http, image_url, video_url)
    with behind(served_engine) as (replicated, handle), replicated.http() as http:
        assert asked(http, image_url, video_url) == expected
    assert {number for number, _ in handle.handed} == {0, 1}
    assert [status for status, _ in expected].count(200) > 15


def test_the_requests_of_a_session_carry_its_name_from_the_first_on(behind, wordy, video_url):
    with behind(wordy) as (server, handle), server.http() as http:
        name = http.post(SESSIONS, json={"video": video_url}).json()["id"]
        http.post(f"{SESSIONS}/{name}/phrases", json={"phrase": "dog"})
        http.get("/v1/models")
        http.delete(f"{SESSIONS}/{name}")
        another = http.post(f"{SESSIONS}/", json={"video": video_url})
    assert re.fullmatch("video-[0-9a-f]{32}", name)
    assert [session for _, session in handle.handed][:4] == [name, name, "", name]
    assert another.status_code in (201, 307)


@pytest.mark.parametrize("stream", [False, True])
def test_a_replica_that_dies_costs_what_it_was_answering_and_nothing_else(behind, wordy, stream, video_url):
    def create(**more):
        messages = [{"role": "user", "content": "Say it."}]
        return server.client().chat.completions.create(model="tiny", messages=messages, **more)

    with behind(wordy) as (server, handle), server.http() as http:
        name = http.post(SESSIONS, json={"video": video_url}).json()["id"]  # by replica 0
        http.get("/v1/models")
        running = create(stream=True, max_tokens=300)  # by replica 0
        next(iter(running))
        handle.dying = {1: 5 if stream else 0}
        with pytest.raises(openai.APIError, match="the replica that was answering has died; ask again") as caught:
            list(create(stream=stream, max_tokens=300))
        if not stream:
            assert (caught.value.status_code, caught.value.code) == (503, "replica_died")
        assert "".join(chunk.choices[0].delta.content or "" for chunk in running) == "word " * 300
        handle.turns = cycle([0])
        assert create(max_tokens=2).choices[0].message.content == "word word "
        assert http.get(f"{SESSIONS}/{name}").json()["id"] == name
    assert [number for number, _ in handle.handed] == [0, 1, 0, 1, 0, 0]


def test_a_client_that_leaves_ends_the_work_at_the_replica(behind, wordy):
    with behind(wordy) as (server, handle):
        client = server.client(timeout=60)
        stream = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "x"}], stream=True, max_tokens=10**6
        )
        next(iter(stream))
        [scheduler] = handle.ones[0]._app.state.context.models.values()
        assert scheduler.running == 1
        stream.close()
        for _ in range(500):
            if not scheduler.running:
                return
            time.sleep(0.02)
        raise AssertionError("work goes on that nobody waits for")


def test_the_front_has_the_guards_and_counts_for_all_replicas(behind, wordy):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    with behind(wordy, {"body_bytes": 10_000}, keys=KEYS, requests_per_minute=3) as (server, handle):
        with server.http() as http:
            for path in ("/v1/models", "/metrics", "/nowhere", "/openapi.json"):
                assert http.get(path).json()["error"]["code"] == "invalid_api_key"
            assert http.get("/health", headers={"host": "evil.example"}).status_code == 400
            assert not handle.handed
            assert http.get("/health").headers["x-content-type-options"] == "nosniff"
        with server.http(headers={"authorization": f"Bearer {KEYS[0]}"}) as http:
            found = http.post("/v1/chat/completions", content=b" " * 10_001)
            assert (found.status_code, found.json()["error"]["code"]) == (413, "body_too_large")
            statuses = [http.post("/v1/chat/completions", json=body).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]


def test_a_large_upload_is_handed_over_as_a_file_that_is_gone_afterwards(behind, wordy, video_url, tmp_path):
    large = _decoded(video_url) + bytes(3 * MIB)
    with behind(wordy) as (server, _), server.http() as http:
        file = http.post("/v1/files", files={"file": ("a.png", large)}).json()
        assert file["bytes"] == len(large)
        assert http.get(f"/v1/files/{file['id']}").json()["media"]["width"] == 80
        drawn = http.post(f"/v1/files/{file['id']}/overlay", json={"regions": []})
        assert drawn.headers["content-type"] == "video/mp4" and drawn.content
    left = [path.name for path in (*tmp_path.iterdir(), *(tmp_path / "kept").iterdir()) if path.is_file()]
    assert sorted(left) == sorted([f"{file['id']}.json", f"{hashlib.sha256(large).hexdigest()}-{file['id']}"])


def test_figures_of_all_replicas_are_told_together(behind, wordy):
    with behind(wordy) as (server, handle), server.http() as http:
        for _ in range(3):
            create = server.client().chat.completions.create
            create(model="tiny", messages=[{"role": "user", "content": "x"}], max_tokens=1)
        text = http.get("/metrics").text
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    [latency] = [family for family in families if family.name == "segue_e2e_request_latency_seconds"]
    counts = {one.labels["replica"]: one.value for one in latency.samples if one.name.endswith("_count")}
    assert len(counts) == 2 and sorted(counts.values()) == [1, 2]


def test_a_mistake_of_ours_in_a_replica_is_told_by_its_id_alone(behind, wordy, video_url, monkeypatch):
    monkeypatch.setattr(sessions, "new_id", None)
    monkeypatch.setattr(sessions.regions, "media_to_json", lambda _: 1 / 0)
    with behind(wordy) as (server, _), server.http() as http:
        found = http.post(SESSIONS, json={"video": video_url}, headers={"x-request-id": "mine"})
    assert (found.status_code, found.json()["error"]["message"]) == (500, "internal error; request id mine")


class TestStarting:
    def test_without_ray_it_is_said_how_to_install_it(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(ConfigError, match=r"segue\[ray,serve\]"), started(create_app, Settings(), 2):
            pass

    @pytest.mark.parametrize(("takes", "unit"), [({"num_gpus": 1}, "GPUs"), ({"num_cpus": 1}, "CPUs")])
    def test_more_replicas_than_there_is_room_for_are_refused(self, monkeypatch, takes, unit):
        ray = ModuleType("ray")
        ray.exceptions, ray.serve = None, SimpleNamespace(multiplexed=lambda **_: lambda hold: hold)
        monkeypatch.setitem(sys.modules, "ray", ray)
        monkeypatch.setattr(ray_runner, "cluster", lambda: nullcontext((2, takes)))
        expected = f"3 replicas need 3 {unit}; there is room for 2"
        with pytest.raises(ConfigError, match=expected), started(create_app, Settings(), 3):
            pass


def replicas_of(process):
    """Process ids of the replicas below a process."""
    below, names = {}, {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            stat, names[int(place.name)] = (place / "stat").read_text(), (place / "cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        below.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(place.name))
    found = [process]
    for one in found:
        found += below.get(one, [])
    return [one for one in found if "ServeReplica" in names[one]]


@pytest.mark.slow
def test_on_a_real_ray_two_replicas_answer_as_one_and_one_that_is_killed_costs_its_requests(
    official_folder, free_port, image_url, video_url, monkeypatch, serve, served_engine
):
    pytest.importorskip("ray.serve")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else they wait for everything else on a busy machine
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a replica on a CPU has
    with serve(served_engine) as single, single.http() as http:
        expected = asked(http, image_url, video_url)
    torch.set_num_threads(threads)
    with served(official_folder, free_port, "--replicas", "2") as (process, http), ThreadPoolExecutor(8) as clients:
        for _ in range(3):
            assert asked(http, image_url, video_url) == expected
        assert len(set(re.findall('replica="([0-9a-f]+)"', http.get("/metrics").text))) == 2
        session = http.post(SESSIONS, json={"video": video_url}).json()["id"]
        http.post(f"{SESSIONS}/{session}/phrases", json={"phrase": "dog"})
        lines = http.post(f"{SESSIONS}/{session}/follow", json={}).text
        body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2000, "temperature": 2.0}
        running = [clients.submit(http.post, "/v1/chat/completions", json=body | {"seed": seed}) for seed in range(8)]
        while http.get("/metrics").text.count("segue_num_requests_running") < 2:
            time.sleep(0.05)
        first, second = replicas_of(process.pid)
        os.kill(first, signal.SIGKILL)
        answers = [one.result() for one in running]
        found = {one.status_code for one in answers}
        assert found <= {200, 503}
        assert all(one.json()["error"]["code"] == "replica_died" for one in answers if one.status_code == 503)
        assert http.post(f"{SESSIONS}/{session}/follow", json={}).text == lines
        assert asked(http, image_url, video_url) == expected
        for _ in range(600):
            if len(replicas_of(process.pid)) == 2:
                break
            time.sleep(0.2)
        assert second in replicas_of(process.pid) and len(replicas_of(process.pid)) == 2, "the dead one is replaced"
        process.send_signal(signal.SIGTERM)
        told = process.communicate(timeout=120)[1]
    assert "by 2 replicas" in told and "Traceback" not in told
