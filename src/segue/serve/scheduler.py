"""One model and many clients: a thread that answers, a queue that is fair and bounded, and an answer's events."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from segue.engine import Engine, Options, Request
from segue.errors import SegueError
from segue.geometry.masks import encode
from segue.serve.errors import NO_RETRY, ApiError
from segue.serve.metrics import Metrics
from segue.serve.settings import Limits
from segue.types import Event, Failed, Finished, FrameMasks, ObjectsFound, TextDelta

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FrameRles:
    """The masks of all objects on one frame, as COCO run lengths; `FrameMasks` without the pixels."""

    index: int
    size: tuple[int, int]
    rles: tuple[str, ...]
    scores: tuple[float, ...]
    presence: tuple[float, ...]


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
            self.close()
            metrics.gave_up.labels("deadline").inc()
            message = f"not answered in {deadline:g} seconds; ask for less"
            raise ApiError(504, message, code="deadline_exceeded", headers=NO_RETRY) from error
        if isinstance(event, Failed):
            raise event.error
        seconds = time.monotonic() - self.asked_at
        if not self._is_told:
            metrics.first_text.observe(seconds)
        self._is_told, self._is_over = True, isinstance(event, Finished)
        if isinstance(event, Finished):
            metrics.count(event.answer.usage, seconds)
        return event


class Scheduler:
    """Answers requests in one thread, several at a time, as the engine's rows allow.

    Clients take turns: one that asks for much waits for itself, not for others.
    """

    def __init__(self, engine: Engine, limits: Limits, metrics: Metrics, *, rows: int):
        self.engine = engine
        self.is_ready = self.has_failed = False
        self.limits, self.metrics, self._rows = limits, metrics, rows
        self._changed = threading.Condition()
        self._waiting: OrderedDict[str, deque[Ticket]] = OrderedDict()
        self._running: dict[Request, Ticket] = {}
        self._is_closed = False
        metrics.watch("num_requests_running", "Requests that are being answered.", lambda: self.running)
        metrics.watch("num_requests_waiting", "Requests in the queue.", lambda: self.waiting)
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

    def submit(self, request: Request, client: str) -> Ticket:
        """Put a request into the queue.

        Raises: ApiError, if the queue is full or the server is about to end.
        """
        ticket = Ticket(request, client, self)
        with self._changed:
            if self._is_closed:
                raise ApiError(503, "the server is about to end", code="closing", headers={"retry-after": "5"})
            if self.waiting >= self.limits.waiting:
                self.metrics.gave_up.labels("queue_full").inc()
                message = f"{self.waiting} requests are waiting already; ask again later"
                raise ApiError(429, message, code="queue_full", headers={"retry-after": "2"})
            self._waiting.setdefault(client, deque()).append(ticket)
            self._changed.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Do no more for a request; one that is over stays as it is."""
        with self._changed:
            if ticket.request in self._running:
                ticket.request.is_cancelled = True
            elif ticket in self._waiting.get(ticket.client, ()):
                self._waiting[ticket.client].remove(ticket)
                if not self._waiting[ticket.client]:
                    del self._waiting[ticket.client]
            else:
                return
        self.metrics.gave_up.labels("cancelled").inc()

    def _next(self) -> Ticket | None:
        """The next request: of the client whose turn it is, the one that waits longest."""
        if not self._waiting:
            return None
        client, tickets = self._waiting.popitem(last=False)
        ticket = tickets.popleft()
        if tickets:
            self._waiting[client] = tickets
        self._running[ticket.request] = ticket
        self.metrics.queued.observe(time.monotonic() - ticket.asked_at)
        return ticket

    def _requests(self) -> Iterator[Request | None]:
        """What the engine is to take up: it waits where there is nothing else to do."""
        while True:
            with self._changed:
                while not (self._waiting or self._running or self._is_closed):
                    self._changed.wait()
                ticket = self._next()
                if ticket is None and self._is_closed and not self._running:
                    return
            yield None if ticket is None else ticket.request

    def _work(self) -> None:
        try:
            self._warm_up()
        except Exception:
            log.exception("the model did not answer a first question; the server will not be ready")
            self.has_failed = self._is_closed = True
            return
        while True:
            try:
                for request, event in self.engine.run(self._requests(), rows=self._rows):
                    self._deliver(request, event)
                return
            except Exception as error:
                # of the requests that were answered together, nobody can tell whose it was
                if not isinstance(error, SegueError):
                    log.exception("answers to %d requests broke off", len(self._running))
                with self._changed:
                    broken, self._running = self._running, {}
                for ticket in broken.values():
                    ticket.tell(Failed(error))

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
        ticket.tell(event)
