"""Cost on paper: what work asks of devices that nobody has at hand, by arithmetic from sizes and shapes.

Operations are those of matrix products and attention, a multiplication and an addition counted as two, as
`segue.bench.limits.flops_of` counts them while a model runs: attention of every query with every key, the output head
for the last token of a prompt. What decodes, resizes and writes files is not in them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch

from segue.checkpoints import footprint, zoo
from segue.features.sizes import entry_bytes
from segue.grounding.model import VisionLanguageConfig, component_of, components, expected
from segue.grounding.tracking import MAX_POINTERS
from segue.media.sampling import choose
from segue.models import FAMILIES
from segue.models.longva.model import LongVAConfig
from segue.train.estimate import working_memory

PROMPT = 60
"""Tokens of a question and the chat template around it."""
ANSWER = 12
"""Tokens of an answer with one [SEG]."""
LORA_RANK = 32
"""That of `segue finetune`."""
MASK_BYTES = 1_500
"""Of a mask as run lengths with its scores, in `masks.json` and `result.json`; in PNG as much again."""
LORA_PASSES, FULL_PASSES = 3, 4
"""Forward passes that a step of a layer costs, states computed again on the way back: with LoRA forward, again, and the
gradient of states; in full also that of weights."""

_TABLES = re.compile(r"pos|embed_tokens")
_BYTES = 2  # of a number in bfloat16


@dataclass(frozen=True, slots=True)
class Accelerator:
    """What a device can do at best, in bfloat16: operations per second, bytes per second, and bytes of memory."""

    products: float
    bandwidth: float
    memory: float


ACCELERATORS: Mapping[str, Accelerator] = {
    "l4": Accelerator(121e12, 0.30e12, 24e9),
    "rtx4090": Accelerator(165e12, 1.01e12, 24e9),
    "a100": Accelerator(312e12, 2.04e12, 80e9),
    "h100": Accelerator(989e12, 3.35e12, 80e9),
    "h200": Accelerator(989e12, 4.80e12, 141e9),
}
"""Dense figures from the makers' data sheets."""

LONG_VIDEO_SETS: Mapping[str, int] = {
    "Video-MME": 900,
    "Video-Holmes": 270,
    "TempCompass": 410,
    "MLVU": 1_730,
    "VideoMMMU": 300,
    "MMBench-Video": 609,
    "LongVideoBench": 753,
}
"""Videos in each of the seven sets as published, of MLVU at most; questions are several times as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one piece of work asks: tokens that the language model reads or writes, operations, bytes of weights read to
    write tokens, and bytes left on the disk."""

    tokens: int | float = 0
    flops: int | float = 0
    read: int | float = 0
    stored: int | float = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            tokens=self.tokens + other.tokens,
            flops=self.flops + other.flops,
            read=self.read + other.read,
            stored=self.stored + other.stored,
        )

    def __mul__(self, times: int) -> Cost:
        return Cost(
            tokens=self.tokens * times, flops=self.flops * times, read=self.read * times, stored=self.stored * times
        )

    def seconds(self, device: Accelerator, share: float) -> float:
        """How long one device takes that reaches this share of its limits, one after the other."""
        return (self.flops / device.products + self.read / device.bandwidth) / share


