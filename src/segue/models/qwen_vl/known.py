"""The released Qwen-VL, and a tiny one.

Source: the configurations and indexes of Qwen-VL's checkpoints.
"""

from __future__ import annotations

from typing import Any

from segue.models.known import KnownModel, Signs

_LAYERS = r"(?:transformer\.h|mllm\.language_model\.model\.layers)\."
_TABLE = r"transformer\.wte\.weight|mllm\.language_model\.model\.embed_tokens\.weight"
SIGNS = Signs(
    tower="ViT-bigG",
    tower_width=r"transformer\.visual\.ln_pre\.weight|mllm\.vision_tower\.norm\.weight",
    tower_layer=r"(?:transformer\.visual\.transformer\.resblocks|mllm\.vision_tower\.layers)\.(\d{1,6})\..+",
    languages={"qwen2": ("Qwen", _TABLE)},
    embeddings=_TABLE,
    layer=_LAYERS + r"(\d{1,6})\..+",
    mlp_out=_LAYERS + r"0\.mlp\.(?:c_proj|down_proj)\.weight",
)


def _text(width: int, layers: int, heads: int, mlp: int, rows: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": width // heads,
        "intermediate_size": mlp,
        "vocab_size": rows,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "use_dynamic_ntk": True,
        "use_logn_attn": True,
        "tie_word_embeddings": False,
    }


_9B: dict[str, Any] = {
    "vision_config": {
        "image_size": 448,
        "patch_size": 14,
        "hidden_size": 1664,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "intermediate_size": 8192,
        "output_width": 4096,
        "num_queries": 256,
    },
    "text_config": _text(4096, 32, 32, 11008, 151936),
    "image_start_id": 151857,
}
_TINY: dict[str, Any] = {
    "vision_config": {
        "image_size": 112,
        "patch_size": 14,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "output_width": 128,
        "num_queries": 16,
    },
    "text_config": _text(128, 2, 4, 192, 480),
    "image_start_id": 470,
}
KNOWN = {
    "Qwen-VL": KnownModel(repository="Qwen/Qwen-VL", config=_9B, template="qwen_vl_raw", billions=9.657),
    "Qwen-VL-Chat": KnownModel(repository="Qwen/Qwen-VL-Chat", config=_9B, template="qwen_vl_chat", billions=9.657),
    "Qwen-VL-Chat-Int4": KnownModel(
        repository="Qwen/Qwen-VL-Chat-Int4",
        config={**_9B, "gptq_group": 128},
        template="qwen_vl_chat",
        billions=9.657,
    ),
    "tiny-qwen-vl": KnownModel(config=_TINY, template="qwen_vl_chat", billions=0.001),
}
