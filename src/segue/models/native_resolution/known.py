"""The released Sa2VA on Qwen2.5-VL and Qwen3-VL, and tiny ones.

Source: Sa2VA's training configurations and exports (bytedance/Sa2VA).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from segue.models.known import TINY_SAM2, KnownModel, Signs

_TEXT = r"(?:mllm\.language_model\.model|(?:model\.)?model(?:\.language_model)?)\."
_TOWER = r"(?:mllm\.vision_tower|(?:model\.){0,2}visual)\."
_BOTH: dict[str, Any] = {
    "tower_layer": _TOWER + r"blocks\.(\d{1,6})\..+",
    "embeddings": _TEXT + r"embed_tokens\.weight",
    "layer": _TEXT + r"layers\.(\d{1,6})\..+",
    "mlp_out": _TEXT + r"layers\.0\.mlp\.down_proj\.weight",
}
QWEN25_SIGNS = Signs(
    tower="Qwen2.5-VL tower",
    tower_width=_TOWER + r"merger\.ln_q\.weight",
    languages={"qwen2_5_vl_text": ("Qwen2", _TEXT + r"layers\.0\.self_attn\.q_proj\.bias")},
    **_BOTH,
)
QWEN3_SIGNS = Signs(
    tower="Qwen3-VL tower",
    tower_width=_TOWER + r"merger\.norm\.weight",
    languages={"qwen3_vl_text": ("Qwen3", _TEXT + r"layers\.0\.self_attn\.q_norm\.weight")},
    **_BOTH,
)


def _known(
    repository: str,
    vision: Mapping[str, Any],
    text: Mapping[str, Any],
    billions: float,
    *,
    spatial: float,
    sam2: Mapping[str, Any] | None = None,
) -> KnownModel:
    """`spatial` is the share of rotary frequencies that turn with the height, and of those that do with the width."""
    frequencies = text.get("head_dim", text["hidden_size"] // text["num_attention_heads"]) // 2
    each = int(frequencies * spatial)
    rope = {
        "rope_type": "default",
        "rope_theta": text["rope_theta"],
        "mrope_section": [frequencies - 2 * each, each, each],
    }
    return KnownModel(
        repository=repository,
        config={
            "vision_config": {"out_hidden_size": text["hidden_size"], **vision},
            "text_config": {
                **{name: value for name, value in text.items() if name != "rope_theta"},
                "rope_parameters": rope,
                "bos_token_id": None,
                "eos_token_id": None,
                "tie_word_embeddings": False,
            },
        },
        template="qwen_chat",
        billions=billions,
        sam2=sam2 or {},
    )


def _vision(width: int, layers: int, heads: int, mlp: int, **more: Any) -> dict[str, Any]:
    return {"hidden_size": width, "depth": layers, "num_heads": heads, "intermediate_size": mlp, **more}


def _text(width: int, layers: int, heads: int, groups: int, mlp: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "intermediate_size": mlp,
        "rms_norm_eps": 1e-6,
        **more,
    }


_QWEN25: dict[str, Any] = {"max_position_embeddings": 128000, "rope_theta": 1000000.0}
_QWEN3: dict[str, Any] = {
    **{"max_position_embeddings": 262144, "rope_theta": 5000000.0, "attention_bias": False, "head_dim": 128},
}
_WINDOWED = _vision(1280, 32, 16, 3420, fullatt_block_indexes=[7, 15, 23, 31], tokens_per_second=2)
_STACKED = _vision(1024, 24, 16, 4096, deepstack_visual_indexes=[5, 11, 17], num_position_embeddings=2304)

QWEN25_VL = {
    "Sa2VA-Qwen2_5-VL-3B": _known(
        "ByteDance/Sa2VA-Qwen2_5-VL-3B",
        _WINDOWED,
        _text(2048, 36, 16, 2, 11008, vocab_size=151670, **_QWEN25),
        4.294,
        spatial=3 / 8,
    ),
    "Sa2VA-Qwen2_5-VL-7B": _known(
        "ByteDance/Sa2VA-Qwen2_5-VL-7B",
        _WINDOWED,
        _text(3584, 28, 28, 4, 18944, vocab_size=151670, **_QWEN25),
        8.528,
        spatial=3 / 8,
    ),
    "tiny-qwen25-vl": _known(
        "",
        _vision(64, 3, 4, 96, fullatt_block_indexes=[1], tokens_per_second=2),
        _text(128, 2, 8, 2, 192, vocab_size=275, **_QWEN25),
        0.001,
        spatial=3 / 8,
        sam2=TINY_SAM2,
    ),
}
QWEN3_VL = {
    "Sa2VA-Qwen3-VL-2B": _known(
        "ByteDance/Sa2VA-Qwen3-VL-2B",
        _STACKED,
        _text(2048, 28, 16, 8, 6144, vocab_size=151674, **_QWEN3),
        2.667,
        spatial=5 / 16,
    ),
    "Sa2VA-Qwen3-VL-4B": _known(
        "ByteDance/Sa2VA-Qwen3-VL-4B",
        _STACKED,
        _text(2560, 36, 32, 8, 9728, vocab_size=151674, **_QWEN3),
        5.057,
        spatial=5 / 16,
    ),
    "tiny-qwen3-vl": _known(
        "",
        _vision(64, 3, 4, 96, deepstack_visual_indexes=[0, 1], num_position_embeddings=2304),
        _text(128, 3, 8, 2, 192, vocab_size=275, **_QWEN3 | {"head_dim": 16}),
        0.002,
        spatial=5 / 16,
        sam2=TINY_SAM2,
    ),
}
