"""The vision tower alone: every visual token, and every patch, learns to tell what it shows.

The tower runs as few large matrix products in bfloat16 where that is faster, sums and norms in float32; what it learns
by, linear heads on the projector's features and on the patches, is thrown away in the end.

Letters in shapes: b tiles, p patches of a tile, v visual tokens of a tile, k things, t the side of a tile, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from segue.loading import multiplies_bf16
from segue.models.internvl.family import DEVIATION, MEAN, InternVLMLLM, pixel_shuffle
from segue.synth.backgrounds import BACKGROUNDS
from segue.train.from_scratch.collage import NAMES, Collage

PRODUCTS = torch.bfloat16 if multiplies_bf16() else torch.float32
"""The precision of products of the parts that learn on a CPU."""
EDGES = 24  # places that an edge of a box can have along a side
_SHOWN, _GLIMPSED, _EMPTY = 0.3, 0.05, 0.03
_NOWHERE = -1
_WEIGHTS = {"kind": 1.5, "colour": 0.7, "texture": 2.0, "size": 0.5, "edges": 0.5, "covers": 0.3}
_PATCH_WEIGHTS = {"kind": 1.0, "colour": 0.3, "texture": 1.6}
_SIZES = tuple(len(names) + 1 for names in NAMES)  # the last of each is the background
_TEXTURES = len(NAMES[2])
_PATCH_SIZES = (*_SIZES[:2], _TEXTURES + len(BACKGROUNDS) + 1)  # a background has its kind for a texture


def tower_states(mllm: InternVLMLLM, tiles: Float[Tensor, "b 3 t t"]) -> Float[Tensor, "b p d"]:
    """The states of all patches after the last layer, as `mllm.vision_tower` gives them."""
    tower, config = mllm.vision_tower, mllm.config.vision_config
    width, heads, patch = config.hidden_size, config.num_attention_heads, config.patch_size[0]
    count, side = len(tiles), tiles.shape[-1] // patch
    cut = tiles.view(count, 3, side, patch, side, patch).permute(0, 2, 4, 1, 3, 5).reshape(count, side**2, -1)
    embeddings = tower.embeddings
    projection = embeddings.patch_embeddings.projection
    states = linear(cut, projection.weight.flatten(1), projection.bias)
    states = torch.cat([embeddings.cls_token.expand(count, -1, -1), states], 1) + embeddings.position_embeddings
    for layer in tower.encoder.layer:
        attention, mlp = layer.attention, layer.mlp
        joined = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
        three = linear(layer.layernorm_before(states), joined).to(PRODUCTS).view(count, -1, 3, heads, width // heads)
        query, key, value = three.permute(2, 0, 3, 1, 4).unbind(0)
        # on CPUs scaled_dot_product_attention takes twice as long on its way back
        shares = (query * attention.scale @ key.transpose(-1, -2)).softmax(-1)
        seen = (shares @ value).transpose(1, 2).reshape(count, -1, width)
        out = attention.projection_layer
        states = states + layer.lambda_1 * linear(seen, out.weight, out.bias)
        inner = functional.gelu(linear(layer.layernorm_after(states), mlp.fc1.weight, mlp.fc1.bias).to(PRODUCTS))
        states = states + layer.lambda_2 * linear(inner, mlp.fc2.weight, mlp.fc2.bias)
    return states[:, 1:]


def visual_features(mllm: InternVLMLLM, states: Float[Tensor, "b p d"]) -> Float[Tensor, "b v w"]:
    """The projector's features of the visual tokens, as `mllm.encode` gives them."""
    config = mllm.config
    shuffled = pixel_shuffle(states, config.downsample_ratio, config.shuffle_version)
    norm, first, _, last = cast(Any, mllm.projector)
    inner = functional.gelu(linear(norm(shuffled), first.weight, first.bias).to(PRODUCTS))
    return linear(inner, last.weight, last.bias)


def linear(
    values: Float[Tensor, "*n i"], weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None = None
) -> Tensor:
    """A linear layer, its product in `PRODUCTS`, the result in float32."""
    return functional.linear(
        values.to(PRODUCTS), weight.to(PRODUCTS), None if bias is None else bias.to(PRODUCTS)
    ).float()


class Heads(nn.Module):
    """What is told of visual tokens and of patches, as scores side by side."""

    def __init__(self, features: int, states: int):
        super().__init__()
        self.splits = (*_PATCH_SIZES, _SIZES[3], *(EDGES,) * 4, 2)
        self.token = nn.Linear(features, sum(self.splits))
        self.norm = nn.LayerNorm(states)
        self.patch = nn.Linear(states, sum(_PATCH_SIZES))


@dataclass(frozen=True, slots=True)
class Labels:
    """What is to be told; -1 where nothing is. `things` is which thing a token shows, `edges` the places of its box."""

    things: Int[Tensor, "b v"]
    names: Int[Tensor, "b v 4"]
    edges: Int[Tensor, "b v 4"]
    covers: Int[Tensor, "b v 2"]
    patches: Int[Tensor, "b p 3"]


