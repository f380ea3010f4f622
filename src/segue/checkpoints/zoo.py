"""The released checkpoints as data, and which of them a configuration or weights are.

Source: Sa2VA's training configurations and exports (bytedance/Sa2VA, kumuji/Sa2VA-i); the indexes of Qwen-VL's files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from segue.errors import ConfigError
from segue.weights import Stored

HIERA_L_WIDTH = 144
TINY_SAM2: Mapping[str, Any] = {
    "embed_dim": 16,
    "num_heads": 1,
    "stages": [1, 2, 2, 1],
    "global_att_blocks": [4],
    "d_model": 32,
    "mem_dim": 8,
    "mem_attn_layers": 2,
    "mem_attn_ffn": 64,
    "image_size": 256,
    "mask_decoder_mlp_dim": 64,
    "iou_head_hidden_dim": 32,
}


@dataclass(frozen=True, slots=True)
class Tower:
    """A vision tower: width, layers, heads, width inside its MLPs, kind.

    An InternViT in the 6B style has RMS norms, on q and k too, and no bias on the fused q, k, v. `marks` are the layers
    of a Qwen2.5-VL that attend to the whole image, of a Qwen3-VL those that also feed the language model.
    """

    width: int
    layers: int
    heads: int
    mlp: int
    is_6b_style: bool = False
    kind: str = "InternViT"
    marks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Language:
    """A language model: kind, width, layers, query heads, key-value heads, width inside its MLPs, embedding rows.

    `head` is the width of a head where that is not the heads' share of the width.
    """

    kind: str
    width: int
    layers: int
    heads: int
    groups: int
    mlp: int
    rows: int
    head: int | None = None


@dataclass(frozen=True, slots=True)
class Architecture:
    """A released model. `billions` is its published number of parameters; `tile` the side of a tile in pixels.

    `repository` is its id on the hub, `template` the chat template it was trained with. With `two_decoders` the mask
    decoder that learned language stands beside the original one. `sam2` are the fields of its sam2_config.json; a
    model without any has SAM 2 Hiera-L, unless `has_grounder` is False. `packed` is how many inputs share a scale where
    the language layers lie in 4 bits.
    """

    repository: str
    tower: Tower
    language: Language
    template: str
    billions: float
    two_decoders: bool = False
    sam2: Mapping[str, Any] = field(default_factory=dict)
    tile: int = 448
    has_grounder: bool = True
    packed: int | None = None


_300M, _6B = Tower(1024, 24, 16, 4096), Tower(3200, 45, 25, 12800, is_6b_style=True)
_WINDOWED = Tower(1280, 32, 16, 3420, kind="Qwen2.5-VL", marks=(7, 15, 23, 31))
_STACKED = Tower(1024, 24, 16, 4096, kind="Qwen3-VL", marks=(5, 11, 17))
_QWEN_ROWS, _INTERNLM_ROWS, _QWEN25_VL_ROWS, _QWEN3_VL_ROWS = 151679, 92558, 151670, 151674
_0_5B = Language("Qwen2", 896, 24, 14, 2, 4864, _QWEN_ROWS)
_1_5B = Language("Qwen2", 1536, 28, 12, 2, 8960, _QWEN_ROWS)
_3B = Language("Qwen2", 2048, 36, 16, 2, 11008, _QWEN_ROWS)
_7B = Language("Qwen2", 3584, 28, 28, 4, 18944, _QWEN_ROWS)
_14B = Language("Qwen2", 5120, 48, 40, 8, 13824, _QWEN_ROWS)
_LM_7B = Language("InternLM2", 4096, 32, 32, 8, 14336, _INTERNLM_ROWS)
_LM_20B = Language("InternLM2", 6144, 48, 48, 8, 16384, _INTERNLM_ROWS)
_VL_3B, _VL_7B = replace(_3B, rows=_QWEN25_VL_ROWS), replace(_7B, rows=_QWEN25_VL_ROWS)
_VL_2B = Language("Qwen3", 2048, 28, 16, 8, 6144, _QWEN3_VL_ROWS, head=128)
_VL_4B = Language("Qwen3", 2560, 36, 32, 8, 9728, _QWEN3_VL_ROWS, head=128)
_BIG_G, _QWEN_7B = (
    Tower(1664, 48, 16, 8192, kind="ViT-bigG"),
    Language("Qwen", 4096, 32, 32, 32, 11008, 151936, head=128),
)
_TINY = Language("Qwen2", 128, 2, 8, 2, 192, 273)

ZOO: Mapping[str, Architecture] = {
    # the 4B models speak Phi-3's template over Qwen's vocabulary
    "Sa2VA-1B": Architecture("ByteDance/Sa2VA-1B", _300M, _0_5B, "qwen_chat", 1.164),
    "Sa2VA-4B": Architecture("ByteDance/Sa2VA-4B", _300M, _3B, "phi3_chat", 3.942),
    "Sa2VA-8B": Architecture("ByteDance/Sa2VA-8B", _300M, _LM_7B, "internlm2_chat", 8.318),
    "Sa2VA-26B": Architecture("ByteDance/Sa2VA-26B", _6B, _LM_20B, "internlm2_chat", 25.778),
    "Sa2VA-InternVL3-2B": Architecture("ByteDance/Sa2VA-InternVL3-2B", _300M, _1_5B, "qwen_chat", 2.316),
    "Sa2VA-InternVL3-8B": Architecture("ByteDance/Sa2VA-InternVL3-8B", _300M, _7B, "qwen_chat", 8.183),
    "Sa2VA-InternVL3-14B": Architecture("ByteDance/Sa2VA-InternVL3-14B", _300M, _14B, "qwen_chat", 15.369),
    "Sa2VA-i-1B": Architecture("kumuji/Sa2VA-i-1B", _300M, _0_5B, "qwen_chat", 1.168, two_decoders=True),
    "Sa2VA-i-4B": Architecture("kumuji/Sa2VA-i-4B", _300M, _3B, "phi3_chat", 3.946, two_decoders=True),
    "Sa2VA-i-8B": Architecture("kumuji/Sa2VA-i-8B", _300M, _LM_7B, "internlm2_chat", 8.322, two_decoders=True),
    "Sa2VA-i-26B": Architecture("kumuji/Sa2VA-i-26B", _6B, _LM_20B, "internlm2_chat", 25.782, two_decoders=True),
    "Sa2VA-Qwen2_5-VL-3B": Architecture("ByteDance/Sa2VA-Qwen2_5-VL-3B", _WINDOWED, _VL_3B, "qwen_chat", 4.294),
    "Sa2VA-Qwen2_5-VL-7B": Architecture("ByteDance/Sa2VA-Qwen2_5-VL-7B", _WINDOWED, _VL_7B, "qwen_chat", 8.528),
    "Sa2VA-Qwen3-VL-2B": Architecture("ByteDance/Sa2VA-Qwen3-VL-2B", _STACKED, _VL_2B, "qwen_chat", 2.667),
    "Sa2VA-Qwen3-VL-4B": Architecture("ByteDance/Sa2VA-Qwen3-VL-4B", _STACKED, _VL_4B, "qwen_chat", 5.057),
    "Qwen-VL": Architecture("Qwen/Qwen-VL", _BIG_G, _QWEN_7B, "qwen_vl_raw", 9.657, has_grounder=False),
    "Qwen-VL-Chat": Architecture("Qwen/Qwen-VL-Chat", _BIG_G, _QWEN_7B, "qwen_vl_chat", 9.657, has_grounder=False),
    "Qwen-VL-Chat-Int4": Architecture(
        "Qwen/Qwen-VL-Chat-Int4", _BIG_G, _QWEN_7B, "qwen_vl_chat", 9.657, has_grounder=False, packed=128
    ),
    "tiny": Architecture("", Tower(64, 3, 4, 128), _TINY, "qwen_chat", 0.001, sam2=TINY_SAM2, tile=112),
    "tiny-qwen25-vl": Architecture(
        "",
        Tower(64, 3, 4, 96, kind="Qwen2.5-VL", marks=(1,)),
        replace(_TINY, rows=275),
        "qwen_chat",
        0.001,
        sam2=TINY_SAM2,
    ),
    "tiny-qwen-vl": Architecture(
        "",
        Tower(64, 3, 4, 96, kind="ViT-bigG"),
        Language("Qwen", 128, 2, 4, 4, 192, 480, head=32),
        "qwen_vl_chat",
        0.001,
        tile=112,
        has_grounder=False,
    ),
    "tiny-qwen3-vl": Architecture(
        "",
        Tower(64, 3, 4, 96, kind="Qwen3-VL", marks=(0, 1)),
        Language("Qwen3", 128, 3, 8, 2, 192, 275, head=16),
        "qwen_chat",
        0.002,
        sam2=TINY_SAM2,
    ),
}
"""Names to architectures; the `tiny` ones are none of the released, but small enough for tests."""
RELEASED = tuple(name for name, model in ZOO.items() if model.repository)


def find(name: str) -> Architecture:
    """The architecture of that name.

    Raises: ConfigError, naming those there are.
    """
    if name not in ZOO:
        raise ConfigError(f"unknown architecture {name!r}; known: {', '.join(ZOO)}")
    return ZOO[name]


def official_config(name: str) -> dict[str, Any]:
    """The fields of the official config.json of an architecture that its weights depend on.

    Raises: ConfigError, for an unknown name.
    """
    model = find(name)
    return _OFFICIAL[model.tower.kind](model)


def _internvl(model: Architecture) -> dict[str, Any]:
    tower, language = model.tower, model.language
    return {
        "architectures": ["Sa2VAChatModel"],
        "model_type": "sa2va_chat",
        "template": model.template,
        "select_layer": -1,
        "force_image_size": model.tile,
        "downsample_ratio": 0.5,
        "ps_version": "v2",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "hidden_size": tower.width,
            "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.heads,
            "intermediate_size": tower.mlp,
            "image_size": model.tile,
            "patch_size": 14,
            "qkv_bias": not tower.is_6b_style,
            "qk_normalization": tower.is_6b_style,
            "norm_type": "rms_norm" if tower.is_6b_style else "layer_norm",
            "layer_norm_eps": 1e-6,
            "hidden_act": "gelu",
            "initializer_factor": 0.1,
        },
        "llm_config": {
            "architectures": [f"{language.kind}ForCausalLM"],
            **_language(language),
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-5 if language.kind == "InternLM2" else 1e-6,
            "rope_theta": 1000000.0,
        },
    }


def _language(language: Language) -> dict[str, Any]:
    return {
        "hidden_size": language.width,
        "num_hidden_layers": language.layers,
        "num_attention_heads": language.heads,
        "num_key_value_heads": language.groups,
        "intermediate_size": language.mlp,
        "vocab_size": language.rows,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }


def _qwen_vl(
    model: Architecture, vision: Mapping[str, Any], text: Mapping[str, Any], *, spatial: float
) -> dict[str, Any]:
    """`spatial` is the share of rotary frequencies that turn with the height, and of those that do with the width."""
    tower, language = model.tower, model.language
    frequencies = (language.head or language.width // language.heads) // 2
    each = int(frequencies * spatial)
    return {
        "architectures": ["Sa2VAChatModelQwen"],
        "model_type": "sa2va_chat",
        "template": model.template,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "vision_config": {
            "depth": tower.layers,
            "hidden_size": tower.width,
            "num_heads": tower.heads,
            "intermediate_size": tower.mlp,
            "out_hidden_size": language.width,
            "in_channels": 3,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            **vision,
        },
        "text_config": {
            **_language(language),
            "rms_norm_eps": 1e-6,
            **text,
            "rope_scaling": {"rope_type": "default", "mrope_section": [frequencies - 2 * each, each, each]},
        },
    }


def _qwen25_vl(model: Architecture) -> dict[str, Any]:
    vision = {"hidden_act": "silu", "patch_size": 14, "window_size": 112, "tokens_per_second": 2}
    text = {"max_position_embeddings": 128000, "rope_theta": 1000000.0}
    return _qwen_vl(model, vision | {"fullatt_block_indexes": list(model.tower.marks)}, text, spatial=3 / 8)


def _qwen3_vl(model: Architecture) -> dict[str, Any]:
    vision = {"hidden_act": "gelu_pytorch_tanh", "patch_size": 16, "num_position_embeddings": 2304}
    text: dict[str, Any] = {"max_position_embeddings": 262144, "rope_theta": 5000000.0, "attention_bias": False}
    text["head_dim"] = model.language.head
    return _qwen_vl(model, vision | {"deepstack_visual_indexes": list(model.tower.marks)}, text, spatial=5 / 16)


def _first_qwen_vl(model: Architecture) -> dict[str, Any]:
    tower, language = model.tower, model.language
    packed = {"quant_method": "gptq", "bits": 4, "group_size": model.packed, "desc_act": False, "sym": True}
    # the last marks of the vocabulary are those of an image; some rows behind them are unused
    start = language.rows - (79 if language.rows == _QWEN_7B.rows else 10)
    return {
        "architectures": ["QWenLMHeadModel"],
        "model_type": "qwen",
        "template": model.template,
        "hidden_size": language.width,
        "intermediate_size": 2 * language.mlp,
        "kv_channels": language.head,
        "num_hidden_layers": language.layers,
        "num_attention_heads": language.heads,
        "vocab_size": language.rows,
        "seq_length": 2048,
        "visual": {
            "heads": tower.heads,
            "image_size": model.tile,
            "image_start_id": start,
            "layers": tower.layers,
            "mlp_ratio": (tower.mlp + 0.5) / tower.width,
            "n_queries": 256 if model.tile == 448 else 16,
            "output_dim": language.width,
            "patch_size": 14,
            "width": tower.width,
        },
        **({} if model.packed is None else {"quantization_config": packed}),
    }


_OFFICIAL = {"InternViT": _internvl, "ViT-bigG": _first_qwen_vl, "Qwen2.5-VL": _qwen25_vl, "Qwen3-VL": _qwen3_vl}


@dataclass(frozen=True, slots=True)
class Sizes:
    """What tells one architecture from another; `None` where a source does not say.

    `mlp` is the width inside the language model's MLPs, `sam2` the width of SAM 2's first stage, `vision` the kind of
    the tower.
    """

    tower: int | None = None
    tower_layers: int | None = None
    language: str | None = None
    width: int | None = None
    layers: int | None = None
    mlp: int | None = None
    rows: int | None = None
    sam2: int | None = None
    two_decoders: bool | None = None
    vision: str | None = None

    @classmethod
    def of(cls, model: Architecture) -> Sizes:
        """The sizes of a known architecture."""
        tower, language = model.tower, model.language
        widths = (language.kind, language.width, language.layers, language.mlp, language.rows)
        if not model.has_grounder:
            return cls(tower.width, tower.layers, *widths, vision=tower.kind)
        sam2 = model.sam2.get("embed_dim", HIERA_L_WIDTH)
        return cls(tower.width, tower.layers, *widths, sam2, model.two_decoders, tower.kind)

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Sizes:
        """The sizes that a config.json states, in the official or our own layout; what makes no sense is left out."""
        inner = _part(config, "mllm_config") or config
        if inner.get("model_type") in ("qwen", "segue_qwen_vl"):
            return cls(language="Qwen", vision="ViT-bigG", **_first_qwen_config(inner))
        vision, language = _part(inner, "vision_config"), _part(inner, "llm_config") or _part(inner, "text_config")
        seen = next((kind for word, kind in _MARKS.items() if word in vision), None)
        if seen is None and ("llm_config" in inner or inner.get("model_type") == "segue_internvl"):
            seen = "InternViT"
        named = str(language.get("architectures") or language.get("model_type") or seen).lower()
        sizes = {
            "tower": vision.get("hidden_size"),
            "tower_layers": vision.get("num_hidden_layers", vision.get("depth")),
            "width": language.get("hidden_size"),
            "layers": language.get("num_hidden_layers"),
            "mlp": language.get("intermediate_size"),
            "rows": language.get("vocab_size"),
        }
        known: dict[str, Any] = {name: value for name, value in sizes.items() if type(value) is int}
        kind = next((kind for word, kind in _KINDS.items() if word in named), None) if language else None
        return cls(language=kind, vision=seen if "tower" in known else None, **known)

    @classmethod
    def of_headers(cls, headers: Mapping[str, Stored]) -> Sizes:
        """The sizes that tensor names and shapes betray, in the official or our own layout."""
        if patches := _first(headers, r"transformer\.visual\.conv1\.weight|mllm\.vision_tower\.patches\.weight"):
            return cls(language="Qwen", vision="ViT-bigG", **_first_qwen_headers(headers, patches[0]))
        embeddings = _first(headers, _TEXT + r"(?:tok_embeddings|embed_tokens)\.weight")
        down = _TEXT + r"layers\.0\.(?:feed_forward\.w2|mlp\.down_proj)\.weight"
        trunk = r".+\.trunk\.patch_embed\.proj\.weight|.+\.backbone\.patch_embed\.projection\.weight"
        second = r".+\.sam_mask_decoder_modified\.iou_token\.weight|grounder\.language_decoder\.iou_token\.weight"
        styles = [kind for kind, pattern in _STYLES.items() if _first(headers, pattern)]
        tower = _last(_first(headers, _TOWERS["InternViT"]))
        patches = _first(headers, _PATCHES + r"patch_embed\.proj\.weight")
        return cls(
            tower=patches[0] if patches else tower,
            tower_layers=_count(headers, rf"(?:{_TILES}|{_PATCHES}blocks)\.(\d{{1,6}})\."),
            language=[*styles, "InternLM2"][0] if embeddings else None,
            width=_last(embeddings),
            layers=_count(headers, _TEXT + r"layers\.(\d{1,6})\."),
            mlp=_last(_first(headers, down)),
            rows=embeddings[0] if embeddings else None,
            sam2=(_first(headers, trunk) or (None,))[0],
            two_decoders=bool(_first(headers, second)) if _first(headers, trunk) else None,
            vision=next((kind for kind, pattern in _TOWERS.items() if _first(headers, pattern)), None),
        )

    def __str__(self) -> str:
        parts = []
        if self.tower is not None:
            parts.append(f"{_TITLES.get(self.vision or '', 'tower')} {self.tower} wide, {self.tower_layers} deep")
        if self.width is not None:
            parts.append(f"{self.language or 'language model'} {self.width} wide, {self.layers} deep")
        if self.sam2 is not None:
            parts.append("SAM 2 Hiera-L" if self.sam2 == HIERA_L_WIDTH else f"SAM 2 {self.sam2} wide")
        return "; ".join(parts) or "no part of a known model"


def _first_qwen_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of a first Qwen-VL from its config.json in either layout."""
    vision, text = _part(config, "vision_config"), _part(config, "text_config")
    if not text:
        vision, text = _part(config, "visual"), config
    mlp = text.get("intermediate_size")
    sizes = {
        "tower": vision.get("hidden_size", vision.get("width")),
        "tower_layers": vision.get("num_hidden_layers", vision.get("layers")),
        "width": text.get("hidden_size"),
        "layers": text.get("num_hidden_layers"),
        # the original counts both branches of the gated layer
        "mlp": mlp // 2 if text is config and type(mlp) is int else mlp,
        "rows": text.get("vocab_size"),
    }
    return {name: value for name, value in sizes.items() if type(value) is int}


