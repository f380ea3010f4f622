"""How questions are answered: one record of settings, checked when it is made."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal

import numpy as np

from segue.errors import ConfigError
from segue.geometry.masks import logit

_NUMBERS = ("threshold", "temperature", "top_p", "reprompt")
_WHOLE_NUMBERS = ("max_new_tokens", "max_tiles", "seed", "likeliest")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to answer. Every field has a default; the fields that decided a result are written with it.

    `frames` is the plan of video frames that the language model sees: `first:k`, `uniform:k`, numbers, or `auto`, which
    is what the policy was published with. `policy` is how objects are followed through a video (see
    `segue.grounding.following`); `auto` is `consistent` where the checkpoint has both decoders. `threshold` is
    the probability, in (0, 1), above which a pixel belongs to an object. `keep_logits` keeps low-resolution logits in
    the masks; `keep_masks` False leaves masks out of the answer, for a reader of the stream who has taken them as they
    came, so that memory does not grow with the video. `prefill` is the reply up to and including its `[SEG]`s, given by
    the caller, so that one forward pass replaces decoding. `temperature` 0 is greedy. `max_tiles` bounds an image's
    tiles; fewer are faster and coarser. A family without tiles gives an image as many twelfths of its most pixels.
    `reprompt` in [0, 1] asks for an object of a video again, by what the language model said of it, on frames where the
    confidence of following falls below it (`segue.grounding.following.Following`); 0 never does. `memory` `pooled`
    follows many objects in less time and memory, with other masks than the original's: what is remembered of a frame is
    averaged over squares of two by two cells. `raw` leaves the chat template's turns out: the text is continued as it
    is, up to the end of a text. `stop` are texts at which an answer ends, and which it does not contain. `likeliest`
    asks for the log-probability of each token, and of so many of the likeliest in its place. `json_schema`, as JSON
    text, holds the answer to it: such JSON, or the beginning of it.

    Raises: ConfigError, for a value out of range, or two that do not go together.
    """

    frames: str = "auto"
    policy: Literal["auto", "upstream", "consistent"] = "auto"
    threshold: float = 0.5
    keep_logits: bool = False
    keep_masks: bool = True
    prefill: str | None = None
    max_new_tokens: int = 2048
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_tiles: int = 12
    reprompt: float = 0.0
    memory: Literal["exact", "pooled"] = "exact"
    stop: tuple[str, ...] = ()
    raw: bool = False
    likeliest: int | None = None
    json_schema: str | None = None

    def __post_init__(self) -> None:
        self._check_types()
        if not isinstance(self.frames, str):
            raise ConfigError(
                f"frames is {self.frames!r}; expected text: auto, first:k, uniform:k, fps:r, or numbers such as '0,4,9'"
            )
        logit(self.threshold)
        _check_sampling(self.temperature, self.top_p, self.seed)
        if self.policy not in ("auto", "upstream", "consistent"):
            raise ConfigError(f"unknown policy {self.policy!r}; expected auto, upstream or consistent")
        if self.memory not in ("exact", "pooled"):
            raise ConfigError(f"unknown memory {self.memory!r}; expected exact or pooled")
        if self.keep_logits and not self.keep_masks:
            raise ConfigError("keep_logits needs keep_masks: logits are kept in the masks of the answer")
        if not all(self.stop):
            raise ConfigError("a text to stop at is empty; every answer would end before it begins")
        if strange := next((one for one in self.stop if re.search("[\ud800-\udfff]", one)), None):
            raise ConfigError(f"a text to stop at, {strange!r}, holds bytes that are no text; write it in UTF-8")
        if not 0 <= self.reprompt <= 1:
            raise ConfigError(f"reprompt {self.reprompt} is no probability; expected 0 (never) to 1 (always)")
        if self.likeliest is not None and not 0 <= self.likeliest <= 20:
            raise ConfigError(f"likeliest {self.likeliest} is out of range; expected 0 to 20 tokens beside each chosen")
        if self.max_new_tokens < 1 or not 1 <= self.max_tiles <= 64:
            raise ConfigError(
                f"max_new_tokens {self.max_new_tokens} or max_tiles {self.max_tiles} is out of range; "
                "expected at least 1 token and 1 to 64 tiles"
            )

    def _check_types(self) -> None:
        """Refuse what is of another type; numbers of numpy become Python's, which JSON can hold.

        Raises: ConfigError.
        """
        for name in (*_NUMBERS, *_WHOLE_NUMBERS):
            value, is_whole = getattr(self, name), name in _WHOLE_NUMBERS
            if name == "likeliest" and value is None:
                continue
            if not isinstance(value, Integral if is_whole else Real):
                raise ConfigError(f"{name} is {value!r}; expected {'a whole number' if is_whole else 'a number'}")
            if isinstance(value, np.generic):
                object.__setattr__(self, name, value.item())
        for name in ("prefill", "json_schema"):
            value = getattr(self, name)
            if not isinstance(value, str | None):
                how = " of JSON: json.dumps makes it" if name == "json_schema" else ""
                raise ConfigError(f"{name} is {value!r}; expected text{how}")
        if isinstance(self.stop, str):
            # its letters would each end the answer
            raise ConfigError(f"stop is a list of texts, and {self.stop!r} is one text; write [{self.stop!r}]")
        if strange := [one for one in self.stop if not isinstance(one, str)]:
            raise ConfigError(f"a text to stop at, {strange[0]!r}, is none; write it in quotes")


def _check_sampling(temperature: float, top_p: float, seed: int) -> None:
    if not 0 <= temperature < math.inf or not 0 < top_p <= 1:
        raise ConfigError(
            f"temperature {temperature} and top_p {top_p} are out of range; "
            "expected temperature >= 0 and 0 < top_p <= 1"
        )
    if not -(2**63) <= seed < 2**64:
        raise ConfigError(f"seed {seed} is out of range; expected a whole number of 64 bits")


DEFAULTS = Options()
