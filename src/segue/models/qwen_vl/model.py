"""Tower, connector and Qwen-7B, joined at the embeddings of the visual tokens; sizes and official names.

Source: Qwen-VL (arXiv 2308.12966); `config.json` and the index of its checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, Qwen2Config

from segue.errors import ConfigError, LimitError
from segue.models import gptq
from segue.models.protocol import (
    PUBLISHED_TILES,
    Batch,
    Point,
    Prompt,
    forward_loss,
    merge_visual_embeddings,
    positions,
    visual_features,
    weights_of,
)
from segue.models.qwen_vl.language import MOST_POSITIONS, QwenForCausalLM, stretched
from segue.models.qwen_vl.vision import Connector, QwenVLVisionConfig, VisionTower
from segue.weights import KeyTable, Rule

ARCHITECTURE = "QWenLMHeadModel"


class QwenVLConfig(PreTrainedConfig):
    """Sizes of a Qwen-VL.

    `text_config.max_position_embeddings` is the length that the language model was trained on; beyond it
    `use_dynamic_ntk` and `use_logn_attn` act. `image_start_id` is the id of `<img>`; `</img>` and the visual token
    follow it. `gptq_group` says that the language model's linear layers are packed in 4 bits, with a scale for so many
    inputs.
    """

    model_type = "segue_qwen_vl"
    sub_configs = {"vision_config": QwenVLVisionConfig, "text_config": Qwen2Config}

    def __init__(
        self,
        vision_config: dict[str, Any] | PreTrainedConfig | None = None,
        text_config: dict[str, Any] | PreTrainedConfig | None = None,
        image_start_id: int = 151857,
        gptq_group: int | None = None,
        **kwargs: Any,
    ):
        self.vision_config: Any = vision_config
        self.text_config: Any = text_config
        if not isinstance(vision_config, PreTrainedConfig):
            self.vision_config = QwenVLVisionConfig(**(vision_config or {}))
        if not isinstance(text_config, PreTrainedConfig):
            sizes = {name: value for name, value in (text_config or {}).items() if name != "model_type"}
            self.text_config = Qwen2Config(**sizes)
        self.image_start_id = image_start_id
        self.gptq_group = gptq_group
        kwargs["tie_word_embeddings"] = False
        super().__init__(**kwargs)

    @property
    def visual_id(self) -> int:
        """The id that holds the place of one visual token."""
        return self.image_start_id + 2

    def set_image_side(self, side: int) -> None:
        """Show pictures as squares of another side from now on; positions are spread over the patches there are.

        Raises: ConfigError, for a side that does not cut into patches.
        """
        patch = self.vision_config.patch_size
        if side < patch or side % patch:
            raise ConfigError(f"image_side is {side}; expected a multiple of {patch}, the side of a patch")
        self.vision_config.image_size = side

    def largest_image(self, max_tiles: int = PUBLISHED_TILES) -> tuple[int, int]:
        """Patches and visual tokens of an image; all images are of one size."""
        return self.largest_frame()

    def largest_frame(self) -> tuple[int, int]:
        """Patches and visual tokens of a frame, which is an image of its own."""
        vision = self.vision_config
        return (vision.image_size // vision.patch_size) ** 2, vision.num_queries


class QwenVLMLLM(PreTrainedModel):
    """A Qwen-VL; it has no grounder, and says where things are in words."""

    config_class = QwenVLConfig
    base_model_prefix = "mllm"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _no_split_modules = ["Block", "Qwen2DecoderLayer"]

    def __init__(self, config: QwenVLConfig):
        super().__init__(config)
        self.width = config.text_config.hidden_size
        self.vision_tower = VisionTower(config.vision_config)
        self.connector = Connector(config.vision_config)
        self.language_model = QwenForCausalLM(config.text_config)
        if config.gptq_group is not None:
            gptq.pack_layers(self.language_model.model.layers, config.gptq_group)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The table of token embeddings."""
        return self.language_model.get_input_embeddings()

    def tower(
        self, pixels: Float[Tensor, "p 3 h w"], grids: Int[Tensor, "i 2"] | None = None
    ) -> Float[Tensor, "p n c"]:
        """Patch states of square images. There are no `grids`: images are all alike."""
        states: Float[Tensor, "p n c"] = self.vision_tower(pixels)
        return states

    def project(self, states: Float[Tensor, "p n c"], grids: Int[Tensor, "i 2"] | None = None) -> Float[Tensor, "f d"]:
        """Visual features, `num_queries` rows for each image."""
        features: Float[Tensor, "f d"] = self.connector(states).flatten(0, 1)
        return features

    def below(self, point: Point) -> dict[str, Tensor]:
        """The weights that states or features depend on."""
        return weights_of(self, ("vision_tower.",) if point == "tower" else ("vision_tower.", "connector."))

    def prompt(self, batch: Batch) -> Prompt:
        """Embeddings with the features written over the visual tokens."""
        embeddings = self.get_input_embeddings()(batch.input_ids)
        merged = merge_visual_embeddings(embeddings, batch, visual_features(self, batch))
        return Prompt(merged, batch.attention, self.place(batch.attention))

    def place(self, attention: Int[Tensor, "b s"]) -> Int[Tensor, "b s"]:
        """Where the tokens of left-padded rows stand, and how far each row's rotary base is stretched.

        Raises: LimitError, for a row longer than the original can count.
        """
        longest = int(attention.sum(-1).max())
        if longest > MOST_POSITIONS:
            raise LimitError(
                f"a row has {longest:,} tokens; Qwen-VL counts to {MOST_POSITIONS:,}: shorten the dialogue"
            )
        where, text = positions(attention), self.config.text_config
        # PARITY(ntk_at_prefill): the prompt's length decides, and what is generated after it changes nothing
        if text.use_dynamic_ntk and not self.training:
            where = stretched(where, text.max_position_embeddings)
        return where

    def forward(self, batch: Batch) -> tuple[Float[Tensor, ""] | None, Float[Tensor, "b s d"]]:
        """Mean cross-entropy over the labelled tokens of the batch (`None` without labels), and the states after the
        final norm.
        """
        return forward_loss(self, batch)

    def head(self, hidden: Float[Tensor, "... d"]) -> Float[Tensor, "... v"]:
        """Scores of all tokens to come after states of `forward`."""
        scores: Float[Tensor, "... v"] = self.language_model.lm_head(hidden)
        return scores


