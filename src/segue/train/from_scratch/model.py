"""A model of one's own size with weights to begin from, and a tokenizer made of the texts that it will read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from torch import Tensor
from transformers.models.internvl.modeling_internvl import InternVLVisionModel

from segue import weights
from segue.checkpoints import model_folder
from segue.grounding import sam2
from segue.grounding.model import VisionLanguageConfig, VisionLanguageModel, build
from segue.models import FAMILIES
from segue.models.protocol import GROUNDING_TOKENS
from segue.models.tokenizers import load_tokenizer

# How large random weights are, where the inverse root of the number of inputs is not right.
_SPREAD = {
    r".*\.embed_tokens\.weight": 0.5,
    r".*\.lm_head\.weight": 0.02,
    r".*\.positional_embedding": 1.5,
    r".*(position_embeddings|pos_embed|pos_embed_window)(\.weight)?": 0.05,
    r".*(_tokens?|_embed|cls_token)(\.weight)?": 0.5,
    r".*\.(no_memory_\w+|no_object_pointer|memory_temporal_positional_encoding)": 0.1,
}
# Where the first heads of a tower's layers look, in patches to the right and down; layer after layer, then over again.
_NEAR = (
    ((1, 0), (-1, 0), (0, 1), (0, -1)),
    ((1, 1), (-1, 1), (1, -1), (-1, -1)),
    ((2, 0), (-2, 0), (0, 2), (0, -2)),
    ((1, 0), (-1, 0), (0, 1), (0, -1)),
    ((3, 0), (-3, 0), (0, 3), (0, -3)),
    ((2, 2), (-2, 2), (2, -2), (-2, -2)),
)
_LOUD, _SHARP, _QUIET = 1.4, 2.0, 0.7
_LINE = {r".*\.bias": 0.0, r".*\.lambda_[12]": 1.0, r".*\.scale": 0.1}


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerSizes:
    """An InternViT."""

    width: int
    """Of its states."""
    layers: int
    """How many."""
    heads: int
    """Of its attention."""
    mlp: int
    """Width inside its MLPs."""
    patch: int
    """Side of a patch in pixels; four patches become one visual token."""
    tile: int
    """Side of a tile in pixels; every image and frame is one tile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageSizes:
    """A Qwen2."""

    width: int
    """Of its states."""
    layers: int
    """How many."""
    heads: int
    """Of its attention, for queries, keys and values alike."""
    mlp: int
    """Width inside its MLPs."""
    positions: int
    """Longest text in tokens, visual ones included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sam2Sizes:
    """A SAM 2."""

    side: int
    """Of the square that frames are stretched to, in pixels; masks have a quarter of it."""
    embed: int
    """Width of the image encoder's first stage; each stage doubles it."""
    stages: tuple[int, ...]
    """Blocks of the four stages."""
    windows: tuple[int, ...]
    """Side of the attention windows of the four stages."""
    whole: tuple[int, ...]
    """Which blocks, counted from 0, attend to the whole frame."""
    width: int
    """Of prompts, of the image embedding and of the mask decoder."""
    decoder_mlp: int
    """Width inside the mask decoder's MLPs."""
    memory: int
    """Channels of a memory map."""
    memory_layers: int
    """Of memory attention."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scratch:
    """A model of the InternVL family with a Qwen2 language model, to be trained from nothing."""

    tower: TowerSizes
    """What sees, for the language model."""
    language: LanguageSizes
    """What reads and speaks."""
    sam2: Sam2Sizes
    """What finds masks."""
    pieces: int = 1024
    """Tokens of text to make, beside the special ones."""
    texts: int = 1500
    """Dialogues of the data that the tokenizer is made from."""
    video_frames: str = "first:5"
    """The plan of video frames that it will be asked with, and should be trained on."""


def configuration(scratch: Scratch, rows: int) -> VisionLanguageConfig:
    """The configuration of a model whose tokenizer has so many tokens."""
    tower, language, sizes = scratch.tower, scratch.language, scratch.sam2
    vision = {
        "hidden_size": tower.width,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "intermediate_size": tower.mlp,
        "patch_size": [tower.patch] * 2,
        "image_size": [tower.tile] * 2,
        "use_mean_pooling": True,
    }
    text = {
        "model_type": "qwen2",
        "hidden_size": language.width,
        "num_hidden_layers": language.layers,
        "num_attention_heads": language.heads,
        "num_key_value_heads": language.heads,
        "intermediate_size": language.mlp,
        "max_position_embeddings": language.positions,
        "vocab_size": rows,
        "tie_word_embeddings": False,
    }
    finder = {
        "image_size": sizes.side,
        "embed_dim": sizes.embed,
        "num_heads": 1,
        "stages": list(sizes.stages),
        "window_spec": list(sizes.windows),
        "global_att_blocks": list(sizes.whole),
        "d_model": sizes.width,
        "mem_dim": sizes.memory,
        "mem_attn_layers": sizes.memory_layers,
        "mem_attn_ffn": 2 * sizes.width,
        "mask_decoder_mlp_dim": sizes.decoder_mlp,
        "mask_decoder_heads": 4,
        "iou_head_hidden_dim": sizes.width // 2,
    }
    return VisionLanguageConfig(
        mllm_config={"vision_config": vision, "text_config": text, "tile_side": tower.tile, "most_tiles": 1},
        sam2_config=sam2.architecture(finder),
        video_frames=scratch.video_frames,
    )


def begin(config: VisionLanguageConfig, seed: int) -> VisionLanguageModel:
    """A model with random weights of the size that learning starts well from; they follow from the seed alone.

    The library's own initialisation is meant for loading: it leaves places at zero, and such a model does not learn.
    """
    with torch.random.fork_rng(devices=[]):
        model = build(config, dtype=torch.float32, device="cpu")
    randomise(model.state_dict(), seed)
    gaussian = model.grounder.sam2.prompt_encoder.shared_embedding.positional_embedding
    model.grounder.sam2.shared_image_embedding.positional_embedding.copy_(gaussian)
    look_around(model.mllm.vision_tower)
    return model


@torch.no_grad()
def randomise(tensors: Mapping[str, Tensor], seed: int) -> None:
    """Give tensors, by their names in a model, weights of chance to begin from, which follow from the seed alone."""
    draws = torch.Generator().manual_seed(seed)
    for name, tensor in sorted(tensors.items()):
        if tensor.ndim < 2:
            tensor.fill_(_first(_LINE, name, 1.0))
        else:
            tensor.normal_(std=_first(_SPREAD, name, _inputs(name, tensor) ** -0.5), generator=draws)


@torch.no_grad()
def look_around(tower: InternVLVisionModel) -> None:
    """Let four heads of each layer of a fresh tower look at patches nearby, as a convolution does; it may unlearn that.

    With Muon, a small tower that begins so told shapes apart after a sixteenth of the pictures that one with weights of
    chance and AdamW had needed (docs/log.md; the two were not tried one by one). Places are coded as sines and cosines
    in the last channels, as many as a head has; layers read these and do not write them at first.

    Source: the idea is of J. Zheng et al., "Structured Initialization for Vision Transformers" (arXiv 2505.19985).
    """
    config, embeddings = tower.config, tower.embeddings
    width = config.hidden_size // config.num_attention_heads
    wide = width // 4 * 4
    rows, columns = embeddings.patch_embeddings.patch_shape
    places = config.hidden_size - wide
    waves = (torch.arange(wide // 4) + 0.5) / (wide // 4) * math.pi * 0.9

    def coded(line: Tensor) -> Tensor:
        return torch.cat([torch.cos(line[:, None] * waves), torch.sin(line[:, None] * waves)], 1)

    across, down = coded(torch.arange(columns)), coded(torch.arange(rows))
    grid = torch.cat([across.expand(rows, -1, -1), down[:, None].expand(-1, columns, -1)], 2)
    embeddings.position_embeddings[0, 1:, places:] = _LOUD * grid.flatten(0, 1)
    embeddings.position_embeddings[0, 0, places:] = 0
    embeddings.patch_embeddings.projection.weight[places:] = 0
    embeddings.cls_token[..., places:] = 0
    for number, layer in enumerate(tower.encoder.layer):
        attention = layer.attention
        for head, (right, below) in enumerate(_NEAR[number % len(_NEAR)][: config.num_attention_heads]):
            mine = slice(head * width, head * width + wide)
            for projection, turned in (
                (attention.k_proj, torch.eye(wide)),
                (attention.q_proj, _SHARP * torch.block_diag(_turn(waves * right), _turn(waves * below))),
            ):
                projection.weight[head * width : (head + 1) * width] = 0
                projection.weight[mine, places:] = turned
        for written in (attention.projection_layer, layer.mlp.fc2):
            written.weight[places:] = 0
            written.weight *= _QUIET


def _turn(angles: Float[Tensor, " w"]) -> Float[Tensor, "x x"]:
    """The matrix that brings cosines and sines of some angles forward by as much."""
    cosine, sine = torch.diag(torch.cos(angles)), torch.diag(torch.sin(angles))
    return torch.cat([torch.cat([cosine, -sine], 1), torch.cat([sine, cosine], 1)])


def _inputs(name: str, tensor: Tensor) -> int:
    # transposed convolutions of the mask decoder have their inputs in front
    return tensor.shape[0] if re.fullmatch(r".*\.upscale_conv\d\.weight", name) else tensor[0].numel()


def _first(table: Mapping[str, float], name: str, default: float) -> float:
    return next((value for pattern, value in table.items() if re.fullmatch(pattern, name)), default)


def write(scratch: Scratch, folder: Path, texts: Iterable[str], *, seed: int) -> Path:
    """Write a model folder of our layout to begin from: tokenizer, random weights, lineage; returns the folder.

    Raises: CheckpointError, if it cannot be written.
    """
    tokenizer = train_tokenizer(texts, scratch.pieces, (*FAMILIES["internvl"].special_tokens, *GROUNDING_TOKENS))
    model = begin(configuration(scratch, tokenizer.get_vocab_size()), seed)

    def also(part: Path) -> None:
        tokenizer.save(str(part / "tokenizer.json"))
        named = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        (part / "tokenizer_config.json").write_text(json.dumps(named, indent=2) + "\n", encoding="utf-8")
        load_tokenizer(part)
        weights.write_lineage(part, {"random": True, "seed": seed})

    model_folder.save(model, folder, also=also)
    return folder


def train_tokenizer(texts: Iterable[str], pieces: int, special: Sequence[str]) -> Tokenizer:
    """A byte-level BPE tokenizer of `pieces` pieces at most, that knows every byte, and these special tokens.

    Digits stand alone, so that numbers are read digit by digit.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=pieces, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens(list(special))
    return tokenizer
