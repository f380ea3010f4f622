"""The language model alone, on features that a finished tower gave: it learns to say and to point without a picture.

All turns about a scene have the picture in common. It is read once; each turn attends to it and to itself, as if it
stood alone behind it. What a turn costs is so what its own tokens cost.

Letters in shapes: b scenes, p tokens of the opening, n turns, l tokens of a turn, d width, h heads, v visual tokens, s
`[SEG]`s, q places that must look at what is meant, k things of a scene.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from segue.grounding.model import VisionLanguageModel
from segue.prepare import IGNORED
from segue.synth.meaning import EVENTS, MOTIONS
from segue.train.examples import Truth
from segue.train.from_scratch.collage import NAMES
from segue.train.from_scratch.sight import EDGES, PRODUCTS, linear
from segue.train.from_scratch.target_embeddings import summed, target_embedding_loss
from segue.train.from_scratch.turns import Ask, Turn

_LOOKING = (
    2  # of the layers, the last: before them a turn must know which visual tokens it means, in them it looks there
)
_POINT, _MOST = 128, 7
_SHARES = {"text": 1.5, "target_embedding": 0.5, "count": 0.5, "point": 2.0, "look": 0.3, "edges": 0.5, "does": 2.0}
_FIRST, _REST, _AFTER_SEG, _SHORT, _DIGITS, _AROUND = 3.0, 0.4, 1.5, 2.0, (2.2, 1.5, 0.4), 0.25


DOES = MOTIONS | EVENTS
"""What a thing can do in a clip."""


@dataclass(frozen=True, slots=True)
class Known:
    """A scene for the language model: features of its visual tokens, and the truth about its things.

    `shown` says which thing each token shows, -1 for none; `things` are numbers in `NAMES`; `centres` are where a thing
    is on the frames that show it, x and y in [0, 1], and `boxes` a still's boxes in the same measure (none of a clip).
    `does` says which of `DOES` each thing of a clip does: 1, 0, or -1 where that is unclear; a still has no columns.
    """

    opening: Int[np.ndarray, " p"]
    features: Float[np.ndarray, "v d"]
    shown: Int[np.ndarray, " v"]
    things: Int[np.ndarray, "k 4"]
    centres: Sequence[Float[np.ndarray, "_ 2"]]
    boxes: Float[np.ndarray, "_ 4"]
    does: Int[np.ndarray, "k m"]
    turns: Sequence[Turn]


@dataclass(frozen=True, slots=True)
class Batch:
    """Scenes with the same opening and as many turns of each; rows of `segs` are scene, turn, place, thing.

    Rows of `looks` are scene, turn, place too, and `meant` are the visual tokens that show what the answer means there;
    those of `edged` are places where one thing is meant, and `edges` where its box ends. `does` is what the things that
    the visual tokens of later frames show do in the clip; -1 where nothing is to be told.
    """

    scenes: Sequence[Known]
    features: Float[Tensor, "b v d"]
    ids: Int[Tensor, "b n l"]
    labels: Int[Tensor, "b n l"]
    weights: Float[Tensor, "b n l"]
    again: Float[Tensor, "c d"]
    asks: Int[Tensor, "b n"]
    counts: Int[Tensor, "b n"]
    points: Float[Tensor, "b n v"]
    segs: Int[Tensor, "s 4"]
    looks: Int[Tensor, "q 3"]
    meant: Bool[Tensor, "q v"]
    edged: Int[Tensor, "e 3"]
    edges: Int[Tensor, "e 4"]
    does: Float[Tensor, "b v m"]


class Aids(nn.Module):
    """Heads that are thrown away in the end: how many things a question means, which visual tokens show them, where the
    box of a thing ends, and what a thing does in a clip.
    """

    def __init__(self, width: int):
        super().__init__()
        self.count, self.edges = nn.Linear(width, _MOST + 1), nn.Linear(width, 4 * EDGES)
        self.does = nn.Linear(width, len(DOES))
        self.asked, self.state, self.seen = (nn.Linear(width, _POINT) for _ in range(3))
        self.level = nn.Parameter(torch.tensor(-3.0))


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens that weights and losses look for: `[SEG]`, the placeholder of a visual token, the ten digits."""

    seg: int
    visual: int
    digits: frozenset[int]


