"""The whole model: a language model that sees and, where it has one, a grounder with its projector: SAM 2 asked by
language.

A model folder in our layout is an ordinary Hugging Face folder of this class; folders in official layouts load into it
through key tables.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, Sam2VideoConfig
from transformers.initialization import no_init_weights

from segue.grounding import sam2
from segue.models import FAMILIES
from segue.models.protocol import GROUNDING_TOKENS, Family

MODEL_TYPE = "segue"


class VisionLanguageConfig(PreTrainedConfig):
    """The parts of a model: its family's own configuration, SAM 2's, and what joins them.

    Without `sam2_config` there is no grounder: the model answers in words. `template` is the chat template's name;
    `two_decoders` says that the decoder that learned language stands apart from the original SAM 2 decoder (Sa2VA-i).
    `video_frames` is the plan of frames that the model was trained on, if it is not its family's.
    """

    model_type = MODEL_TYPE
    sub_configs = {"mllm_config": PreTrainedConfig, "sam2_config": Sam2VideoConfig}

    def __init__(
        self,
        family: str = "internvl",
        mllm_config: dict[str, Any] | PreTrainedConfig | None = None,
        sam2_config: dict[str, Any] | Sam2VideoConfig | None = None,
        template: str = "qwen_chat",
        two_decoders: bool = False,
        video_frames: str | None = None,
        **kwargs: Any,
    ):
        self.family = family
        self.mllm_config: Any = mllm_config
        if not isinstance(mllm_config, PreTrainedConfig):
            fields = {name: value for name, value in (mllm_config or {}).items() if name != "model_type"}
            self.mllm_config = FAMILIES[family].config(**fields)
        self.sam2_config: Any = sam2.whole_config(**sam2_config) if isinstance(sam2_config, dict) else sam2_config
        self.template = template
        self.two_decoders = two_decoders
        self.video_frames = video_frames
        kwargs["tie_word_embeddings"] = False
        super().__init__(**kwargs)

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """What its vocabulary has beyond ordinary text, in the order of the tokens' ids."""
        tokens: tuple[str, ...] = FAMILIES[self.family].special_tokens
        return tokens if self.sam2_config is None else (*tokens, *GROUNDING_TOKENS)

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """The language model's configuration."""
        text: PreTrainedConfig = self.mllm_config.text_config
        return text


class VisionLanguageModel(PreTrainedModel):
    """`mllm` answers; `seg_projector` turns the state on each `[SEG]` into a prompt; `grounder` finds the masks.

    A model without a grounder has neither of the last two.
    """

    config_class = VisionLanguageConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    # three estimated IoUs a step of bfloat16 apart are often equal, and the best mask would be a matter of order
    _keep_in_fp32_modules_strict = ["mask_decoder", "language_decoder"]

    def __init__(self, config: VisionLanguageConfig):
        super().__init__(config)
        self.mllm = FAMILIES[config.family].build(config.mllm_config)
        self.seg_projector: Any = None
        self.grounder: Any = None
        if config.sam2_config is not None:
            width, prompt = self.mllm.width, config.sam2_config.mask_decoder_config.hidden_size
            self.seg_projector = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, prompt))
            self.grounder = sam2.LanguageSam2(config.sam2_config, two_decoders=config.two_decoders)
        self.post_init()

    @property
    def family(self) -> Family:
        """The record of this model's family."""
        return FAMILIES[self.config.family]

    def prompts(self, seg_hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n e"]:
        """Mask prompts from the states on segmentation tokens; n may be 0. The model must have a grounder."""
        projected: Float[Tensor, "n e"] = self.seg_projector(seg_hidden.to(self.dtype))
        return projected


GROUNDER_PARTS = {
    "seg_projector": ("seg_projector.",),
    "mask_decoder": ("grounder.sam2.mask_decoder.",),
    "sam2.encoder": ("grounder.sam2.vision_encoder.",),
    "sam2.prompts": ("grounder.sam2.prompt_encoder.", "grounder.sam2.shared_image_embedding."),
    "sam2.memory": ("grounder.sam2.",),
    "language_decoder": ("grounder.language_decoder.",),
}


def components(family: Family) -> dict[str, tuple[str, ...]]:
    """Every part of a family's models by name, and how its tensors' names begin; the first that fits counts.

    The family's own groups come first, then what is left of the grounder.
    """
    return {**family.groups, **GROUNDER_PARTS}


def component_of(place: str, parts: Mapping[str, tuple[str, ...]]) -> str | None:
    """The part that a tensor of this name belongs to; `None` if it is of no known part."""
    return next((name for name, prefixes in parts.items() if place.startswith(prefixes)), None)


def build(config: VisionLanguageConfig, *, dtype: torch.dtype, device: str, fill: bool = False) -> VisionLanguageModel:
    """A model on a device in a precision. Its weights are whatever memory held, unless `fill` asks for random ones.

    The mask decoder stays in float32 whatever `dtype` is. Nothing asks for gradients until training does.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with nullcontext() if fill else _without_drawing(), torch.device(device):
            model = VisionLanguageModel(config)
    finally:
        torch.set_default_dtype(before)
    if model.grounder is not None:
        for decoder in (model.grounder.sam2.mask_decoder, model.grounder.language_decoder):
            if decoder is not None:
                decoder.float()
    return model.eval().requires_grad_(False)


@contextmanager
def _without_drawing() -> Iterator[None]:
    """Modules built here keep whatever memory held, and the global random state stays where it was."""
    with no_init_weights(), torch.random.fork_rng(devices=[]):
        yield


def expected(config: VisionLanguageConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a model, computed without memory for any."""
    return dict(_expected(config.to_json_string(use_diff=False)))


# a conversion asks for the same shapes several times, and building a model to find them takes a tenth of a second
@lru_cache(maxsize=32)
def _expected(config: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"), _without_drawing():
        model = VisionLanguageModel(VisionLanguageConfig.from_dict(json.loads(config)))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
