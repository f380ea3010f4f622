"""What every model family offers, and the decoding loop they share.

Letters in shapes: b rows, s tokens, d width, p tiles or patches, i images, v visual tokens, n objects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.generation import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from segue.errors import CheckpointError, ConfigError, DataError
from segue.models.pieces import Piece
from segue.models.static_decoding import Fixed, suits
from segue.models.templates import Template, TextTokenizer
from segue.models.tokenizers import TOKENIZER_FILES, load_tokenizer
from segue.types import Region, StopReason
from segue.weights import KeyTable

PUBLISHED_TILES = 12
"""How many tiles of an image models were published with, the small copy of the whole not counted."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of token ids, ready for a model, and the pixels they speak of.

    Rows are padded on the left where `attention` is 0. `labels` are the ids to be learned, -100 elsewhere. `pixels` and
    `grids` are those of all rows' `Visual`s and go to `MLLM.encode` together; `visual_places` marks the visual tokens,
    and `visual_rows` names for each of them in reading order the row of the encoded features that stands there (one
    feature may stand in several places: region prompts, questions that share an image).
    """

    input_ids: Int[Tensor, "b s"]
    attention: Int[Tensor, "b s"]
    labels: Int[Tensor, "b s"] | None = None
    pixels: Float[Tensor, "p ..."] | None = None
    visual_places: Bool[Tensor, "b s"] | None = None
    visual_rows: Int[Tensor, " v"] | None = None
    grids: Int[Tensor, "i 2"] | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        parts: dict[str, Any] = {part.name: getattr(self, part.name) for part in fields(self)}
        return replace(self, **{name: part.to(device) for name, part in parts.items() if part is not None})


@dataclass(frozen=True, slots=True)
class Generation:
    """One row's answer: its token ids, terminator included, and the states that stand on its segmentation tokens."""

    ids: list[int]
    seg_hidden: Float[Tensor, "n d"]
    stop_reason: StopReason


