"""What Qwen2.5-VL and Qwen3-VL share, with Sa2VA's grounder or without: images at their own resolution, the joined
model, prompts, key table.

A family gives the tower, the text model and their configurations, which are the library's own classes. The library's
joined classes are not used: they want ids where Segue has embeddings, and keep positions between calls.

Source: Sa2VA's Qwen flavours (bytedance/Sa2VA, `projects/sa2va/hf/models_qwen2_5_vl` and `models_qwen3vl`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from segue.errors import DataError
from segue.models.native_resolution.official import SA2VA, TEXT_FIELDS, VISION_FIELDS
from segue.models.native_resolution.patches import double_resize, mrope_positions, patchify
from segue.models.pieces import Piece
from segue.models.protocol import (
    PUBLISHED_TILES,
    Batch,
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
from segue.models.templates import Template, TextTokenizer, opening, template
from segue.models.tokenizers import check_length, known_id, load_tokenizer, save_tokenizer, single_id
from segue.types import MediaKind, Region
from segue.weights import KeyTable, Rule

LEAST_PIXELS, MOST_PIXELS = 512 * 28 * 28, 2048 * 28 * 28
BLOCK = "<|vision_start|>{tokens}<|vision_end|>"
VISUAL_TOKEN = "<|image_pad|>"
SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
PROMPTS = {
    "segment_image": "Please segment {phrase} in this image.",
    "segment_video": "Please segment {phrase}.",
}
GROUPS = {
    "vision": tuple(f"mllm.vision_tower.{part}." for part in ("patch_embed", "pos_embed", "blocks")),
    "connector": ("mllm.vision_tower.merger.", "mllm.vision_tower.deepstack_merger_list."),
    "language": ("mllm.language_model.model.layers.", "mllm.language_model.model.norm.", "mllm.language_model.norm."),
    "embeddings": ("mllm.language_model.model.embed_tokens.", "mllm.language_model.lm_head."),
}


class NativeResolutionConfig(PreTrainedConfig):
    """Sizes of tower and text model, and the limits of an image in pixels; a family names the classes of both parts.

    `mean` and `deviation` are what its tower's pixels are normalised by.
    """

    mean = (0.5, 0.5, 0.5)
    deviation = (0.5, 0.5, 0.5)

    def __init__(
        self,
        vision_config: dict[str, Any] | PreTrainedConfig | None = None,
        text_config: dict[str, Any] | PreTrainedConfig | None = None,
        least_pixels: int = LEAST_PIXELS,
        most_pixels: int = MOST_PIXELS,
        **kwargs: Any,
    ):
        self.vision_config = self._part("vision_config", vision_config)
        self.text_config = self._part("text_config", text_config)
        self.least_pixels = least_pixels
        self.most_pixels = most_pixels
        kwargs["tie_word_embeddings"] = False
        super().__init__(**kwargs)

    def _part(self, name: str, given: dict[str, Any] | PreTrainedConfig | None) -> Any:
        if isinstance(given, PreTrainedConfig):
            return given
        return self.sub_configs[name](**{key: value for key, value in (given or {}).items() if key != "model_type"})

    def largest_image(self, max_tiles: int = PUBLISHED_TILES) -> tuple[int, int]:
        """Patches and visual tokens of an image with as many pixels as there may be."""
        patches = self.most_pixels * max_tiles // PUBLISHED_TILES // self.vision_config.patch_size**2
        return patches, patches // self.vision_config.spatial_merge_size**2

    def largest_frame(self) -> tuple[int, int]:
        """The same of a frame, which is an image of its own."""
        return self.largest_image()


class Language(nn.Module):
    """A text model and its output head; `norm` stands between them where the text model's own is taken out."""

    def __init__(self, model: PreTrainedModel, width: int, rows: int):
        super().__init__()
        self.model = model
        self.norm: nn.Module = nn.Identity()
        self.lm_head = nn.Linear(width, rows, bias=False)

    def get_input_embeddings(self) -> nn.Module:
        """The table of token embeddings."""
        return self.model.get_input_embeddings()


