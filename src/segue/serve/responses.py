"""`/v1/responses`: OpenAI's newer form of the same questions, without a memory of its own.

Source: the Responses API, as OpenAI's client 3.57 reads it.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field, model_validator

from segue.serve import regions
from segue.serve.answers import EventStream, while_connected
from segue.serve.chat import Completion, ask, finished, scored
from segue.serve.context import Context
from segue.serve.scheduler import Tickets, Told
from segue.serve.schema import (
    NEUTRAL,
    WITHOUT_EFFECT,
    Answering,
    CacheKey,
    ChatMessage,
    ChatRequest,
    FileId,
    FilePart,
    Format,
    ImagePart,
    Items,
    JsonSchema,
    Open,
    RegionPart,
    Seed,
    TextPart,
    Url,
    VideoPart,
    few_parts,
    supported,
)
from segue.types import Answer, Finished, TextDelta

Json = dict[str, Any]
STATELESS: dict[str, tuple[Any, ...]] = {
    "previous_response_id": (None,),
    "conversation": (None,),
    "background": (None, False),
    "tools": NEUTRAL["tools"],
    "tool_choice": NEUTRAL["tool_choice"],
    "prompt": (None,),
}
"""Fields that are not supported, with the values that ask for nothing: each request holds its whole dialogue."""
IGNORED = WITHOUT_EFFECT | {"truncation", "reasoning", "stream_options", "max_tool_calls"}


class InputText(Open):
    """Words, of whoever."""

    type: Literal["input_text", "output_text"]
    text: str


class InputImage(Open):
    """An image, at an address or uploaded."""

    type: Literal["input_image"]
    image_url: str | None = None
    file_id: str | None = None

    @model_validator(mode="after")
    def _one(self) -> InputImage:
        if (self.image_url is None) == (self.file_id is None):
            raise ValueError("expected an image_url or a file_id, and not both")
        return self


class InputVideo(Open):
    """A video at an address; OpenAI has none."""

    type: Literal["input_video"]
    video_url: str | Url


class InputFile(Open):
    """An image or a video that was uploaded."""

    type: Literal["input_file"]
    file_id: str


InputPart = Annotated[InputText | InputImage | InputVideo | InputFile | RegionPart, Field(discriminator="type")]


class InputMessage(Open):
    """A turn of a dialogue; an item of an earlier response is one too."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Items[InputPart]

    def as_chat(self) -> ChatMessage:
        """The same turn in the form of `/v1/chat/completions`."""
        parts = self.content if isinstance(self.content, str) else [_as_chat(part) for part in self.content]
        return ChatMessage(role=self.role, content=parts)


