"""`/v1/chat/completions`: OpenAI's form, with regions on the answer."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from segue.clean_text import CleanText
from segue.options import Options
from segue.serve import regions
from segue.serve.answers import EventStream, while_connected
from segue.serve.context import Context
from segue.serve.dialogue import check_frames, read
from segue.serve.errors import ApiError
from segue.serve.scheduler import FrameRles, Tickets, Told
from segue.serve.schema import Answering, ChatRequest
from segue.types import Answer, Finished, Media, ObjectsFound, TextDelta, TokenScore

Json = dict[str, Any]


@dataclass(slots=True)
class Completion:
    """Answers in the making: what stands on all of their chunks, and what has to be said about the request."""

    body: Answering
    model: str
    fingerprint: str
    cleans: list[CleanText]
    notes: list[str]
    seed: int | None
    media: Media | None
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answers: Sequence[Answer]) -> Json:
        """The response that is no stream."""
        choices = [
            {
                "index": index,
                "message": message(answer, answer.text, self.body) | {"refusal": None},
                "logprobs": logprobs(answer),
                "finish_reason": finish_reason(answer),
            }
            for index, answer in enumerate(answers)
        ]
        return self._around("chat.completion", choices) | {"usage": usage(answers)}

    def chunk(self, index: int, delta: Json, answer: Answer | None = None) -> Json:
        """A chunk of a stream; with the answer, its last."""
        told = {"logprobs": answer and logprobs(answer), "finish_reason": answer and finish_reason(answer)}
        return self._around("chat.completion.chunk", [{"index": index, "delta": delta} | told])

    def last(self, index: int, answer: Answer) -> Json:
        """The chunk that ends an answer: the rest of its text, and all of its regions."""
        return self.chunk(index, message(answer, self.cleans[index].finish(answer.text), self.body), answer)

    def counted(self, answers: Sequence[Answer]) -> Json:
        """The chunk after the last, for clients that asked for usage."""
        return self._around("chat.completion.chunk", []) | {"usage": usage(answers)}

    def _around(self, kind: str, choices: list[Json]) -> Json:
        about = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return about | {"system_fingerprint": self.fingerprint, "choices": choices} | self.told

    @property
    def told(self) -> Json:
        """What stands on the response of our own: notes, and of answers by chance the seed that brings them again."""
        found: Json = {"notes": self.notes} if self.notes else {}
        return found if self.seed is None else found | {"seed": self.seed}


def add_routes(app: FastAPI, context: Context) -> None:
    """The route."""

    @app.post("/v1/chat/completions")
    async def complete(body: ChatRequest, request: Request) -> Response:
        """Answers to a dialogue, whole or as a stream."""
        state = request.state
        tickets, completion = await ask(body, context, state.client)
        if not body.stream:
            answers = await while_connected(request, tickets, finished(tickets))
            return JSONResponse(await asyncio.to_thread(completion.whole, answers))
        # what can be refused is refused before the stream begins, with a status of its own
        first = await while_connected(request, tickets, anext(tickets))
        has_usage = body.stream_options is not None and body.stream_options.include_usage
        return EventStream(_chunks(first, tickets, completion, has_usage), tickets, state.request_id)


async def ask(body: ChatRequest, context: Context, client: str) -> tuple[Tickets, Completion]:
    """Put a request into the queue, once for each answer that it asks for.

    Raises: ApiError and SegueError, for what cannot be asked.
    """
    served, count = context.served(body.model), body.n or 1
    most = min(context.limits.choices, context.limits.waiting)  # of more, the queue would never take all
    if count > most:
        message = f"n is {count}; at most {most} answers are given"
        raise ApiError(400, message, code="limit_exceeded", param="n")
    messages = await read(body.messages, context, client)
    shown = [part for message in messages for part in message.parts if isinstance(part, Media)]
    options = body.chosen(context.limits)
    check_frames(body, shown, context.limits)
    completion = Completion(
        body,
        served.name,
        str(served.engine.lineage.get("model_hash")),
        [CleanText(served.engine.model.family.parse, options.stop) for _ in range(count)],
        [*notes(body, options), *(note for medium in shown for note in medium.notes)],
        options.seed if options.temperature else None,
        shown[-1] if shown else None,
    )
    return served.submit_each(messages, options, client, count, body.prompt_cache_key), completion


def notes(body: ChatRequest, options: Options) -> list[str]:
    """What is done otherwise than it was asked for."""
    found = []
    if (body.max_completion_tokens or body.max_tokens or 0) > options.max_new_tokens:
        found.append(f"max_tokens is {options.max_new_tokens}, the most this server gives")
    if body.max_tiles > options.max_tiles:
        found.append(f"max_tiles is {options.max_tiles}, the most this server gives")
    if (body.n or 1) > 1 and not options.temperature:
        found.append("all answers are alike at temperature 0")
    return found


def message(answer: Answer, content: str, body: Answering) -> Json:
    """What the assistant says and points at."""
    return {"role": "assistant", "content": content} | regions.told(answer, body)


def finish_reason(answer: Answer) -> str:
    """Why an answer ended, in OpenAI's words."""
    return "length" if answer.stop_reason == "length" else "stop"


