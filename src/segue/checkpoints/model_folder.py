"""Model folders in an official layout and in our own: read, loaded whole or not at all, and saved."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import Sam2VideoConfig

from segue import weights
from segue.checkpoints import zoo
from segue.errors import CheckpointError, ConfigError
from segue.files import new_folder
from segue.grounding import sam2
from segue.grounding.model import MODEL_TYPE, VisionLanguageConfig, VisionLanguageModel, build, expected
from segue.models import FAMILIES
from segue.models.protocol import Family, Official, Processor
from segue.models.templates import template
from segue.weights import KeyTable, LoadReport, Rule, Stored, read_json
from segue.weights.keys import Write

log = logging.getLogger(__name__)


_LARGEST = {
    "layers": 1000,
    "depth": 1000,
    "vocab_size": 10_000_000,
    "hidden_size": 1_000_000,
    "intermediate_size": 1_000_000,
    "num_attention_heads": 10_000,
    "num_key_value_heads": 10_000,
    "image_size": 100_000,
    "patch_size": 10_000,
    "_dim": 1_000_000,
    "_embeddings": 100_000_000,
}
"""By the ending of its name, the largest value that a number in config.json may have: far beyond any model."""
_DEEPEST, _MOST_ITEMS = 20, 1_000_000
Filling = Callable[["VisionLanguageModel"], Callable[[str], bool]]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a folder is to be read: the configuration, and the key table of its names (`None` for our own layout)."""

    config: VisionLanguageConfig
    table: KeyTable | None
    tied: Mapping[str, str]


def read_layout(folder: Path, chat: str | None = None) -> Layout:
    """What a model folder says it is, from `config.json`, `sam2_config.json` and the tensor names alone.

    An official folder has a grounder if its config.json names such a model, or any of its tensors is of one. `chat`
    names the chat template of an official folder that says none, or another one's.

    Raises: ConfigError, if no family claims the configuration; CheckpointError, if a file cannot be read.
    """
    raw = read_json(folder / "config.json")
    if raw.get("model_type") == MODEL_TYPE:
        return Layout(VisionLanguageConfig.from_dict(raw), None, {})
    if "vision_config" not in raw and (folder / "vision_config.json").is_file():
        raw["vision_config"] = read_json(folder / "vision_config.json")
    family = claiming(raw)
    names = weights.read_headers(folder)
    named = raw.get("architectures") or ()
    is_grounded = family.grounded is not None and (
        family.grounded.architecture in named or any(name.startswith(GROUNDER_UPSTREAM) for name in names)
    )
    config = VisionLanguageConfig(
        family=family.name,
        mllm_config=family.architecture(raw),
        sam2_config=sam2_architecture(folder) if is_grounded else None,
        template=chat or raw.get("template") or family.template(folder),
        two_decoders=any(name.startswith(SAM2_UPSTREAM + "sam_mask_decoder_modified.") for name in names),
        video_frames=raw.get("video_frames"),
    )
    parts = (raw, raw.get("llm_config"), raw.get("text_config"))
    says_tied = any(isinstance(part, dict) and part.get("tie_word_embeddings") is True for part in parts)
    head = {"mllm.language_model.lm_head.weight": "mllm.language_model.model.embed_tokens.weight"}
    return Layout(config, key_table(config), head if says_tied else {})


def sam2_architecture(folder: Path) -> Sam2VideoConfig:
    """The SAM 2 of an official folder: what its `sam2_config.json` says, or Hiera-L."""
    sizes = folder / "sam2_config.json"
    return sam2.architecture(read_json(sizes) if sizes.is_file() else None)


def plan(folder: Path, chat: str | None = None) -> tuple[Layout, dict[str, tuple[int, ...]]]:
    """How a folder is to be read, and the names and shapes of all tensors that its model needs; `chat` as there.

    Raises: ConfigError, if config.json lacks a field or makes no sense, or as `read_layout` does; CheckpointError too.
    """
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} {weights.ADAPTER}")
    try:
        _check_numbers(read_json(folder / "config.json"))
        layout = read_layout(folder, chat)
        template(layout.config.template)
        _check_layer(layout.config)
        return layout, expected(layout.config)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
        MemoryError,
        StrictDataclassError,
    ) as error:
        reason = " ".join(str(error).split())[:300]
        text = f"config.json lacks a field or has one that makes no sense ({type(error).__name__}: {reason})"
        raise ConfigError(f"{folder}: {text}; take the one that belongs to the weights") from error


def _check_numbers(value: Any, name: str = "", depth: int = 0) -> None:
    """Refuse sizes that no model has, before anything is built of them.

    Raises: ValueError.
    """
    if depth > _DEEPEST:
        raise ValueError("it is nested too deeply")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_numbers(inner, str(key), depth + 1)
    elif isinstance(value, list):
        if len(value) > _MOST_ITEMS:
            raise ValueError(f"{name} lists {len(value):,} values")
        for inner in value:
            _check_numbers(inner, name, depth + 1)
    elif isinstance(value, int) and not isinstance(value, bool):
        most = next((most for ending, most in _LARGEST.items() if name.endswith(ending)), None)
        if most is not None and value > most:
            raise ValueError(f"{name} is {value:,}; no model has more than {most:,}")


