"""LongVA: a CLIP tower, a projector, pooling to 144 tokens a frame, and Qwen2 with a context of 224,000 tokens.

Source: EvolvingLMMs-Lab/LongVA (`longva/longva/model`), and the configuration of its checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from segue.errors import ConfigError
from segue.geometry.notation import parse_grounded
from segue.models.longva.known import KNOWN, SIGNS
from segue.models.longva.model import CLIP_L_336, LongVAConfig, LongVAMLLM
from segue.models.longva.processor import TEMPLATE, LongVAProcessor
from segue.models.protocol import Family, Official
from segue.types import Region
from segue.weights import KeyTable, Rule

TOKENS = 151_646
"""Tokens of Qwen2; rows of its embeddings beyond them are none."""

TEXT_FIELDS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("vocab_size", "hidden_act", "rms_norm_eps", "max_position_embeddings", "head_dim"),
    *("use_sliding_window", "sliding_window", "max_window_layers", "attention_dropout"),
)
VISION_FIELDS = (*CLIP_L_336, "num_channels", "attention_dropout")


def claims(config: Mapping[str, Any]) -> bool:
    """Whether an official config.json describes a LongVA: Qwen2 with LLaVA's fields for a CLIP tower beside it."""
    return config.get("model_type") == "llava_qwen" and "mm_vision_tower" in config


def architecture(config: Mapping[str, Any]) -> LongVAConfig:
    """Our configuration from the fields of an official LongVA config.json.

    The tower is CLIP ViT-L/14 at 336 pixels, unless a `vision_config` says otherwise.

    Raises: ConfigError, for a projector or a way of joining tiles that no LongVA has, or without a rope theta.
    """
    _check(config, "mm_projector_type", ("mlp2x_gelu",))
    _check(config, "mm_vision_select_feature", ("patch",))
    _check(config, "mm_patch_merge_type", ("unires",))
    _check(config, "image_aspect_ratio", ("anyres", "square", None))
    # a wrong theta runs and answers nonsense, so that none is assumed
    rope = config.get("rope_parameters") or {}
    theta = config.get("rope_theta", rope.get("rope_theta"))
    if theta is None:
        raise ConfigError("config.json has no rope_theta; LongVA was trained with 1e9. Take the checkpoint's own file")
    if config.get("rope_scaling"):
        raise ConfigError(f"config.json scales its rope ({config['rope_scaling']}); no LongVA does")
    vision = config.get("vision_config") or CLIP_L_336
    text = {name: config[name] for name in TEXT_FIELDS if config.get(name) is not None}
    is_tiled = config.get("image_aspect_ratio") == "anyres"
    return LongVAConfig(
        vision_config={name: vision[name] for name in VISION_FIELDS if name in vision},
        text_config={
            **text,
            "rope_parameters": {"rope_type": "default", "rope_theta": float(theta)},
            "bos_token_id": None,
            "eos_token_id": None,
            "tie_word_embeddings": False,
        },
        select_layer=config.get("mm_vision_select_layer", -2),
        # the published recipe for training never writes these two
        pool=config.get("mm_spatial_pool_stride") or 2,
        pool_mode=config.get("mm_spatial_pool_mode") or "average",
        resolutions=_resolutions(config.get("image_grid_pinpoints")) if is_tiled else (),
        vocabulary=min(config["vocab_size"], TOKENS),
    )


def _resolutions(listed: Any) -> list[list[int]]:
    """The resolutions that a checkpoint cuts images at, as a list or as the text of one."""
    if isinstance(listed, str):
        try:
            listed = json.loads(listed.replace("(", "[").replace(")", "]"))
        except ValueError:
            listed = None
    pairs = [list(pair) for pair in listed or () if isinstance(pair, list | tuple)]
    if not pairs or not all(len(pair) == 2 and all(type(one) is int and one > 0 for one in pair) for pair in pairs):
        raise ConfigError("config.json has no image_grid_pinpoints that are pairs of width and height")
    return pairs


def _check(config: Mapping[str, Any], name: str, known: tuple[str | None, ...]) -> None:
    value = config.get(name, known[0])
    if value not in known:
        raise ConfigError(f"config.json has {name} {value!r}; LongVA's are {', '.join(map(str, known))}")


def key_table(_: LongVAConfig) -> KeyTable:
    """Official names to ours."""
    return [
        # what old exports carry along: places that are counted, not learned, and parts that no LongVA uses
        Rule(r".+\.embeddings\.position_ids", ()),
        Rule(r".+\.rotary_emb\.inv_freq", ()),
        Rule(r"model\.(?:image_newline|vision_resampler\..+)", ()),
        Rule(r"model\.vision_tower\.vision_tower\.vision_model\.(.+)", (r"vision_tower.\1",)),
        Rule(r"model\.mm_projector\.([02])\.(weight|bias)", (r"projector.\1.\2",)),
        Rule(r"model\.((?:embed_tokens|layers|norm)\..+)", (r"language_model.model.\1",)),
        Rule(r"lm_head\.(.+)", (r"language_model.lm_head.\1",)),
    ]


def parse(raw: str, size: tuple[int, int] | None, visual: object) -> tuple[str, tuple[Region, ...]]:
    """An answer's text. LongVA points at nothing; see `segue.models.protocol.Parse`."""
    return parse_grounded(raw)[0], ()


def official(config: LongVAConfig) -> dict[str, Any]:
    """The fields of an official config.json; `architecture` of them is the same again."""
    text = config.text_config
    vision = {name: getattr(config.vision_config, name) for name in VISION_FIELDS}
    return {
        "model_type": "llava_qwen",
        **{name: getattr(text, name) for name in TEXT_FIELDS if getattr(text, name, None) is not None},
        "rope_theta": text.rope_parameters["rope_theta"],
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "mm_vision_select_layer": config.select_layer,
        "mm_vision_select_feature": "patch",
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": config.vision_config.hidden_size,
        "mm_patch_merge_type": "unires",
        "mm_spatial_pool_stride": config.pool,
        "mm_spatial_pool_mode": config.pool_mode,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "anyres" if config.resolutions else "square",
        **({"image_grid_pinpoints": config.resolutions} if config.resolutions else {}),
        "tokenizer_model_max_length": text.max_position_embeddings,
        "tokenizer_padding_side": "right",
        # said only of a tower that the original's loader would not assume
        **({} if vision == vision | CLIP_L_336 else {"vision_config": vision}),
    }


FAMILY = Family(
    name="longva",
    claims=claims,
    architecture=architecture,
    config=LongVAConfig,
    build=LongVAMLLM,
    processor=LongVAProcessor.load,
    key_table=key_table,
    special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    signs=SIGNS,
    known=KNOWN,
    parse=parse,
    template=lambda _: TEMPLATE,
    video_frames="uniform:128",
    prompts={},
    groups={
        "vision": ("mllm.vision_tower.",),
        "connector": ("mllm.projector.",),
        "language": ("mllm.language_model.model.layers.", "mllm.language_model.model.norm."),
        "embeddings": ("mllm.language_model.model.embed_tokens.", "mllm.language_model.lm_head."),
    },
    official=Official(architecture="LlavaQwenForCausalLM", config=official),
)
