"""InternVL2.5 and InternVL3: InternViT, pixel shuffle, a two-layer projector, and Qwen2, Qwen3 or InternLM2.

The vision tower and the language models are the library's own classes; InternLM2 is a Llama under other names. The
library's joined InternVL class is not used: it counts image tokens and so refuses region prompts.

Source: Sa2VA's InternVL flavour (bytedance/Sa2VA, `projects/sa2va/hf/models`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    InternVLVisionConfig,
    InternVLVisionModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.internvl.modeling_internvl import InternVLVisionMLP

from segue.errors import CheckpointError, ConfigError, DataError
from segue.geometry.notation import parse
from segue.models.fused import activated, fuse
from segue.models.internvl.known import KNOWN, SIGNS
from segue.models.internvl.official import LANGUAGE_CLASSES, LANGUAGE_FIELDS, grounded, plain
from segue.models.pieces import Piece
from segue.models.protocol import (
    PUBLISHED_TILES,
    Batch,
    Family,
    Official,
    Point,
    Prompt,
    VisionInput,
    forward_loss,
    merge_visual_embeddings,
    positions,
    shown_as,
    visual_features,
    weights_of,
)
from segue.models.templates import Template, TextTokenizer, template
from segue.models.tiling import resize, tile
from segue.models.tokenizers import check_length, known_id, load_tokenizer, save_tokenizer, single_id
from segue.types import MediaKind, Region
from segue.weights import KeyTable, Rule

MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)


class InternVLMLLMConfig(PreTrainedConfig):
    """Sizes of an InternVL: tower, language model, and how tiles become visual tokens.

    `select_layer` is the tower layer that is read (-1 the last); `downsample_ratio` the side ratio of the pixel shuffle
    and `shuffle_version` its layout; `tile_side` the side of a tile in pixels. A model that was trained on fewer tiles
    than people may ask for says so in `most_tiles`.
    """

    model_type = "segue_internvl"
    sub_configs = {"vision_config": InternVLVisionConfig, "text_config": AutoConfig}

    def __init__(
        self,
        vision_config: dict[str, Any] | PreTrainedConfig | None = None,
        text_config: dict[str, Any] | PreTrainedConfig | None = None,
        select_layer: int = -1,
        downsample_ratio: float = 0.5,
        shuffle_version: str = "v2",
        tile_side: int = 448,
        **kwargs: Any,
    ):
        self.vision_config: Any = vision_config
        self.text_config: Any = text_config
        if not isinstance(vision_config, PreTrainedConfig):
            self.vision_config = InternVLVisionConfig(**(vision_config or {}))
        if not isinstance(text_config, PreTrainedConfig):
            sizes = {"model_type": "qwen2", **(text_config or {})}
            self.text_config = AutoConfig.for_model(sizes.pop("model_type"), **sizes)
        self.select_layer = select_layer
        self.downsample_ratio = downsample_ratio
        self.shuffle_version = shuffle_version
        self.tile_side = tile_side
        self.most_tiles: int | None = kwargs.pop("most_tiles", None)
        kwargs["tie_word_embeddings"] = False
        super().__init__(**kwargs)

    @property
    def tile_tokens(self) -> int:
        """Visual tokens per tile: 256 for a 448-pixel tile."""
        return self.grid**2

    def largest_image(self, max_tiles: int = PUBLISHED_TILES) -> tuple[int, int]:
        """Patches and visual tokens of an image in its most tiles and the small copy of the whole."""
        tiles = min(max_tiles, self.most_tiles or max_tiles)
        patches, tokens = self.largest_frame()
        return (tiles + (tiles > 1)) * patches, (tiles + (tiles > 1)) * tokens

    def largest_frame(self) -> tuple[int, int]:
        """Patches and visual tokens of a frame, which is one tile."""
        return (self.vision_config.image_size[0] // self.vision_config.patch_size[0]) ** 2 + 1, self.tile_tokens

    @property
    def grid(self) -> int:
        """Visual tokens along one side of a tile."""
        return int(self.tile_side // self.vision_config.patch_size[0] * self.downsample_ratio)


class _FeedForward(InternVLVisionMLP):
    def forward(self, hidden_states: Float[Tensor, "p n c"]) -> Float[Tensor, "p n c"]:
        output: Float[Tensor, "p n c"] = self.fc2(activated(self.fc1, self.activation_fn, hidden_states))
        return output


class InternVLMLLM(PreTrainedModel):
    """Tower, projector and language model, joined at the embeddings of the visual tokens."""

    config_class = InternVLMLLMConfig
    base_model_prefix = "mllm"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _no_split_modules = ["InternVLVisionLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer", "LlamaDecoderLayer"]

    def __init__(self, config: InternVLMLLMConfig):
        super().__init__(config)
        width = config.text_config.hidden_size
        shuffled = int(config.vision_config.hidden_size / config.downsample_ratio**2)
        self.width = width
        self.vision_tower = InternVLVisionModel(config.vision_config)
        fuse(self.vision_tower)
        for layer in self.vision_tower.encoder.layer:
            layer.mlp.__class__ = _FeedForward
        self.projector = nn.Sequential(
            nn.LayerNorm(shuffled), nn.Linear(shuffled, width), nn.GELU(), nn.Linear(width, width)
        )
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The table of token embeddings."""
        return self.language_model.get_input_embeddings()

    def tower(
        self, pixels: Float[Tensor, "p 3 h w"], grids: Int[Tensor, "i 2"] | None = None
    ) -> Float[Tensor, "p n c"]:
        """Patch states of tiles, without the class token. There are no `grids`: tiles are all alike."""
        pixels = pixels.to(self.dtype)
        last = self.config.select_layer == -1
        output = self.vision_tower(pixels, output_hidden_states=not last)
        hidden = output.last_hidden_state if last else output.hidden_states[self.config.select_layer]
        patches: Float[Tensor, "p n c"] = hidden[:, 1:]
        return patches

    def project(self, states: Float[Tensor, "p n c"], grids: Int[Tensor, "i 2"] | None = None) -> Float[Tensor, "f d"]:
        """Visual features: pixel shuffle, projector; a tile's tokens stand row by row."""
        shuffled = pixel_shuffle(states, self.config.downsample_ratio, self.config.shuffle_version)
        return self.projector(shuffled).flatten(0, 1)

    def below(self, point: Point) -> dict[str, Tensor]:
        """The weights that states or features depend on."""
        return weights_of(self, ("vision_tower.",) if point == "tower" else ("vision_tower.", "projector."))

    def prompt(self, batch: Batch) -> Prompt:
        """Embeddings with the features written over the visual tokens."""
        embeddings = self.get_input_embeddings()(batch.input_ids)
        merged = merge_visual_embeddings(embeddings, batch, visual_features(self, batch))
        return Prompt(merged, batch.attention, positions(batch.attention))

    def forward(self, batch: Batch) -> tuple[Float[Tensor, ""] | None, Float[Tensor, "b s d"]]:
        """Mean cross-entropy over the labelled tokens of the batch (`None` without labels), and the states after the
        final norm, from which a segmentation token is read.
        """
        return forward_loss(self, batch)

    def head(self, hidden: Float[Tensor, "... d"]) -> Float[Tensor, "... v"]:
        """Scores of all tokens to come after states of `forward`."""
        scores: Float[Tensor, "... v"] = self.language_model.lm_head(hidden)
        return scores