def _first_qwen_headers(headers: Mapping[str, Stored], tower: int) -> dict[str, Any]:
    """The sizes of a first Qwen-VL, packed or not, from names and shapes in either layout."""
    embeddings = _first(headers, _TEXT + r"embed_tokens\.weight|transformer\.wte\.weight")
    down = r"(?:mllm\.language_model\.model\.layers\.0\.mlp\.down_proj|transformer\.h\.0\.mlp\.c_proj)\."
    blocks = r"(?:transformer\.visual\.transformer\.resblocks|mllm\.vision_tower\.layers)"
    packed = _first(headers, down + "qweight")
    return {
        "tower": tower,
        "tower_layers": _count(headers, blocks + r"\.(\d{1,6})\."),
        "width": _last(embeddings),
        "layers": _count(headers, r"(?:mllm\.language_model\.model\.layers|transformer\.h)\.(\d{1,6})\."),
        "mlp": 8 * packed[0] if packed else _last(_first(headers, down + "weight")),
        "rows": embeddings[0] if embeddings else None,
    }


_KINDS = {"qwen2": "Qwen2", "qwen3": "Qwen3", "internlm2": "InternLM2", "llama": "InternLM2"}
_MARKS = {"deepstack_visual_indexes": "Qwen3-VL", "fullatt_block_indexes": "Qwen2.5-VL"}
_TITLES = {
    "InternViT": "InternViT",
    "ViT-bigG": "ViT-bigG",
    "Qwen2.5-VL": "Qwen2.5-VL tower",
    "Qwen3-VL": "Qwen3-VL tower",
}
_TEXT = r"(?:(?:mllm\.)?language_model\.model|model\.model(?:\.language_model)?)\."
_PATCHES = r"(?:model\.(?:model\.)?visual|mllm\.vision_tower)\."
_TILES = r"(?:mllm\.)?vision_(?:model|tower)\.encoder\.layers?"
_STYLES = {
    "Qwen3": _TEXT + r"layers\.0\.self_attn\.q_norm\.weight",
    "Qwen2": _TEXT + r"layers\.0\.self_attn\.q_proj\.bias",
}
_TOWERS = {
    "InternViT": r"vision_model\.embeddings\.class_embedding|.+\.embeddings\.cls_token",
    "Qwen3-VL": _PATCHES + r"deepstack_merger_list\.0\.norm\.weight",
    "Qwen2.5-VL": _PATCHES + r"merger\.ln_q\.weight",
}


