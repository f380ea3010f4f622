"""The released LongVA, and a tiny one.

Source: LongVA's training scripts (`scripts/`: one list of resolutions for the SFT, another for the DPO checkpoint) and
the configuration of Qwen2-7B-Instruct.
"""

from __future__ import annotations

from typing import Any

from segue.models.known import KnownModel, Signs
from segue.models.longva.processor import TEMPLATE

_TEXT = r"(?:mllm\.language_model\.)?model\."
_TOWER = r"(?:model\.vision_tower\.vision_tower\.vision_model|mllm\.vision_tower)\."
SIGNS = Signs(
    tower="CLIP ViT",
    tower_width=_TOWER + r"embeddings\.class_embedding",
    tower_layer=_TOWER + r"encoder\.layers\.(\d{1,6})\..+",
    languages={"qwen2": ("Qwen2", _TEXT + r"layers\.0\.self_attn\.q_proj\.bias")},
    embeddings=_TEXT + r"embed_tokens\.weight",
    layer=_TEXT + r"layers\.(\d{1,6})\..+",
    mlp_out=_TEXT + r"layers\.0\.mlp\.down_proj\.weight",
)

_MOST_TILES = 49
_GRIDS = [(wide, high) for wide in range(1, 50) for high in range(1, 50) if 1 < wide * high <= _MOST_TILES]
_FIVE = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]


def _text(width: int, layers: int, heads: int, mlp: int, rows: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 7),
        "intermediate_size": mlp,
        "vocab_size": rows,
        "max_position_embeddings": 224_000,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e9},
    }


def _known(repository: str, grids: list[tuple[int, int]]) -> KnownModel:
    config = {
        "text_config": _text(3584, 28, 28, 18_944, 152_064),
        "resolutions": [(336 * wide, 336 * high) for wide, high in grids],
        "vocabulary": 151_646,
    }
    return KnownModel(repository=repository, config=config, template=TEMPLATE, billions=7.936)


KNOWN = {
    "LongVA-7B": _known("lmms-lab/LongVA-7B", _GRIDS),
    "LongVA-7B-DPO": _known("lmms-lab/LongVA-7B-DPO", _FIVE),
    "tiny-longva": KnownModel(
        config={
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "image_size": 56,
                "patch_size": 14,
                "hidden_act": "quick_gelu",
                "projection_dim": 32,
            },
            "text_config": _text(64, 2, 4, 96, 512),
            "resolutions": [(112, 56), (56, 112), (112, 112)],
        },
        template=TEMPLATE,
        billions=0.0,
    ),
}
"""The released models by the names of their checkpoints, and one for tests."""