def batch_of(
    scenes: Sequence[Known],
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    *,
    turns: int,
    longest: int,
    above: int = 0,
) -> Batch:
    """Turns of these scenes by chance, longer than `above` and at most `longest`; a scene with fewer has empty ones."""
    shape = (len(scenes), turns, longest)
    ids, labels = np.zeros(shape, dtype=np.int64), np.full(shape, IGNORED)
    weights, asks = np.zeros(shape, dtype=np.float32), np.zeros(shape[:2], dtype=np.int64)
    counts, points = np.full(shape[:2], -1), np.full((*shape[:2], len(scenes[0].shown)), -1.0, dtype=np.float32)
    again, segs, looks, meant, edged, edges = [], [], [], [], [], []
    for row, scene in enumerate(scenes):
        fitting = [turn for turn in scene.turns if above < len(turn.ids) <= longest]
        for place, number in enumerate(rng.permutation(len(fitting))[:turns]):
            turn = fitting[number]
            end = len(turn.ids)
            ids[row, place, :end] = turn.ids
            labels[row, place, turn.answer - 1 : end - 1] = turn.ids[turn.answer :]
            weights[row, place, turn.answer - 1 : end - 1] = _weights(turn, vocabulary)
            asks[row, place] = turn.answer - 1
            again.append(scene.features[turn.cells])
            if turn.ask in (Ask.MASKS, Ask.BOX):
                counts[row, place] = min(len(turn.things), _MOST)
                points[row, place] = np.isin(scene.shown, turn.things)
            marks = turn.answer + np.flatnonzero(turn.ids[turn.answer :] == vocabulary.seg)
            segs += [(row, place, int(mark), thing) for mark, thing in zip(marks, turn.things, strict=False)]
            for at, things in _pointing(turn, marks.tolist()):
                if (those := np.isin(scene.shown, things)).any():
                    looks.append((row, place, at))
                    meant.append(those)
                if len(things) == 1 and len(scene.boxes):
                    edged.append((row, place, at))
                    edges.append(np.clip(scene.boxes[things[0]] * EDGES, 0, EDGES - 1).astype(np.int64))
    arrays = (ids, labels, weights, np.concatenate(again), asks, counts, points)
    features = torch.from_numpy(np.stack([scene.features for scene in scenes])).float()
    ids_, labels_, weights_, again_, asks_, counts_, points_ = (torch.from_numpy(one) for one in arrays)
    found, looking, ending = (
        torch.tensor(rows, dtype=torch.int64).view(-1, width) for rows, width in ((segs, 4), (looks, 3), (edged, 3))
    )
    told = torch.from_numpy(np.array(meant, dtype=bool).reshape(len(meant), len(scenes[0].shown)))
    ends = torch.from_numpy(np.array(edges, dtype=np.int64).reshape(-1, 4))
    return Batch(
        scenes,
        features,
        ids_,
        labels_,
        weights_,
        again_.float(),
        asks_,
        counts_,
        points_,
        found,
        looking,
        told,
        ending,
        ends,
        torch.from_numpy(np.stack([_later_does(scene) for scene in scenes])),
    )