def pixel_shuffle(patches: Float[Tensor, "p n d"], ratio: float, version: str) -> Float[Tensor, "p m e"]:
    """Fold blocks of neighbouring patches into channels: at 0.5, four patches become one of four times the width.

    Version `v2` puts height and width back in order; `v1` leaves them swapped, as its checkpoints learned it.

    Raises: ConfigError, for another version.
    """
    if version not in ("v1", "v2"):
        raise ConfigError(f"unknown pixel shuffle version {version!r} in config.json; known are v1 and v2")
    count, number, width = patches.shape
    side = round(number**0.5)
    folded = round(side * ratio)
    grid = patches.view(count, side, folded, int(width / ratio)).permute(0, 2, 1, 3)
    grid = grid.reshape(count, folded, folded, int(width / ratio**2))
    if version == "v2":
        grid = grid.permute(0, 2, 1, 3)
    return grid.reshape(count, folded * folded, -1)


@dataclass(slots=True)
class InternVLProcessor:
    """Media to tiles and placeholder text, for one tokenizer."""

    tokenizer: TextTokenizer
    template: Template
    tile_side: int
    grid: int
    tile_tokens: int
    seg_id: int | None
    visual_id: int
    bos_ids: tuple[int, ...]
    eos_ids: tuple[int, ...]
    most_tiles: int | None = None
    visual_token: str = "<IMG_CONTEXT>"
    shows_first: bool = False

    @classmethod
    def load(cls, folder: Path, config: InternVLMLLMConfig, chat: str) -> InternVLProcessor:
        """Read a model folder's tokenizer and find the tokens of the family.

        Raises: CheckpointError, if a token is missing, splits into pieces, or has no row in the embeddings.
        """
        tokenizer = load_tokenizer(folder)
        rows = config.text_config.vocab_size
        ids = {token: single_id(tokenizer, token, rows) for token in ("<IMG_CONTEXT>", "<img>", "</img>")}
        seg_id = known_id(tokenizer, "[SEG]", rows)
        check_length(tokenizer, rows, folder)
        # PARITY(no_system_message): a prompt is turns alone; InternLM2 has a begin-of-text token first
        is_internlm2 = config.text_config.model_type == "llama"
        if is_internlm2 and tokenizer.bos_token_id is None:
            raise CheckpointError(f"the tokenizer in {folder} names no begin-of-text token, which InternLM2 needs")
        return cls(
            tokenizer=tokenizer,
            template=template(chat),
            tile_side=config.tile_side,
            grid=config.grid,
            tile_tokens=config.tile_tokens,
            seg_id=seg_id,
            visual_id=ids["<IMG_CONTEXT>"],
            bos_ids=(tokenizer.bos_token_id,) if is_internlm2 else (),
            eos_ids=() if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,),
            most_tiles=config.most_tiles,
        )

    def image(self, pixels: UInt8[np.ndarray, "h w 3"], *, max_tiles: int) -> VisionInput:
        """One image: its tiles and a thumbnail, all inside one `<img>` pair."""
        most = min(max_tiles, self.most_tiles or max_tiles)
        return self._vision("image", tile(Image.fromarray(pixels), max_tiles=most, side=self.tile_side))

    def frames(self, pixels: UInt8[np.ndarray, "t h w 3"]) -> VisionInput:
        """Frames of a video, each stretched to one tile with an `<img>` pair of its own, joined by line breaks."""
        return self._vision(
            "video", [resize(Image.fromarray(frame), self.tile_side, self.tile_side) for frame in pixels]
        )

    def placeholder(self, kind: MediaKind, num_features: int, grids: Int[Tensor, "i 2"] | None = None) -> str:
        """The `<img>` pairs of a medium."""
        # PARITY(image_blocks): tiles of one image share a pair, frames have one each; nothing is added after it
        blocks = 1 if kind == "image" else num_features // self.tile_tokens
        return "\n".join([f"<img>{self.visual_token * (num_features // blocks)}</img>"] * blocks)

    def _vision(self, kind: MediaKind, tiles: Sequence[Image.Image]) -> VisionInput:
        pixels = torch.from_numpy(np.stack([np.asarray(square) for square in tiles])).permute(0, 3, 1, 2)
        mean, deviation = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(DEVIATION).view(3, 1, 1)
        return shown_as(self, kind, len(tiles) * self.tile_tokens, pixels=(pixels / 255 - mean) / deviation)

    def regions(self, vision: VisionInput, masks: Bool[np.ndarray, "n h w"]) -> VisionInput:
        """The medium with its sentence about marked regions; each repeats the visual tokens it covers.

        Masks are as large as the medium. A region too small for the grid keeps the cell that holds most of it.

        Raises: DataError, for an empty mask.
        """
        # PARITY(region_cells_last_tile): cells count in the last tile, which shows the whole image
        first = len(vision.rows) - self.tile_tokens
        cells = [torch.from_numpy(covered_cells(mask, self.grid)) for mask in masks]
        marks = ", ".join(
            f"region{number}<vp>{self.visual_token * len(covered)}</vp>" for number, covered in enumerate(cells, 1)
        )
        sentence = f"\nThere are {len(cells)} part regions in the picture: {marks}.\n"
        rows = torch.cat([vision.rows, *(first + cell for cell in cells)])
        return replace(vision, text=vision.text + sentence, rows=rows)

    def place(self, region: Region, size: tuple[int, int]) -> list[Piece] | None:
        """None: regions are marked in the picture."""
        return None

    def save(self, folder: Path) -> None:
        """Write the tokenizer files."""
        save_tokenizer(self.tokenizer, folder)


