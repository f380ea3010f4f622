"""A Qwen-VL's configuration as official folders write it: what reading one, in `shared`, takes apart.

Source: the `config.json` of Qwen2.5-VL's, Qwen3-VL's and Sa2VA's checkpoints; Sa2VA's Qwen flavours (bytedance/Sa2VA,
`projects/sa2va/hf/models_qwen2_5_vl` and `models_qwen3vl`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from segue.models.protocol import Official

VISION_FIELDS = (
    *("depth", "hidden_size", "hidden_act", "intermediate_size", "num_heads", "in_channels", "out_hidden_size"),
    *("patch_size", "spatial_merge_size", "temporal_patch_size", "tokens_per_second", "window_size"),
    *("fullatt_block_indexes", "num_position_embeddings", "deepstack_visual_indexes"),
)
TEXT_FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps", "attention_bias"),
    *("use_sliding_window", "sliding_window", "max_window_layers", "bos_token_id", "eos_token_id", "pad_token_id"),
)
CODE = {
    "AutoConfig": "configuration_sa2va_chat.Sa2VAChatConfigQwen",
    "AutoModel": "modeling_sa2va_qwen.Sa2VAChatModelQwen",
    "AutoModelForCausalLM": "modeling_sa2va_qwen.Sa2VAChatModelQwen",
}
"""Where the original's loader finds its classes: in files of the original that stand beside the weights."""
TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


SA2VA = "Sa2VAChatModelQwen"


def layouts(kind: str, video: str) -> tuple[Official, Official]:
    """The official layouts of a family of Qwen-VL, without and with Sa2VA's grounder.

    `kind` begins the names of the library's classes, `video` names the one that the original reads videos with.
    """

    def layout(architecture: str, fields: Callable[[Any], dict[str, Any]], prefix: str) -> Official:
        return Official(
            architecture=architecture,
            config=lambda config: {**fields(config), **_config(config)},
            prefix=prefix,
            tokens=TOKENS,
            files=lambda config: _processors(config, f"{kind}Processor", video),
            tokenizer="Qwen2Tokenizer",
        )

    return (
        layout(
            f"{kind}ForConditionalGeneration",
            lambda config: {"model_type": config.text_config.model_type.removesuffix("_text")},
            "",
        ),
        layout(SA2VA, lambda _: {"auto_map": CODE, "model_type": "sa2va_chat"}, r"model\."),
    )


def _config(config: Any) -> dict[str, Any]:
    text = _text(config.text_config)
    return {
        "vision_config": {
            "model_type": config.vision_config.model_type,
            **_said(config.vision_config, (*VISION_FIELDS, "initializer_range")),
        },
        "text_config": text,
        **{name: text[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in text},
        "tie_word_embeddings": False,
    }


def _text(text: Any) -> dict[str, Any]:
    rope = dict(text.rope_parameters)
    theta, kind = rope.pop("rope_theta"), rope.pop("rope_type")
    return {
        "model_type": text.model_type,
        **_said(text, TEXT_FIELDS),
        "rope_theta": theta,
        # the library of the original's time asks for both words
        "rope_scaling": {"type": kind, "rope_type": kind, **rope},
        "tie_word_embeddings": False,
    }


def _said(part: Any, fields: tuple[str, ...]) -> dict[str, Any]:
    found = {name: getattr(part, name, None) for name in fields}
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in found.items() if value is not None
    }


def _processors(config: Any, processor: str, video: str) -> dict[str, dict[str, Any]]:
    """What the original's library reads beside the tokenizer: how images and videos become patches."""
    vision = config.vision_config
    both = {
        "processor_class": processor,
        "patch_size": vision.patch_size,
        "merge_size": vision.spatial_merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "image_mean": list(config.mean),
        "image_std": list(config.deviation),
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": config.least_pixels, "longest_edge": config.most_pixels},
    }
    # the library's slower class overlooks `size`
    limits = {"min_pixels": config.least_pixels, "max_pixels": config.most_pixels}
    return {
        "preprocessor_config.json": {**both, **limits, "image_processor_type": "Qwen2VLImageProcessorFast"},
        "video_preprocessor_config.json": {**both, "video_processor_type": video},
    }
