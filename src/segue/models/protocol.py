"""What every model family offers, and what they share on the way from pixels and ids to states.

Letters in shapes: b rows, s tokens, d width, p tiles or patches, i images, v visual tokens, n objects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from segue.errors import DataError
from segue.models.known import KnownModel, Signs
from segue.models.pieces import Piece
from segue.models.templates import Template, TextTokenizer
from segue.models.tokenizers import TOKENIZER_FILES, load_tokenizer
from segue.types import MediaKind, Region
from segue.weights import KeyTable

PUBLISHED_TILES = 12
"""How many tiles of an image models were published with, the small copy of the whole not counted."""

Point = Literal["tower", "projected"]
"""Where what was computed of a medium can be kept: after the tower, or as the features that tokens stand for."""


@dataclass(frozen=True, slots=True)
class VisionInput:
    """A medium as a family's language model sees it: from pixels, or from what was computed of them before.

    Exactly one of `pixels`, tower `states` and `features` is there. Pixels are tiles `p 3 h w`, or `p c` patches of
    images that keep their resolution: then `grids` are each image's rows and columns of patches. `text` is the prompt
    text that holds the medium's place, `rows` the rows of features that its visual tokens stand for, in reading order,
    and `num_features` how many rows there are.
    """

    text: str
    rows: Int[Tensor, " v"]
    num_features: int
    pixels: Float[Tensor, "p ..."] | None = None
    grids: Int[Tensor, "i 2"] | None = None
    states: Float[Tensor, "p ..."] | None = None
    features: Float[Tensor, "f e"] | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of token ids, ready for a model, and what they show.

    Rows are padded on the left where `attention` is 0. `labels` are the ids to be learned, -100 elsewhere. What all
    rows show comes as `pixels`, tower `states` or `features`, as in `VisionInput`; `visual_places` marks the visual
    tokens, and `visual_rows` names for each of them in reading order the row of the features that stands there (one
    feature may stand in several places: region prompts, questions that share an image).
    """

    input_ids: Int[Tensor, "b s"]
    attention: Int[Tensor, "b s"]
    labels: Int[Tensor, "b s"] | None = None
    pixels: Float[Tensor, "p ..."] | None = None
    visual_places: Bool[Tensor, "b s"] | None = None
    visual_rows: Int[Tensor, " v"] | None = None
    grids: Int[Tensor, "i 2"] | None = None
    states: Float[Tensor, "p ..."] | None = None
    features: Float[Tensor, "f e"] | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        parts: dict[str, Any] = {part.name: getattr(self, part.name) for part in fields(self)}
        return replace(self, **{name: part.to(device) for name, part in parts.items() if part is not None})

    def with_features(self, features: Float[Tensor, "f e"] | None) -> Batch:
        """The same batch with features in place of what they were computed from."""
        return replace(self, pixels=None, states=None, features=features)


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

    def image(self, pixels: UInt8[np.ndarray, "h w 3"], *, max_tiles: int) -> VisionInput:
        """One image in as many tiles as suit its shape; without tiles, at a resolution that `max_tiles` scales."""
        ...

    def frames(self, pixels: UInt8[np.ndarray, "t h w 3"]) -> VisionInput:
        """Frames of a video, one tile each."""
        ...

    def placeholder(self, kind: MediaKind, num_features: int, grids: Int[Tensor, "i 2"] | None) -> str:
        """The prompt text that holds the place of a medium with so many features, or of images with these grids."""
        ...

    def regions(self, vision: VisionInput, masks: Bool[np.ndarray, "n h w"]) -> VisionInput:
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
    """A language model that sees: `tower`, then `project`, then the language model. What the first two compute can be
    kept.

    Features may be wider than the language model, where more than its input embeddings is fed by them.
    """

    width: int
    language_model: nn.Module

    def tower(self, pixels: Float[Tensor, "p ..."], grids: Int[Tensor, "i 2"] | None = None) -> Float[Tensor, "q ..."]:
        """States of the vision tower for the pixels and grids of a `VisionInput` or `Batch`."""
        ...

    def project(self, states: Float[Tensor, "q ..."], grids: Int[Tensor, "i 2"] | None = None) -> Float[Tensor, "f e"]:
        """Visual features of tower states, one row per visual token."""
        ...

    def below(self, point: Point) -> dict[str, Tensor]:
        """The weights that states or features depend on, by name."""
        ...

    def prompt(self, batch: Batch) -> Prompt:
        """What the language model reads of a batch: its embeddings with the features written in, and positions."""
        ...

    def forward(self, batch: Batch) -> tuple[Float[Tensor, ""] | None, Float[Tensor, "b s d"]]:
        """Loss over the labels, if there are any, and the state that a segmentation token is read from."""
        ...

    def head(self, hidden: Float[Tensor, "... d"]) -> Float[Tensor, "... v"]:
        """Scores of all tokens to come after states of `forward`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Official:
    """An official layout of a family's models.

    `architecture` is the class that config.json names. `prefix` is a pattern of what stands before each name of the
    family's key table. `config` makes the other fields of config.json from the family's own configuration; `tokens` are
    fields beside them that hold a token's id; `files` are further small JSON files by name. `tokenizer` is the class by
    which the original's library, transformers 4, reads `tokenizer.json`; `save_tokenizer` writes another form of it
    that the original reads.
    """

    architecture: str
    config: Callable[[Any], dict[str, Any]]
    prefix: str = ""
    tokens: Mapping[str, str] = field(default_factory=dict)
    files: Callable[[Any], Mapping[str, Mapping[str, Any]]] = lambda _: {}
    tokenizer: str = "PreTrainedTokenizerFast"
    save_tokenizer: Callable[[PreTrainedTokenizerFast, Path], None] | None = None


GROUNDING_TOKENS = ("[SEG]", "<p>", "</p>", "<vp>", "</vp>")
"""What a model with a grounder has in its vocabulary besides, in the order of their ids."""


Parse = Callable[[str, tuple[int, int] | None, VisionInput | None], tuple[str, tuple[Region, ...]]]
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
    answers. `template` names the chat template of an official folder that does not say it itself. `video_frames` is the
    plan of frames that it was published with. `prompts` are the questions per task, with `{phrase}` to be filled in.
    `groups` maps what a recipe may train to prefixes of names. `signs` tell its tensors, and `known` are its published
    models by name. `tokenizer` reads the one of a folder, of which any of `tokenizer_files` must be there.
    """

    name: str
    claims: Callable[[Mapping[str, Any]], bool]
    architecture: Callable[[Mapping[str, Any]], PreTrainedConfig]
    config: type[PreTrainedConfig]
    build: Callable[[Any], PreTrainedModel]
    processor: Callable[[Path, Any, str], Processor]
    key_table: Callable[[Any], KeyTable]
    special_tokens: tuple[str, ...]
    signs: Signs
    parse: Parse
    video_frames: str
    prompts: Mapping[str, str]
    groups: Mapping[str, tuple[str, ...]]
    template: Callable[[Path], str] = lambda _: "qwen_chat"
    official: Official | None = None
    grounded: Official | None = None
    known: Mapping[str, KnownModel] = field(default_factory=dict)
    tokenizer: Callable[[Path], PreTrainedTokenizerFast] = load_tokenizer
    tokenizer_files: tuple[str, ...] = TOKENIZER_FILES


