"""The seams of the language model that sees: tower and projector, states and logits."""

from __future__ import annotations

import copy
import re

import torch
from jaxtyping import Int
from torch import Tensor, nn

from segue.models.base import MLLM, Batch
from segue.parity.compare import Found, Ours
from segue.parity.recording import Recording


def replay_vision(recording: Recording, mllm: MLLM) -> Found:
    """The tower's embeddings and last states, and the visual features, also under the other layouts of the pixel shuffle."""
    pixels = recording.given("vision.pixel_values").float().to(_device(mllm))
    tower, found = mllm.vision_tower, Found()
    weight = mllm.projector[1].weight
    hidden = tower(pixels.to(weight)).last_hidden_state
    found.values |= {
        "vision.embeddings": tower.embeddings(pixels.to(weight)),
        "vision.last_hidden_state": hidden,
        "vision.extract_feature": mllm.encode(pixels).unflatten(0, (len(pixels), -1)),
    }
    for name in recording.names("vision.extract_feature_ps_"):
        version = re.search(r"_ps_(v\d+)", name)
        if version:
            other = copy.copy(mllm)
            other.config = copy.copy(mllm.config)
            other.config.shuffle_version = version[1]
            found.values[f"vision.extract_feature_ps_{version[1]}"] = other.encode(pixels).unflatten(0, (len(pixels), -1))
    return found


def replay_language(recording: Recording, mllm: MLLM) -> Found:
    """States of every layer and logits: from ids, from embeddings, from a padded batch, and with a rope that stretches."""
    found, device, head = Found(), _device(mllm), mllm.language_model.lm_head
    decoder = mllm.language_model.model
    if "llm.input_ids" in recording.inputs:
        ids = recording.inputs["llm.input_ids"].to(device)
        output = decoder(ids, output_hidden_states=True)
        found.values |= {f"llm.hidden_states_{layer}": states for layer, states in enumerate(output.hidden_states)}
        found.values["llm.logits"] = head(output.last_hidden_state)
        for name in recording.names("llm.dynamic_rope_maxpos"):
            longest = re.search(r"_maxpos(\d+)_logits", name)
            if longest:
                found.values[name] = _with_longest(mllm.language_model, int(longest[1]))(ids).logits
    if "llm.inputs_embeds" in recording.inputs:
        embeddings = recording.inputs["llm.inputs_embeds"].to(head.weight)
        found.values["llm.embeds_last_hidden"] = hidden = decoder(inputs_embeds=embeddings).last_hidden_state
        found.values["llm.embeds_logits"] = head(hidden)
    if "llm.padded_input_ids" in recording.inputs:
        attention = recording.given("llm.padded_attention_mask").bool()
        logits = _padded_logits(mllm, recording.inputs["llm.padded_input_ids"].to(device), attention.to(device))
        found.values["llm.padded_logits"] = Ours(logits, where=attention)
    return found


def _padded_logits(mllm: MLLM, ids: Int[Tensor, "b s"], attention: Tensor) -> Tensor:
    """Logits of rows that are padded in any way: padded on the left as ours are, and moved back."""
    to_left = attention.int().argsort(dim=1, stable=True)
    batch = Batch(ids.gather(1, to_left), attention.gather(1, to_left).long())
    _, hidden = mllm.forward(batch, None)
    logits = mllm.language_model.lm_head(hidden)
    return torch.empty_like(logits).scatter_(1, to_left[..., None].expand_as(logits), logits)


def _with_longest(language_model: nn.Module, positions: int) -> nn.Module:
    """The same language model as if its configuration allowed so many positions."""
    other = copy.deepcopy(language_model)
    other.config.max_position_embeddings = positions
    rotary = other.model.rotary_emb
    other.model.rotary_emb = type(rotary)(other.config).to(next(rotary.buffers()).device)
    return other


def _device(mllm: MLLM) -> torch.device:
    return mllm.language_model.lm_head.weight.device