def _check_layer(config: VisionLanguageConfig) -> None:
    """Refuse a layer of the vision tower to be taken that it has not.

    Raises: ValueError.
    """
    chosen = getattr(config.mllm_config, "select_layer", None)
    layers = getattr(getattr(config.mllm_config, "vision_config", None), "num_hidden_layers", None)
    if isinstance(chosen, int) and isinstance(layers, int) and not -layers - 1 <= chosen <= layers:
        raise ValueError(f"select_layer is {chosen} and the vision tower has {layers} layers")


def check(
    layout: Layout, places: Mapping[str, tuple[int, ...]], headers: Mapping[str, Stored]
) -> tuple[list[Write], LoadReport]:
    """`segue.weights.check` of a folder; where it is of another architecture, the error names both.

    Raises: CheckpointError.
    """
    shapes = {name: stored.shape for name, stored in headers.items()}
    contrast = partial(zoo.contrast, layout.config, shapes)
    return weights.check(headers, places, layout.table, tied=layout.tied, contrast=contrast)


def claiming(raw: Mapping[str, Any]) -> Family:
    """The family whose models this config.json describes.

    Raises: ConfigError, if none does.
    """
    for name in FAMILIES:
        if FAMILIES[name].claims(raw):
            return FAMILIES[name]
    raise ConfigError(
        f"no model family claims this config.json (model_type {raw.get('model_type')!r}, architectures "
        f"{raw.get('architectures')}); known families: {', '.join(FAMILIES)}"
    )


def load_processor(folder: Path, config: VisionLanguageConfig) -> Processor:
    """The preprocessing of a folder's model.

    Raises: CheckpointError, if the tokenizer does not belong to it.
    """
    processor: Processor = FAMILIES[config.family].processor(folder, config.mllm_config, config.template)
    if config.sam2_config is not None and processor.seg_id is None:
        raise CheckpointError(
            f"the tokenizer in {folder} has no token '[SEG]', by which a model with a grounder asks for masks. "
            "Take the tokenizer files (added_tokens.json too) that belong to the checkpoint"
        )
    return processor


def change(config: VisionLanguageConfig, *, image_side: int | None, chat: str | None) -> bool:
    """Say that a model is shown squares of another side or talked to with another chat template, where they are given;
    returns whether any is, for then its processor must be loaded anew.

    Raises: ConfigError, for a family whose pictures are of one size or of their own, a side that does not fit, or an
        unknown template.
    """
    if image_side is not None:
        set_side = getattr(config.mllm_config, "set_image_side", None)
        if set_side is None:
            raise ConfigError(
                f"image_side is for models that are shown squares of any side; {config.family} is not one"
            )
        set_side(image_side)
    if chat is not None:
        template(chat)
        config.template = chat
    return image_side is not None or chat is not None


SAM2_UPSTREAM = "grounding_encoder.sam2_model."
GROUNDER_UPSTREAM = (SAM2_UPSTREAM, "text_hidden_fcs.")


def key_table(config: VisionLanguageConfig) -> KeyTable:
    """Official names to ours."""
    family: Family = FAMILIES[config.family]
    layout = official_layout(config)
    prefix = layout.prefix if layout else ""
    grounder: KeyTable = (
        []
        if config.sam2_config is None
        else [
            Rule(r"text_hidden_fcs\.([02])\.(weight|bias)", (r"seg_projector.\1.\2",)),
            *sam2.key_table(SAM2_UPSTREAM, "grounder.sam2.", "grounder.language_decoder."),
        ]
    )
    return [*grounder, *(rule.below(prefix, "mllm.") for rule in family.key_table(config.mllm_config))]


def official_layout(config: VisionLanguageConfig) -> Official | None:
    """How models of its family, with a grounder or without as it says, are written officially; `None` if not at all."""
    family: Family = FAMILIES[config.family]
    return family.official if config.sam2_config is None else family.grounded


def load(
    folder: Path, *, dtype: torch.dtype, device: str, filling: Filling | None = None
) -> tuple[VisionLanguageModel, LoadReport]:
    """The model of a folder in the official or our own layout, complete or not at all.

    Judged from file headers on a model without memory first, so a folder that does not fit costs nothing. `filling`
    makes of the empty model what is told each place that has been filled, as `segue.weights.load` has it.

    Raises: ConfigError and CheckpointError, as `plan` and `segue.weights.check` do.
    """
    layout, places = plan(folder)
    headers = weights.read_headers(folder)
    check(layout, places, headers)
    model = build(layout.config, dtype=dtype, device=device)
    filled = filling(model) if filling else lambda place: False
    return model, weights.load(model, folder, layout.table, tied=layout.tied, filled=filled)


def save(
    model: VisionLanguageModel, folder: Path, *, dtype: torch.dtype | None = None, also: Callable[[Path], None]
) -> None:
    """Write configuration and tensors in our own layout; `also` adds what else belongs into the folder.

    Everything is written under another name beside it, and the folder appears when all is there.

    Raises: CheckpointError, if it cannot be written; ConfigError, if weights are quantised, have changed their form
    to answer (`segue.models.gptq`), or lie elsewhere.
    """
    if {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} != expected(model.config) or any(
        tensor.is_meta for tensor in model.state_dict().values()
    ):
        raise ConfigError(
            "a model that was loaded with --quantize or --offload cannot be saved; load it without. One in GPTQ's 4 "
            "bits can be saved until it is first asked: load it anew"
        )
    try:
        with new_folder(folder) as part:
            model.config.save_pretrained(part)
            weights.save(model, part, dtype=dtype)
            also(part)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"cannot write {folder}: {reason}; free space or choose another folder") from error
