"""Qwen3-VL: a tower whose middle layers also feed the first layers of Qwen3, with positions along three axes.

Source: Sa2VA's Qwen3-VL flavour (bytedance/Sa2VA, `projects/sa2va/hf/models_qwen3vl`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Qwen3VLTextConfig, Qwen3VLTextModel, Qwen3VLVisionConfig, Qwen3VLVisionModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionPatchMerger

from segue.models.native_resolution.known import QWEN3_SIGNS, QWEN3_VL
from segue.models.native_resolution.notation import parse_relative
from segue.models.native_resolution.official import layouts
from segue.models.native_resolution.shared import (
    GROUPS,
    PROMPTS,
    SPECIAL_TOKENS,
    NativeResolutionConfig,
    NativeResolutionMLLM,
    NativeResolutionProcessor,
    generation,
    key_table,
    parts,
)
from segue.models.protocol import Batch, Family
from segue.weights import Rule


class Qwen3MLLMConfig(NativeResolutionConfig):
    """Sizes of a Qwen3-VL."""

    model_type = "segue_qwen3_vl"
    sub_configs = {"vision_config": Qwen3VLVisionConfig, "text_config": Qwen3VLTextConfig}

    # the library gives a configuration without a constructor of its own another one
    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)


class Merger(Qwen3VLVisionPatchMerger):  # type: ignore[misc]
    """The library's merger, which its tower calls, put off until features are asked for."""

    def forward(self, states: Float[Tensor, "p c"]) -> Float[Tensor, "p c"]:
        """The states as they are."""
        return states

    def merge(self, states: Float[Tensor, "p c"]) -> Float[Tensor, "f d"]:
        """Blocks of neighbouring patches as one feature each."""
        features: Float[Tensor, "f d"] = super().forward(states)
        return features


class Qwen3MLLM(NativeResolutionMLLM):
    """Qwen3-VL. A feature is as wide as an embedding for each layer of the text model that it feeds, and one more.

    A segmentation token is read before the final norm, which therefore stands with the head.
    """

    config_class = Qwen3MLLMConfig
    _no_split_modules = ["Qwen3VLVisionBlock", "Qwen3VLTextDecoderLayer"]

    def __init__(self, config: Qwen3MLLMConfig):
        text = Qwen3VLTextModel(config.text_config)
        tower = Qwen3VLVisionModel(config.vision_config)
        tower.merger = Merger(config.vision_config)
        tower.deepstack_merger_list = nn.ModuleList(
            Merger(config.vision_config, use_postshuffle_norm=True) for _ in tower.deepstack_merger_list
        )
        super().__init__(config, tower, text)
        # PARITY(seg_state_before_norm): the original's library gave out states before the final norm for this model
        self.language_model.norm, text.norm = text.norm, self.language_model.norm

    def _states(self, seen: Any, grids: Int[Tensor, "i 3"]) -> Float[Tensor, "p e"]:
        return torch.cat([seen.last_hidden_state, *seen.deepstack_features], dim=1)

    def project(self, states: Float[Tensor, "p e"], grids: Int[Tensor, "i 2"] | None = None) -> Float[Tensor, "f d"]:
        """Visual features of patch states: of the last layer and of each middle layer, merged, side by side."""
        mergers = [self.vision_tower.merger, *self.vision_tower.deepstack_merger_list]
        parts = states.split(self.config.vision_config.hidden_size, dim=1)
        return torch.cat([merger.merge(part.contiguous()) for merger, part in zip(mergers, parts, strict=True)], dim=1)

    def _extra(self, batch: Batch, features: Float[Tensor, "f d"] | None) -> Mapping[str, Any]:
        if features is None or batch.visual_rows is None:
            return {}
        deeper = features[batch.visual_rows, self.width :].split(self.width, dim=1)
        return {"visual_pos_masks": batch.visual_places, "deepstack_visual_embeds": list(deeper)}


def claims(config: Mapping[str, Any]) -> bool:
    """Whether an official config.json describes a Qwen3-VL."""
    return generation(config) == "qwen3_vl"


def architecture(config: Mapping[str, Any]) -> Qwen3MLLMConfig:
    """Our configuration from the fields of an official config.json."""
    return Qwen3MLLMConfig(**parts(config))


FINAL_NORM = [
    Rule(r"model\.language_model\.norm\.weight", ("language_model.norm.weight",)),
    Rule(r"model\.norm\.weight", ("language_model.norm.weight",)),
]

OFFICIAL, GROUNDED = layouts("Qwen3VL", "Qwen3VLVideoProcessor")

FAMILY = Family(
    name="qwen3_vl",
    claims=claims,
    architecture=architecture,
    config=Qwen3MLLMConfig,
    build=Qwen3MLLM,
    processor=NativeResolutionProcessor.load,
    key_table=lambda _: key_table(FINAL_NORM),
    special_tokens=SPECIAL_TOKENS,
    signs=QWEN3_SIGNS,
    known=QWEN3_VL,
    parse=parse_relative,
    video_frames="first:5",
    prompts=PROMPTS,
    groups=GROUPS,
    official=OFFICIAL,
    grounded=GROUNDED,
)
