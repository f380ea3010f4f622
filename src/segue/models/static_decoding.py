"""The next token of a few rows at a time over a cache of fixed size: the same few operations each time, at the same
places in memory, so that CUDA can record them once and replay them.

Reading one token is bound by memory: every weight is read once. Launched one by one from Python, the small operations
between the matrix products take longer than the products themselves; replayed as one graph they do not. The library's
own layers are not called: they cut tensors by lengths that Python knows, and spend a dozen launches where one does.
Their weights are read where they lie, so nothing is stored twice.

Letters in shapes: b rows, d width, q query heads, g key-value heads, w width of a head, r room of the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLDecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextDecoderLayer

from segue.models.protocol import Prompt

# layers whose arithmetic is that of `decode_layer`
LAYERS = (LlamaDecoderLayer, Qwen2DecoderLayer, Qwen3DecoderLayer, Qwen2_5_VLDecoderLayer, Qwen3VLTextDecoderLayer)
STEADY = ("default", "linear", "llama3", "yarn")  # rotary encodings that no length changes
CHANGING = ("dynamic", "longrope")  # those that the longest row of a batch changes for all
ROOM = 256  # tokens of the smallest cache; larger ones are a power of 2 times that


def decodes_alone(language_model: Any, longest: int) -> bool:
    """Whether a row of up to `longest` tokens must share no step: its length would change how others' places are
    encoded.
    """
    text = language_model.model
    return text.rotary_emb.rope_type in CHANGING and longest > text.config.max_position_embeddings


def supports_static_decoding(language_model: Any, longest: int) -> bool:
    """Whether this module knows the language model's layers and may read their weights where they lie.

    Not so for weights that are quantised, adapted or elsewhere until a hook brings them, nor for sliding windows, nor
    for encodings of places that change with the length, if prompt and answer may come to be `longest` tokens.
    """
    text = language_model.model
    kinds = getattr(text.config, "layer_types", None) or ()
    if any(kind != "full_attention" for kind in kinds):
        return False
    if text.rotary_emb.rope_type not in STEADY and longest > text.config.max_position_embeddings:
        return False
    if not all(type(layer) in LAYERS for layer in text.layers):
        return False
    projections = (
        part for layer in text.layers for name, part in layer.named_modules() if name.endswith("_proj") and "." in name
    )
    if not all(type(part) is nn.Linear for part in projections):
        return False
    return not any(
        part._forward_hooks or part._forward_pre_hooks or hasattr(part, "_hf_hook") for part in text.modules()
    )


class StaticDecoder:
    """What some rows have read, in a cache with room for more; `read` takes a token for each.

    Buffers and recordings are kept when the rows go, so that the next ones find them: of each number of rows and each
    room, in powers of two, a step is recorded as a graph once. With `graphs` off, or not on CUDA, steps are run.
    """

    def __init__(self, language_model: Any, *, graphs: bool = True):
        self.embed = language_model.get_input_embeddings()
        self.text = language_model.model
        self.graphs = graphs
        self.lengths: list[int] = []
        self.keys: list[Float[Tensor, "b g r w"]] = []
        self.values: list[Float[Tensor, "b g r w"]] = []
        self.mask: Float[Tensor, "b r"]
        self.token: Int[Tensor, " b"]
        self.place: Int[Tensor, " b"]
        self.position: Int[Tensor, " b"]
        self.alive: Int[Tensor, " b"]
        self.recorded: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def add(self, cache: DynamicCache, prompt: Prompt) -> None:
        """Rows whose prompt was read into a cache of their own; it is copied without its padding."""
        lengths = prompt.attention.sum(1).tolist()
        first = len(self.lengths)
        self._reserve(first + len(lengths), max([*self.lengths, *lengths]) + 1, cache)
        last = prompt.positions.reshape(-1, *prompt.positions.shape[-2:]).amax((0, 2))
        for number, length in enumerate(lengths):
            row = first + number
            shown = prompt.attention[number].bool()
            for layer, mine in enumerate(cache.layers):
                self.keys[layer][row, :, :length] = mine.keys[number][:, shown]
                self.values[layer][row, :, :length] = mine.values[number][:, shown]
            self.mask[row] = float("-inf")
            self.mask[row, :length] = 0
            self.place[row], self.position[row], self.alive[row] = length, last[number] + 1, 1
        self.lengths += lengths

    def _reserve(self, rows: int, room: int, like: DynamicCache) -> None:
        """Buffers for so many rows and tokens; larger ones hold what there was, and have no recordings yet."""
        held = self.keys[0].shape if self.keys else (0, 0, 0, 0)
        if rows <= held[0] and room <= held[2]:
            return
        size, length = _power(max(rows, held[0])), ROOM * _power(-(-max(room, held[2]) // ROOM))
        keys = like.layers[0].keys
        heads, width, device, old = keys.shape[1], keys.shape[3], keys.device, self.keys + self.values
        new = [keys.new_zeros(size, heads, length, width) for _ in range(2 * len(like.layers))]
        for mine, theirs in zip(new, old, strict=False):  # at first there are no old ones
            mine[: held[0], :, : held[2]] = theirs
        self.keys, self.values = new[: len(new) // 2], new[len(new) // 2 :]
        mask = torch.full((size, length), float("-inf"), dtype=keys.dtype, device=device)
        counts = torch.zeros(4, size, dtype=torch.long, device=device)
        if old:
            mask[: held[0], : held[2]] = self.mask
            counts[:, : held[0]] = torch.stack([self.token, self.place, self.position, self.alive])
        self.mask = mask
        # `place` is where a token is written, `position` where it stands; rows that are not `alive` stay at 0
        self.token, self.place, self.position, self.alive = counts
        self.recorded = {}
        self._turns(length)

    def _turns(self, length: int) -> None:
        """Cosines and signed sines of all positions. Along several axes, a token of text stands equally far on each."""
        steady = length if self.text.rotary_emb.rope_type in STEADY else self.text.config.max_position_embeddings
        positions = torch.arange(length, device=self.mask.device).clamp(max=steady - 1)[None]
        if "mrope_section" in (self.text.config.rope_parameters or {}):
            positions = positions.expand(3, -1, -1)
        width = self.keys[0].shape[3]
        turns = self.text.rotary_emb(self.keys[0], positions)
        cosine, sine = (each.reshape(-1, length, width)[0] for each in turns)
        self.cosine, self.sine = cosine.contiguous(), sine.clone()
        self.sine[:, : width // 2].neg_()

    def read(self, tokens: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """The rows' states after one more token each. They are overwritten by the next call."""
        rows, longest = len(self.lengths), max(self.lengths) + 1
        if longest > self.mask.shape[1]:
            self._reserve(rows, longest, self._as_cache())
        self.lengths = [length + 1 for length in self.lengths]
        self.token[:rows] = tokens
        size, room = _power(rows), ROOM * _power(-(-longest // ROOM))
        if not self.graphs or self.token.device.type != "cuda":
            return self._step(size, room)[:rows]
        if (size, room) not in self.recorded:
            self.recorded[size, room] = self._record(size, room)
        graph, hidden = self.recorded[size, room]
        graph.replay()
        return hidden[:rows]

    def keep(self, rows: Sequence[int]) -> None:
        """Let go of all rows but these, in this order."""
        count, longest = len(rows), max(self.lengths, default=0)
        chosen = torch.tensor(rows, dtype=torch.long, device=self.mask.device)
        for layer in [*self.keys, *self.values]:
            layer[:count, :, :longest] = layer[chosen, :, :longest]
        for each in (self.mask, self.place, self.position, self.alive):
            each[:count] = each[chosen]
        self.mask[count:] = float("-inf")
        for each in (self.token, self.place, self.position, self.alive):
            each[count:] = 0
        self.lengths = [self.lengths[row] for row in rows]

    def _as_cache(self) -> DynamicCache:
        cache = DynamicCache()
        for number, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            cache.update(keys[:1, :, :1], values[:1, :, :1], number)
        return cache

    def _record(self, size: int, room: int) -> tuple[torch.cuda.CUDAGraph, Float[Tensor, "b d"]]:
        # CUDA wants a step run beforehand, on another stream; what it has written the first true step overwrites
        stream = torch.cuda.Stream(self.token.device)
        stream.wait_stream(torch.cuda.current_stream(self.token.device))
        with torch.cuda.stream(stream):
            self._step(size, room)
            self.place[:size].sub_(self.alive[:size])
            self.position[:size].sub_(self.alive[:size])
            self.mask[:size].scatter_(1, self.place[:size, None], float("-inf"))
        torch.cuda.current_stream(self.token.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            hidden = self._step(size, room)
        return graph, hidden

    def _step(self, size: int, room: int) -> Float[Tensor, "b d"]:
        mask, place, position = self.mask[:size], self.place[:size], self.position[:size]
        mask.scatter_(1, place[:, None], 0)
        turns = self.cosine.index_select(0, position)[:, None], self.sine.index_select(0, position)[:, None]
        rows, heads = (torch.arange(count, device=place.device) for count in (size, self.keys[0].shape[1]))
        where = rows[:, None], heads, place[:, None]
        hidden = self.embed(self.token[:size])
        for layer, keys, values in zip(self.text.layers, self.keys, self.values, strict=True):
            cache = keys[:size, :, :room], values[:size, :, :room]
            hidden = decode_layer(layer, hidden, turns, cache, (mask[:, :room], where))
        place.add_(self.alive[:size])
        position.add_(self.alive[:size])
        state: Float[Tensor, "b d"] = self.text.norm(hidden)
        return state


def _power(count: int) -> int:
    """The least power of two that is at least so many."""
    return 1 << (count - 1).bit_length()


def decode_layer(
    layer: Any,
    hidden: Float[Tensor, "b d"],
    turns: tuple[Float[Tensor, "b 1 w"], Float[Tensor, "b 1 w"]],
    cache: tuple[Float[Tensor, "b g r w"], Float[Tensor, "b g r w"]],
    now: tuple[Float[Tensor, "b r"], tuple[Int[Tensor, "*_"], ...]],
) -> Float[Tensor, "b d"]:
    """One token of each row through one layer; its key and value are written into the cache.

    `turns` are the cosines and signed sines of its place, `now` the masks over the cache and the places to write at:
    row, head and index of each.
    """
    attention, width = layer.self_attn, layer.self_attn.head_dim
    keys, values = cache
    mask, where = now
    normed = _norm(layer.input_layernorm, hidden)
    query, key, value = (
        project(normed).view(len(hidden), -1, width)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if hasattr(attention, "q_norm"):
        query, key = _norm(attention.q_norm, query), _norm(attention.k_norm, key)
    turned = _rotated(torch.cat([query, key], dim=1), *turns)
    query, key = turned.split([query.shape[1], key.shape[1]], dim=1)
    keys.index_put_(where, key)
    values.index_put_(where, value)
    hidden = hidden + attention.o_proj(attend(query, keys, values, mask, attention.scaling))
    normed = _norm(layer.post_attention_layernorm, hidden)
    mlp = layer.mlp
    return hidden + mlp.down_proj(mlp.act_fn(mlp.gate_proj(normed)) * mlp.up_proj(normed))


def attend(
    query: Float[Tensor, "b q w"],
    keys: Float[Tensor, "b g r w"],
    values: Float[Tensor, "b g r w"],
    mask: Float[Tensor, "b r"],
    scale: float,
) -> Float[Tensor, "b qw"]:
    """Attention of one token per row. Query heads that share a key-value head are its rows: keys are never repeated."""
    groups = keys.shape[1]
    rows = query.unflatten(1, (groups, -1))
    seen = functional.scaled_dot_product_attention(
        rows, keys, values, attn_mask=mask[:, None, None].expand(-1, groups, rows.shape[2], -1), scale=scale
    )
    return seen.flatten(1)


def _norm(norm: Any, hidden: Float[Tensor, "... w"]) -> Float[Tensor, "... w"]:
    return functional.rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _rotated(
    heads: Float[Tensor, "b h w"], cosine: Float[Tensor, "b 1 w"], sine: Float[Tensor, "b 1 w"]
) -> Float[Tensor, "b h w"]:
    # the sign of the first half lies in the sines, so that turning is one shift and one fused product
    return torch.addcmul(heads * cosine, heads.roll(heads.shape[-1] // 2, -1), sine)