def sight_losses(
    mllm: InternVLMLLM, heads: Heads, tiles: Float[Tensor, "b 3 t t"], labels: Labels
) -> dict[str, Float[Tensor, ""]]:
    """Cross-entropies by name, and their weighted sum as `loss`."""
    states = tower_states(mllm, tiles)
    told = told_of(heads, visual_features(mllm, states))
    losses = {
        name: _entropy(scores, labels.names[..., number])
        for number, (name, scores) in enumerate(zip(("kind", "colour", "texture", "size"), told, strict=False))
    }
    losses["edges"] = torch.stack([_entropy(told[4 + edge], labels.edges[..., edge]) for edge in range(4)]).mean()
    is_known = labels.covers >= 0
    covers = functional.binary_cross_entropy_with_logits(
        told[8], labels.covers.clamp(min=0).float(), is_known.float(), reduction="sum"
    )
    losses["covers"] = covers / is_known.sum().clamp(min=1)
    total = torch.stack([weight * losses[name] for name, weight in _WEIGHTS.items()]).sum()
    patches = heads.patch(heads.norm(states)).split(_PATCH_SIZES, -1)
    for number, (name, weight) in enumerate(_PATCH_WEIGHTS.items()):
        losses[f"patch {name}"] = _entropy(patches[number], labels.patches[..., number])
        total = total + weight * losses[f"patch {name}"]
    return {"loss": total, **losses}


def told_of(heads: Heads, features: Float[Tensor, "b v w"]) -> Sequence[Float[Tensor, "b v x"]]:
    """Scores of kinds, colours, textures, sizes, of the four edges, and of hiding and being hidden."""
    scores: Tensor = heads.token(functional.rms_norm(features, features.shape[-1:]))
    return scores.split(heads.splits, -1)


def _entropy(scores: Float[Tensor, "b n x"], wanted: Int[Tensor, "b n"]) -> Float[Tensor, ""]:
    return functional.cross_entropy(scores.flatten(0, 1), wanted.flatten(), ignore_index=_NOWHERE)


def pixels_of(tiles: Sequence[UInt8[np.ndarray, "t t 3"]]) -> Float[Tensor, "b 3 t t"]:
    """Tiles as the tower reads them."""
    stacked = torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2)
    return (stacked / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)


def labels_of(collages: Sequence[Collage], tokens: int, patches: int) -> Labels:
    """What is to be told of collages, whose tiles have so many tokens and patches along a side."""
    made = [_labels(one, tokens, patches) for one in collages]
    return Labels(*(torch.from_numpy(np.stack(part)).long() for part in zip(*made, strict=True)))


def _labels(collage: Collage, tokens: int, patches: int) -> tuple[np.ndarray, ...]:
    thing, is_empty = shown(collage.masks, tokens)
    small, is_bare = shown(collage.masks, patches)
    bare = np.array([size - 1 for size in _SIZES])
    bare[2] = _TEXTURES + collage.background
    known = np.concatenate([collage.things, np.full((1, 4), _NOWHERE)])
    names = np.where(is_empty[:, None], bare, known[thing])
    near = np.where(is_bare[:, None], bare[:3], known[small][:, :3])
    edges = np.array([*(_edges(mask) for mask in collage.masks), [_NOWHERE] * 4])
    covers = np.concatenate([collage.covers, np.full((1, 2), _NOWHERE)])
    return thing, names, edges[thing], covers[thing], near


def shown(masks: UInt8[np.ndarray, "k t t"], side: int) -> tuple[Int[np.ndarray, " c"], np.ndarray]:
    """Which thing each cell of a raster shows, -1 for none; and whether it shows nothing at all.

    A cell shows what covers most of it, if that is not too little; of a small thing its best cell.
    """
    if not len(masks):
        return np.full(side**2, _NOWHERE), np.ones(side**2, dtype=bool)
    size = masks.shape[-1] // side
    shares = masks.reshape(len(masks), side, size, side, size).mean((2, 4)).reshape(len(masks), -1) / 255
    thing, most = shares.argmax(0), shares.max(0)
    best = shares.argmax(1)
    own = best[(thing[best] == np.arange(len(masks))) & (shares.max(1) > _GLIMPSED)]
    is_seen = most > _SHOWN
    is_seen[own] = True
    return np.where(is_seen, thing, _NOWHERE), shares.sum(0) < _EMPTY


def _edges(mask: UInt8[np.ndarray, "t t"]) -> list[int]:
    """The places of the edges of a thing's box: left, top, right, bottom; -1 for what cannot be seen."""
    rows, columns = (np.flatnonzero((mask > 127).any(axis)) for axis in (1, 0))
    if not len(rows):
        return [_NOWHERE] * 4
    ends = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / len(mask)
    return [int(end) for end in np.minimum(ends * EDGES, EDGES - 1)]