class NativeResolutionMLLM(PreTrainedModel):
    """Tower and language model, joined at the embeddings of the visual tokens, with positions along three axes."""

    base_model_prefix = "mllm"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: NativeResolutionConfig, tower: PreTrainedModel, text: PreTrainedModel):
        super().__init__(config)
        self.width = config.text_config.hidden_size
        self.vision_tower = tower
        self.language_model = Language(text, self.width, config.text_config.vocab_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The table of token embeddings."""
        return self.language_model.get_input_embeddings()

    def head(self, hidden: Float[Tensor, "... d"]) -> Float[Tensor, "... v"]:
        """Scores of the next token from last states."""
        scores: Float[Tensor, "... v"] = self.language_model.lm_head(self.language_model.norm(hidden))
        return scores

    def tower(self, pixels: Float[Tensor, "p c"], grids: Int[Tensor, "i 2"] | None = None) -> Float[Tensor, "p e"]:
        """States of all patches of images, which have `grids` of rows and columns of patches, in the order of patches.

        Raises: DataError, without grids.
        """
        if grids is None:
            raise DataError(f"{len(pixels)} patches came without the grids of their images; pass those of the batch")
        alone = torch.cat([torch.ones_like(grids[:, :1]), grids], dim=1).to(pixels.device)
        return self._states(self.vision_tower(pixels.to(self.dtype), grid_thw=alone), alone)

    def _states(self, seen: Any, grids: Int[Tensor, "i 3"]) -> Float[Tensor, "p e"]:
        raise NotImplementedError

    def project(self, states: Float[Tensor, "p e"], grids: Int[Tensor, "i 2"] | None = None) -> Float[Tensor, "f d"]:
        """Visual features of patch states: blocks of neighbouring patches are merged."""
        features: Float[Tensor, "f d"] = self.vision_tower.merger.merge(states)
        return features

    def below(self, point: Point) -> dict[str, Tensor]:
        """The weights that states or features depend on."""
        found = weights_of(self, ("vision_tower.",))
        mergers = ("vision_tower.merger.", "vision_tower.deepstack_merger_list.")
        return (
            found
            if point == "projected"
            else {name: one for name, one in found.items() if not name.startswith(mergers)}
        )

    def positions(self, batch: Batch) -> Int[Tensor, "3 b s"]:
        """Where each token stands along time, height and width."""
        if batch.visual_places is None or batch.visual_rows is None or batch.grids is None:
            flat = positions(batch.attention)
            return flat.expand(3, *flat.shape)
        merged = batch.grids // self.config.vision_config.spatial_merge_size
        return mrope_positions(batch.attention, batch.visual_places, batch.visual_rows, merged)

    def _extra(self, batch: Batch, features: Float[Tensor, "f e"] | None) -> Mapping[str, Any]:
        """What else the text model is given with a prompt."""
        return {}

    def prompt(self, batch: Batch) -> Prompt:
        """Embeddings with the features written over the visual tokens, and positions along three axes."""
        features = visual_features(self, batch)
        embeddings = merge_visual_embeddings(self.get_input_embeddings()(batch.input_ids), batch, features)
        return Prompt(embeddings, batch.attention, self.positions(batch), self._extra(batch, features))

    def forward(self, batch: Batch) -> tuple[Float[Tensor, ""] | None, Float[Tensor, "b s d"]]:
        """Mean cross-entropy over the labelled tokens of the batch (`None` without labels), and the states that a
        segmentation token is read from.
        """
        return forward_loss(self, batch)


@dataclass(slots=True)
class NativeResolutionProcessor:
    """Media to patches and placeholder text, for one tokenizer."""

    tokenizer: TextTokenizer
    template: Template
    config: NativeResolutionConfig
    seg_id: int | None
    visual_id: int
    eos_ids: tuple[int, ...]
    bos_ids: tuple[int, ...] = ()
    visual_token: str = VISUAL_TOKEN
    shows_first: bool = True

    @classmethod
    def load(cls, folder: Path, config: NativeResolutionConfig, chat: str) -> NativeResolutionProcessor:
        """Read a model folder's tokenizer and chat template and find the tokens of the family.

        Raises: CheckpointError, if a token is missing, splits into pieces, or has no row in the embeddings, or if the
        chat template is of another form.
        """
        tokenizer = load_tokenizer(folder)
        rows = config.text_config.vocab_size
        named = (VISUAL_TOKEN, "<|vision_start|>", "<|vision_end|>")
        ids = {token: single_id(tokenizer, token, rows) for token in named}
        seg_id = known_id(tokenizer, "[SEG]", rows)
        check_length(tokenizer, rows, folder)
        strings = template(chat)
        if tokenizer.chat_template is not None:
            # PARITY(template_opening): whether a default system turn comes first is the checkpoint's word
            strings = replace(strings, opening=opening(tokenizer, strings, BLOCK.format(tokens=VISUAL_TOKEN)))
        return cls(
            tokenizer=tokenizer,
            template=strings,
            config=config,
            seg_id=seg_id,
            visual_id=ids[VISUAL_TOKEN],
            eos_ids=() if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,),
        )

    def image(self, pixels: UInt8[np.ndarray, "h w 3"], *, max_tiles: int) -> VisionInput:
        """One image near its own resolution; `max_tiles` other than 12 scales the most pixels it may have."""
        return self._vision("image", [pixels], self.config.most_pixels * max_tiles // PUBLISHED_TILES)

    def frames(self, pixels: UInt8[np.ndarray, "t h w 3"]) -> VisionInput:
        """Frames of a video."""
        # PARITY(frames_as_images): each is an image of its own, with the limits of one and nothing between them
        return self._vision("video", pixels, self.config.most_pixels)

    def placeholder(self, kind: MediaKind, num_features: int, grids: Int[Tensor, "i 2"] | None = None) -> str:
        """A block for each image."""
        assert grids is not None
        counts = grids.prod(1) // self.config.vision_config.spatial_merge_size**2
        return "".join(BLOCK.format(tokens=self.visual_token * int(count)) for count in counts)

    def _vision(
        self, kind: MediaKind, images: Sequence[UInt8[np.ndarray, "_ _ 3"]] | np.ndarray, most: int
    ) -> VisionInput:
        side, merge = self.config.vision_config.patch_size, self.config.vision_config.spatial_merge_size
        least = min(self.config.least_pixels, most)
        scaled = [double_resize(image, unit=side * merge, least=least, most=most) for image in images]
        mean, deviation = (
            torch.tensor(values).view(3, 1, 1) * 255 for values in (self.config.mean, self.config.deviation)
        )
        patches = torch.cat([patchify((image - mean) / deviation, side=side, merge=merge) for image in scaled])
        grids = torch.tensor([[image.shape[1] // side, image.shape[2] // side] for image in scaled])
        return shown_as(self, kind, len(patches) // merge**2, pixels=patches, grids=grids)

    def regions(self, vision: VisionInput, masks: Bool[np.ndarray, "n h w"]) -> VisionInput:
        """Never a visual: these models know no region prompts.

        Raises: DataError.
        """
        raise DataError(
            f"{len(masks)} regions are marked, and this family knows no region prompts; "
            "ask in words, or take a Sa2VA on InternVL"
        )

    def place(self, region: Region, size: tuple[int, int]) -> list[Piece] | None:
        """None: regions are marked in the picture."""
        return None

    def save(self, folder: Path) -> None:
        """Write the tokenizer files and the chat template."""
        save_tokenizer(self.tokenizer, folder)


def generation(config: Mapping[str, Any]) -> str | None:
    """Which Qwen-VL an official config.json describes, "qwen2_5_vl" or "qwen3_vl", by its content; `None` if none."""
    vision = config.get("vision_config")
    if not isinstance(vision, Mapping) or "llm_config" in config:
        return None
    text = config.get("text_config")
    kinds = [str(part.get("model_type")) for part in (config, vision, text or {}) if isinstance(part, Mapping)]
    if "deepstack_visual_indexes" in vision or any(kind.startswith("qwen3_vl") for kind in kinds):
        return "qwen3_vl"
    is_second = "fullatt_block_indexes" in vision or any(kind.startswith("qwen2_5_vl") for kind in kinds)
    return "qwen2_5_vl" if is_second or SA2VA in (config.get("architectures") or ()) else None


def parts(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The two parts of an official config.json in the fields that matter.

    Old files have the text model's fields at the top level.
    """
    vision, text = config["vision_config"], config.get("text_config") or config
    # without these the library takes those of its own sizes, beyond a small vocabulary
    fields: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}
    fields |= {name: text[name] for name in TEXT_FIELDS if text.get(name) is not None}
    scaling = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    rope = {name: value for name, value in scaling.items() if name not in ("type", "rope_type")}
    # "mrope" is an old word for what the sections say
    rope |= {"rope_type": "default" if kind == "mrope" else kind}
    rope |= {"rope_theta": rope.get("rope_theta") or text["rope_theta"]}
    return {
        "vision_config": {name: vision[name] for name in VISION_FIELDS if vision.get(name) is not None},
        # whatever the base model did, Sa2VA trains the output head apart from the embeddings
        "text_config": fields | {"rope_parameters": rope, "tie_word_embeddings": False},
    }


def key_table(language: KeyTable = ()) -> KeyTable:
    """Official names to ours; `language` are rules of a family's own that come first.

    Exports of before the library nested the two parts name them without it.
    """
    return [
        *language,
        Rule(r"model\.visual\.(.+)", (r"vision_tower.\1",)),
        Rule(r"model\.language_model\.(.+)", (r"language_model.model.\1",)),
        Rule(r"lm_head\.(.+)", (r"language_model.lm_head.\1",)),
        Rule(r"visual\.(.+)", (r"vision_tower.\1",)),
        Rule(r"model\.((?:layers|embed_tokens|norm)\..+)", (r"language_model.model.\1",)),
    ]