def logprobs(answer: Answer) -> Json | None:
    """How likely each token was, in OpenAI's form. Tokens are those of the raw answer, marks among them."""
    if not answer.scores:
        return None
    return {"content": [scored(one) for one in answer.scores], "refusal": None}


def scored(score: TokenScore) -> Json:
    """How likely one token was."""
    return _scored(score.text, score.logprob) | {"top_logprobs": [_scored(*pair) for pair in score.likeliest]}


def _scored(text: str, logprob: float) -> Json:
    # a token may hold a part of a character, which has no text of its own
    return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}


def usage(answers: Sequence[Answer]) -> Json:
    """What answers to one request cost, in OpenAI's form; visual tokens are among those of the prompt."""
    prompt, said = answers[0].usage.prompt_tokens, sum(answer.usage.answer_tokens for answer in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": said,
        "total_tokens": prompt + said,
        "prompt_tokens_details": {"cached_tokens": answers[0].usage.cached_tokens},
        "visual_tokens": answers[0].usage.visual_tokens,
        "encoded_frames": sum(answer.usage.encoded_frames for answer in answers),
    }


async def finished(tickets: Tickets) -> list[Answer]:
    """The answers that a request comes to, in order."""
    found = {number: event.answer async for number, event in tickets if isinstance(event, Finished)}
    return [found[number] for number in sorted(found)]


async def _chunks(
    first: tuple[int, Told], tickets: Tickets, completion: Completion, has_usage: bool
) -> AsyncIterator[Json]:
    """The chunks of a stream; with usage asked for, all but the last say that they have none."""
    none = {"usage": None} if has_usage else {}
    for index in range(len(completion.cleans)):
        yield completion.chunk(index, {"role": "assistant", "content": ""}) | none
    answers: list[Answer] = []
    event: tuple[int, Told] | None = first
    while event is not None:
        index, told = event
        if isinstance(told, Finished):
            answers.append(told.answer)
            yield (await asyncio.to_thread(completion.last, index, told.answer)) | none
        elif (delta := _delta(index, told, completion)) is not None:
            yield completion.chunk(index, delta) | none
        event = await anext(tickets, None)
    if has_usage:
        yield completion.counted(answers)


def _delta(index: int, event: Told, completion: Completion) -> Json | None:
    if isinstance(event, TextDelta):
        text = completion.cleans[index].add(event.text)
        return {"content": text} if text else None
    if isinstance(event, ObjectsFound):
        return {"content": "", "regions_found": regions.found_to_json(event.regions)}
    if isinstance(event, FrameRles):
        return {"content": "", "frame": regions.frame_to_json(event, completion.media, completion.body)}
    return None
