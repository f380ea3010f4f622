"""One row's next token at a time over a cache of fixed size: the same few operations each time, at the same places in
memory, so that CUDA can record them once and replay them.

Reading one token is bound by memory: every weight is read once. Launched one by one from Python, the small operations
between the matrix products take longer than the products themselves; replayed as one graph they do not. The library's
own layers are not called: they cut tensors by lengths that Python knows, and spend a dozen launches where one does.
Their weights are read where they lie, so nothing is stored twice.

Letters in shapes: d width, q query heads, g key-value heads, w width of a head, r room of the cache.
"""

from __future__ import annotations

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

# layers whose arithmetic is that of `through`
LAYERS = (LlamaDecoderLayer, Qwen2DecoderLayer, Qwen3DecoderLayer, Qwen2_5_VLDecoderLayer, Qwen3VLTextDecoderLayer)
ROOM = 256  # the cache grows by this many tokens


def suits(language_model: Any, longest: int) -> bool:
    """Whether this module knows the language model's layers and may read their weights where they lie.

    Not so for weights that are quantised, adapted or elsewhere until a hook brings them, nor for sliding windows, nor
    for encodings of places that change with the length, if prompt and answer may come to be that long: `longest`.
    """
    text = language_model.model
    kinds = getattr(text.config, "layer_types", None) or ()
    if any(kind != "full_attention" for kind in kinds):
        return False
    steady = text.rotary_emb.rope_type in ("default", "linear", "llama3", "yarn")
    if not steady and longest + ROOM > text.config.max_position_embeddings:
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


class Fixed:
    """What one row has read, in a cache with room for more; called with a token, it reads that too.

    Built from the cache that the prompt was read into, which it copies; `places` are where its tokens stand. With
    `graphs`, on CUDA, the step is recorded as a graph at the first call, and anew when the cache has grown.
    """

    def __init__(self, language_model: Any, cache: DynamicCache, places: Int[Tensor, "*axes 1 s"], *, graphs: bool):
        self.embed = language_model.get_input_embeddings()
        self.text = language_model.model
        self.graphs = graphs
        keys = [layer.keys[0] for layer in cache.layers]
        values = [layer.values[0] for layer in cache.layers]
        self.read = keys[0].shape[1]
        self.axes = places.shape[:-2]
        self.ahead = int(places.max()) + 1 - self.read
        self.device, self.dtype = keys[0].device, keys[0].dtype
        self.token = torch.zeros(1, dtype=torch.long, device=self.device)
        self.hidden: Tensor | None = None
        self._make_room(keys, values)

    def _make_room(self, keys: list[Tensor], values: list[Tensor]) -> None:
        self.room = (self.read // ROOM + 1) * ROOM
        width = keys[0].shape[-1]
        more = (0, 0, 0, self.room - self.read)
        self.keys = [functional.pad(layer[:, : self.read], more) for layer in keys]
        self.values = [functional.pad(layer[:, : self.read], more) for layer in values]
        # where a token is written, and which are there to be read; both move on by themselves
        self.place = torch.full((1,), self.read, dtype=torch.long, device=self.device)
        self.mask = torch.full((self.room,), float("-inf"), dtype=self.dtype, device=self.device)
        self.mask[: self.read] = 0
        places = (torch.arange(self.room, device=self.device) + self.ahead).clamp(min=0)
        # along several axes, a token of text stands equally far on each
        cosine, sine = self.text.rotary_emb(keys[0], places.expand(*self.axes, 1, -1))
        self.cosine = cosine.reshape(-1, self.room, width)[0].contiguous()
        half = sine.reshape(-1, self.room, width)[0].clone()
        half[:, : width // 2].neg_()
        self.sine = half
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, token: Int[Tensor, " 1"]) -> Float[Tensor, "1 d"]:
        """The state after one more token. It is overwritten by the next call."""
        if self.read == self.room:
            self._make_room(self.keys, self.values)
        self.token.copy_(token)
        if self.graphs and self.device.type == "cuda" and self.graph is None:
            self._record()
        self.read += 1
        if self.graph is not None:
            self.graph.replay()
        else:
            self._step()
        assert self.hidden is not None
        return self.hidden

    def _record(self) -> None:
        # CUDA wants a step run beforehand, on another stream; what it has written the first true step overwrites
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            self._step()
            self._step_back()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._step()

    def _step_back(self) -> None:
        self.place.sub_(1)
        self.mask.index_fill_(0, self.place, float("-inf"))

    def _step(self) -> None:
        self.mask.index_fill_(0, self.place, 0)
        cosine, sine = self.cosine.index_select(0, self.place), self.sine.index_select(0, self.place)
        hidden = self.embed(self.token)
        for layer, keys, values in zip(self.text.layers, self.keys, self.values, strict=True):
            hidden = through(layer, hidden, (cosine, sine), (keys, values), (self.mask, self.place))
        self.hidden = self.text.norm(hidden)
        self.place.add_(1)


def through(
    layer: Any,
    hidden: Float[Tensor, "1 d"],
    turns: tuple[Float[Tensor, "1 w"], Float[Tensor, "1 w"]],
    cache: tuple[Float[Tensor, "g r w"], Float[Tensor, "g r w"]],
    now: tuple[Float[Tensor, " r"], Int[Tensor, " 1"]],
) -> Float[Tensor, "1 d"]:
    """One token through one layer; its key and value are written into the cache.

    `turns` are the cosines and signed sines of its place, `now` the mask over the cache and the index to write at.
    """
    attention, width = layer.self_attn, layer.self_attn.head_dim
    keys, values = cache
    mask, place = now
    normed = _norm(layer.input_layernorm, hidden)
    query = attention.q_proj(normed).view(-1, width)
    key = attention.k_proj(normed).view(-1, width)
    value = attention.v_proj(normed).view(-1, 1, width)
    if hasattr(attention, "q_norm"):
        query, key = _norm(attention.q_norm, query), _norm(attention.k_norm, key)
    turned = _turned(torch.cat([query, key]), *turns)
    keys.index_copy_(1, place, turned[len(query) :, None])
    values.index_copy_(1, place, value)
    seen = attend(turned[: len(query)], keys, values, mask, attention.scaling)
    hidden = hidden + attention.o_proj(seen)
    normed = _norm(layer.post_attention_layernorm, hidden)
    mlp = layer.mlp
    return hidden + mlp.down_proj(mlp.act_fn(mlp.gate_proj(normed)) * mlp.up_proj(normed))


def attend(
    query: Float[Tensor, "q w"],
    keys: Float[Tensor, "g r w"],
    values: Float[Tensor, "g r w"],
    mask: Float[Tensor, " r"],
    scale: float,
) -> Float[Tensor, "1 qw"]:
    """Attention of one token. Query heads that share a key-value head are its rows, so keys are never repeated."""
    groups = len(keys)
    rows = query.view(1, groups, -1, query.shape[-1])
    seen = functional.scaled_dot_product_attention(
        rows, keys[None], values[None], attn_mask=mask.expand(1, groups, rows.shape[2], -1), scale=scale
    )
    return seen.reshape(1, -1)


def _norm(norm: Any, hidden: Float[Tensor, "... w"]) -> Float[Tensor, "... w"]:
    return functional.rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _turned(
    heads: Float[Tensor, "h w"], cosine: Float[Tensor, "1 w"], sine: Float[Tensor, "1 w"]
) -> Float[Tensor, "h w"]:
    # the sign of the first half lies in the sines, so that turning is one shift and one fused product
    return torch.addcmul(heads * cosine, heads.roll(heads.shape[-1] // 2, -1), sine)
