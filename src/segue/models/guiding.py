"""Answers that are held to a JSON schema: which tokens may come next.

Source: llguidance, which reads the schema and knows after each token which may follow.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from segue.errors import ConfigError
from segue.types import StopReason

log = logging.getLogger(__name__)


class Guide:
    """One answer on its way through a schema."""

    def __init__(self, matcher: Any):
        self._matcher = matcher

    def restrict(self, logits: Float[Tensor, " v"]) -> None:
        """Take all chance from tokens that must not come next, in place. After an answer's end, nothing is changed."""
        if self._matcher.is_stopped():
            return
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = torch.from_numpy(np.unpackbits(bits, bitorder="little").astype(bool))
        known = min(len(allowed), len(logits))
        logits[:known].masked_fill_(~allowed[:known].to(logits.device), float("-inf"))
        logits[known:] = float("-inf")

    def take(self, token: int) -> None:
        """A token that was chosen."""
        if not self._matcher.is_stopped() and not self._matcher.consume_token(token):
            log.warning("an answer left its JSON schema: %s", self._matcher.get_error())

    @property
    def end(self) -> StopReason | None:
        """Why nothing more can follow: the answer is whole, or went where no rule leads on and is cut there."""
        if self._matcher.is_error():
            return "length"
        return "stop" if self._matcher.is_stopped() else None


class Guides:
    """Guides for the tokens of one tokenizer, of which an answer ends with `end`.

    Raises: ConfigError, without the library.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, end: int):
        try:
            from llguidance.hf import from_tokenizer
        except ModuleNotFoundError as error:
            raise ConfigError(
                "answers by a JSON schema need llguidance; install it with: pip install 'segue[serve]'"
            ) from error
        self._tokens = from_tokenizer(tokenizer, n_vocab=len(tokenizer), eos_token=end)

    def __call__(self, schema: str) -> Guide:
        """A guide to a schema, given as JSON text.

        Raises: ConfigError, for a schema that cannot be read or followed.
        """
        from llguidance import LLMatcher

        # with any number of spaces a model may write nothing else, up to the length of its answer
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": " "})
        matcher = LLMatcher(self._tokens, grammar)
        if matcher.is_error():
            raise ConfigError(f"the JSON schema cannot be followed: {matcher.get_error().splitlines()[0][:300]}")
        return Guide(matcher)
