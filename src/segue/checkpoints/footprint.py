"""How much memory a model needs, from its configuration and the shapes of its tensors, before anything is loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from transformers import Sam2VideoConfig

from segue import weights
from segue.grounding.model import VisionLanguageConfig, component_of, components
from segue.grounding.tracking import OBJECTS_AT_ONCE
from segue.models import FAMILIES
from segue.models.protocol import PUBLISHED_TILES

Shapes = Mapping[str, tuple[int, ...]]
SIZES = {name: dtype.itemsize for name, dtype in weights.PRECISIONS.items()}
# what an estimate of working memory is made for, beside the pictures: a page of text
TEXT_TOKENS = 1024
# NF4: half a byte for a weight, and a float32 for every 64 of them
_BYTES = {"int8": 1.0, "int4": 0.5 + 4 / 64}
_EXACT = re.compile(r"\b(mask_decoder|language_decoder)\.|\.(qweight|qzeros|g_idx)$")
_LAYER = re.compile(r"mllm\.language_model\.model\.layers\.(\d+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is asked at once: an image of at most so many tiles, or a video of which the language model sees `frames`
    (0 for an image), and how many objects are followed.
    """

    tiles: int = PUBLISHED_TILES
    frames: int = 0
    objects: int = 1


LARGEST_IMAGE, SMALLEST = Work(), Work(tiles=1)


def quantised_layers(places: Shapes, family: str, bits: str) -> tuple[str, ...]:
    """The linear layers that quantisation takes: those of vision tower and language model.

    The output head is among them in 8 bits, not in 4. SAM 2, the projectors and every table stay as they are.
    """
    parts = components(FAMILIES[family])
    taken = {"vision", "language"} | ({"embeddings"} if bits == "int8" else set())
    return tuple(
        name.removesuffix(".weight")
        for name, shape in places.items()
        if name.endswith(".weight")
        and len(shape) == 2
        and not re.search(r"embed", name.rsplit(".", 2)[-2])
        and component_of(name, parts) in taken
    )


def weight_memory(places: Shapes, itemsize: int) -> int:
    """Bytes that weights need at so many bytes per number; mask decoders stay in float32, packed ones packed."""
    return sum(math.prod(shape) * (4 if _EXACT.search(name) else itemsize) for name, shape in places.items())


def placed_memory(
    places: Shapes, itemsize: int, family: str, *, quantize: str | None = None, offload: bool = False
) -> int:
    """Bytes that weights need on the device, as `weight_memory`, with layers in 8 or 4 bits or with language layers in
    main memory, of which two are on the device at a time.
    """
    names = quantised_layers(places, family, quantize) if quantize else ()
    layers = {f"{name}.weight": _BYTES[str(quantize)] for name in names}
    total = 0.0
    moved: dict[str, float] = {}
    for name, shape in places.items():
        size = math.prod(shape) * layers.get(name, 4 if _EXACT.search(name) else itemsize)
        # a scale for every output of a layer in 8 bits
        size += 4 * shape[0] if quantize == "int8" and name in layers else 0
        layer = _LAYER.match(name) if offload else None
        if layer:
            moved[layer[1]] = moved.get(layer[1], 0) + size
        else:
            total += size
    return int(total + 2 * max(moved.values(), default=0))


def working_memory(config: VisionLanguageConfig, itemsize: int, work: Work = LARGEST_IMAGE) -> int:
    """About how many bytes a question and 1024 tokens of text need besides the weights.

    The largest of the stages, what language keeps of each token, and what is remembered of a video. Counted per stage:
    what its widest layer holds at once, which in float32 on a CPU came within a fifth of the measured peak for
    Sa2VA-1B.
    """
    vision, language = config.mllm_config.vision_config, config.mllm_config.text_config
    mllm, count = config.mllm_config, work.frames or 1
    patches, visual_tokens = mllm.largest_frame() if work.frames else mllm.largest_image(work.tiles)
    tower = count * patches * (2 * vision.intermediate_size + 6 * vision.hidden_size)
    tokens = count * visual_tokens + TEXT_TOKENS
    layer = tokens * (3 * language.intermediate_size + 6 * language.hidden_size)
    head: int = getattr(language, "head_dim", None) or language.hidden_size // language.num_attention_heads
    kept = 2 * tokens * language.num_hidden_layers * language.num_key_value_heads * head
    frame, following, remembered = (0, 0, 0) if config.sam2_config is None else _masks(config.sam2_config, work)
    working: int = itemsize * (max(tower, layer, frame, following) + kept) + 2 * remembered
    return working


def _masks(sam2: Sam2VideoConfig, work: Work) -> tuple[int, int, int]:
    """Numbers at work while a frame is encoded and while objects are followed through a video, and numbers remembered
    of it, in bfloat16.
    """
    frame = 12 * (sam2.image_size // 4) ** 2 * sam2.vision_config.backbone_config.hidden_size
    if not work.frames:
        return frame, 0, 0
    cells = (sam2.image_size // 16) ** 2
    maps = work.frames + sam2.num_maskmem - 1
    at_once = min(work.objects, OBJECTS_AT_ONCE)
    following = at_once * (6 * maps * cells * sam2.memory_attention_hidden_size + 8 * sam2.image_size**2)
    return frame, following, work.objects * maps * cells * sam2.memory_encoder_output_channels
