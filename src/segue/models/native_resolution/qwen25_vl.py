"""Qwen2.5-VL: a tower that attends in windows, a merger, and Qwen2 with positions along three axes.

Source: Sa2VA's Qwen2.5-VL flavour (bytedance/Sa2VA, `projects/sa2va/hf/models_qwen2_5_vl`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel, Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from segue.models.native_resolution.notation import parse_absolute
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
from segue.models.protocol import Family


class Qwen25MLLMConfig(NativeResolutionConfig):
    """Sizes of a Qwen2.5-VL; pixels are normalised as CLIP's."""

    model_type = "segue_qwen25_vl"
    sub_configs = {"vision_config": Qwen2_5_VLVisionConfig, "text_config": Qwen2_5_VLTextConfig}
    mean = (0.48145466, 0.4578275, 0.40821073)
    deviation = (0.26862954, 0.26130258, 0.27577711)

    # the library gives a configuration without a constructor of its own another one
    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)


class Qwen25MLLM(NativeResolutionMLLM):
    """Qwen2.5-VL; a segmentation token is read after the final norm."""

    config_class = Qwen25MLLMConfig
    _no_split_modules = ["Qwen2_5_VLVisionBlock", "Qwen2_5_VLDecoderLayer"]

    def __init__(self, config: Qwen25MLLMConfig):
        tower = Qwen2_5_VisionTransformerPretrainedModel(config.vision_config)
        super().__init__(config, tower, Qwen2_5_VLTextModel(config.text_config))


def claims(config: Mapping[str, Any]) -> bool:
    """Whether an official config.json describes a Qwen2.5-VL."""
    return generation(config) == "qwen2_5_vl"


def architecture(config: Mapping[str, Any]) -> Qwen25MLLMConfig:
    """Our configuration from the fields of an official config.json."""
    return Qwen25MLLMConfig(**parts(config))


FAMILY = Family(
    name="qwen25_vl",
    claims=claims,
    architecture=architecture,
    config=Qwen25MLLMConfig,
    build=Qwen25MLLM,
    processor=NativeResolutionProcessor.load,
    key_table=lambda _: key_table(),
    special_tokens=SPECIAL_TOKENS,
    parse=parse_absolute,
    video_frames="first:5",
    prompts=PROMPTS,
    groups=GROUPS,
    **layouts("Qwen2_5_VL", "Qwen2VLVideoProcessor"),
)