def covered_cells(mask: Bool[np.ndarray, "h w"], grid: int) -> Int[np.ndarray, " k"]:
    """The cells of a grid x grid raster, counted row by row, that a mask covers under nearest sampling; at least one.

    Raises: DataError, for an empty mask.
    """
    if not mask.any():
        raise DataError("a region prompt's mask is empty; mark at least one pixel of the image")
    small = functional.interpolate(torch.from_numpy(mask)[None, None].float(), size=(grid, grid), mode="nearest")
    cells = small.flatten().nonzero()[:, 0].numpy()
    if len(cells):
        return cells
    # upstream gives such a region an empty mark, and the model cannot see it
    area = functional.adaptive_avg_pool2d(torch.from_numpy(mask)[None].float(), grid)
    return area.flatten().argmax()[None].numpy()


def claims(config: Mapping[str, Any]) -> bool:
    """Whether an official config.json describes an InternVL flavour: only those nest an `llm_config`."""
    return "llm_config" in config and "vision_config" in config


def architecture(config: Mapping[str, Any]) -> InternVLMLLMConfig:
    """Our configuration from the fields of an official Sa2VA config.json.

    Raises: ConfigError, for a language model that no Sa2VA checkpoint of this family has.
    """
    vision = config["vision_config"]
    return InternVLMLLMConfig(
        vision_config={
            "hidden_size": vision["hidden_size"],
            "num_hidden_layers": vision["num_hidden_layers"],
            "num_attention_heads": vision["num_attention_heads"],
            "intermediate_size": vision["intermediate_size"],
            "image_size": vision.get("image_size", 448),
            "patch_size": vision.get("patch_size", 14),
            "hidden_act": vision.get("hidden_act", "gelu"),
            "norm_type": vision.get("norm_type", "layer_norm"),
            "layer_norm_eps": vision.get("layer_norm_eps", 1e-6),
            "attention_bias": vision.get("qkv_bias", True),
            "use_qk_norm": vision.get("qk_normalization", False),
            "layer_scale_init_value": vision.get("initializer_factor", 0.1),
            # mean pooling is how the library says that the tower ends without a norm
            "use_mean_pooling": True,
        },
        text_config=_language(config["llm_config"]),
        select_layer=config.get("select_layer", -1),
        downsample_ratio=config.get("downsample_ratio", 0.5),
        shuffle_version=config.get("ps_version", "v2"),
        tile_side=config.get("force_image_size") or vision.get("image_size", 448),
        most_tiles=config.get("most_tiles"),
    )


