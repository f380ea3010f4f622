"""Many clients of one model: turns, bounds, and those who leave."""

import asyncio
import gc
import random
import re
import socket
import threading
import time
import weakref

import openai
import pytest
from running import listening

from segue.options import Options
from segue.requests import Request
from segue.serve.app import create_app
from segue.serve.errors import ApiError
from segue.serve.metrics import Metrics
from segue.serve.scheduler import Scheduler
from segue.serve.settings import Settings
from segue.types import Finished, Message

LONG = 10**6


def ask(server, text="Say it.", **options):
    messages = [{"role": "user", "content": text}]
    return server.client(timeout=60).chat.completions.create(model="tiny", messages=messages, **options)


def unanswered(server, reason):
    """How many requests the server says that it has not answered for a reason."""
    with server.http() as http:
        [count] = re.findall(rf'not_answered_total\{{reason="{reason}"\}} ([\d.]+)', http.get("/metrics").text)
    return float(count)


def in_threads(*calls):
    """What each call returns or raises, all made at once."""
    found = [None] * len(calls)

    def run(place, call):
        try:
            found[place] = call()
        except openai.APIError as error:
            found[place] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_clients_take_turns_however_much_one_asks(wordy):
    scheduler = Scheduler("wordy", wordy, Settings(rows=1), Metrics())

    def request(text):
        return Request([[Message.user(text)]], Options(max_new_tokens=2))

    async def run():
        tickets = [scheduler.submit(request(f"a{number}"), "a") for number in range(3)]
        tickets += [scheduler.submit(request("b0"), "b"), scheduler.submit(request("c0"), "c")]
        scheduler.start()
        for ticket in tickets:
            assert isinstance([event async for event in ticket][-1], Finished)

    asyncio.run(run())
    scheduler.close()
    assert wordy.said == ["a0", "b0", "c0", "a1", "a2"]


def test_requests_join_a_running_batch_and_leave_it(serve, wordy):
    with serve(wordy, {"tokens": LONG}, rows=2) as server:
        stream = ask(server, "long", stream=True, max_tokens=LONG)
        next(iter(stream))
        assert ask(server, "short", max_tokens=3).choices[0].message.content == "word word word "
        assert server.context.scheduler.running == 1
        stream.close()
        server.wait_idle()


def test_a_full_queue_says_when_to_come_again(serve, wordy):
    with serve(wordy, {"waiting": 1}, rows=1) as server:
        running, waiting = (ask(server, stream=True, max_tokens=LONG) for _ in range(1)), None
        running = next(iter(running))
        waiting = threading.Thread(target=lambda: ask(server, max_tokens=1))
        waiting.start()
        while not server.context.scheduler.waiting:
            time.sleep(0.01)
        with pytest.raises(openai.RateLimitError, match="waiting already") as caught:
            ask(server)
        assert caught.value.response.headers["retry-after"] == "2" and caught.value.code == "queue_full"
        assert unanswered(server, "queue_full") == 1
        running.close()
        waiting.join()
        server.wait_idle()


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_ends_an_answer_and_the_client_does_not_ask_again(serve, wordy, stream):
    with serve(wordy, {"deadline_seconds": 0.3, "tokens": LONG}) as server:
        with pytest.raises(openai.APIError, match="not answered in 0.3 seconds") as caught:
            list(ask(server, max_tokens=LONG, stream=stream))
        if not stream:
            assert (caught.value.status_code, caught.value.response.headers["x-should-retry"]) == (504, "false")
        server.wait_idle()
        assert unanswered(server, "deadline") == 1
        with server.http() as http:
            assert 'reason="cancelled"' not in http.get("/metrics").text, "it is counted once"


def test_a_model_that_does_not_warm_up_tells_those_who_wait_already(wordy, monkeypatch):
    metrics = Metrics()
    scheduler = Scheduler("wordy", wordy, Settings(), metrics)
    monkeypatch.setattr(wordy, "ask", lambda *_, **__: 1 / 0)

    async def run():
        ticket = scheduler.submit(Request([[Message.user("x")]]), "a")
        scheduler.start()
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(anext(ticket), 20)
        with pytest.raises(ApiError, match="did not answer a first question"):
            scheduler.submit(Request([[Message.user("x")]]), "a")

    asyncio.run(run())
    scheduler.close()
    assert b'not_answered_total{reason="failed"} 1.0' in metrics.text() and scheduler.has_failed


