"""What clients may send: OpenAI's fields and a few of our own, strictly typed."""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from segue.options import Options
from segue.serve.errors import refusal
from segue.serve.settings import Limits

WITHOUT_EFFECT = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier"),
        *("prompt_cache_retention", "parallel_tool_calls", "reasoning_effort"),
    }
)
"""Fields of OpenAI's that change no answer."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "modalities": (None, ["text"]),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "audio": (None,),
    "prediction": (None,),
    "verbosity": (None,),
    "web_search_options": (None,),
}
"""Fields of OpenAI's that are not supported, with the values that ask for nothing."""
MOST_FIELDS = 100
"""Of a request; each one that is unknown is an error of its own."""
MOST_ITEMS = 4096
"""Of a list, and parts of a whole dialogue: what is read at all. Limits that answers have are checked after that."""
T = TypeVar("T")
Items = Annotated[list[T], Field(fail_fast=True, max_length=MOST_ITEMS)]
"""A list that is refused at its first wrong item, or at the first too many, so that no body costs much more than
another.
"""


class Closed(BaseModel):
    """A request in which nothing unknown may stand, so that nothing is overlooked."""

    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _few(cls, given: Any) -> Any:
        if isinstance(given, dict) and len(given) > MOST_FIELDS:
            raise ValueError(f"{len(given):,} fields; at most {MOST_FIELDS} are expected")
        return given


class Open(BaseModel):
    """A part of a request to which clients add fields of their own."""

    model_config = ConfigDict(strict=True, extra="ignore")


class Url(Open):
    """Where a medium is: a data URL, or an address that the server fetches from."""

    url: str


class TextPart(Open):
    """Words."""

    type: Literal["text"]
    text: str


class Named(Open):
    """A medium that a client may give a name of its own, by which it is meant when it is not there any more."""

    uuid: str | None = Field(default=None, min_length=1, max_length=200)

    def check(self, given: object) -> None:
        """Refuse a part by which nothing is meant.

        Raises: ValueError.
        """
        if self.uuid is None and given is None:
            raise ValueError("expected an address, or the uuid of what was sent before")


class ImagePart(Named):
    """An image."""

    type: Literal["image_url"]
    image_url: str | Url | None = None

    @model_validator(mode="after")
    def _there(self) -> ImagePart:
        self.check(self.image_url)
        return self


class VideoPart(Named):
    """A video."""

    type: Literal["video_url"]
    video_url: str | Url | None = None

    @model_validator(mode="after")
    def _there(self) -> VideoPart:
        self.check(self.video_url)
        return self


class FileId(Open):
    """A file that was uploaded."""

    file_id: str


class FilePart(Open):
    """An image or a video that was uploaded."""

    type: Literal["file"]
    file: FileId


class RegionPart(Open):
    """A part of the image in the same message that is asked about: a `box` x0 y0 x1 y1 in its pixels, or an `rle`."""

    type: Literal["region"]
    box: Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=4, max_length=4)] | None = None
    rle: dict[str, Any] | None = None
    phrase: str = Field("", max_length=1000)

    @model_validator(mode="after")
    def _one(self) -> RegionPart:
        if (self.box is None) == (self.rle is None):
            raise ValueError("expected a box or an rle, and not both")
        return self


