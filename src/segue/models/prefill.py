"""Prompts read in pieces, so that a long one needs bounded memory, and from where the last one was the same.

Several questions about one video begin alike: the video is read once, and each question goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from segue.models.protocol import Prompt, restart_rotary
from segue.models.static_decoding import decodes_alone

PIECE = 2048
"""Tokens that are read at once. A piece attends to all before it: its mask is as large as piece times prompt."""

LEAST_SHARED = 64
"""Tokens that two prompts must have in common for the second to go on from the first."""


def read_prompt(language_model: Any, prompt: Prompt, cache: DynamicCache, *, start: int = 0) -> Float[Tensor, "b d"]:
    """Read a prompt into a cache that holds its first `start` tokens already; returns the states on its last tokens.

    What a family adds to the reading of a whole prompt (`Prompt.extra`) is not cut: such prompts are read at once, and
    so are those whose length decides how places are encoded.
    """
    length = prompt.embeddings.shape[1]
    piece = length if prompt.extra or decodes_alone(language_model, length) else PIECE
    if not start:
        restart_rotary(language_model)
    hidden = prompt.embeddings[:, :0]
    for begin in range(start, length, piece):
        end = min(begin + piece, length)
        hidden = language_model.model(
            inputs_embeds=prompt.embeddings[:, begin:end],
            attention_mask=prompt.attention[:, :end],
            position_ids=prompt.positions[..., begin:end],
            past_key_values=cache,
            use_cache=True,
            **prompt.extra,
        ).last_hidden_state[:, -1:]
    last: Float[Tensor, "b d"] = hidden[:, -1]
    return last


class LastPrompt:
    """Keys and values of the prompt that was read last, for the next one that begins in the same way.

    `content` of a prompt says for every token what it is: the id of text, and for a visual token a number that stands
    for the medium's content and the place in it. `reused` counts the tokens that were not read again.
    """

    def __init__(self) -> None:
        self.reused = 0
        self._content = torch.empty(0, dtype=torch.long)
        self._positions = torch.empty(0, dtype=torch.long)
        self._layers: list[tuple[Tensor, Tensor]] = []

    def shared(self, content: Int[Tensor, " s"]) -> int:
        """How many tokens of a prompt are known; at least its last one must be read."""
        length = min(len(content) - 1, len(self._content))
        same = content[:length] == self._content[:length]
        count = length if bool(same.all()) else int(same.int().argmin())
        return count if count >= LEAST_SHARED else 0

    def read(
        self,
        language_model: Any,
        prompt: Prompt,
        content: Int[Tensor, " s"],
        new_cache: Callable[[], DynamicCache] = DynamicCache,
    ) -> tuple[DynamicCache, Float[Tensor, "1 d"]]:
        """The cache of a prompt of one row, and the state on its last token; from now on it is the last one."""
        # where a prompt's length decides how its places are encoded, keys of one of another length are others
        is_alone = decodes_alone(language_model, len(content))
        start = 0 if prompt.extra or is_alone else self.shared(content)
        if start and not torch.equal(prompt.positions[..., :start], self._positions[..., :start]):
            start = 0
        cache = new_cache()
        for number, (keys, values) in enumerate(self._layers if start else ()):
            cache.update(keys[:, :, :start], values[:, :, :start], number)
        self.forget()
        hidden = read_prompt(language_model, prompt, cache, start=start)
        self.reused += start
        if not is_alone:
            self._content, self._positions = content, prompt.positions
            self._layers = [(layer.keys, layer.values) for layer in cache.layers]
        return cache, hidden

    def forget(self) -> None:
        """Let go of it."""
        self._content, self._layers = torch.empty(0, dtype=torch.long), []


def row_of(prompt: Prompt, row: int) -> Prompt:
    """One row of a prompt without its padding."""
    first = int(prompt.attention[row].argmax())
    return replace(
        prompt,
        embeddings=prompt.embeddings[row : row + 1, first:],
        attention=prompt.attention[row : row + 1, first:],
        positions=prompt.positions[..., row : row + 1, first:],
    )