def claims(config: Mapping[str, Any]) -> bool:
    """Whether an official config.json describes a Qwen-VL: a first Qwen with a `visual` part."""
    return config.get("model_type") == "qwen" and "visual" in config


def architecture(config: Mapping[str, Any]) -> QwenVLConfig:
    """Our configuration from the fields of an official config.json, those of an Int4 checkpoint included.

    Raises: ConfigError, for a form of quantisation that is not GPTQ's in 4 bits.
    """
    visual, hidden = config["visual"], config["hidden_size"]
    heads = config["num_attention_heads"]
    return QwenVLConfig(
        vision_config={
            "image_size": visual["image_size"],
            "patch_size": visual["patch_size"],
            "hidden_size": visual["width"],
            "num_hidden_layers": visual["layers"],
            "num_attention_heads": visual["heads"],
            "intermediate_size": int(visual["width"] * visual["mlp_ratio"]),
            "output_width": visual["output_dim"],
            "num_queries": visual.get("n_queries", 256),
        },
        text_config={
            "vocab_size": config["vocab_size"],
            "hidden_size": hidden,
            # the original counts both branches of the gated layer together
            "intermediate_size": config["intermediate_size"] // 2,
            "num_hidden_layers": config["num_hidden_layers"],
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "head_dim": config.get("kv_channels", hidden // heads),
            "hidden_act": "silu",
            "rms_norm_eps": config.get("layer_norm_epsilon", 1e-6),
            "rope_parameters": {"rope_type": "default", "rope_theta": float(config.get("rotary_emb_base", 10000))},
            "max_position_embeddings": config.get("seq_length", 2048),
            "use_dynamic_ntk": config.get("use_dynamic_ntk", True),
            "use_logn_attn": config.get("use_logn_attn", True),
            "tie_word_embeddings": False,
        },
        image_start_id=visual["image_start_id"],
        gptq_group=gptq.group_size(config.get("quantization_config")),
    )


def _by_head(fused: Tensor, heads: int) -> list[Tensor]:
    """Rows of queries, keys and values that stand head by head, put apart."""
    return [part.flatten(0, 1) for part in fused.unflatten(0, (heads, 3, -1)).unbind(1)]


def _to_heads(parts: Sequence[Tensor], heads: int) -> Tensor:
    return torch.stack([part.unflatten(0, (heads, -1)) for part in parts], 1).flatten(0, 2)


def _thirds(fused: Tensor) -> Sequence[Tensor]:
    return fused.chunk(3)


def _columns(fused: Tensor) -> Sequence[Tensor]:
    return fused.chunk(3, -1)


def key_table(config: QwenVLConfig) -> KeyTable:
    """Official names to ours."""
    return [*_vision_rules(config.vision_config.num_attention_heads), *_language_rules(config.gptq_group is not None)]


def _vision_rules(heads: int) -> list[Rule]:
    visual, block = r"transformer\.visual\.", r"transformer\.visual\.transformer\.resblocks\.(\d+)\."
    layer, pool = r"vision_tower.layers.\1.", r"transformer\.visual\.attn_pool\."
    resampler = "connector.resampler."
    attention = tuple(resampler + f"attention.{part}_proj." for part in "qkv")
    return [
        Rule(visual + r"conv1\.weight", ("vision_tower.patches.weight",)),
        Rule(visual + "positional_embedding", ("vision_tower.positions",)),
        Rule(visual + r"ln_pre\.(weight|bias)", (r"vision_tower.norm.\1",)),
        Rule(block + r"ln_([12])\.(weight|bias)", (layer + r"norm\2.\3",)),
        Rule(
            block + r"attn\.in_proj\.(weight|bias)",
            tuple(layer + rf"attention.{part}_proj.\2" for part in "qkv"),
            split=lambda fused: _by_head(fused, heads),
            join=lambda parts: _to_heads(parts, heads),
        ),
        Rule(block + r"attn\.out_proj\.(weight|bias)", (layer + r"attention.out_proj.\2",)),
        Rule(block + r"mlp\.c_fc\.(weight|bias)", (layer + r"fc1.\2",)),
        Rule(block + r"mlp\.c_proj\.(weight|bias)", (layer + r"fc2.\2",)),
        Rule(pool + "query", (resampler + "query",)),
        Rule(pool + "pos_embed", (resampler + "positions",)),
        Rule(pool + r"kv_proj\.weight", (resampler + "project.weight",)),
        Rule(pool + r"ln_q\.(weight|bias)", (resampler + r"query_norm.\1",)),
        Rule(pool + r"ln_kv\.(weight|bias)", (resampler + r"key_norm.\1",)),
        *(
            Rule(
                pool + rf"attn\.in_proj_{kind}", tuple(place + kind for place in attention), split=_thirds, join=_joined
            )
            for kind in ("weight", "bias")
        ),
        Rule(pool + r"attn\.out_proj\.(weight|bias)", (resampler + r"attention.out_proj.\1",)),
        Rule(visual + r"ln_post\.(weight|bias)", (r"connector.norm.\1",)),
        # applied from the left in the original
        Rule(visual + "proj", ("connector.output.weight",), split=lambda t: [t.T], join=lambda parts: parts[0].T),
    ]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts))