def _language(config: Mapping[str, Any]) -> dict[str, Any]:
    named = (config.get("architectures") or [None])[0]
    if named not in LANGUAGE_CLASSES:
        raise ConfigError(
            f"config.json names the language model {named!r}; this family knows {', '.join(LANGUAGE_CLASSES)}"
        )
    fields = {name: config[name] for name in LANGUAGE_FIELDS if config.get(name) is not None}
    rope: dict[str, Any] = {"rope_theta": config.get("rope_theta", 10000.0), "rope_type": "default"}
    scaling = config.get("rope_scaling") or config.get("rope_parameters")
    if scaling:
        rope |= {"rope_type": scaling.get("rope_type") or scaling.get("type", "default")}
        rope |= {name: value for name, value in scaling.items() if name not in ("type", "rope_type")}
    if named == "InternLM2ForCausalLM":
        fields |= {"attention_bias": config.get("bias", False), "mlp_bias": config.get("bias", False)}
    # whatever the base model did, Sa2VA trains the output head apart from the embeddings
    return fields | {"model_type": LANGUAGE_CLASSES[named], "rope_parameters": rope, "tie_word_embeddings": False}


def key_table(config: InternVLMLLMConfig) -> KeyTable:
    """Official names to ours: fused query-key-value rows come apart, and InternLM2's names become Llama's."""
    tower, layer = "vision_tower.", r"vision_tower.encoder.layer.\1."
    upstream = r"vision_model\.encoder\.layers\.(\d+)\."
    rules = [
        Rule(r"vision_model\.embeddings\.class_embedding", (tower + "embeddings.cls_token",)),
        Rule(r"vision_model\.embeddings\.position_embedding", (tower + "embeddings.position_embeddings",)),
        Rule(
            r"vision_model\.embeddings\.patch_embedding\.(weight|bias)",
            (tower + r"embeddings.patch_embeddings.projection.\1",),
        ),
        Rule(
            upstream + r"attn\.qkv\.(weight|bias)",
            tuple(layer + rf"attention.{part}_proj.\2" for part in "qkv"),
            split=lambda fused: fused.chunk(3),
            join=lambda parts: torch.cat(list(parts)),
        ),
        Rule(upstream + r"attn\.([qk])_norm\.weight", (layer + r"attention.\2_norm.weight",)),
        Rule(upstream + r"attn\.proj\.(weight|bias)", (layer + r"attention.projection_layer.\2",)),
        Rule(upstream + r"norm1\.(weight|bias)", (layer + r"layernorm_before.\2",)),
        Rule(upstream + r"norm2\.(weight|bias)", (layer + r"layernorm_after.\2",)),
        Rule(upstream + r"ls([12])", (layer + r"lambda_\2",)),
        Rule(upstream + r"mlp\.(fc[12]\.(?:weight|bias))", (layer + r"mlp.\2",)),
        Rule(r"mlp1\.([013])\.(weight|bias)", (r"projector.\1.\2",)),
    ]
    if config.text_config.model_type == "llama":
        rules += _internlm2_rules(config.text_config)
    return [*rules, Rule(r"language_model\.(.+)", (r"language_model.\1",))]