class Arithmetic:
    """What the parts of a known architecture cost; made by `arithmetic`."""

    def __init__(self, name: str):
        self.config: VisionLanguageConfig = zoo.config_of(name)
        self.places = expected(self.config)
        self.vision: Any = self.config.mllm_config.vision_config
        self.text: Any = self.config.mllm_config.text_config

    @cached_property
    def matrices(self) -> Counter[str]:
        """Numbers in matrices and kernels by part: each multiplies every token or patch that goes through."""
        parts, found = components(FAMILIES[self.config.family]), Counter[str]()
        for place, shape in self.places.items():
            if len(shape) in (2, 4, 5) and place.endswith("weight") and not _TABLES.search(place):
                found[component_of(place, parts) or ""] += math.prod(shape)
        return found

    @property
    def weights(self) -> int:
        """Bytes in bfloat16."""
        return footprint.weight_memory(self.places, _BYTES)

    def tower(self, patches: int, pictures: int) -> int:
        """Operations of the vision tower on so many patches in all; each attends to those of its own picture."""
        layers = getattr(self.vision, "num_hidden_layers", None) or self.vision.depth
        attention = 4 * layers * self.vision.hidden_size * patches * patches // pictures
        return int(2 * self.matrices["vision"] * patches + attention)

    def see(self, patches: int, pictures: int, tokens: int) -> int:
        """Operations from pixels to visual tokens."""
        return self.tower(patches, pictures) + 2 * self.matrices["connector"] * tokens

    def read(self, tokens: int, past: int = 0) -> int:
        """Operations of the language model on tokens that follow `past` others, and of its head on the last of them."""
        head: int = getattr(self.text, "head_dim", None) or self.text.hidden_size // self.text.num_attention_heads
        attention = 4 * self.text.num_hidden_layers * self.text.num_attention_heads * head * tokens * (past + tokens)
        return int(2 * self.matrices["language"] * tokens + attention + 2 * self.head_numbers)

    @property
    def head_numbers(self) -> int:
        """Numbers in the output head."""
        return int(self.text.vocab_size * self.text.hidden_size)

    def answer(self, visual: int, questions: int) -> Cost:
        """Reading a medium's tokens once and questions about it after them, and writing all answers together."""
        prompt = visual + PROMPT
        writing = sum(self.read(1, prompt + step) for step in range(1, ANSWER))
        flops = self.read(prompt) + (questions - 1) * self.read(PROMPT, visual) + questions * writing
        weights = _BYTES * (self.matrices["language"] + self.head_numbers)
        tokens = visual + questions * (PROMPT + ANSWER)
        return Cost(tokens=tokens, flops=flops, read=(ANSWER - 1) * weights)

    @cached_property
    def encode_frame(self) -> int:
        """Operations of SAM 2's image encoder: Hiera's blocks stage by stage, and the pyramid over them.

        The first block of a stage makes queries, keys and values from the cells of the stage before.
        """
        sam = self._sam2
        hiera, side = sam.vision_config.backbone_config, sam.image_size // 4
        flops, number = 2 * side**2 * 3 * 49 * hiera.embed_dim_per_stage[0], 0
        for stage, (blocks, width) in enumerate(zip(hiera.blocks_per_stage, hiera.embed_dim_per_stage, strict=True)):
            cells = (side >> stage) ** 2
            for block in range(blocks):
                is_first = block == 0 and stage > 0
                window = hiera.window_size_per_stage[stage - is_first]
                keys = cells if number in hiera.global_attention_blocks else window**2
                # queries, keys, values and the skipped connection of a first block come from four times the cells
                came_in = 4 * 4 * hiera.embed_dim_per_stage[stage - 1] * width if is_first else 3 * width**2
                flops += 2 * cells * (came_in + 9 * width**2) + 4 * cells * keys * width
                number += 1
            flops += 2 * cells * width * sam.vision_config.fpn_hidden_size
        return int(flops)

    def decode_masks(self, objects: int) -> int:
        """Operations of the mask decoder on a frame: what acts on its cells, for each object, and the two finer maps
        that all objects share."""
        sam = self._sam2
        cells, width = (sam.image_size // 16) ** 2, sam.mask_decoder_config.hidden_size
        crossing = (4 * sam.mask_decoder_config.num_hidden_layers + 2) * width * width // 2
        rising = width * (width // 4) * 4 + 4 * (width // 4) * (width // 8) * 4
        shared = 16 * width * (width // 8) + 4 * width * (width // 4)
        return int(2 * cells * (objects * (crossing + rising) + shared))

    def remember(self, objects: int) -> int:
        """Operations that put a frame's masks into the memory."""
        kernels = sum(
            math.prod(shape) for place, shape in self.places.items() if re.search(r"memory_encoder\..*weight$", place)
        )
        return int(2 * objects * (self._sam2.image_size // 16) ** 2 * kernels)

    def follow(self, objects: int, shown: int) -> int:
        """Operations on a frame late in a video, `shown` frames of which were prompted, without encoding it: attention
        to the memory, masks, and remembering them."""
        sam = self._sam2
        cells, width = (sam.image_size // 16) ** 2, sam.memory_attention_hidden_size
        layers, narrow = sam.memory_attention_num_layers, sam.memory_encoder_output_channels
        keys = (shown + sam.num_maskmem - 1) * cells + (shown + MAX_POINTERS - 1) * width // narrow
        on_cells = 6 * width**2 + 2 * width * sam.memory_attention_feed_forward_hidden_size
        linear = 2 * (cells * on_cells + keys * 2 * narrow * width)
        attention = 4 * cells * (cells + keys) * width
        # up to the first layer's queries, a frame is the same to all objects
        shared = 4 * cells * cells * width + 2 * cells * 5 * width**2
        attending = objects * layers * (linear + attention) - (objects - 1) * shared
        return int(attending) + self.decode_masks(objects) + self.remember(objects)

    @property
    def _sam2(self) -> Any:
        assert self.config.sam2_config is not None, "only architectures with a grounder are offered"
        return self.config.sam2_config

    @property
    def image(self) -> tuple[int, int, int]:
        """Patches, pictures that attend within themselves, and visual tokens of an image at its largest, which a photo
        of 4:3 is in families with tiles."""
        patches, tokens = self.config.mllm_config.largest_image()
        return patches, max(1, patches // self.config.mllm_config.largest_frame()[0]), tokens


@cache
def arithmetic(name: str) -> Arithmetic:
    """The arithmetic of a known architecture, once.

    Raises: ConfigError, for an unknown name.
    """
    return Arithmetic(name)


def images(model: Arithmetic, objects: int) -> Cost:
    """One image in which so many things are asked for, each in a question of its own."""
    patches, pictures, tokens = model.image
    flops = model.see(patches, pictures, tokens) + model.encode_frame + model.decode_masks(objects)
    return model.answer(tokens, objects) + Cost(flops=flops, stored=2 * objects * MASK_BYTES)


def clip(model: Arithmetic, frames: int, objects: int) -> Cost:
    """One clip in which so many things are asked for and followed on every frame."""
    shown = len(choose(FAMILIES[model.config.family].video_frames, frames))
    patches, tokens = model.config.mllm_config.largest_frame()
    flops = model.see(shown * patches, shown, shown * tokens)
    flops += frames * model.encode_frame + shown * (model.decode_masks(objects) + model.remember(objects))
    flops += (frames - shown) * model.follow(objects, shown)
    return model.answer(shown * tokens, objects) + Cost(flops=flops, stored=2 * frames * objects * MASK_BYTES)


@dataclass(frozen=True, slots=True)
class Training:
    """What learning from one image with its masks costs; how many numbers learn; and bytes of weights and of a sample
    at work. A checkpoint keeps what learns with AdamW's two moments."""

    cost: Cost
    learned: int
    weights: int
    working: int

    def memory(self, gpus: int = 1) -> float:
        """Bytes on one of so many GPUs over which weights, gradients and moments are spread."""
        return (self.weights + 12 * self.learned) / gpus + self.working


def training(model: Arithmetic, objects: int, *, is_lora: bool) -> Training:
    """One image at its largest, asked for so many objects in one dialogue, one sample at once, in bfloat16.

    Vision tower and SAM 2's encoder are frozen. With `is_lora` the language model learns through `LORA_RANK`, and
    embeddings and head by rows; else in full.
    """
    patches, pictures, visual = model.image
    tokens = visual + objects * (PROMPT + ANSWER)
    reading = model.read(tokens) + 2 * model.head_numbers * objects * ANSWER
    flops = model.see(patches, pictures, visual) + (LORA_PASSES if is_lora else FULL_PASSES) * reading
    flops += model.encode_frame + 3 * model.decode_masks(objects)
    learned = sum(math.prod(model.places[place]) for place in _learned(model, is_lora=is_lora))
    if is_lora:
        learned += sum(LORA_RANK * sum(shape) for shape in _language_layers(model))
    working = working_memory(
        model.text, model.config.sam2_config, tokens=tokens, scored=objects * ANSWER, frames=1, size=_BYTES
    )
    return Training(Cost(tokens=tokens, flops=flops, stored=12 * learned), learned, model.weights, working)


def _learned(model: Arithmetic, *, is_lora: bool) -> list[str]:
    parts = components(FAMILIES[model.config.family])
    wanted = {"seg_projector", "mask_decoder"} | (set() if is_lora else {"connector", "language", "embeddings"})
    return [place for place in model.places if component_of(place, parts) in wanted]


def _language_layers(model: Arithmetic) -> list[tuple[int, ...]]:
    parts = components(FAMILIES[model.config.family])
    return [
        shape
        for place, shape in model.places.items()
        if len(shape) == 2 and place.endswith("weight") and component_of(place, parts) == "language"
    ]


@dataclass(frozen=True, slots=True)
class CachedSet:
    """A set of videos in the feature cache of LongVA's tower: operations to fill it, and bytes in each format."""

    name: str
    videos: int
    flops: int
    lossless: int
    int8: int


def cached_sets(frames: int) -> list[CachedSet]:
    """The seven sets of long videos, so many frames of each video, in float16 as LongVA's tower computes."""
    config = LongVAConfig()
    vision, patches = config.vision_config, config.grid**2
    layers, width = vision.num_hidden_layers + 1 + config.select_layer, vision.hidden_size
    matrices = layers * (4 * width**2 + 2 * width * vision.intermediate_size)
    kernel = vision.num_channels * vision.patch_size**2 * width
    one = 2 * (matrices * (patches + 1) + kernel * patches) + 4 * layers * width * (patches + 1) ** 2
    shape = (frames, patches, width)
    lossless, int8 = (entry_bytes(shape, torch.float16, form) for form in ("lossless", "int8"))
    return [
        CachedSet(name, videos, videos * frames * one, videos * lossless, videos * int8)
        for name, videos in LONG_VIDEO_SETS.items()
    ]
