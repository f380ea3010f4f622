"""Prompts read in pieces, so that a long one needs bounded memory, and from where the last one was the same.

Several questions about one video begin alike: the video is read once, and the questions behind it, together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional
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
    """Keys and values of the prompt that was read last on its own, for those that begin in the same way.

    `content` of a prompt says for every token what it is: the id of text, and for a visual token a negative number that
    stands for the medium's content and the place in it.
    """

    def __init__(self) -> None:
        self._content = torch.empty(0, dtype=torch.long)
        self._positions = torch.empty(0, dtype=torch.long)
        self._layers: list[tuple[Tensor, Tensor]] = []

    @property
    def tokens(self) -> int:
        """How many tokens it is long."""
        return len(self._content)

    def shared(self, prompt: Prompt, content: Int[Tensor, " s"]) -> int:
        """How many tokens of a prompt are known; at least its last one must be read."""
        count = min(len(content) - 1, in_common(content, self._content))
        is_known = count >= LEAST_SHARED and not _is_bound(prompt, content, count)
        return count if is_known and torch.equal(prompt.positions[..., :count], self._positions[..., :count]) else 0

    def read(
        self,
        language_model: Any,
        prompts: Sequence[tuple[Prompt, Int[Tensor, " _"]]],
        new_cache: Callable[[], DynamicCache] = DynamicCache,
    ) -> Iterator[tuple[DynamicCache, Prompt, Float[Tensor, "b d"], int]]:
        """Read prompts of one row each with their contents. Those that begin like the last one are read behind its keys
        and values, together.

        Gives for some of them after the other their cache, the prompt as it lies there, the states on its last tokens,
        and how many of its first tokens were known.
        """
        done = 0
        while done < len(prompts):
            start, count = self._known(language_model, prompts[done:])
            (first, content), *_ = some = prompts[done : done + count]
            done += count
            prompt, cache = joined([one for one, _ in some], start) if start else first, new_cache()
            for number, (keys, values) in enumerate(self._layers if start else ()):
                known = (one[:, :, :start].expand(count, -1, -1, -1) for one in (keys, values))
                cache.update(*known, number)
            if count == 1:
                self.forget()
            hidden = read_prompt(language_model, prompt, cache, start=start)
            # where a prompt's length decides how its places are encoded, keys of one of another length are others
            if count == 1 and not decodes_alone(language_model, len(content)):
                self._content, self._positions = content, prompt.positions
                self._layers = [(layer.keys, layer.values) for layer in cache.layers]
            yield cache, prompt, hidden, start

    def _known(self, language_model: Any, waiting: Sequence[tuple[Prompt, Int[Tensor, " _"]]]) -> tuple[int, int]:
        """How many tokens the next prompts have in common with the last one, and how many prompts that are. 0 and 1, if
        the next one has too few.

        They are as many as are no more than a piece to read. A prompt from which others go on further is read alone.
        """
        start = longest = count = 0
        for prompt, content in waiting:
            known = 0 if decodes_alone(language_model, len(content)) else self.shared(prompt, content)
            fewest, longest = min(start, known) if count else known, max(longest, len(content))
            some, others = waiting[: count + 1], waiting[count + 1 :]
            is_too_much = len(some) * (longest - fewest) > PIECE or any(_is_bound(*one, fewest) for one in some)
            is_begun = any(in_common(content, other) >= fewest + LEAST_SHARED for _, other in others)
            if not known or (count and (is_too_much or is_begun)):
                break
            start, count = fewest, count + 1
            if is_begun or not _may_be_padded(language_model):
                break
        return start, max(count, 1)

    def forget(self) -> None:
        """Let go of it."""
        self._content, self._layers = torch.empty(0, dtype=torch.long), []


def in_common(one: Int[Tensor, " _"], other: Int[Tensor, " _"]) -> int:
    """How many tokens two prompts begin with alike, by their contents."""
    length = min(len(one), len(other))
    same = one[:length] == other[:length]
    return length if bool(same.all()) else int(same.int().argmin())


def _is_bound(prompt: Prompt, content: Int[Tensor, " _"], start: int) -> bool:
    """Whether a family adds something to the reading of the tokens from `start` on: it belongs to the visual ones."""
    return bool(prompt.extra) and bool((content[start:] < 0).any())


def _may_be_padded(language_model: Any) -> bool:
    """Whether padding between tokens changes nothing: a sliding window is counted with it."""
    kinds = getattr(language_model.model.config, "layer_types", None) or ()
    return all(kind == "full_attention" for kind in kinds)


def joined(prompts: Sequence[Prompt], start: int) -> Prompt:
    """Prompts of one row each whose first tokens are the same as one prompt; what differs is padded in front of it."""
    longest = max(prompt.attention.shape[1] for prompt in prompts)

    def padded(part: Shaped[Tensor, "*axes s"]) -> Shaped[Tensor, "*axes longest"]:
        return torch.cat([part[..., :start], functional.pad(part[..., start:], (longest - part.shape[-1], 0))], -1)

    return Prompt(
        torch.cat([padded(prompt.embeddings.mT).mT for prompt in prompts]),
        torch.cat([padded(prompt.attention) for prompt in prompts]),
        torch.cat([padded(prompt.positions) for prompt in prompts], -2),
    )
