"""Replaying a recording of LongVA and of the feature cache: pixels, tower, projector, prompts, 8 bits and keys.

These recordings come without a tokenizer, so that prompts are ids in which -200 holds the place of a medium.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from segue import loading, weights
from segue.features import FORMATS, digest, fingerprint, formats
from segue.models.decoding import Decoding, decode
from segue.models.longva import family as longva
from segue.models.longva import preprocessing
from segue.models.longva.model import LongVAMLLM, pooled
from segue.models.protocol import Batch
from segue.parity.compare import Check, Replay, Verdict, fact
from segue.parity.recording import Recording

PLACEHOLDER = -200
NEAR = {"pixel_values": 1e-5, "tower": 2e-5, "projector": 2e-5, "pooled": 2e-5, "loss": 1e-4}
"""Largest absolute differences that the manifests allow, by the last part of a name; 2e-4 for all else."""
LEAST = 2e-4
STEPS_OFF = 1e-4
"""Largest share of 8-bit values that may be one off: the order of two divisions moves ties."""


def load(recording: Recording, *, dtype: str = "fp32", device: str = "cpu") -> LongVAMLLM:
    """The recorded model, attending as the original did when it was recorded.

    Raises: CheckpointError, if its weights do not fit.
    """
    folder = recording.folder
    raw = weights.read_json(folder / "config.json") | {
        "vision_config": weights.read_json(folder / "vision_config.json")
    }
    config = longva.architecture(raw)
    model = LongVAMLLM(config).eval().requires_grad_(False)
    weights.load(model, folder, longva.key_table(config))
    model.set_attn_implementation("eager")
    place = loading.pick_device(device)
    return model.to(place, loading.pick_dtype(dtype, place))


def replay(recording: Recording, seam: str, model: LongVAMLLM) -> Replay:
    """One seam: what ours makes of the same inputs, judged by the tolerances of these recordings."""
    replays: Mapping[str, Callable[[_Replay], list[Check]]] = {
        "pre": _pixels,
        "pool_odd": _pool_odd,
        "int8": _int8,
        "keys": _keys,
        "batch": _batch,
    }
    replayed = _Replay(recording, model)
    return Replay(facts=replays[seam](replayed) if seam in replays else _sample(replayed, seam))


@dataclass(frozen=True, slots=True)
class _Replay:
    recording: Recording
    model: LongVAMLLM

    def near(self, name: str, ours: Tensor, recorded: Tensor | None = None) -> Check:
        """Numbers of one shape, judged by the manifest's absolute tolerance."""
        there = self.recording.outputs[name] if recorded is None else recorded
        ours = ours.detach().cpu()
        if ours.shape != there.shape:
            note = f"ours is {list(ours.shape)}, recorded is {list(there.shape)}"
            return Check(name=name, verdict="fail", note=note)
        first, second = ours.double().flatten(), there.double().flatten()
        difference = float((first - second).abs().max()) if len(first) else 0.0
        largest = float(second.abs().max()) if len(second) else 0.0
        most = NEAR.get(name.rpartition(".")[2], LEAST)
        cosine = 1.0 if torch.equal(first, second) else float(first @ second / (first.norm() * second.norm()))
        relative = difference / largest if largest else difference
        # written so that a NaN fails
        verdict: Verdict = "pass" if difference <= most else "fail"
        return Check(name=name, verdict=verdict, difference=difference, relative=relative, cosine=cosine)

    def check(self, name: str, make: Callable[[], Tensor]) -> list[Check]:
        """The check of a tensor, if it was recorded."""
        return [self.near(name, make())] if name in self.recording.outputs else []


