"""Answers token by token: sequences that come and go while others are decoded.

A step gives every sequence one more token. Sequences of different age share it: their keys and values lie in one cache,
padded to the longest. What is finished leaves the cache and costs nothing more.

Letters in shapes: b rows, s tokens, k tokens in the cache, d width, v vocabulary, n objects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache
from transformers.generation import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from segue.errors import CheckpointError
from segue.models.guiding import Guide
from segue.models.prefill import LastPrompt, read_prompt
from segue.models.protocol import MLLM, Batch, Prompt
from segue.models.static_decoding import StaticDecoder, decodes_alone, supports_static_decoding
from segue.models.templates import TextTokenizer
from segue.types import StopReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How to choose a sequence's tokens and when to end. `temperature` 0 is greedy; `is_over` judges the ids so far.

    Without a `seg_id` no states are kept. With a `guide` only tokens that it allows are chosen. `likeliest` asks for
    the scores of the tokens chosen, and of so many of the likeliest.
    """

    is_over: Callable[[Sequence[int]], bool]
    seg_id: int | None
    max_new_tokens: int = 2048
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    guide: Guide | None = None
    likeliest: int | None = None


Score = tuple[float, list[tuple[int, float]]]
"""The log-probability of a token, and ids and log-probabilities of the likeliest in its place."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer: its token ids, terminator included, and the states that stand on its segmentation tokens."""

    ids: list[int]
    seg_hidden: Float[Tensor, "n d"]
    stop_reason: StopReason
    scores: Sequence[Score] = ()


class Sampler:
    """Chooses the tokens of one sequence by chance, from a generator of its own; at temperature 0 it `is_greedy`.

    Settings are fields of `segue.Options`, which checks them.
    """

    def __init__(self, temperature: float, top_p: float, seed: int):
        self.is_greedy = temperature == 0
        if not self.is_greedy:
            warpers = [TemperatureLogitsWarper(float(temperature)), TopPLogitsWarper(top_p)]
            self._warpers = LogitsProcessorList(warpers)
        self._seed = seed
        self._generator: torch.Generator | None = None

    def __call__(self, logits: Float[Tensor, " v"]) -> Int[Tensor, ""]:
        """The next token.

        Raises: CheckpointError, if the scores are no numbers.
        """
        if self.is_greedy:
            best = logits.max(-1)  # NaN is the largest of all, so that this pass shows it
            check_computed(best.values, "for the next word")
            return best.indices
        check_computed(logits, "for the next word")
        if self._generator is None:
            self._generator = torch.Generator(logits.device).manual_seed(self._seed)
        scores = self._warpers(torch.empty(1, 0, dtype=torch.long, device=logits.device), logits[None].float())
        return torch.multinomial(scores[0].softmax(-1), 1, generator=self._generator)[0]


def check_computed(found: Tensor, what: str) -> None:
    """Refuse to answer from numbers that are none; infinite ones may be meant.

    Raises: CheckpointError.
    """
    if bool(found.isnan().any()):
        raise CheckpointError(
            f"the model computes NaN {what}, so it gives no answer: its weights are damaged (`segue doctor MODEL` "
            "looks at each), or too coarse a precision was chosen (--dtype fp32)"
        )


