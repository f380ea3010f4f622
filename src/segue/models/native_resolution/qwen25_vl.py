"""Qwen2.5-VL: a tower that attends in windows, a merger, and Qwen2 with positions along three axes.

Source: Sa2VA's Qwen2.5-VL flavour (bytedance/Sa2VA, `projects/sa2va/hf/models_qwen2_5_vl`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from transformers import Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel, Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLPatchMerger,
    get_vision_window_index,
)

from segue.models.native_resolution.known import QWEN25_SIGNS, QWEN25_VL
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


class Merger(Qwen2_5_VLPatchMerger):  # type: ignore[misc]
    """The library's merger, which its tower calls, put off until features are asked for."""

    def forward(self, states: Float[Tensor, "p c"]) -> Float[Tensor, "p c"]:
        """The states as they are."""
        return states

    def merge(self, states: Float[Tensor, "p c"]) -> Float[Tensor, "f d"]:
        """Blocks of neighbouring patches as one feature each."""
        features: Float[Tensor, "f d"] = super().forward(states)
        return features


class Qwen25MLLM(NativeResolutionMLLM):
    """Qwen2.5-VL; a segmentation token is read after the final norm."""

    config_class = Qwen25MLLMConfig
    _no_split_modules = ["Qwen2_5_VLVisionBlock", "Qwen2_5_VLDecoderLayer"]

    def __init__(self, config: Qwen25MLLMConfig):
        vision = config.vision_config
        tower = Qwen2_5_VisionTransformerPretrainedModel(vision)
        tower.merger = Merger(vision.out_hidden_size, vision.hidden_size, vision.spatial_merge_size)
        super().__init__(config, tower, Qwen2_5_VLTextModel(config.text_config))

    def _states(self, seen: Any, grids: Int[Tensor, "i 3"]) -> Float[Tensor, "p c"]:
        # the tower leaves blocks of patches in the order of its windows
        vision = self.config.vision_config
        order, _ = get_vision_window_index(
            grids,
            spatial_merge_size=vision.spatial_merge_size,
            window_size=vision.window_size,
            patch_size=vision.patch_size,
        )
        blocks = seen.last_hidden_state.unflatten(0, (-1, vision.spatial_merge_size**2))
        states: Float[Tensor, "p c"] = blocks[order.argsort()].flatten(0, 1)
        return states


def claims(config: Mapping[str, Any]) -> bool:
    """Whether an official config.json describes a Qwen2.5-VL."""
    return generation(config) == "qwen2_5_vl"


def architecture(config: Mapping[str, Any]) -> Qwen25MLLMConfig:
    """Our configuration from the fields of an official config.json."""
    return Qwen25MLLMConfig(**parts(config))


OFFICIAL, GROUNDED = layouts("Qwen2_5_VL", "Qwen2VLVideoProcessor")

FAMILY = Family(
    name="qwen25_vl",
    claims=claims,
    architecture=architecture,
    config=Qwen25MLLMConfig,
    build=Qwen25MLLM,
    processor=NativeResolutionProcessor.load,
    key_table=lambda _: key_table(),
    special_tokens=SPECIAL_TOKENS,
    signs=QWEN25_SIGNS,
    known=QWEN25_VL,
    parse=parse_absolute,
    video_frames="first:5",
    prompts=PROMPTS,
    groups=GROUPS,
    official=OFFICIAL,
    grounded=GROUNDED,
)
