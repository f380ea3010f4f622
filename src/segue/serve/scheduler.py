"""One model and many clients: a thread that answers, a queue that is fair and bounded, and an answer's events."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from segue.encoder import MemoryStore
from segue.engine import Engine, Request
from segue.errors import SegueError
from segue.geometry.masks import encode
from segue.models.prefill import LastPrompt
from segue.options import Options
from segue.serve.errors import NO_RETRY, ApiError
from segue.serve.metrics import Metrics
from segue.serve.settings import Settings
from segue.types import Event, Failed, Finished, FrameMasks, Message, ObjectsFound, TextDelta

log = logging.getLogger(__name__)

MEDIA_KEPT = 16
"""Images and videos whose features stay in memory, so that those who ask about one share them."""


@dataclass(frozen=True, slots=True)
class FrameRles:
    """The masks of all objects on one frame, as COCO run lengths; `FrameMasks` without the pixels."""

    index: int
    size: tuple[int, int]
    rles: tuple[str, ...]
    scores: tuple[float, ...]
    presence: tuple[float, ...]


DIALOGUES_KEPT, TOKENS_KEPT = 8, 2**15
"""Dialogues whose last prompt stays in memory for their next turn, and how many tokens of all of them."""

Told = TextDelta | ObjectsFound | FrameRles | Finished


class Ticket:
    """A request on its way: an iterator over its events as they come, up to `Finished`, and the way to give it up."""

    def __init__(self, request: Request, client: str, scheduler: Scheduler):
        self.request, self.client = request, client
        self.asked_at = time.monotonic()
        self._scheduler = scheduler
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Told | Failed] = asyncio.Queue()
        self._is_told = self._is_over = False

    def tell(self, event: Told | Failed) -> None:
        """Hand an event over, from any thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def close(self) -> None:
        """Do no more for it; one that is over stays as it is."""
        self._scheduler.cancel(self)

    def __aiter__(self) -> Ticket:
        return self

    async def __anext__(self) -> Told:
        """The next event.

        Raises: ApiError, when the deadline is over; what the request failed with.
        """
        if self._is_over:
            raise StopAsyncIteration
        metrics, deadline = self._scheduler.metrics, self._scheduler.limits.deadline_seconds
        try:
            left = deadline - (time.monotonic() - self.asked_at)
            event = await asyncio.wait_for(self._events.get(), max(0.0, left))
        except TimeoutError as error:
            self._scheduler.cancel(self, "deadline")
            message = f"not answered in {deadline:g} seconds; ask for less"
            raise ApiError(504, message, code="deadline_exceeded", headers=NO_RETRY) from error
        if isinstance(event, Failed):
            metrics.gave_up.labels("failed").inc()
            raise event.error
        seconds = time.monotonic() - self.asked_at
        if not self._is_told:
            metrics.first_text.observe(seconds)
        self._is_told, self._is_over = True, isinstance(event, Finished)
        if isinstance(event, Finished):
            metrics.count(event.answer.usage, seconds)
        return event


class Tickets:
    """Several requests as one: an iterator over the events of all as they come, each with its request's number."""

    def __init__(self, tickets: Sequence[Ticket]):
        self._tickets = tickets
        self._coming: dict[asyncio.Task[Told | None], int] = {}
        self._has_begun = False

    def close(self) -> None:
        """Do no more for all of them."""
        for task in self._coming:
            task.cancel()
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody asks any more
        for ticket in self._tickets:
            ticket.close()

    def __aiter__(self) -> Tickets:
        return self

    async def __anext__(self) -> tuple[int, Told]:
        """The next event of any. Raises what `Ticket` raises."""
        if not self._has_begun:
            self._has_begun = True
            for number in range(len(self._tickets)):
                self._await(number)
        while self._coming:
            done, _ = await asyncio.wait(self._coming, return_when=asyncio.FIRST_COMPLETED)
            task = next(task for task in self._coming if task in done)
            number = self._coming.pop(task)
            event = task.result()
            if event is not None:
                self._await(number)
                return number, event
        raise StopAsyncIteration

    def _await(self, number: int) -> None:
        async def following() -> Told | None:
            return await anext(self._tickets[number], None)

        self._coming[asyncio.create_task(following())] = number