@dataclass(slots=True, eq=False)
class DecodeState:
    """One sequence: its ids so far, the states on its segmentation tokens, and why it ended, once it has.

    `pending_seg` says that its last token is a segmentation token whose state is still to be read. `cached` of the
    prompt's tokens were not read for it, but known from another prompt.
    """

    decoding: Decoding
    sampler: Sampler
    ids: list[int] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    seg_hidden: list[Float[Tensor, " d"]] = field(default_factory=list)
    pending_seg: bool = False
    stop_reason: StopReason | None = None
    prompt_length: int = 0
    cached: int = 0

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return self.prompt_length + len(self.ids)

    @property
    def is_finished(self) -> bool:
        """Whether nothing more will come of it."""
        return self.stop_reason is not None and not self.pending_seg

    def take(self, token: int) -> None:
        """One more token, if it has not ended."""
        if self.stop_reason is not None:
            return
        self.ids.append(token)
        self.pending_seg = token == self.decoding.seg_id
        guide = self.decoding.guide
        if guide is not None:
            guide.take(token)
        if self.decoding.is_over(self.ids):
            self.stop_reason = "stop"
        elif guide is not None and guide.end is not None:
            self.stop_reason = guide.end
        elif len(self.ids) >= self.decoding.max_new_tokens:
            self.stop_reason = "length"

    def note(self, logits: Float[Tensor, " v"], token: int) -> None:
        """Keep how likely a token is that is about to be taken, if that was asked for."""
        if self.decoding.likeliest is None or self.stop_reason is not None:
            return
        scores = logits.float().log_softmax(-1)
        best = scores.topk(self.decoding.likeliest)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        # what a guide does not allow has no chance at all
        self.scores.append((float(scores[token]), [(one, score) for one, score in pairs if score > -math.inf]))

    def generation(self, like: Float[Tensor, "... d"]) -> Generation:
        """What came of it; `like` is a tensor of the states' width, type and device."""
        states = torch.stack(self.seg_hidden) if self.seg_hidden else like.new_empty(0, like.shape[-1])
        return Generation(self.ids, states, self.stop_reason or "cancelled", self.scores)