class TextFormat(Open):
    """What an answer has to be, a schema included."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str = "answer"
    wanted: dict[str, Any] | None = Field(default=None, alias="schema")

    @model_validator(mode="after")
    def _complete(self) -> TextFormat:
        if (self.type == "json_schema") != (self.wanted is not None):
            raise ValueError("expected a schema for the type 'json_schema', and for no other")
        # both stand on the response too: letters that are no text are a ValueError
        json.dumps([self.name, self.wanted], ensure_ascii=False).encode()
        return self


class TextOptions(Open):
    """How the text of an answer is formed."""

    format: TextFormat = TextFormat()


class ResponsesRequest(Answering):
    """A request to `/v1/responses`."""

    model: str | None = None
    input: str | Items[InputMessage] = Field(min_length=1)
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    seed: Seed | None = None
    text: TextOptions = TextOptions()
    prompt_cache_key: CacheKey | None = None
    include: Items[Literal["message.output_text.logprobs"]] | None = None

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        known = supported(given, STATELESS, IGNORED)
        few_parts(known, "input")
        return known

    def as_chat(self) -> ChatRequest:
        """The same request in the form of `/v1/chat/completions`."""
        turns = [ChatMessage(role="system", content=self.instructions)] if self.instructions else []
        if isinstance(self.input, str):
            turns.append(ChatMessage(role="user", content=self.input))
        else:
            turns += [one.as_chat() for one in self.input]
        wanted = self.text.format.wanted
        schema = None if wanted is None else JsonSchema(schema=wanted)
        shared = {name: getattr(self, name) for name in Answering.model_fields}
        return ChatRequest(
            model=self.model,
            messages=turns,
            max_completion_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            logprobs=self.top_logprobs is not None or bool(self.include),
            top_logprobs=self.top_logprobs,
            response_format=Format(type=self.text.format.type, json_schema=schema),
            prompt_cache_key=self.prompt_cache_key,
            **shared,
        )


@dataclass(slots=True)
class Reply:
    """A response in the making, and the events that tell of it, numbered from 0."""

    body: ResponsesRequest
    completion: Completion
    id: str = field(default_factory=lambda: f"resp_{secrets.token_hex(12)}")
    message_id: str = field(default_factory=lambda: f"msg_{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))
    count: int = -1

    def whole(self, answer: Answer | None = None) -> Json:
        """The response: with the answer, or as it begins."""
        is_cut = answer is not None and answer.stop_reason == "length"
        told: Json = {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": "in_progress" if answer is None else "incomplete" if is_cut else "completed",
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "instructions": self.body.instructions,
            "max_output_tokens": self.body.max_output_tokens,
            "metadata": {},
            "model": self.completion.model,
            "output": [] if answer is None else [self.item(answer)],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "prompt_cache_key": self.body.prompt_cache_key,
            "store": False,
            "temperature": self.body.temperature or 0.0,
            "text": {"format": {"type": self.body.text.format.type}},
            "tool_choice": "none",
            "tools": [],
            "top_p": 1.0 if self.body.top_p is None else self.body.top_p,
            "usage": None if answer is None else _usage(answer),
        }
        if (wanted := self.body.text.format.wanted) is not None:
            told["text"]["format"] |= {"name": self.body.text.format.name, "schema": wanted}
        return told | self.completion.told

    def item(self, answer: Answer | None = None) -> Json:
        """The message that the response holds: what is said, and what that points at."""
        is_cut = answer is not None and answer.stop_reason == "length"
        status = "in_progress" if answer is None else "incomplete" if is_cut else "completed"
        about: Json = {"type": "message", "id": self.message_id, "role": "assistant", "status": status}
        if answer is None:
            return about | {"content": []}
        return about | {"content": [self.part(answer)]} | regions.told(answer, self.body)

    def part(self, answer: Answer | None = None) -> Json:
        """The text of the message."""
        scores = [] if answer is None else [scored(one) for one in answer.scores]
        text = "" if answer is None else answer.text
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": scores}

    def event(self, kind: str, **about: Any) -> Json:
        """The next event of a stream."""
        self.count += 1
        return {"type": f"response.{kind}", "sequence_number": self.count} | about

    def inside(self, kind: str, **about: Any) -> Json:
        """The next event about the text."""
        return self.event(kind, item_id=self.message_id, output_index=0, content_index=0, **about)


def add_routes(app: FastAPI, context: Context) -> None:
    """The route."""

    @app.post("/v1/responses")
    async def respond(body: ResponsesRequest, request: Request) -> Response:
        """An answer to a dialogue, whole or as a stream. Nothing of it is kept."""
        tickets, completion = await ask(body.as_chat(), context, request.state.client)
        reply = Reply(body, completion)
        if not body.stream:
            [answer] = await while_connected(request, tickets, finished(tickets))
            return JSONResponse(await asyncio.to_thread(reply.whole, answer))
        first = await while_connected(request, tickets, anext(tickets))
        return EventStream(_events(first, tickets, reply), tickets, request.state.request_id, form="named")


async def _events(first: tuple[int, Told], tickets: Tickets, reply: Reply) -> AsyncIterator[Json]:
    yield reply.event("created", response=reply.whole())
    yield reply.event("in_progress", response=reply.whole())
    yield reply.event("output_item.added", output_index=0, item=reply.item())
    yield reply.inside("content_part.added", part=reply.part())
    event: tuple[int, Told] | None = first
    clean = reply.completion.cleans[0]
    while event is not None:
        told = event[1]
        if isinstance(told, TextDelta) and (text := clean.add(told.text)):
            yield reply.inside("output_text.delta", delta=text, logprobs=[])
        if isinstance(told, Finished):
            answer = told.answer
            if rest := clean.finish(answer.text):
                yield reply.inside("output_text.delta", delta=rest, logprobs=[])
            part, whole = reply.part(answer), await asyncio.to_thread(reply.whole, answer)
            yield reply.inside("output_text.done", text=answer.text, logprobs=part["logprobs"])
            yield reply.inside("content_part.done", part=part)
            yield reply.event("output_item.done", output_index=0, item=whole["output"][0])
            yield reply.event(whole["status"], response=whole)
        event = await anext(tickets, None)


def _as_chat(part: InputText | InputImage | InputVideo | InputFile | RegionPart) -> Any:
    if isinstance(part, InputText):
        return TextPart(type="text", text=part.text)
    if isinstance(part, InputVideo):
        return VideoPart(type="video_url", video_url=part.video_url)
    if isinstance(part, InputImage) and part.file_id is None:
        return ImagePart(type="image_url", image_url=part.image_url)
    if isinstance(part, RegionPart):
        return part
    assert part.file_id is not None
    return FilePart(type="file", file=FileId(file_id=part.file_id))


def _usage(answer: Answer) -> Json:
    prompt, said = answer.usage.prompt_tokens, answer.usage.answer_tokens
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": answer.usage.cached_tokens},
        "output_tokens": said,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + said,
    }