def _joined_columns(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts), -1)


def _language_rules(is_packed: bool) -> list[Rule]:
    upstream, layer = r"transformer\.h\.(\d+)\.", r"language_model.model.layers.\1."
    kinds = "weight|bias|qweight|qzeros|scales|g_idx" if is_packed else "weight"
    fused = tuple(layer + rf"self_attn.{part}_proj.\2" for part in "qkv")
    # w2 is the branch that goes through the activation
    names = {
        r"attn\.c_proj": "self_attn.o_proj",
        r"mlp\.w1": "mlp.up_proj",
        r"mlp\.w2": "mlp.gate_proj",
        r"mlp\.c_proj": "mlp.down_proj",
    }
    return [
        Rule(r"transformer\.wte\.weight", ("language_model.model.embed_tokens.weight",)),
        Rule(upstream + r"ln_1\.weight", (layer + "input_layernorm.weight",)),
        Rule(upstream + r"ln_2\.weight", (layer + "post_attention_layernorm.weight",)),
        # packed layers have their outputs in columns, and inputs that all three share
        Rule(upstream + r"attn\.c_attn\.(qweight|qzeros|scales)", fused, split=_columns, join=_joined_columns),
        Rule(upstream + r"attn\.c_attn\.(g_idx)", fused),
        Rule(upstream + r"attn\.c_attn\.(weight|bias)", fused, split=_thirds, join=_joined),
        *(Rule(upstream + rf"{theirs}\.({kinds})", (layer + rf"{ours}.\2",)) for theirs, ours in names.items()),
        Rule(r"transformer\.ln_f\.weight", ("language_model.model.norm.weight",)),
        Rule(r"lm_head\.weight", ("language_model.lm_head.weight",)),
    ]