@runtime_checkable
class RowCache(Protocol):
    """Keys and values of several rows, in an order that `add` and `keep` decide."""

    def add(self, cache: DynamicCache, prompt: Prompt) -> None:
        """Rows whose prompt was read into a cache of their own."""
        ...

    def read(self, tokens: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """The rows' states after one more token each; they may be overwritten by the next call."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Let go of all rows but these, in this order."""
        ...


class GrowingCache:
    """Rows of any language model of the library, padded on the left to the longest. Padding within a row stays."""

    def __init__(self, language_model: Any):
        self.language_model = language_model
        self.cache: DynamicCache | None = None

    def add(self, cache: DynamicCache, prompt: Prompt) -> None:
        """Rows whose prompt was read into a cache of their own."""
        last = _last_positions(prompt)
        if self.cache is None:
            self.cache, self.attention, self.last, self.axes = (
                cache,
                prompt.attention,
                last,
                prompt.positions.shape[:-2],
            )
            return
        length = max(self.attention.shape[1], prompt.attention.shape[1])
        for mine, new in zip(self.cache.layers, cache.layers, strict=True):
            mine.keys, mine.values = (
                torch.cat([_padded(one, length), _padded(other, length)])
                for one, other in ((mine.keys, new.keys), (mine.values, new.values))
            )
        pairs = [functional.pad(each, (length - each.shape[1], 0)) for each in (self.attention, prompt.attention)]
        self.attention, self.last = torch.cat(pairs), torch.cat([self.last, last])

    def read(self, tokens: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """The rows' states after one more token each. A token stands one beyond its row's furthest, on every axis."""
        self.last = self.last + 1
        self.attention = functional.pad(self.attention, (0, 1), value=1)
        output = self.language_model.model(
            inputs_embeds=self.language_model.get_input_embeddings()(tokens[:, None]),
            attention_mask=self.attention,
            position_ids=self.last[:, None].expand(*self.axes, -1, 1),
            past_key_values=self.cache,
            use_cache=True,
        )
        hidden: Float[Tensor, "b d"] = output.last_hidden_state[:, -1]
        return hidden

    def keep(self, rows: Sequence[int]) -> None:
        """Let go of all rows but these, and of columns that are padding in all of them."""
        if not rows:
            self.cache = None
            return
        assert self.cache is not None
        chosen = torch.tensor(rows, device=self.attention.device)
        attention = self.attention[chosen]
        first = int(attention.any(0).int().argmax())
        self.attention, self.last = attention[:, first:], self.last[chosen]
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[chosen, :, first:], layer.values[chosen, :, first:]


def _padded(layer: Shaped[Tensor, "b g k w"], length: int) -> Shaped[Tensor, "b g r w"]:
    return functional.pad(layer, (0, 0, length - layer.shape[2], 0))


def _last_positions(prompt: Prompt) -> Int[Tensor, " b"]:
    """The furthest place of each row along any axis."""
    return prompt.positions.reshape(-1, *prompt.positions.shape[-2:]).amax((0, 2))


class Decoder:
    """Sequences of one language model that are decoded together.

    `static` is a cache that is kept from one decoder to the next, for CUDA; it is used while the language model and
    the lengths allow it, by one decoder at a time. Prompts are read into a `new_cache`.
    """

    def __init__(
        self,
        mllm: MLLM,
        static: StaticDecoder | None = None,
        new_cache: Callable[[], DynamicCache] = DynamicCache,
    ):
        self.mllm, self.new_cache = mllm, new_cache
        self.rows: list[DecodeState] = []
        self.static = static
        self._is_alone = False
        self._cache: RowCache = GrowingCache(mllm.language_model)
        self._tokens: Int[Tensor, " b"] | None = None
        self._hidden: Float[Tensor, "b d"] = torch.empty(0)

    def accepts(self, longest: int) -> bool:
        """Whether a sequence that may come to be so many tokens can join those there are."""
        if not self.rows:
            return True
        language_model = self.mllm.language_model
        if self._is_alone or decodes_alone(language_model, longest):
            return False
        return self._cache is not self.static or supports_static_decoding(language_model, longest)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence so far, its prompt included."""
        return max((state.length for state in self.rows), default=0)

    @torch.no_grad()
    def add(self, prompt: Prompt, decodings: Sequence[Decoding]) -> list[DecodeState]:
        """Read the rows of a prompt, and decode their answers from now on."""

        def read() -> Iterator[tuple[DynamicCache, Prompt, Float[Tensor, "b d"], int]]:
            cache = self.new_cache()
            hidden = read_prompt(self.mllm.language_model, prompt, cache)
            yield cache, prompt, hidden, 0

        return self._add(decodings, prompt.attention.sum(1).tolist(), read())

    @torch.no_grad()
    def add_alike(
        self,
        prompts: Sequence[tuple[Prompt, Int[Tensor, " _"]]],
        decodings: Sequence[Decoding],
        last: LastPrompt,
    ) -> list[DecodeState]:
        """The same of prompts of one row each with their contents, which go on from where they differ from the `last`
        one.
        """
        read = last.read(self.mllm.language_model, prompts, self.new_cache)
        return self._add(decodings, [len(content) for _, content in prompts], read)

    def _add(
        self,
        decodings: Sequence[Decoding],
        lengths: Sequence[int],
        read: Iterator[tuple[DynamicCache, Prompt, Float[Tensor, "b d"], int]],
    ) -> list[DecodeState]:
        """Decode what `read` reads, some rows after the other."""
        states = [
            DecodeState(one, Sampler(one.temperature, one.top_p, one.seed), prompt_length=length)
            for one, length in zip(decodings, lengths, strict=True)
        ]
        self._read()
        longest = max(lengths) + max(one.max_new_tokens for one in decodings)
        if not self.rows:
            is_static = self.static is not None and supports_static_decoding(self.mllm.language_model, longest)
            self._cache = self.static if self.static and is_static else GrowingCache(self.mllm.language_model)
            self._is_alone = decodes_alone(self.mllm.language_model, longest)
        found, coming = [self._hidden] if self.rows else [], iter(states)
        try:
            for cache, prompt, hidden, known in read:
                self._cache.add(cache, prompt)
                found.append(hidden)
                for state in islice(coming, len(hidden)):
                    state.cached = known
        except BaseException:
            self._cache.keep(range(len(self.rows)))  # a cache that outlives this decoder must not hold half of them
            raise
        self._hidden = torch.cat(found)
        self.rows += states
        for state in states:
            if state.decoding.max_new_tokens < 1:
                state.stop_reason = "length"
        self._drop_finished()
        return states

    @torch.no_grad()
    def step(self) -> None:
        """One more token for every sequence, and the state of every segmentation token that was chosen before."""
        self._read()
        if not self.rows:
            return
        logits = self.mllm.head(self._hidden)
        for row, state in enumerate(self.rows):
            if state.decoding.guide is not None:
                state.decoding.guide.restrict(logits[row])
        best = logits.max(-1)  # NaN is the largest of all, so that this pass shows it
        check_computed(best.values, "for the next word")
        chosen = best.indices
        for row, state in enumerate(self.rows):
            if not state.sampler.is_greedy:
                chosen[row] = state.sampler(logits[row])
        self._tokens = chosen
        if chosen.is_cuda and self._cache is self.static:
            # the device reads on while Python still looks at what was chosen
            self._hidden, self._tokens = self._cache.read(chosen), None
        for state, scores, token in zip(self.rows, logits, chosen.tolist(), strict=True):
            state.note(scores, token)
            state.take(token)
        if self._tokens is None:
            self._take_states()
        self._drop_finished()

    def remove(self, state: DecodeState) -> None:
        """Take a sequence out, whatever it has come to; it may be out already."""
        state.stop_reason, state.pending_seg = state.stop_reason or "cancelled", False
        self._drop_finished()

    def close(self) -> None:
        """Take all sequences out."""
        for state in list(self.rows):
            self.remove(state)

    def _read(self) -> None:
        """Read the tokens that were chosen last."""
        if self.rows and self._tokens is not None:
            self._hidden, self._tokens = self._cache.read(self._tokens), None
            self._take_states()
            self._drop_finished()

    def _take_states(self) -> None:
        # PARITY(seg_state_at_token): the state is read where [SEG] is consumed, one step after it was chosen
        for row, state in enumerate(self.rows):
            if state.pending_seg:
                state.seg_hidden.append(self._hidden[row].clone())
                state.pending_seg = False

    def _drop_finished(self) -> None:
        kept = [row for row, state in enumerate(self.rows) if not state.is_finished]
        if len(kept) == len(self.rows):
            return
        self._cache.keep(kept)
        chosen = torch.tensor(kept, dtype=torch.long, device=self._hidden.device)
        self._hidden = self._hidden[chosen]
        self._tokens = self._tokens[chosen] if self._tokens is not None and kept else None
        self.rows = [self.rows[row] for row in kept]


def decode(mllm: MLLM, batch: Batch, decoding: Decoding) -> list[Generation]:
    """The answers to a batch's prompts, decoded to their end."""
    decoder, prompt = Decoder(mllm), mllm.prompt(batch)
    states = decoder.add(prompt, [decoding] * len(prompt.embeddings))
    while decoder.rows:
        decoder.step()
    return [state.generation(prompt.embeddings) for state in states]


class IncrementalText:
    """The text of ids that come one by one, in pieces; only the last few ids are decoded again for each.

    Source: incremental detokenisation of text-generation-inference and vLLM.
    """

    def __init__(self, tokenizer: TextTokenizer):
        self._tokenizer = tokenizer
        self._context = self._said = 0

    def piece(self, ids: Sequence[int], *, is_last: bool = False) -> str:
        """What came to the text since the last piece, given all ids so far. An unfinished character waits for its rest,
        unless the ids end there.
        """
        known = self._tokenizer.decode(ids[self._context : self._said], skip_special_tokens=False)
        text = self._tokenizer.decode(ids[self._context :], skip_special_tokens=False)
        if len(text) <= len(known) or (text.endswith("\ufffd") and not is_last):
            return ""
        self._context, self._said = self._said, len(ids)
        return text[len(known) :]