CacheKind = Literal["auto", "growing", "fixed"]
Steps = Generator[list[int | None], None, list[Generation]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How to choose tokens and when to end. `temperature` 0 is greedy; `is_over` judges a row's ids so far. Without a
    `seg_id` no states are kept.

    `cache` is for comparing: `auto` takes a fixed one where that is faster, which is for one row on CUDA.
    """

    is_over: Callable[[Sequence[int]], bool]
    seg_id: int | None
    max_new_tokens: int = 2048
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    cache: CacheKind = "auto"


@dataclass(frozen=True, slots=True)
class Visual:
    """A medium as a family's language model sees it.

    Its normalised pixels, the prompt text that holds their place, and the rows of encoded features that its visual
    tokens stand for, in reading order. Pixels are tiles `p 3 h w`, or `p c` patches of images that keep their
    resolution: then `grids` are each image's rows and columns of patches. `features` is how many rows they encode to.
    """

    pixels: Float[Tensor, "p ..."]
    text: str
    rows: Int[Tensor, " v"]
    features: int
    grids: Int[Tensor, "i 2"] | None = None


@runtime_checkable
class Processor(Protocol):
    """A family's preprocessing: media to pixels and placeholder text. It holds the tokenizer and no weights.

    `shows_first` says that a medium stands before all of its turn's text, wherever the user put it. `seg_id` is the
    token that asks for a mask; a tokenizer without it belongs to a model without a grounder.
    """

    tokenizer: TextTokenizer
    template: Template
    visual_token: str
    shows_first: bool
    seg_id: int | None
    visual_id: int
    bos_ids: tuple[int, ...]
    eos_ids: tuple[int, ...]

    def image(self, pixels: UInt8[np.ndarray, "h w 3"], *, max_tiles: int) -> Visual:
        """One image in as many tiles as suit its shape; without tiles, at a resolution that `max_tiles` scales."""
        ...

    def frames(self, pixels: UInt8[np.ndarray, "t h w 3"]) -> Visual:
        """Frames of a video, one tile each."""
        ...

    def regions(self, visual: Visual, masks: Bool[np.ndarray, "n h w"]) -> Visual:
        """The same medium with a sentence that marks these regions of it.

        Raises: DataError, if the family knows no region prompts.
        """
        ...

    def place(self, region: Region, size: tuple[int, int]) -> list[Piece] | None:
        """A region as it stands in a text about a medium of (height, width) `size`; `None` if the family writes none.

        What it was called is its user's text.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write the tokenizer files."""
        ...


class MLLMConfig(Protocol):
    """What is asked of a family's configuration, for estimates. Sizes are (patches, visual tokens), class tokens
    included.
    """

    vision_config: Any
    text_config: Any

    def largest_image(self, max_tiles: int = PUBLISHED_TILES) -> tuple[int, int]:
        """Of the largest image there may be with that option, which families without tiles read as twelfths."""
        ...

    def largest_frame(self) -> tuple[int, int]:
        """Of the largest frame of a video."""
        ...


@runtime_checkable
class MLLM(Protocol):
    """A language model that sees. `encode` stands apart from `forward`: that is where features can be kept.

    Features may be wider than the language model, where more than its input embeddings is fed by them.
    """

    width: int
    language_model: nn.Module

    def encode(self, pixels: Float[Tensor, "p ..."], grids: Int[Tensor, "i 2"] | None = None) -> Float[Tensor, "v f"]:
        """Visual features of a batch's or a `Visual`'s pixels and grids, one row per visual token."""
        ...

    def embed(self, batch: Batch, features: Float[Tensor, "v f"] | None) -> Float[Tensor, "b s d"]:
        """Input embeddings with the features written in."""
        ...

    def forward(
        self, batch: Batch, features: Float[Tensor, "v f"] | None
    ) -> tuple[Float[Tensor, ""] | None, Float[Tensor, "b s d"]]:
        """Loss over the labels, if there are any, and the state that a segmentation token is read from."""
        ...

    def head(self, hidden: Float[Tensor, "... d"]) -> Float[Tensor, "... v"]:
        """Scores of all tokens to come after states of `forward`."""
        ...

    def generate(self, batch: Batch, features: Float[Tensor, "v f"] | None, decoding: Decoding) -> Steps:
        """Token ids step by step, one per row; returns the rows' `Generation`s."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Official:
    """An official layout of a family's models.

    `architecture` is the class that config.json names. `prefix` is a pattern of what stands before each name of the
    family's key table. `config` makes the other fields of config.json from the family's own configuration; `tokens` are
    fields beside them that hold a token's id; `files` are further small JSON files by name. `tokenizer` is the class by
    which the original's library, transformers 4, reads `tokenizer.json`.
    """

    architecture: str
    config: Callable[[Any], dict[str, Any]]
    prefix: str = ""
    tokens: Mapping[str, str] = field(default_factory=dict)
    files: Callable[[Any], Mapping[str, Mapping[str, Any]]] = lambda _: {}
    tokenizer: str = "PreTrainedTokenizerFast"


GROUNDING_TOKENS = ("[SEG]", "<p>", "</p>", "<vp>", "</vp>")
"""What a model with a grounder has in its vocabulary besides, in the order of their ids."""


Parse = Callable[[str, tuple[int, int] | None, Visual | None], tuple[str, tuple[Region, ...]]]
"""Reads an answer's marks, special tokens included: its text for people, then what it points at, in reading order.

One region for each segmentation token, without a box, and one for each place given in words, with a box in pixels of a
medium of that (height, width); without a medium there are no boxes. The last argument is how that medium was shown, for
a family whose numbers count in pixels of that.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """All that is known about one family of models; the only place a dispatcher looks.

    `claims` judges an official config.json by its content, never by a name. `architecture` reads the family's own
    configuration out of an official one; `key_table` leads from official names to ours, and `official` and `grounded`
    say how models without and with a grounder are written officially, if they are. `special_tokens` are those that its
    vocabulary has beyond ordinary text, in the order of their ids, without `GROUNDING_TOKENS`. `parse` reads its
    answers. `video_frames` is the plan of frames that it was published with. `prompts` are the questions per task, with
    `{phrase}` to be filled in. `groups` maps what a recipe may train to prefixes of names. `tokenizer` reads the one of
    a folder, of which any of `tokenizer_files` must be there.
    """

    name: str
    claims: Callable[[Mapping[str, Any]], bool]
    architecture: Callable[[Mapping[str, Any]], PreTrainedConfig]
    config: type[PreTrainedConfig]
    build: Callable[[Any], PreTrainedModel]
    processor: Callable[[Path, Any, str], Processor]
    key_table: Callable[[Any], KeyTable]
    special_tokens: tuple[str, ...]
    parse: Parse
    video_frames: str
    prompts: Mapping[str, str]
    groups: Mapping[str, tuple[str, ...]]
    official: Official | None = None
    grounded: Official | None = None
    tokenizer: Callable[[Path], PreTrainedTokenizerFast] = load_tokenizer
    tokenizer_files: tuple[str, ...] = TOKENIZER_FILES


def seg_states(hidden: Float[Tensor, "b s d"], ids: Int[Tensor, "b s"], seg_id: int | None) -> Float[Tensor, "n d"]:
    """States that stand on segmentation tokens, row by row in reading order; n may be 0, and is without such a token.

    Source: Sa2VA (arXiv 2501.04001): each such token asks the mask decoder for one object.
    """
    return hidden[ids == seg_id] if seg_id is not None else hidden.new_empty(0, hidden.shape[-1])


def positions(attention: Int[Tensor, "b s"]) -> Int[Tensor, "b s"]:
    """Position ids of left-padded rows: the first real token is 0; padding repeats 0."""
    return (attention.cumsum(-1) - 1).clamp(min=0)


def written(
    embeddings: Float[Tensor, "b s d"], batch: Batch, features: Float[Tensor, "v d"] | None
) -> Float[Tensor, "b s d"]:
    """Token embeddings with the features written over the visual tokens, in reading order.

    Raises: DataError, if features are missing or do not match the visual tokens in number.
    """
    if batch.visual_rows is None or batch.visual_places is None:
        return embeddings
    if features is None:
        raise DataError(f"{len(batch.visual_rows)} visual tokens have no features; encode the pixels first")
    places = batch.visual_places
    if int(places.sum()) != len(batch.visual_rows):
        raise DataError(
            f"the prompt has {int(places.sum())} visual tokens for {len(batch.visual_rows)} features; "
            "prepare and collate must agree"
        )
    return embeddings.masked_scatter(places[..., None], features[batch.visual_rows].to(embeddings))


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a language model reads at once: embeddings, where they stand, and which tokens up to their last one count.

    `attention` is as long as all that was read, k tokens, these among them. `positions` have an axis in front where a
    family counts along several. `extra` goes to the language model with this reading alone, not with what follows.
    """

    embeddings: Float[Tensor, "b s d"]
    attention: Int[Tensor, "b k"]
    positions: Int[Tensor, "*axes b s"]
    extra: Mapping[str, Any] = field(default_factory=dict)


Head = Callable[[Float[Tensor, "... d"]], Float[Tensor, "... v"]]
"""States to the scores of the next token."""


def read(
    language_model: Any, prompt: Prompt, labels: Int[Tensor, "b s"] | None, head: Head
) -> tuple[Float[Tensor, ""] | None, Float[Tensor, "b s d"]]:
    """Mean cross-entropy over the labelled tokens of a batch (`None` without labels), and its last states."""
    hidden = language_model.model(
        inputs_embeds=prompt.embeddings,
        attention_mask=prompt.attention,
        position_ids=prompt.positions,
        use_cache=False,
        **prompt.extra,
    ).last_hidden_state
    if labels is None:
        return None, hidden
    labelled = labels[:, 1:] != -100
    scores = head(hidden[:, :-1][labelled])
    return functional.cross_entropy(scores.float(), labels[:, 1:][labelled]), hidden


@torch.no_grad()
def decode(language_model: Any, prompt: Prompt, decoding: Decoding, head: Head) -> Steps:
    """Token ids step by step, one per row and `None` for rows that are over; returns one `Generation` per row.

    Close the generator to cancel. Only the states at segmentation tokens are kept, never a layer's or a step's others.

    Raises: ConfigError, for sampling settings out of range.
    """
    choose = _chooser(decoding)
    rows: list[list[int]] = [[] for _ in range(len(prompt.embeddings))]
    found: list[list[Tensor]] = [[] for _ in rows]
    reasons: list[StopReason] = ["length" for _ in rows]
    alive = [decoding.max_new_tokens > 0] * len(rows)
    owed = [False] * len(rows)
    reader = _Reader(language_model, prompt, decoding)
    while any(alive) or any(owed):
        hidden = reader.hidden()
        # PARITY(seg_state_at_token): the state is read where [SEG] is consumed, one step after it was chosen
        for row in (row for row, is_owed in enumerate(owed) if is_owed):
            found[row].append(hidden[row].clone())
        if not any(alive):
            break
        chosen = choose(head(hidden))
        reader.take(chosen)
        tokens: list[int | None] = [int(token) if alive[row] else None for row, token in enumerate(chosen)]
        owed = [token is not None and token == decoding.seg_id for token in tokens]
        for row, token in enumerate(tokens):
            if token is None:
                continue
            rows[row].append(token)
            if decoding.is_over(rows[row]):
                alive[row], reasons[row] = False, "stop"
            elif len(rows[row]) >= decoding.max_new_tokens:
                alive[row] = False
        yield tokens
    width = prompt.embeddings.shape[-1]
    return [
        Generation(ids, torch.stack(states) if states else prompt.embeddings.new_empty(0, width), reason)
        for ids, states, reason in zip(rows, found, reasons, strict=True)
    ]


class _Reader:
    """Reads a prompt, then one token per row at a time; `hidden` is the rows' states after the last of them.

    One row of a language model that `segue.models.static_decoding` knows goes on in a fixed cache on CUDA, where the
    next token is read while Python still looks at it. All else goes on in a growing cache, and reads when a state is
    asked for.
    """

    def __init__(self, language_model: Any, prompt: Prompt, decoding: Decoding):
        self.language_model = language_model
        self.cache, self.step = DynamicCache(), prompt
        self.unread: Tensor | None = None
        self.state: Tensor | None = None
        self.fixed: Fixed | None = None
        self.is_cuda = prompt.embeddings.device.type == "cuda"
        is_wanted = decoding.cache == "fixed" or (decoding.cache == "auto" and self.is_cuda)
        longest = int(prompt.positions.max()) + decoding.max_new_tokens
        self.wants_fixed = is_wanted and len(prompt.embeddings) == 1 and suits(language_model, longest)

    def take(self, chosen: Int[Tensor, " b"]) -> None:
        """One more token per row."""
        if self.wants_fixed and self.fixed is None:
            self.fixed = Fixed(self.language_model, self.cache, self.step.positions, graphs=True)
            self.cache = DynamicCache()
        self.unread = chosen
        if self.fixed is not None and self.is_cuda:
            self._read()

    def hidden(self) -> Float[Tensor, "b d"]:
        """The rows' states. They may be overwritten when the next token is taken."""
        if self.state is None or self.unread is not None:
            self._read()
        assert self.state is not None
        return self.state

    def _read(self) -> None:
        chosen, self.unread = self.unread, None
        if self.fixed is not None and chosen is not None:
            self.state = self.fixed(chosen)
            return
        if chosen is not None:
            self.step = _after(self.step, self.language_model.get_input_embeddings()(chosen[:, None]))
        output = self.language_model.model(
            inputs_embeds=self.step.embeddings,
            attention_mask=self.step.attention,
            position_ids=self.step.positions,
            past_key_values=self.cache,
            use_cache=True,
            **self.step.extra,
        )
        self.state = output.last_hidden_state[:, -1]


def _after(step: Prompt, embeddings: Float[Tensor, "b 1 d"]) -> Prompt:
    """One more token per row. It stands one beyond the furthest place there is, along every axis."""
    rows = step.positions.shape[-2]
    furthest = step.positions.reshape(-1, *step.positions.shape[-2:]).amax((0, 2)).view(rows, 1)
    attention = torch.cat([step.attention, step.attention.new_ones(rows, 1)], dim=1)
    return Prompt(embeddings, attention, (furthest + 1).expand(*step.positions.shape[:-1], 1))


def finished(steps: Steps) -> list[Generation]:
    """Run decoding to its end."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            generations: list[Generation] = done.value
            return generations


def check_computed(found: Tensor, what: str) -> None:
    """Refuse to answer from numbers that are none; infinite ones may be meant.

    Raises: CheckpointError.
    """
    if bool(found.isnan().any()):
        raise CheckpointError(
            f"the model computes NaN {what}, so it gives no answer: its weights are damaged (`segue doctor MODEL` "
            "looks at each), or too coarse a precision was chosen (--dtype fp32)"
        )


def _likeliest(logits: Float[Tensor, "b v"]) -> Int[Tensor, " b"]:
    best = logits.max(-1)  # NaN is the largest of all, so that this pass shows it
    check_computed(best.values, "for the next word")
    return best.indices


def _chooser(decoding: Decoding) -> Callable[[Float[Tensor, "b v"]], Int[Tensor, " b"]]:
    if not 0 <= decoding.temperature < math.inf or not 0 < decoding.top_p <= 1:
        raise ConfigError(
            f"temperature {decoding.temperature} and top_p {decoding.top_p} are out of range; "
            "expected temperature >= 0 and 0 < top_p <= 1"
        )
    if decoding.temperature == 0:
        return _likeliest
    warpers = LogitsProcessorList(
        [TemperatureLogitsWarper(float(decoding.temperature)), TopPLogitsWarper(decoding.top_p)]
    )
    generator: torch.Generator | None = None

    def sample(logits: Tensor) -> Tensor:
        nonlocal generator
        if generator is None:
            generator = torch.Generator(logits.device).manual_seed(decoding.seed)
        check_computed(logits, "for the next word")
        scores = warpers(torch.empty(len(logits), 0, dtype=torch.long, device=logits.device), logits.float())
        return torch.multinomial(scores.softmax(-1), 1, generator=generator)[:, 0]

    return sample
