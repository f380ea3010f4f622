"""LongVA's prompts: media to tiles and placeholder text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from PIL import Image
from tokenizers import AddedToken
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from segue.errors import CheckpointError, DataError
from segue.models.longva import preprocessing
from segue.models.longva.model import LongVAConfig
from segue.models.pieces import Piece
from segue.models.protocol import VisionInput, shown_as
from segue.models.templates import Template, TextTokenizer, template
from segue.models.tokenizers import check_length, load_tokenizer, save_tokenizer
from segue.types import MediaKind, Region

VISUAL_TOKEN = "<|visual|>"  # noqa: S105  a placeholder of ours: the original puts the id -200 there
TEMPLATE = "qwen_1_5"


@dataclass(slots=True)
class LongVAProcessor:
    """Media to tiles and placeholder text, for one tokenizer."""

    tokenizer: TextTokenizer
    template: Template
    config: LongVAConfig
    visual_id: int
    eos_ids: tuple[int, ...]
    bos_ids: tuple[int, ...] = ()
    seg_id: int | None = None
    visual_token: str = VISUAL_TOKEN
    shows_first: bool = True

    @classmethod
    def load(cls, folder: Path, config: LongVAConfig, chat: str) -> LongVAProcessor:
        """Read a model folder's tokenizer and give it a token that holds the place of visual features.

        Raises: CheckpointError, if the tokenizer cannot be read or is larger than the embeddings.
        """
        tokenizer = load_tokenizer(folder)
        check_length(tokenizer, config.text_config.vocab_size, folder)
        return cls(
            tokenizer=tokenizer,
            template=template(chat),
            config=config,
            visual_id=with_visual_token(tokenizer),
            eos_ids=() if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,),
        )

    def image(self, pixels: UInt8[np.ndarray, "h w 3"], *, max_tiles: int) -> VisionInput:
        """One image in tiles, at the best of the checkpoint's resolutions; `max_tiles` below 12 leaves out the largest.

        Without resolutions it is one square whose tokens are not pooled.
        """
        image, side = Image.fromarray(pixels), self.config.side
        offered = self.config.offered(max_tiles)
        if not offered:
            return self._vision("image", [preprocessing.cropped(image, side)], pool=1)
        resolution = preprocessing.best_resolution(image.size, offered)
        # PARITY(longva_overview_unused): the original encodes an overview too, whose features it throws away
        return self._vision("image", preprocessing.tiles(image, resolution, side), pool=self.config.pool)

    def frames(self, pixels: UInt8[np.ndarray, "t h w 3"]) -> VisionInput:
        """Frames of a video, one square each: the ends of wide ones are lost. Nothing stands between them."""
        squares = [preprocessing.cropped(Image.fromarray(frame), self.config.side) for frame in pixels]
        return self._vision("video", squares, pool=self.config.pool)

    def placeholder(self, kind: MediaKind, num_features: int, grids: Int[Tensor, "i 2"] | None = None) -> str:
        """The visual token, once for each feature."""
        return self.visual_token * num_features

    def _vision(self, kind: MediaKind, squares: Sequence[Image.Image], *, pool: int) -> VisionInput:
        count = len(squares) * (self.config.grid // pool) ** 2
        pixels = preprocessing.normalised(squares)
        return shown_as(self, kind, count, pixels=pixels, grids=torch.tensor([[len(squares), pool]]))

    def regions(self, vision: VisionInput, masks: Bool[np.ndarray, "n h w"]) -> VisionInput:
        """Never a visual: LongVA knows no region prompts.

        Raises: DataError.
        """
        raise DataError(f"{len(masks)} regions are marked, and LongVA knows no region prompts; ask in words")

    def place(self, region: Region, size: tuple[int, int]) -> list[Piece] | None:
        """None: LongVA writes no places."""
        return None

    def save(self, folder: Path) -> None:
        """Write the tokenizer files."""
        save_tokenizer(self.tokenizer, folder)


def with_visual_token(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id of the visual token, which becomes the tokenizer's last; nobody can type it as part of another word.

    Raises: CheckpointError, if the tokenizer cannot take it.
    """
    if VISUAL_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_tokens([AddedToken(VISUAL_TOKEN, special=True, normalized=False)], special_tokens=True)
    number = tokenizer.convert_tokens_to_ids(VISUAL_TOKEN)
    if not isinstance(number, int) or tokenizer.encode(VISUAL_TOKEN, add_special_tokens=False) != [number]:
        raise CheckpointError(f"the tokenizer cannot hold the token {VISUAL_TOKEN}; take the one of the checkpoint")
    return number
