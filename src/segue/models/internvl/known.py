"""The released Sa2VA on InternVL, and a tiny one.

Source: Sa2VA's training configurations and exports (bytedance/Sa2VA, kumuji/Sa2VA-i).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from segue.models.known import TINY_SAM2, KnownModel, Signs

_TEXT = r"(?:mllm\.)?language_model\.model\."
SIGNS = Signs(
    tower="InternViT",
    tower_width=r"vision_model\.embeddings\.class_embedding|mllm\.vision_tower\.embeddings\.cls_token",
    tower_layer=r"(?:vision_model|mllm\.vision_tower)\.encoder\.layers?\.(\d{1,6})\..+",
    languages={
        "qwen3": ("Qwen3", _TEXT + r"layers\.0\.self_attn\.q_norm\.weight"),
        "qwen2": ("Qwen2", _TEXT + r"layers\.0\.self_attn\.q_proj\.bias"),
        "llama": ("InternLM2", _TEXT + r"(?:tok_embeddings|embed_tokens)\.weight"),
    },
    embeddings=_TEXT + r"(?:tok_embeddings|embed_tokens)\.weight",
    layer=_TEXT + r"layers\.(\d{1,6})\..+",
    mlp_out=_TEXT + r"layers\.0\.(?:feed_forward\.w2|mlp\.down_proj)\.weight",
)


@dataclass(frozen=True, slots=True)
class Tower:
    """An InternViT: width, layers, heads, width inside its MLPs.

    One in the 6B style has RMS norms, on q and k too, and no bias on the fused q, k, v.
    """

    width: int
    layers: int
    heads: int
    mlp: int
    is_6b_style: bool = False

    def config(self, tile: int) -> dict[str, Any]:
        """The fields of its configuration, for tiles of so many pixels a side."""
        return {
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.mlp,
            "image_size": tile,
            "patch_size": 14,
            "attention_bias": not self.is_6b_style,
            "use_qk_norm": self.is_6b_style,
            "norm_type": "rms_norm" if self.is_6b_style else "layer_norm",
            "use_mean_pooling": True,
        }


@dataclass(frozen=True, slots=True)
class Language:
    """A language model: kind, width, layers, query heads, key-value heads, width inside its MLPs, embedding rows."""

    kind: str
    width: int
    layers: int
    heads: int
    groups: int
    mlp: int
    rows: int = 151679

    def config(self) -> dict[str, Any]:
        """The fields of its configuration."""
        return {
            "model_type": self.kind,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.groups,
            "intermediate_size": self.mlp,
            "vocab_size": self.rows,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-5 if self.kind == "llama" else 1e-6,
            "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
            "tie_word_embeddings": False,
        }


def known(
    repository: str,
    tower: Tower,
    language: Language,
    template: str,
    billions: float,
    **more: Any,
) -> KnownModel:
    """A Sa2VA on InternVL, with SAM 2 Hiera-L and tiles of 448 pixels a side unless `sam2` and `tile` say otherwise."""
    tile = more.pop("tile", 448)
    return KnownModel(
        repository=repository,
        config={"vision_config": tower.config(tile), "text_config": language.config(), "tile_side": tile},
        template=template,
        billions=billions,
        **{"sam2": {}, **more},
    )


_300M, _6B = Tower(1024, 24, 16, 4096), Tower(3200, 45, 25, 12800, is_6b_style=True)
_0_5B = Language("qwen2", 896, 24, 14, 2, 4864)
_1_5B = Language("qwen2", 1536, 28, 12, 2, 8960)
_3B = Language("qwen2", 2048, 36, 16, 2, 11008)
_7B = Language("qwen2", 3584, 28, 28, 4, 18944)
_14B = Language("qwen2", 5120, 48, 40, 8, 13824)
# InternLM2
_LM_7B = Language("llama", 4096, 32, 32, 8, 14336, 92558)
_LM_20B = Language("llama", 6144, 48, 48, 8, 16384, 92558)
_TINY = Language("qwen2", 128, 2, 8, 2, 192, 273)

KNOWN = {
    # the 4B models speak Phi-3's template over Qwen's vocabulary
    "Sa2VA-1B": known("ByteDance/Sa2VA-1B", _300M, _0_5B, "qwen_chat", 1.164),
    "Sa2VA-4B": known("ByteDance/Sa2VA-4B", _300M, _3B, "phi3_chat", 3.942),
    "Sa2VA-8B": known("ByteDance/Sa2VA-8B", _300M, _LM_7B, "internlm2_chat", 8.318),
    "Sa2VA-26B": known("ByteDance/Sa2VA-26B", _6B, _LM_20B, "internlm2_chat", 25.778),
    "Sa2VA-InternVL3-2B": known("ByteDance/Sa2VA-InternVL3-2B", _300M, _1_5B, "qwen_chat", 2.316),
    "Sa2VA-InternVL3-8B": known("ByteDance/Sa2VA-InternVL3-8B", _300M, _7B, "qwen_chat", 8.183),
    "Sa2VA-InternVL3-14B": known("ByteDance/Sa2VA-InternVL3-14B", _300M, _14B, "qwen_chat", 15.369),
    "Sa2VA-i-1B": known("kumuji/Sa2VA-i-1B", _300M, _0_5B, "qwen_chat", 1.168, two_decoders=True),
    "Sa2VA-i-4B": known("kumuji/Sa2VA-i-4B", _300M, _3B, "phi3_chat", 3.946, two_decoders=True),
    "Sa2VA-i-8B": known("kumuji/Sa2VA-i-8B", _300M, _LM_7B, "internlm2_chat", 8.322, two_decoders=True),
    "Sa2VA-i-26B": known("kumuji/Sa2VA-i-26B", _6B, _LM_20B, "internlm2_chat", 25.782, two_decoders=True),
    "tiny": known("", Tower(64, 3, 4, 128), _TINY, "qwen_chat", 0.001, sam2=TINY_SAM2, tile=112),
}
