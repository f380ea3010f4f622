"""An InternVL's configuration as official folders write it: what reading one, in `family`, takes apart.

Source: the `config.json` of InternVL's and Sa2VA's checkpoints; Sa2VA's InternVL flavour (bytedance/Sa2VA,
`projects/sa2va/hf/models/configuration_sa2va_chat.py`).
"""

from __future__ import annotations

from typing import Any

LANGUAGE_CLASSES = {"Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3", "InternLM2ForCausalLM": "llama"}

LANGUAGE_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "hidden_act",
    "head_dim",
    "attention_bias",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def grounded(config: Any) -> dict[str, Any]:
    """The fields of a Sa2VA's config.json for an `InternVLMLLMConfig`; `architecture` of them is the same again."""
    code = ("configuration_sa2va_chat.Sa2VAChatConfig", "modeling_sa2va_chat.Sa2VAChatModel")
    return _official(config, "sa2va_chat", *code)


def plain(config: Any) -> dict[str, Any]:
    """The fields of an InternVL's config.json, as `grounded`."""
    code = ("configuration_internvl_chat.InternVLChatConfig", "modeling_internvl_chat.InternVLChatModel")
    return _official(config, "internvl_chat", *code)


def _official(config: Any, model_type: str, config_class: str, model_class: str) -> dict[str, Any]:
    return {
        # the original's loader finds its classes in files of the original that stand beside the weights
        "auto_map": {"AutoConfig": config_class, "AutoModel": model_class, "AutoModelForCausalLM": model_class},
        "model_type": model_type,
        "vision_config": _vision(config.vision_config),
        "llm_config": _language(config.text_config),
        "select_layer": config.select_layer,
        "force_image_size": config.tile_side,
        "downsample_ratio": config.downsample_ratio,
        "ps_version": config.shuffle_version,
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
        "pad2square": False,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "hidden_size": config.text_config.hidden_size,
        "tie_word_embeddings": False,
        **({} if config.most_tiles is None else {"most_tiles": config.most_tiles}),
    }


def _vision(tower: Any) -> dict[str, Any]:
    return {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "hidden_size": tower.hidden_size,
        "num_hidden_layers": tower.num_hidden_layers,
        "num_attention_heads": tower.num_attention_heads,
        "intermediate_size": tower.intermediate_size,
        "image_size": tower.image_size[0],
        "patch_size": tower.patch_size[0],
        "hidden_act": tower.hidden_act,
        "norm_type": tower.norm_type,
        "layer_norm_eps": tower.layer_norm_eps,
        "qkv_bias": tower.attention_bias,
        "qk_normalization": tower.use_qk_norm,
        "initializer_factor": tower.layer_scale_init_value,
        "use_flash_attn": False,
        "drop_path_rate": 0.0,
    }


def _language(text: Any) -> dict[str, Any]:
    name = next(name for name, kind in LANGUAGE_CLASSES.items() if kind == text.model_type)
    rope = dict(text.rope_parameters)
    fields = {field: getattr(text, field, None) for field in LANGUAGE_FIELDS}
    fields |= {"rope_theta": rope.pop("rope_theta"), "tie_word_embeddings": False}
    kind = rope.pop("rope_type")
    if kind != "default":
        fields["rope_scaling"] = {"type": kind, **rope}
    if name == "InternLM2ForCausalLM":
        fields |= {"bias": fields.pop("attention_bias"), "model_type": "internlm2", "attn_implementation": "eager"}
    else:
        fields |= {"model_type": text.model_type}
    return {"architectures": [name], **{field: value for field, value in fields.items() if value is not None}}