def _later_does(scene: Known) -> Float[np.ndarray, "v m"]:
    """Of the tokens of a clip's second half, which have seen enough; -1 for others, and where nothing is shown."""
    told = np.where(scene.shown[:, None] >= 0, scene.does[scene.shown], -1).astype(np.float32)
    told[: len(told) // 2] = -1
    return told


def _pointing(turn: Turn, marks: Sequence[int]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The places of a turn that must know where things are, and which: before the answer, at `[SEG]`s, in a box."""
    if turn.ask in (Ask.MASKS, Ask.BOX) and turn.things:
        yield turn.answer - 1, turn.things
    if turn.ask == Ask.BOX:
        yield from ((place, turn.things) for place in range(turn.answer, len(turn.ids) - 1))
    yield from ((mark, (thing,)) for mark, thing in zip(marks, turn.things, strict=False))


def _weights(turn: Turn, vocabulary: Vocabulary) -> Float[np.ndarray, " a"]:
    """How much each token of an answer counts: most where it decides something, least where any wording would do."""
    answer = turn.ids[turn.answer :]
    weights = np.ones(len(answer), dtype=np.float32)
    if turn.ask == Ask.MASKS:
        weights[:] = _REST
        weights[1:][answer[:-1] == vocabulary.seg] = _AFTER_SEG
        weights[0] = _FIRST
    elif turn.ask == Ask.CLOSED:
        weights[:-1] = _SHORT
    elif turn.ask == Ask.BOX:
        run = 0
        for place, token in enumerate(answer):
            run = run + 1 if int(token) in vocabulary.digits else 0
            weights[place] = _DIGITS[min(run, len(_DIGITS)) - 1] if run else _AROUND
    return weights


def words_losses(
    model: VisionLanguageModel, aids: Aids, batch: Batch, vocabulary: Vocabulary
) -> dict[str, Float[Tensor, ""]]:
    """The terms by name, and their weighted sum as `loss`."""
    opening = torch.from_numpy(batch.scenes[0].opening)
    language_model = model.mllm.language_model
    states, before_last = read_turns(language_model, opening, batch, vocabulary.visual)
    tapped_opening, tapped = before_last[0]
    learned = batch.labels != IGNORED
    scores = model.mllm.head(states[learned]).float()
    each = functional.cross_entropy(scores, batch.labels[learned], reduction="none")
    weights = batch.weights[learned]
    terms = {"text": (each * weights).sum() / weights.sum(), "target_embedding": _target_term(model, states, batch)}
    if len(batch.looks):
        terms["look"] = _look_term(language_model, before_last, batch, opening == vocabulary.visual)
    if len(batch.edged):
        scores = aids.edges(states[batch.edged.unbind(1)]).view(-1, EDGES)
        terms["edges"] = functional.cross_entropy(scores, batch.edges.flatten())
    if (is_told := batch.does >= 0).any():
        scores, does = aids.does(_normal(tapped_opening[:, opening == vocabulary.visual]))[is_told], batch.does[is_told]
        terms["does"] = functional.binary_cross_entropy_with_logits(scores, does, weight=1 + 4 * does)
    asked = batch.counts >= 0
    scene, turn = asked.nonzero(as_tuple=True)
    if not len(scene):
        return {"loss": _whole(terms), **terms}
    place = batch.asks[scene, turn]
    terms["count"] = functional.cross_entropy(aids.count(states[scene, turn, place]), batch.counts[scene, turn])
    seen = aids.state(_normal(tapped_opening[:, opening == vocabulary.visual])) + aids.seen(_normal(batch.features))
    query = aids.asked(_normal(tapped[scene, turn, place]))
    points = torch.einsum("nw,nvw->nv", query, seen[scene]) * _POINT**-0.5 + aids.level
    wanted = batch.points[scene, turn]
    missed = functional.binary_cross_entropy_with_logits(points, wanted, weight=1 + 4 * wanted)
    terms["point"] = missed
    return {"loss": _whole(terms), **terms}


def _whole(terms: Mapping[str, Float[Tensor, ""]]) -> Float[Tensor, ""]:
    return torch.stack([_SHARES[name] * term for name, term in terms.items()]).sum()


def _look_term(
    language_model: Any,
    before_last: Sequence[tuple[Float[Tensor, "b p d"], Float[Tensor, "b n l d"]]],
    batch: Batch,
    is_visual: Bool[Tensor, " p"],
) -> Float[Tensor, ""]:
    """How much of the first head's attention in the last layers does not fall on the tokens that show what is meant."""
    scene, turn, place = batch.looks.unbind(1)
    shared, longest = before_last[0][0].shape[1], batch.ids.shape[2]
    turning = language_model.model.rotary_emb(before_last[0][0], torch.arange(shared + longest)[None])
    cosine, sine = (one[0] for one in turning)
    later = torch.arange(longest) > place[:, None]
    terms = []
    for layer, (before, after) in zip(language_model.model.layers[-_LOOKING:], before_last, strict=True):
        attention, normal = layer.self_attn, layer.input_layernorm
        head = slice(attention.head_dim)

        def turned(part: nn.Linear, states: Tensor, places: Tensor) -> Tensor:
            made = linear(normal(states), part.weight[head], part.bias[head])  # noqa: B023
            return _turned(made, cosine[places], sine[places]).float()

        queries = turned(attention.q_proj, after[scene, turn, place], shared + place) * attention.head_dim**-0.5
        keys = turned(attention.k_proj, before, torch.arange(shared))
        own = turned(attention.k_proj, after, shared + torch.arange(longest))
        seen = torch.einsum("qd,qpd->qp", queries, keys[scene])
        within = torch.einsum("qd,qld->ql", queries, own[scene, turn]).masked_fill(later, -torch.inf)
        right = seen[:, is_visual].masked_fill(~batch.meant, -torch.inf).logsumexp(1)
        terms.append((torch.cat([seen, within], 1).logsumexp(1) - right).mean())
    return torch.stack(terms).mean()


def _target_term(model: VisionLanguageModel, states: Float[Tensor, "b n l d"], batch: Batch) -> Float[Tensor, ""]:
    if not len(batch.segs):
        return states.sum() * 0.0
    scene, turn, place, thing = batch.segs.unbind(1)
    prompts = model.prompts(states[scene, turn, place]).float()
    pairs = list(zip(scene.tolist(), thing.tolist(), strict=True))
    truths = [_truth(batch.scenes[one], other) for one, other in pairs]
    return summed(target_embedding_loss(prompts, truths, model.grounder))


def _truth(scene: Known, thing: int) -> Truth:
    """What a target embedding is made of: a thing's names and where it is."""
    names = " ".join(known[number] for known, number in zip(NAMES, scene.things[thing], strict=True))
    centres = torch.from_numpy(scene.centres[thing])[None].float()
    frames = tuple(range(centres.shape[1]))
    pixels, masks = (torch.zeros(*size, 0, 0, dtype=torch.uint8) for size in ((len(frames), 3), (1, len(frames))))
    return Truth(pixels, masks, frames, frames, (names,), centres)


def read_turns(
    language_model: Any, opening: Int[Tensor, " p"], batch: Batch, visual_id: int
) -> tuple[Float[Tensor, "b n l d"], list[tuple[Float[Tensor, "b p d"], Float[Tensor, "b n l d"]]]]:
    """The states of all turns after the final norm, each read behind the opening alone; and what each of the last
    layers is given, of the opening and of the turns.
    """
    count, turns, longest = batch.ids.shape
    before = language_model.model.embed_tokens(opening).expand(count, -1, -1).clone()
    before[:, opening == visual_id] = batch.features
    after = language_model.model.embed_tokens(batch.ids).clone()
    after[batch.ids == visual_id] = batch.again
    rotations = language_model.model.rotary_emb(before, torch.arange(len(opening) + longest)[None])
    given = []
    for layer in language_model.model.layers:
        given.append((before, after))
        before, after = _layer(layer, before, after, rotations)
    return language_model.model.norm(after), given[-_LOOKING:]


def _layer(
    layer: Any,
    before: Float[Tensor, "b p d"],
    after: Float[Tensor, "b n l d"],
    rotations: tuple[Float[Tensor, "1 x w"], Float[Tensor, "1 x w"]],
) -> tuple[Float[Tensor, "b p d"], Float[Tensor, "b n l d"]]:
    """A layer of Qwen2 for openings and turns at once; sums in float32."""
    attention, mlp = layer.self_attn, layer.mlp
    count, shared, width = before.shape
    turns, longest = after.shape[1:3]
    states = torch.cat([before, after.flatten(1, 2)], 1)
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    weight, bias = (torch.cat([getattr(one, name) for one in projections]) for name in ("weight", "bias"))
    heads = width // attention.head_dim
    three = linear(layer.input_layernorm(states), weight, bias).view(count, -1, 3, heads, attention.head_dim)
    first = [one.transpose(1, 2) for one in three[:, :shared].unbind(2)]
    own = [one.permute(0, 3, 1, 2, 4) for one in three[:, shared:].unflatten(1, (turns, longest)).unbind(3)]
    (cosine, sine), scale = (turn[0] for turn in rotations), attention.head_dim**-0.5
    queries, keys = (_turned(one, cosine[:shared], sine[:shared]) for one in first[:2])
    mine, theirs = (_turned(one, cosine[shared:], sine[shared:]) for one in own[:2])
    values, own_values = first[2].to(PRODUCTS), own[2].to(PRODUCTS)
    scores = (queries * scale @ keys.transpose(-1, -2)).float() + _causal(shared)
    seen = scores.softmax(-1).to(PRODUCTS) @ values
    whole = (mine.flatten(2, 3) * scale @ keys.transpose(-1, -2)).unflatten(2, (turns, longest)).float()
    within = (mine * scale @ theirs.transpose(-1, -2)).float() + _causal(longest)
    shares = torch.cat([whole, within], -1).softmax(-1).to(PRODUCTS)
    looked = (shares[..., :shared].flatten(2, 3) @ values).unflatten(2, (turns, longest))
    looked = looked + shares[..., shared:] @ own_values
    joined = torch.cat([seen.transpose(1, 2).flatten(2), looked.permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2)], 1)
    states = states + linear(joined, attention.o_proj.weight)
    normal = layer.post_attention_layernorm(states)
    gate, up = linear(normal, torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])).chunk(2, -1)
    states = states + linear(functional.silu(gate) * up, mlp.down_proj.weight)
    return states[:, :shared], states[:, shared:].unflatten(1, (turns, longest))


def _turned(values: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Queries or keys at their places."""
    one, other = values.chunk(2, -1)
    return (values * cosine + torch.cat([-other, one], -1) * sine).to(PRODUCTS)


def _causal(length: int) -> Float[Tensor, "x x"]:
    return torch.full((length, length), -1e9).triu(1)


def _normal(values: Tensor) -> Tensor:
    return functional.rms_norm(values, values.shape[-1:])