def kept(references, ticket):
    references.append(weakref.ref(ticket))
    return ticket


def test_a_ticket_that_is_over_is_let_go_of_while_nobody_asks(serve, wordy, monkeypatch):
    with serve(wordy, rows=1) as server:
        scheduler, tickets = server.context.scheduler, []
        monkeypatch.setattr(scheduler, "submit", lambda *asked: kept(tickets, Scheduler.submit(scheduler, *asked)))
        ask(server, max_tokens=1)
        server.wait_idle()
        assert len(tickets) == 1
        assert gone(tickets)


def gone(tickets):
    """Whether tickets leave memory, which an event loop may do a little later than it answers."""
    for _ in range(400):
        gc.collect()
        if not any(ticket() for ticket in tickets):
            return True
        time.sleep(0.05)
    return False


def test_clients_that_leave_at_any_moment_leave_no_work(serve, wordy, monkeypatch):
    draws = random.Random(0)
    body = b'{"model":"tiny","stream":%s,"messages":[{"role":"user","content":"x"}],"max_tokens":1000000}'

    def leave(wait, stream, share):
        with socket.create_connection(("127.0.0.1", port)) as client:
            content = body % stream
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(content)}\r\n"
            whole = head.encode() + b"content-type: application/json\r\n\r\n" + content
            client.sendall(whole[: int(len(whole) * share)])
            time.sleep(wait)

    with serve(wordy, {"waiting": 200, "tokens": LONG}, rows=4) as server:
        port, scheduler, tickets = server.context.settings.port, server.context.scheduler, []
        monkeypatch.setattr(scheduler, "submit", lambda *asked: kept(tickets, Scheduler.submit(scheduler, *asked)))
        before = threading.active_count()
        calls = [
            (draws.random() / 4, draws.choice((b"true", b"false")), draws.choice((0.5, 1, 1, 1))) for _ in range(200)
        ]
        in_threads(*[lambda call=call: leave(*call) for call in calls])
        server.wait_idle()
        assert threading.active_count() <= before + 1
        assert len(tickets) > 50
        assert gone(tickets), "memory is kept of requests that nobody waits for"
        assert ask(server, max_tokens=1).choices[0].message.content == "word "


def test_a_server_that_ends_answers_what_it_has_taken(serve, wordy):
    with serve(wordy, rows=2) as server:

        def end():
            while server.context.scheduler.running < 2 or server.context.scheduler.waiting < 2:
                time.sleep(0.01)
            server.uvicorn.should_exit = True

        *found, _ = in_threads(*[lambda: ask(server, max_tokens=150)] * 4, end)
        assert [answer.choices[0].message.content for answer in found] == ["word " * 150] * 4


def test_a_scheduler_that_is_closed_ends_what_runs_and_takes_no_more(wordy):
    scheduler = Scheduler("wordy", wordy, Settings(rows=1), Metrics())

    async def run():
        ticket = scheduler.submit(Request([[Message.user("x")]], Options(max_new_tokens=LONG)), "a")
        scheduler.start()
        await anext(ticket)
        await asyncio.to_thread(scheduler.close)
        events = [event async for event in ticket]
        assert events[-1].answer.stop_reason == "cancelled"
        with pytest.raises(Exception, match="about to end"):
            scheduler.submit(Request([[Message.user("x")]]), "a")

    asyncio.run(run())


def test_a_server_is_ready_once_its_model_has_answered(wordy, free_port):
    gate = threading.Event()
    wordy.ask = lambda *_, **__: gate.wait()
    app = create_app(wordy, Settings(port=free_port), model="tiny")
    with listening(app, free_port) as server, server.http() as http:
        assert http.get("/health").status_code == 200
        found = http.get("/ready")
        gate.set()
        assert (found.status_code, found.json()["error"]["code"]) == (503, "not_ready")
        while http.get("/ready").status_code != 200:
            time.sleep(0.02)


def test_counters_say_what_runs_and_what_was_given_up(serve, wordy):
    with serve(wordy) as server, server.http() as http:
        ask(server, max_tokens=2)
        stream = ask(server, stream=True, max_tokens=LONG)
        next(iter(stream))
        assert "segue_num_requests_running 1.0" in http.get("/metrics").text
        stream.close()
        server.wait_idle()
        text = http.get("/metrics").text
        assert 'segue_requests_not_answered_total{reason="cancelled"} 1.0' in text
        assert "segue_e2e_request_latency_seconds_count 1.0" in text