class Scheduler:
    """Answers requests to the model of one `name` in one thread, several at a time, as the engine's rows allow.

    Clients take turns: one that asks for much waits for itself, not for others. After `idle_seconds` without a request
    the model's weights leave memory, and `load` brings them back for the next one.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        settings: Settings,
        metrics: Metrics,
        load: Callable[[], Engine] | None = None,
    ):
        self.name, self.engine, self._load = name, engine, load
        self.is_ready = self.has_failed = False
        self.limits, self.metrics, self._rows = settings.limits, metrics, settings.rows
        self._idle_seconds = settings.idle_seconds if load is not None else None
        self._changed = threading.Condition()
        self._waiting: OrderedDict[str, deque[Ticket]] = OrderedDict()
        self._running: dict[Request, Ticket] = {}
        self._last_prompts: OrderedDict[tuple[str, str], LastPrompt] = OrderedDict()
        self._is_closed = False
        self._keep_features()
        self._thread = threading.Thread(target=self._work, name="segue-answers", daemon=True)

    def start(self) -> None:
        """Begin to answer; ready when a first answer has warmed the model up."""
        self._thread.start()

    def close(self) -> None:
        """Give up what waits and what is being answered, and end the thread."""
        with self._changed:
            self._is_closed = True
            tickets = [*self._running.values(), *(one for row in self._waiting.values() for one in row)]
            for ticket in tickets:
                ticket.request.is_cancelled = True
            self._waiting.clear()
            self._changed.notify()
        self._thread.join()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return sum(map(len, self._waiting.values()))

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        return len(self._running)

    def submit(self, request: Request, client: str, key: str | None = None) -> Ticket:
        """Put a request into the queue. Of what a client asks with the same `key`, the beginning that a prompt shares
        with the one before is not read again.

        Raises: ApiError, if the queue is full or the server is about to end.
        """
        ticket = Ticket(request, client, self)
        with self._changed:
            if self.has_failed:
                message = f"the model {self.name!r} did not answer a first question; the server's log says why"
                raise ApiError(503, message, code="not_ready", headers=NO_RETRY)
            if self._is_closed:
                raise ApiError(503, "the server is about to end", code="closing", headers={"retry-after": "5"})
            if self.waiting >= self.limits.waiting:
                self.metrics.gave_up.labels("queue_full").inc()
                message = f"{self.waiting} requests are waiting already; ask again later"
                raise ApiError(429, message, code="queue_full", headers={"retry-after": "2"})
            if key:
                request.last_prompt = self._last_prompt(client, key)
            self._waiting.setdefault(client, deque()).append(ticket)
            self._changed.notify()
        return ticket

    def submit_each(
        self, messages: Sequence[Message], options: Options, client: str, count: int, key: str | None = None
    ) -> Tickets:
        """Put a dialogue into the queue so many times, with seeds that follow one another.

        Raises: ApiError, as `submit` does; then none of them is asked.
        """
        tickets: list[Ticket] = []
        try:
            for number in range(count):
                request = Request([messages], replace(options, seed=options.seed + number))
                tickets.append(self.submit(request, client, key))
        except ApiError:
            Tickets(tickets).close()
            raise
        return Tickets(tickets)

    def _last_prompt(self, client: str, key: str) -> LastPrompt:
        found = self._last_prompts.setdefault((client, key), LastPrompt())
        self._last_prompts.move_to_end((client, key))
        if len(self._last_prompts) > DIALOGUES_KEPT:
            self._last_prompts.popitem(last=False)
        return found

    def cancel(self, ticket: Ticket, reason: str = "cancelled") -> None:
        """Do no more for a request, and count why; one that is over, or cancelled already, stays as it is."""
        with self._changed:
            if ticket.request in self._running and not ticket.request.is_cancelled:
                ticket.request.is_cancelled = True
            elif ticket in self._waiting.get(ticket.client, ()):
                self._waiting[ticket.client].remove(ticket)
                if not self._waiting[ticket.client]:
                    del self._waiting[ticket.client]
            else:
                return
        self.metrics.gave_up.labels(reason).inc()

    def _next(self) -> Request | None:
        """The next request: of the client whose turn it is, the one that waits longest."""
        if not self._waiting:
            return None
        client, tickets = self._waiting.popitem(last=False)
        ticket = tickets.popleft()
        if tickets:
            self._waiting[client] = tickets
        self._running[ticket.request] = ticket
        self.metrics.queued.observe(time.monotonic() - ticket.asked_at)
        return ticket.request

    def _requests(self) -> Iterator[Request | None]:
        """What the engine is to take up: it waits where there is nothing else to do, and ends if that takes long."""
        while True:
            with self._changed:
                while not (self._waiting or self._running or self._is_closed):
                    if not self._changed.wait(self._idle_seconds):
                        return
                request = self._next()
                if request is None and self._is_closed and not self._running:
                    return
            yield request
            del request  # while there is nothing to do, nothing is kept of what was done last

    def _work(self) -> None:
        try:
            self._warm_up()
        except Exception as error:
            log.exception("the model did not answer a first question; the server will not be ready")
            self.has_failed = True
            self._refuse_waiting(error)
            return
        while True:
            try:
                for request, event in self.engine.run(self._requests(), rows=self._rows):
                    self._deliver(request, event)
                    del request, event
                if self._is_closed:
                    return
                self._rest()
            except Exception as error:
                # of the requests that were answered together, nobody can tell whose it was
                if not isinstance(error, SegueError):
                    log.exception("answers to %d requests broke off", len(self._running))
                with self._changed:
                    broken, self._running = self._running, {}
                while broken:
                    broken.popitem()[1].tell(Failed(error))

    def _rest(self) -> None:
        """Without the weights until there is a request again; one that cannot be answered then is told so."""
        assert self._load is not None
        self._last_prompts.clear()
        self.engine.unload()
        log.info("%s has left memory: nobody asked for %g seconds", self.name, self._idle_seconds)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                if self._is_closed:
                    return
            try:
                self.engine = self._load()
                self._keep_features()
                return
            except Exception as error:
                log.exception("%s could not be loaded again", self.name)
                self._refuse_waiting(error)

    def _refuse_waiting(self, error: Exception) -> None:
        with self._changed:
            rows = list(self._waiting.values())
            self._waiting.clear()
        for ticket in (ticket for row in rows for ticket in row):
            ticket.tell(Failed(error))

    def _keep_features(self) -> None:
        if isinstance(self.engine.features, MemoryStore):
            self.engine.features.count = MEDIA_KEPT

    def _warm_up(self) -> None:
        self.engine.ask(np.zeros((64, 64, 3), np.uint8), "?", options=Options(max_new_tokens=1))
        self.engine.forget()
        self.is_ready = True

    def _deliver(self, request: Request, event: Event | Failed) -> None:
        ticket = self._running[request]
        if isinstance(event, FrameMasks):
            rles = tuple(encode(mask) for mask in event.masks)
            size = (event.masks.shape[1], event.masks.shape[2])
            scores, presence = tuple(map(float, event.scores)), tuple(map(float, event.presence))
            ticket.tell(FrameRles(event.index, size, rles, scores, presence))
            return
        if isinstance(event, Finished | Failed):
            with self._changed:
                del self._running[request]
                while sum(one.tokens for one in self._last_prompts.values()) > TOKENS_KEPT:
                    self._last_prompts.popitem(last=False)
        ticket.tell(event)