def nearest(sizes: Sizes) -> str | None:
    """The name of the architecture in `ZOO` that is most like these sizes; `None` if they say nothing."""
    distances = {name: _distance(sizes, Sizes.of(model)) for name, model in ZOO.items()}
    name = min(distances, key=lambda known: distances[known])
    return name if math.isfinite(distances[name]) else None


def describe(sizes: Sizes) -> str:
    """Sizes in words, with the known architecture that has them, or that is nearest to them."""
    name = nearest(sizes)
    if name is None:
        return str(sizes)
    is_known = not differing(sizes, Sizes.of(ZOO[name]))
    return f"{name} ({sizes})" if is_known else f"a model like {name} ({sizes})"


def differing(one: Sizes, other: Sizes) -> tuple[str, ...]:
    """The fields in which two architectures differ, as far as both say; the length of a vocabulary does not count."""
    pairs = {entry.name: (getattr(one, entry.name), getattr(other, entry.name)) for entry in fields(Sizes)}
    return tuple(name for name, (a, b) in pairs.items() if name != "rows" and None not in (a, b) and a != b)


def contrast(config: Mapping[str, Any], headers: Mapping[str, Stored]) -> str:
    """What a config.json describes and what weights are, where these are two architectures; else empty."""
    described, found = Sizes.of_config(config), Sizes.of_headers(headers)
    if not differing(described, found):
        return ""
    return f"config.json describes {describe(described)}, but the weights are those of {describe(found)}"


def _distance(one: Sizes, other: Sizes) -> float:
    total, is_told = 0.0, False
    for entry in fields(Sizes):
        a, b = getattr(one, entry.name), getattr(other, entry.name)
        if a is None or b is None:
            continue
        is_told = True
        is_size = type(a) is int and type(b) is int and a > 0
        total += abs(math.log(a / b)) if is_size else float(a != b)
    return total if is_told else math.inf


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = config.get(name)
    return value if isinstance(value, Mapping) else {}


def _first(headers: Mapping[str, Stored], pattern: str) -> tuple[int, ...] | None:
    return next((stored.shape for name, stored in headers.items() if re.fullmatch(pattern, name)), None)


def _last(shape: tuple[int, ...] | None) -> int | None:
    return shape[-1] if shape else None


def _count(headers: Mapping[str, Stored], pattern: str) -> int | None:
    numbers = [int(found[1]) for name in headers if (found := re.match(pattern, name))]
    return max(numbers) + 1 if numbers else None