def _pixels(replay: _Replay) -> list[Check]:
    """Raw frames and images to normalised squares; the original has an overview of an image before its tiles."""
    given, side = replay.recording.inputs, replay.model.config.side
    offered = [(width, height) for width, height in replay.model.config.resolutions]
    facts: Mapping[str, Any] = replay.recording.manifest.get("facts", {})
    checks = []
    for name in (name for name in given if re.fullmatch(r".+\.raw\d*(_frames)?_uint8", name)):
        prefix, raw = name.partition(".")[0], given[name].numpy()
        if raw.ndim == 4:
            squares = [preprocessing.cropped(Image.fromarray(frame), side) for frame in raw]
            checks.append(_same_pixels(replay, squares, f"{prefix}.pixel_values"))
            continue
        image = Image.fromarray(raw)
        best = preprocessing.best_resolution(image.size, offered)
        parts = preprocessing.tiles(image, best, side)
        squares = [preprocessing.cropped(one, side) for one in (preprocessing.overview(image, side), *parts)]
        number = re.search(r"\.raw(\d+)_", name)
        # images of one prompt are numbered from 0, and the second is the first that is new
        stack = f"{prefix}.pixel_values_{int(number[1]) - 1}" if number else f"{prefix}.pixel_values"
        checks.append(_same_pixels(replay, squares, stack))
        if f"{prefix}.best_resolution_wh" in facts and not number:
            checks.append(fact(f"pre.{prefix}.best_resolution_wh", list(best), facts[f"{prefix}.best_resolution_wh"]))
            grid = [best[0] // side, best[1] // side]
            checks.append(fact(f"pre.{prefix}.grid_wh", grid, facts[f"{prefix}.grid_wh"]))
    return checks


def _same_pixels(replay: _Replay, squares: Sequence[Image.Image], name: str) -> Check:
    if name not in replay.recording.inputs:
        return Check(name=f"pre.{name}", verdict="skipped", note="the recording has no pixels to compare with")
    ours, recorded = preprocessing.normalised(squares), replay.recording.inputs[name]
    check = replay.near("pixel_values", ours, recorded)
    return Check(**{**{key: getattr(check, key) for key in check.__slots__}, "name": f"pre.{name}"})


def _shown(replay: _Replay, name: str) -> list[tuple[Tensor, int]]:
    """The media of a sample: their squares, and how many patches along each axis become one token."""
    given, pool = replay.recording.inputs, replay.model.config.pool
    if name == "video":
        return [(given["video.pixel_values"], pool)]
    if name == "image":
        return [(given["image.pixel_values"][1:], pool)]
    if name == "single_tile":
        return [(given["image.pixel_values"][:1], 1)]
    numbered = sorted(key for key in given if re.fullmatch(rf"{name}\.pixel_values_\d+", key))
    return [(given[key][1:], pool) for key in numbered]


def _features(replay: _Replay, media: Sequence[tuple[Tensor, int]]) -> tuple[Float[Tensor, "v d"], list[int]]:
    """Features of media one after another, and how many tokens each has."""
    model = replay.model
    grids = torch.tensor([[len(squares), pool] for squares, pool in media])
    states = model.tower(torch.cat([squares for squares, _ in media]).to(model.device))
    features = model.project(states, grids)
    return features, [count * (model.config.grid // pool) ** 2 for count, pool in grids.tolist()]


def _row(ids: Int[Tensor, " s"], labels: Int[Tensor, " s"], counts: list[int]) -> tuple[Tensor, Tensor]:
    """Ids and labels with every placeholder repeated as often as its medium has tokens; takes the counts it uses."""
    repeats = torch.tensor([counts.pop(0) if token == PLACEHOLDER else 1 for token in ids.tolist()])
    return ids.repeat_interleave(repeats), labels.repeat_interleave(repeats)


def _sample(replay: _Replay, name: str) -> list[Check]:
    """One prompt: tower, projector, features, embeddings, logits and greedy ids."""
    recording, model = replay.recording, replay.model
    media = _shown(replay, name)
    features, counts = _features(replay, media)
    ids, _ = _row(
        recording.given(f"{name}.input_ids")[0], torch.full_like(recording.given(f"{name}.input_ids")[0], -100), counts
    )
    places = ids[None] == PLACEHOLDER
    batch = Batch(ids[None], torch.ones_like(ids[None]), visual_places=places, visual_rows=torch.arange(len(features)))
    batch = batch.to(model.device).with_features(features)
    checks = _encoder(replay, name)
    checks += replay.check(f"{name}.llm_tokens", lambda: features)
    checks += replay.check(f"{name}.inputs_embeds", lambda: model.prompt(batch).embeddings)
    checks += replay.check(f"{name}.logits", lambda: model.head(model.forward(batch)[1]))
    facts = recording.manifest.get("facts", {})
    if f"{name}.n_visual_tokens" in facts:
        checks.append(fact(f"{name}.n_visual_tokens", len(features), facts[f"{name}.n_visual_tokens"]))
    recorded = recording.outputs.get(f"{name}.greedy_new_ids")
    if recorded is not None:
        wanted = recorded.flatten().tolist()
        checks.append(fact(f"{name}.greedy_new_ids", _greedy(model, batch, len(wanted)), wanted))
    return checks


def _greedy(model: LongVAMLLM, batch: Batch, number: int) -> list[int]:
    decoding = Decoding(is_over=lambda ids: False, seg_id=None, max_new_tokens=number)
    return decode(model, batch, decoding)[0].ids


def _encoder(replay: _Replay, name: str) -> list[Check]:
    """The states of all squares that were recorded, an image's overview among them."""
    recording, model = replay.recording, replay.model
    pixels = recording.inputs.get(f"{name}.pixel_values")
    if pixels is None or f"{name}.tower" not in recording.outputs:
        return []
    pixels = pixels.to(model.device)
    states = model.tower(pixels)
    checks = [replay.near(f"{name}.tower", states)]
    checks += replay.check(f"{name}.projector", lambda: model.projector(states))
    checks += replay.check(
        f"{name}.pooled", lambda: pooled(model.projector(states), model.config.pool, model.config.pool_mode)
    )
    start = model.vision_tower.pre_layrnorm(model.vision_tower.embeddings(pixels.to(model.dtype)))
    checks += replay.check(f"{name}.vision_hidden_state_first", lambda: start)
    checks += replay.check(f"{name}.vision_hidden_state_last", lambda: _last_state(model, start))
    return checks


def _last_state(model: LongVAMLLM, hidden: Float[Tensor, "p n c"]) -> Float[Tensor, "p n c"]:
    """What the original has after the layers that LongVA does not use."""
    for layer in model.vision_tower.encoder.layers:
        hidden = layer(hidden, None)
    return hidden


def _batch(replay: _Replay) -> list[Check]:
    """Two prompts in one batch. The original pads on the right, we on the left; padding is not compared."""
    recording, model = replay.recording, replay.model
    features, counts = _features(replay, [*_shown(replay, "video"), *_shown(replay, "image")])
    rows: list[tuple[Tensor, Tensor]] = []
    for ids, mask, learned in zip(
        *(recording.given(f"batch.{part}") for part in ("input_ids", "attention_mask", "labels")), strict=True
    ):
        kept = mask.bool()
        rows.append(_row(ids[kept], learned[kept], counts))
    longest = max(len(ids) for ids, _ in rows)
    batch = _padded(rows, longest, len(features)).to(model.device).with_features(features)
    loss, hidden = model.forward(batch)
    is_row = recording.outputs["batch.attention_mask"].bool()
    checks = [fact("batch.attention_mask", [len(ids) for ids, _ in rows], is_row.sum(1).tolist())]
    labels = torch.cat([learned for _, learned in rows])
    checks.append(fact("batch.labels", labels.tolist(), recording.outputs["batch.labels"][is_row].tolist()))
    for name, values in (("batch.inputs_embeds", model.prompt(batch).embeddings), ("batch.logits", model.head(hidden))):
        checks.append(_rows_near(replay, name, values, batch.attention.bool(), is_row))
    assert loss is not None
    return [*checks, replay.near("batch.loss", loss)]


def _padded(rows: Sequence[tuple[Tensor, Tensor]], longest: int, features: int) -> Batch:
    shape = (len(rows), longest)
    ids, attention = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, -100)
    for row, (own, learned) in enumerate(rows):
        ids[row, longest - len(own) :], labels[row, longest - len(own) :] = own, learned
        attention[row, longest - len(own) :] = 1
    return Batch(ids, attention, labels, visual_places=ids == PLACEHOLDER, visual_rows=torch.arange(features))


def _rows_near(
    replay: _Replay,
    name: str,
    ours: Float[Tensor, "b s d"],
    where: Bool[Tensor, "b s"],
    is_row: Bool[Tensor, "b s"],
) -> Check:
    return replay.near(name, ours[where], replay.recording.outputs[name][is_row])


def _pool_odd(replay: _Replay) -> list[Check]:
    """Pooling of a grid with a row and a column too many."""
    tensors = load_file(replay.recording.folder / "pool_odd.safetensors")
    given = next((name for name in tensors if "input" in name), max(tensors, key=lambda name: tensors[name].numel()))
    checks = []
    for name, recorded in tensors.items():
        if name == given:
            continue
        mode = "max" if "max" in name else "average"
        values = tensors[given].reshape(-1, *tensors[given].shape[-2:])
        ours = pooled(values, replay.model.config.pool, mode).reshape(recorded.shape)
        checks.append(replay.near(f"pool_odd.{name.replace('.', '_')}", ours, recorded))
    return checks


def _int8(replay: _Replay) -> list[Check]:
    """Features in 8 bits, with one scale for all and with two levels of scales."""
    tensors = load_file(replay.recording.folder / "int8_cache.safetensors")
    checks = []
    for name in (name for name in tensors if name.endswith(".input")):
        case, values = name.removesuffix(".input"), tensors[name]
        for scheme, form in (("pt", "int8-per-tensor"), ("tl", "int8")):
            if f"{case}.{scheme}.q" not in tensors:
                continue
            parts = FORMATS[form].encode(values)
            recorded = {
                key.removeprefix(f"{case}.{scheme}."): tensor
                for key, tensor in tensors.items()
                if key.startswith(f"{case}.{scheme}.")
            }
            checks += _parts(f"int8.{case}_{scheme}", parts, recorded)
            if "dequant" in recorded:
                ours = FORMATS[form].decode(parts, torch.float32)
                most = 1e-5 * float(values.abs().max())
                checks.append(_within(f"int8.{case}_{scheme}_dequant", ours, recorded["dequant"], most))
                told = replay.recording.manifest["int8_cache"].get("info", {}).get(case, {})
                told = told.get("per_tensor" if scheme == "pt" else "two_level", {})
                error = formats.measure(values, ours).error
                if "rel_l2" in told:
                    checks.append(
                        _within(f"int8.{case}_{scheme}_error", torch.tensor(error), torch.tensor(told["rel_l2"]), 1e-6)
                    )
    return checks


def _parts(name: str, parts: Mapping[str, Tensor], recorded: Mapping[str, Tensor]) -> list[Check]:
    checks = []
    for part, tensor in recorded.items():
        if part == "dequant":
            continue
        if part not in parts:
            checks.append(Check(name=f"{name}_{part}", verdict="fail", note="ours has no such part"))
        elif part == "q":
            steps = (parts["q"].int() - tensor.int()).abs()
            few = int((steps > 0).sum()) <= (STEPS_OFF * steps.numel() if name.endswith("_tl") else 0)
            is_same = bool(steps.max() <= 1) and few
            note = f"{int((steps > 0).sum())} of {steps.numel()} values differ" if steps.any() else ""
            checks.append(Check(name=f"{name}_q", verdict="pass" if is_same else "fail", identical=is_same, note=note))
        else:
            most = 1e-6 * float(tensor.abs().max())
            checks.append(_within(f"{name}_{part}", parts[part].reshape(tensor.shape), tensor, most))
    return checks


def _within(name: str, ours: Tensor, recorded: Tensor, most: float) -> Check:
    difference = float((ours.double() - recorded.double()).abs().max()) if recorded.numel() else 0.0
    return Check(name=name, verdict="pass" if difference <= most else "fail", difference=difference)


def _keys(replay: _Replay) -> list[Check]:
    """Fingerprints of tower and projector, and the hash of a key."""
    recorded, model = replay.recording.manifest["fingerprints"], replay.model
    tower = model.below("tower")
    checks = [fact("keys.tower_used_tensors", len(tower), recorded["tower_used_tensors"])]
    for code, dtype in formats.TYPES.items():
        if f"tower_{code}" in recorded:
            checks.append(fact(f"keys.tower_{code}", fingerprint(tower, dtype), recorded[f"tower_{code}"]))
        if f"projector_{code}" in recorded:
            ours = fingerprint(model.projector.state_dict(), dtype)
            checks.append(fact(f"keys.projector_{code}", ours, recorded[f"projector_{code}"]))
    checks.append(fact("keys.key_sha256", digest(recorded["key_object"]), recorded["key_sha256"]))
    ours = json.dumps(recorded["key_object"], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return [*checks, fact("keys.key_object_canonical", ours, recorded["key_object_canonical"])]