def shown_as(
    processor: Processor,
    kind: MediaKind,
    num_features: int,
    *,
    grids: Int[Tensor, "i 2"] | None = None,
    **given: Tensor,
) -> VisionInput:
    """A medium of so many features, each shown once, given as `pixels`, `states` or `features`."""
    text = processor.placeholder(kind, num_features, grids)
    return VisionInput(text, torch.arange(num_features), num_features, grids=grids, **given)


def weights_of(model: nn.Module, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """Floating tensors of a model whose names begin in one of these ways."""
    tensors = model.state_dict().items()
    return {name: tensor for name, tensor in tensors if name.startswith(prefixes) and tensor.is_floating_point()}


def seg_states(hidden: Float[Tensor, "b s d"], ids: Int[Tensor, "b s"], seg_id: int | None) -> Float[Tensor, "n d"]:
    """States that stand on segmentation tokens, row by row in reading order; n may be 0, and is without such a token.

    Source: Sa2VA (arXiv 2501.04001): each such token asks the mask decoder for one object.
    """
    return hidden[ids == seg_id] if seg_id is not None else hidden.new_empty(0, hidden.shape[-1])


def positions(attention: Int[Tensor, "b s"]) -> Int[Tensor, "b s"]:
    """Position ids of left-padded rows: the first real token is 0; padding repeats 0."""
    return (attention.cumsum(-1) - 1).clamp(min=0)


def visual_features(mllm: MLLM, batch: Batch) -> Float[Tensor, "f e"] | None:
    """The features of all that a batch shows, from whatever point it carries; `None` if it shows nothing."""
    if batch.features is not None or (batch.states is None and batch.pixels is None):
        return batch.features
    states = batch.states
    if batch.pixels is not None:
        states = mllm.tower(batch.pixels, batch.grids)
    assert states is not None
    return mllm.project(states, batch.grids)


def merge_visual_embeddings(
    embeddings: Float[Tensor, "b s d"], batch: Batch, features: Float[Tensor, "f e"] | None
) -> Float[Tensor, "b s d"]:
    """Token embeddings with the features written over the visual tokens, in reading order. Of wider features, the
    first d numbers count.

    Raises: DataError, if features are missing or do not match the visual tokens in number.
    """
    if batch.visual_rows is None or batch.visual_places is None:
        return embeddings
    if features is None:
        raise DataError(f"{len(batch.visual_rows)} visual tokens have no features; give the batch pixels or features")
    places = batch.visual_places
    if int(places.sum()) != len(batch.visual_rows):
        raise DataError(
            f"the prompt has {int(places.sum())} visual tokens for {len(batch.visual_rows)} features; "
            "prepare and collate must agree"
        )
    seen = features[batch.visual_rows, : embeddings.shape[-1]]
    return embeddings.masked_scatter(places[..., None], seen.to(embeddings))


def restart_rotary(language_model: Any) -> None:
    """Let rotary angles that stretch with what is read begin anew: the library's module keeps the longest so far."""
    rotary = language_model.model.rotary_emb
    if rotary.rope_type == "dynamic":
        rotary.inv_freq, rotary.max_seq_len_cached = rotary.original_inv_freq, rotary.original_max_seq_len


def forward_loss(mllm: Any, batch: Batch) -> tuple[Float[Tensor, ""] | None, Float[Tensor, "b s d"]]:
    """Mean cross-entropy over the labelled tokens of a batch (`None` without labels), and its last states."""
    prompt = mllm.prompt(batch)
    restart_rotary(mllm.language_model)
    hidden = mllm.language_model.model(
        inputs_embeds=prompt.embeddings,
        attention_mask=prompt.attention,
        position_ids=prompt.positions,
        use_cache=False,
        **prompt.extra,
    ).last_hidden_state
    if batch.labels is None:
        return None, hidden
    labelled = batch.labels[:, 1:] != -100
    scores = mllm.head(hidden[:, :-1][labelled])
    return functional.cross_entropy(scores.float(), batch.labels[:, 1:][labelled]), hidden
