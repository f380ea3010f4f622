"""What clients may send: OpenAI's fields and a few of our own, strictly typed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from segue.engine import Options
from segue.serve.settings import Limits

WITHOUT_EFFECT = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("prompt_cache_retention", "parallel_tool_calls"),
    }
)
"""Fields of OpenAI's that change no answer."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
}
"""Fields of OpenAI's that are not supported, with the values that ask for nothing."""


class Closed(BaseModel):
    """A request in which nothing unknown may stand, so that nothing is overlooked."""

    model_config = ConfigDict(strict=True, extra="forbid")


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


class ImagePart(Open):
    """An image."""

    type: Literal["image_url"]
    image_url: str | Url


class VideoPart(Open):
    """A video."""

    type: Literal["video_url"]
    video_url: str | Url


class FileId(Open):
    """A file that was uploaded."""

    file_id: str


class FilePart(Open):
    """An image or a video that was uploaded."""

    type: Literal["file"]
    file: FileId


Medium = str | Url | FileId
"""An image or a video: a data URL or an address, as text or as an object, or a file that was uploaded."""
Phrase = Annotated[str, Field(min_length=1, max_length=1000)]
Part = Annotated[TextPart | ImagePart | VideoPart | FilePart, Field(discriminator="type")]


class ChatMessage(Open):
    """A turn of a dialogue."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None

    @property
    def parts(self) -> list[TextPart | ImagePart | VideoPart | FilePart]:
        """Its parts; words alone are one."""
        if isinstance(self.content, list):
            return self.content
        return [TextPart(type="text", text=self.content)] if self.content else []


class Answering(Closed):
    """How to answer, beside OpenAI's fields: those of `segue.Options` that a client may choose.

    `probabilities` asks for the probability of each pixel beside the masks.
    """

    threshold: float = Field(0.5, gt=0, lt=1)
    frames: str = Field("auto", pattern=r"^(auto|(first|uniform):\d{1,4}|fps:\d{1,3}(\.\d{1,3})?|\d{1,6}(,\d{1,6})*)$")
    policy: Literal["auto", "upstream", "consistent"] = "auto"
    max_tiles: int = Field(12, ge=1)
    probabilities: bool = False

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


class StreamOptions(Open):
    """What a stream carries beside text."""

    include_usage: bool = False


class ChatRequest(Answering):
    """A request to `/v1/chat/completions`."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: str | list[Annotated[str, Field(min_length=1, max_length=100)]] | None = None

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        """Without the fields that ask for nothing."""
        if not isinstance(given, dict):
            return given
        for name in NEUTRAL.keys() & given.keys():
            if given[name] not in NEUTRAL[name]:
                raise ValueError(f"{name} is not supported here; leave it out")
        return {name: value for name, value in given.items() if name not in NEUTRAL.keys() | WITHOUT_EFFECT}

    @field_validator("stop")
    @classmethod
    def _few(cls, given: str | list[str] | None) -> str | list[str] | None:
        if given == "" or len(given or "") > (100 if isinstance(given, str) else 4):
            raise ValueError("expected one to four texts of 1 to 100 characters")
        return given

    def chosen(self, limits: Limits) -> Options:
        """The options of the engine."""
        wanted = self.max_completion_tokens or self.max_tokens or limits.tokens
        return self.options(
            limits,
            max_new_tokens=min(wanted, limits.tokens),
            temperature=self.temperature or 0.0,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed or 0,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
        )
