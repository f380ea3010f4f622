"""Qwen-VL's preprocessing: pictures to one square each, and the text that holds their place.

Source: the `visual.py` and `tokenization_qwen.py` that come with Qwen-VL's checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from segue.errors import CheckpointError, DataError
from segue.geometry.qwen_notation import place_text
from segue.models.pieces import Piece
from segue.models.protocol import VisionInput, shown_as
from segue.models.qwen_vl.model import QwenVLConfig
from segue.models.qwen_vl.tokenizer import END_OF_TEXT, IMAGE_END, IMAGE_PAD, IMAGE_START, load
from segue.models.templates import Template, template
from segue.models.tiling import resize
from segue.models.tokenizers import check_length, save_tokenizer, single_id
from segue.types import MediaKind, Region

MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def normalised(pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]], side: int) -> Float[Tensor, "p 3 s s"]:
    """Pictures as squares of `side` pixels, whatever their shape was, normalised as CLIP's."""
    # PARITY(square_pictures): with Pillow's bicubic filter on bytes; the aspect ratio is not kept
    squares = np.stack([np.asarray(resize(Image.fromarray(picture), side, side)) for picture in pictures])
    pixels = torch.from_numpy(squares).permute(0, 3, 1, 2)
    return (pixels / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)


def image_slots(ids: Int[Tensor, "b s"], image_start_id: int, slots: int) -> Bool[Tensor, "b s"]:
    """Where between `<img>` and `</img>` visual tokens stand, whatever ids hold their places.

    Raises: DataError, if a row's marks do not pair up, or enclose another number of tokens than `slots`.
    """
    is_start, is_end = ids == image_start_id, ids == image_start_id + 1
    depth = is_start.cumsum(-1) - is_end.cumsum(-1)
    inside = (depth == 1) & ~is_start
    paired = bool(((depth == 0) | (depth == 1)).all() and (depth[:, -1] == 0).all())
    if not paired or bool((inside.sum(-1) != slots * is_start.sum(-1)).any()) or not _are_even(inside, is_end, slots):
        raise DataError(
            f"the image marks of {len(ids)} rows do not each enclose {slots} tokens; every <img> needs its </img> and "
            "exactly that many places between them"
        )
    return inside


def _are_even(inside: Bool[Tensor, "b s"], is_end: Bool[Tensor, "b s"], slots: int) -> bool:
    counted = inside.cumsum(-1)[is_end]
    return bool((counted % slots == 0).all())


@dataclass(slots=True)
class QwenVLProcessor:
    """Media to squares and placeholder text, for one tokenizer. There are no tiles, and no region prompts but boxes."""

    tokenizer: PreTrainedTokenizerFast
    template: Template
    side: int
    slots: int
    visual_id: int
    eos_ids: tuple[int, ...]
    seg_id: int | None = None
    bos_ids: tuple[int, ...] = ()
    visual_token: str = IMAGE_PAD
    shows_first: bool = False

    @classmethod
    def load(cls, folder: Path, config: QwenVLConfig, chat: str) -> QwenVLProcessor:
        """Read a model folder's vocabulary, or the fast tokenizer that was made of it and saved.

        Raises: CheckpointError, if a token is missing, or stands elsewhere than config.json says.
        """
        tokenizer = load(folder)
        rows = config.text_config.vocab_size
        marks = [single_id(tokenizer, mark, rows) for mark in (IMAGE_START, IMAGE_END, IMAGE_PAD)]
        check_length(tokenizer, rows, folder)
        wanted = [config.image_start_id + number for number in range(3)]
        if marks != wanted:
            raise CheckpointError(
                f"the tokenizer in {folder} has <img>, </img> and <imgpad> at {marks} and config.json at {wanted}; "
                "take both from one checkpoint"
            )
        return cls(
            tokenizer=tokenizer,
            template=template(chat),
            side=config.vision_config.image_size,
            slots=config.vision_config.num_queries,
            visual_id=config.visual_id,
            eos_ids=(single_id(tokenizer, END_OF_TEXT, rows),),
        )

    def image(self, pixels: UInt8[np.ndarray, "h w 3"], *, max_tiles: int) -> VisionInput:
        """One image, stretched to a square. `max_tiles` has no effect: there is one."""
        return self.frames(pixels[None])

    def frames(self, pixels: UInt8[np.ndarray, "t h w 3"]) -> VisionInput:
        """Frames of a video, each an image of its own, joined by line breaks."""
        return shown_as(self, "video", len(pixels) * self.slots, pixels=normalised(list(pixels), self.side))

    def placeholder(self, kind: MediaKind, num_features: int, grids: Int[Tensor, "i 2"] | None = None) -> str:
        """An `<img>` pair for each picture."""
        return "\n".join([IMAGE_START + IMAGE_PAD * self.slots + IMAGE_END] * (num_features // self.slots))

    def regions(self, vision: VisionInput, masks: Bool[np.ndarray, "n h w"]) -> VisionInput:
        """Refuses: a Qwen-VL reads places as text.

        Raises: DataError.
        """
        raise DataError(f"{len(masks)} regions are marked by masks; Qwen-VL reads boxes: give regions with a box")

    def place(self, region: Region, size: tuple[int, int]) -> list[Piece] | None:
        """The phrase as `<ref>`, if there is one, and the place behind it as `<quad>` or `<box>`, if there is one."""
        named = [Piece("<ref>"), Piece(region.phrase, writer="user"), Piece("</ref>")] if region.phrase else []
        where = place_text(region, size)
        return [*named, *([Piece(where)] if where else [])]

    def save(self, folder: Path) -> None:
        """Write the tokenizer files."""
        save_tokenizer(self.tokenizer, folder)
