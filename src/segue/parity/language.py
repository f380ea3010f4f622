"""The seams of the language model that sees: tower and projector, states and logits."""

from __future__ import annotations

import copy
import re
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from segue.models.internvl.family import InternVLMLLM
from segue.models.native_resolution.shared import VISUAL_TOKEN, NativeResolutionMLLM
from segue.models.protocol import Batch
from segue.parity.compare import Ours, Replay
from segue.parity.masks import overheard
from segue.parity.recording import Recording


def replay_vision(recording: Recording, mllm: Any) -> Replay:
    """Pixels to features, and what the tower has on the way."""
    if isinstance(mllm, NativeResolutionMLLM):
        names = ["merged", *(f"deepstack_{number}" for number in range(len(recording.names("vision.deepstack_"))))]
        pieces = _native_features(recording, mllm).split(mllm.width, dim=1)
        return Replay({f"vision.{name}": piece for name, piece in zip(names, pieces, strict=True)})
    return _replay_tiles(recording, mllm)


def _native_features(recording: Recording, mllm: NativeResolutionMLLM) -> Float[Tensor, "v f"]:
    pixels = recording.given("vision.pixel_values").to(mllm.device)
    grids = recording.given("vision.image_grid_thw")[:, 1:]
    return mllm.project(mllm.tower(pixels, grids), grids)


def _replay_tiles(recording: Recording, mllm: InternVLMLLM) -> Replay:
    """The tower's embeddings and last states, and the features, also under other layouts of the pixel shuffle."""
    pixels = recording.given("vision.pixel_values").to(mllm.device, mllm.dtype)
    found = Replay()
    found.values |= {
        "vision.embeddings": mllm.vision_tower.embeddings(pixels),
        "vision.last_hidden_state": mllm.vision_tower(pixels).last_hidden_state,
        "vision.extract_feature": _features(mllm, pixels),
    }
    for name in recording.names("vision.extract_feature_ps_"):
        version = re.search(r"_ps_(v\d+)", name)
        if version:
            other = copy.copy(mllm)
            other.config = copy.copy(mllm.config)
            other.config.shuffle_version = version[1]
            found.values[f"vision.extract_feature_ps_{version[1]}"] = _features(other, pixels)
    return found


def _features(mllm: InternVLMLLM, pixels: Float[Tensor, "p 3 h w"]) -> Float[Tensor, "p v d"]:
    features = mllm.project(mllm.tower(pixels))
    return features.view(len(pixels), -1, features.shape[-1])


def replay_language(recording: Recording, mllm: Any) -> Replay:
    """States of every layer and logits."""
    if isinstance(mllm, NativeResolutionMLLM):
        return _replay_native(recording, mllm)
    return _replay_causal(recording, mllm)


def _replay_native(recording: Recording, mllm: NativeResolutionMLLM) -> Replay:
    """Text around two images, where each token of it stands, and text alone."""
    grids = recording.given("vision.image_grid_thw")[:, 1:]
    features = _native_features(recording, mllm)
    ids = recording.given("llm.input_ids").to(mllm.device)
    places = ids == recording.manifest["special_token_ids"][VISUAL_TOKEN]
    rows = torch.arange(len(features), device=mllm.device)
    batch = Batch(ids, torch.ones_like(ids), visual_places=places, visual_rows=rows, grids=grids.to(mllm.device))
    batch = batch.with_features(features)
    text = recording.given("llm.text_input_ids").to(mllm.device)
    with ExitStack() as stack:
        calls = [stack.enter_context(overheard(layer)) for layer in mllm.language_model.model.layers]
        _, hidden = mllm.forward(batch)
    _, alone = mllm.forward(Batch(text, torch.ones_like(text)))
    # what a layer is given is its predecessor's output, and for some what the tower adds to that
    states = [*(call.arguments[0] for (call,) in calls), hidden]
    where = mllm.positions(batch)
    return Replay(
        {
            **{f"llm.hidden_states_{layer}": each for layer, each in enumerate(states)},
            "llm.n_hidden_states": torch.tensor(len(states)),
            "llm.logits": mllm.head(hidden),
            "llm.position_ids": where,
            "llm.rope_delta": (where.amax((0, 2)) + 1 - ids.shape[1])[:, None],
            "llm.text_last_hidden": alone,
            "llm.text_logits": mllm.head(alone),
        }
    )


def _replay_causal(recording: Recording, mllm: InternVLMLLM) -> Replay:
    """From ids, embeddings and a padded batch, and with a rope that stretches."""
    found, language = Replay(), mllm.language_model
    if "llm.input_ids" in recording.inputs:
        ids = recording.inputs["llm.input_ids"].to(mllm.device)
        output = language.model(ids, output_hidden_states=True)
        found.values |= {f"llm.hidden_states_{layer}": states for layer, states in enumerate(output.hidden_states)}
        found.values["llm.logits"] = language.lm_head(output.last_hidden_state)
        for name in recording.names("llm.dynamic_rope_maxpos"):
            longest = re.search(r"_maxpos(\d+)_logits", name)
            if longest:
                found.values[name] = _with_longest(language, int(longest[1]))(ids).logits
    if "llm.inputs_embeds" in recording.inputs:
        embeddings = recording.inputs["llm.inputs_embeds"].to(language.lm_head.weight)
        hidden = language.model(inputs_embeds=embeddings).last_hidden_state
        found.values |= {"llm.embeds_last_hidden": hidden, "llm.embeds_logits": language.lm_head(hidden)}
    if "llm.padded_input_ids" in recording.inputs:
        attention = recording.given("llm.padded_attention_mask").bool()
        logits = _padded_logits(
            mllm, recording.inputs["llm.padded_input_ids"].to(mllm.device), attention.to(mllm.device)
        )
        found.values["llm.padded_logits"] = Ours(logits, where=attention)
    return found


def _padded_logits(
    mllm: InternVLMLLM, ids: Int[Tensor, "b s"], attention: Bool[Tensor, "b s"]
) -> Float[Tensor, "b s v"]:
    """Logits of rows that are padded in any way: padded on the left as ours are, and moved back."""
    to_left = attention.int().argsort(dim=1, stable=True)
    batch = Batch(ids.gather(1, to_left), attention.gather(1, to_left).long())
    _, hidden = mllm.forward(batch)
    logits: Tensor = mllm.language_model.lm_head(hidden)
    return torch.empty_like(logits).scatter_(1, to_left[..., None].expand_as(logits), logits)


def _with_longest(language_model: Any, positions: int) -> Any:
    """The same language model as if its configuration allowed so many positions."""
    other = copy.deepcopy(language_model)
    other.config.max_position_embeddings = positions
    other.model.rotary_emb = type(other.model.rotary_emb)(other.config).to(other.device)
    return other