def _internlm2_rules(text: PreTrainedConfig) -> list[Rule]:
    heads, groups = text.num_attention_heads, text.num_key_value_heads
    queries, width = heads // groups, text.hidden_size // heads

    def split(fused: Tensor) -> list[Tensor]:
        # rows stand per key-value head: its queries, then one key, one value
        parts = fused.view(groups, queries + 2, width, *fused.shape[1:])
        return [parts[:, :queries].flatten(0, 2), parts[:, queries].flatten(0, 1), parts[:, queries + 1].flatten(0, 1)]

    def join(parts: Sequence[Tensor]) -> Tensor:
        query, key, value = (part.view(groups, -1, width, *part.shape[1:]) for part in parts)
        return torch.cat([query, key, value], dim=1).flatten(0, 2)

    old, new = r"language_model\.model\.layers\.(\d+)\.", r"language_model.model.layers.\1."
    names = {
        r"attention\.wo": "self_attn.o_proj",
        r"feed_forward\.w1": "mlp.gate_proj",
        r"feed_forward\.w3": "mlp.up_proj",
        r"feed_forward\.w2": "mlp.down_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    return [
        Rule(r"language_model\.model\.tok_embeddings\.weight", ("language_model.model.embed_tokens.weight",)),
        Rule(r"language_model\.output\.weight", ("language_model.lm_head.weight",)),
        Rule(
            old + r"attention\.wqkv\.(weight|bias)",
            tuple(new + rf"self_attn.{part}_proj.\2" for part in "qkv"),
            split=split,
            join=join,
        ),
        *(Rule(old + rf"{theirs}\.(weight|bias)", (new + rf"{ours}.\2",)) for theirs, ours in names.items()),
    ]


FAMILY = Family(
    name="internvl",
    claims=claims,
    architecture=architecture,
    config=InternVLMLLMConfig,
    build=InternVLMLLM,
    processor=InternVLProcessor.load,
    key_table=key_table,
    special_tokens=(
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"),
        *("<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"),
    ),
    signs=SIGNS,
    known=KNOWN,
    parse=parse,
    # PARITY(video_first_five): the frames that are shown are also the only ones that are asked for objects
    video_frames="first:5",
    prompts={
        "segment_image": "Please segment {phrase} in this image.",
        "segment_video": "Please segment {phrase}.",
        "region_caption": "Please give me a short description of the region in the picture marked by region1.",
    },
    groups={
        "vision": ("mllm.vision_tower.",),
        "connector": ("mllm.projector.",),
        "language": ("mllm.language_model.model.layers.", "mllm.language_model.model.norm."),
        "embeddings": ("mllm.language_model.model.embed_tokens.", "mllm.language_model.lm_head."),
    },
    official=Official(architecture="InternVLChatModel", config=plain),
    grounded=Official(architecture="Sa2VAChatModel", config=grounded),
)