Medium = str | Url | FileId
"""An image or a video: a data URL or an address, as text or as an object, or a file that was uploaded."""
Phrase = Annotated[str, Field(min_length=1, max_length=1000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
CacheKey = Annotated[str, Field(max_length=200)]
"""What a client calls a dialogue: with the same key, what was read for the turn before is not read again."""
Part = Annotated[TextPart | ImagePart | VideoPart | FilePart | RegionPart, Field(discriminator="type")]


class ChatMessage(Open):
    """A turn of a dialogue."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Items[Part] | None = None

    @property
    def parts(self) -> list[TextPart | ImagePart | VideoPart | FilePart | RegionPart]:
        """Its parts; words alone are one."""
        if isinstance(self.content, list):
            return self.content
        return [TextPart(type="text", text=self.content)] if self.content else []


class Answering(Closed):
    """How to answer, beside OpenAI's fields: those of `segue.Options` that a client may choose.

    `probabilities` asks for the probability of each pixel beside the masks, `polygons` for polygons.
    """

    threshold: float = Field(default=0.5, gt=0, lt=1)
    frames: str = Field(
        default="auto", pattern=r"^(auto|(first|uniform):\d{1,4}|fps:\d{1,3}(\.\d{1,3})?|\d{1,6}(,\d{1,6})*)$"
    )
    policy: Literal["auto", "upstream", "consistent"] = "auto"
    max_tiles: int = Field(default=12, ge=1)
    probabilities: bool = False
    polygons: bool = False

    def options(self, limits: Limits, **more: Any) -> Options:
        """The options of the engine, `more` among them, within limits."""
        return Options(
            threshold=self.threshold,
            frames=self.frames,
            policy=self.policy,
            max_tiles=min(self.max_tiles, limits.tiles),
            keep_logits=self.probabilities,
            **more,
        )


class JsonSchema(Open):
    """A JSON schema under a name."""

    name: str = "answer"
    wanted: dict[str, Any] = Field(alias="schema")


class Format(Open):
    """What an answer has to be: text, any JSON object, or JSON by a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _complete(self) -> Format:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("expected json_schema with a schema for the type 'json_schema', and for no other")
        return self

    @property
    def text(self) -> str | None:
        """The schema as JSON text; `None` for an answer in words."""
        if self.json_schema is not None:
            return json.dumps(self.json_schema.wanted)
        return None if self.type == "text" else '{"type": "object"}'


class StreamOptions(Open):
    """What a stream carries beside text."""

    include_usage: bool = False


class ChatRequest(Answering):
    """A request to `/v1/chat/completions`."""

    model: str | None = None
    messages: Items[ChatMessage] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: Seed | None = None
    stop: str | Items[Annotated[str, Field(min_length=1, max_length=100)]] | None = None
    n: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: Format | None = None
    prompt_cache_key: CacheKey | None = None

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        known = supported(given, NEUTRAL, WITHOUT_EFFECT)
        few_parts(known, "messages")
        return known

    @model_validator(mode="after")
    def _both(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs")
        return self

    @field_validator("stop")
    @classmethod
    def _short(cls, given: str | list[str] | None) -> str | list[str] | None:
        if given == "" or len(given or "") > (100 if isinstance(given, str) else 4):
            raise ValueError("expected one to four texts of 1 to 100 characters")
        return given

    def chosen(self, limits: Limits) -> Options:
        """The options of the engine."""
        wanted = self.max_completion_tokens or self.max_tokens or limits.tokens
        # who asks for chance expects another answer each time
        drawn = secrets.randbelow(2**31) if self.temperature else 0
        return self.options(
            limits,
            max_new_tokens=min(wanted, limits.tokens),
            temperature=self.temperature or 0.0,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=drawn if self.seed is None else self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            likeliest=(self.top_logprobs or 0) if self.logprobs else None,
            json_schema=self.response_format.text if self.response_format else None,
        )


def few_parts(given: Any, name: str) -> None:
    """Refuse a dialogue, the field `name` of a request, that has too many parts, before any of them is looked at.

    Raises: PydanticCustomError.
    """
    turns = given.get(name) if isinstance(given, dict) else None
    parts = [one.get("content") for one in turns if isinstance(one, dict)] if isinstance(turns, list) else []
    count = sum(len(part) for part in parts if isinstance(part, list))
    if count > MOST_ITEMS:
        raise refusal("limit_exceeded", f"{name}: {count:,} parts in all; at most {MOST_ITEMS:,} are read", name)


def supported(given: Any, neutral: Mapping[str, tuple[Any, ...]], without_effect: Collection[str]) -> Any:
    """A request without the fields that ask for nothing.

    Raises: PydanticCustomError, for a field that asks for what is not supported.
    """
    if not isinstance(given, dict):
        return given
    for name in neutral:
        if name in given and given[name] not in neutral[name]:
            raise refusal("invalid_value", f"{name} is not supported here; leave it out", name)
    return {name: value for name, value in given.items() if name not in neutral and name not in without_effect}
