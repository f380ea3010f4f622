"""The whole model: a language model that sees, a projector, and SAM 2 asked by language.

A model folder in our layout is an ordinary Hugging Face folder of this class; folders in the official Sa2VA layout
load into it through key tables.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, Sam2VideoConfig
from transformers.initialization import no_init_weights

from segue import weights
from segue.errors import CheckpointError, ConfigError
from segue.grounding import sam2
from segue.models import FAMILIES, zoo
from segue.models.base import Family
from segue.models.templates import template
from segue.weights import KeyTable, LoadReport, Rule, read_json

log = logging.getLogger(__name__)

MODEL_TYPE = "segue"
Filling = Callable[["GroundedModel"], Callable[[str], bool]]


class GroundedConfig(PreTrainedConfig):
    """The parts of a model: its family's own configuration, SAM 2's, and what joins them.

    `template` is the chat template's name; `two_decoders` says that the decoder that learned language stands apart from
    the original SAM 2 decoder (Sa2VA-i). `video_frames` is the plan of frames that the model was trained on, if it is
    not its family's.
    """

    model_type = MODEL_TYPE
    sub_configs = {"mllm_config": PreTrainedConfig, "sam2_config": Sam2VideoConfig}

    def __init__(
        self,
        family: str = "internvl",
        mllm_config: dict[str, Any] | PreTrainedConfig | None = None,
        sam2_config: dict[str, Any] | Sam2VideoConfig | None = None,
        template: str = "qwen_chat",
        two_decoders: bool = False,
        video_frames: str | None = None,
        **kwargs: Any,
    ):
        self.family = family
        self.mllm_config: Any = mllm_config
        self.sam2_config: Any = sam2_config
        if not isinstance(mllm_config, PreTrainedConfig):
            fields = {name: value for name, value in (mllm_config or {}).items() if name != "model_type"}
            self.mllm_config = FAMILIES[family].config(**fields)
        if not isinstance(sam2_config, PreTrainedConfig):
            self.sam2_config = sam2.whole_config(**sam2_config) if sam2_config else sam2.architecture()
        self.template = template
        self.two_decoders = two_decoders
        self.video_frames = video_frames
        kwargs["tie_word_embeddings"] = False
        super().__init__(**kwargs)

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """The language model's configuration."""
        text: PreTrainedConfig = self.mllm_config.text_config
        return text


class GroundedModel(PreTrainedModel):
    """`mllm` answers; `seg_projector` turns the state on each `[SEG]` into a prompt; `grounder` finds the masks."""

    config_class = GroundedConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    # three estimated IoUs a step of bfloat16 apart are often equal, and the best mask would be a matter of order
    _keep_in_fp32_modules_strict = ["mask_decoder", "language_decoder"]

    def __init__(self, config: GroundedConfig):
        super().__init__(config)
        self.mllm = FAMILIES[config.family].build(config.mllm_config)
        width = self.mllm.width
        self.seg_projector = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.sam2_config.mask_decoder_config.hidden_size)
        )
        self.grounder = sam2.LanguageSam2(config.sam2_config, two_decoders=config.two_decoders)
        self.post_init()

    @property
    def family(self) -> Family:
        """The record of this model's family."""
        return FAMILIES[self.config.family]

    def prompts(self, seg_hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n e"]:
        """Mask prompts from the states on segmentation tokens; n may be 0."""
        projected: Float[Tensor, "n e"] = self.seg_projector(seg_hidden.to(self.dtype))
        return projected


@dataclass(frozen=True, slots=True)
class Layout:
    """How a folder is to be read: the configuration, and the key table of its names (`None` for our own layout)."""

    config: GroundedConfig
    table: KeyTable | None
    tied: Mapping[str, str]


def read_layout(folder: Path, chat: str | None = None) -> Layout:
    """What a model folder says it is, from `config.json`, `sam2_config.json` and the tensor names alone.

    `chat` names the chat template of an official folder that says none, or another one's.

    Raises: ConfigError, if no family claims the configuration; CheckpointError, if a file cannot be read.
    """
    raw = read_json(folder / "config.json")
    if raw.get("model_type") == MODEL_TYPE:
        return Layout(GroundedConfig.from_dict(raw), None, {})
    family = claiming(raw)
    names = weights.read_headers(folder)
    sizes = folder / "sam2_config.json"
    config = GroundedConfig(
        family=family.name,
        mllm_config=family.architecture(raw),
        sam2_config=sam2.architecture(read_json(sizes) if sizes.is_file() else None),
        template=chat or raw.get("template", "qwen_chat"),
        two_decoders=any(name.startswith(SAM2_UPSTREAM + "sam_mask_decoder_modified.") for name in names),
        video_frames=raw.get("video_frames"),
    )
    says_tied = raw.get("tie_word_embeddings") is True
    head = {"mllm.language_model.lm_head.weight": "mllm.language_model.model.embed_tokens.weight"}
    return Layout(config, key_table(config), head if says_tied else {})


def plan(folder: Path, chat: str | None = None) -> tuple[Layout, dict[str, tuple[int, ...]]]:
    """How a folder is to be read, and the names and shapes of all tensors that its model needs; `chat` as there.

    Raises: ConfigError, if config.json lacks a field or makes no sense, or as `read_layout` does; CheckpointError too.
    """
    try:
        layout = read_layout(folder, chat)
        template(layout.config.template)
        return layout, expected(layout.config)
    except (ArithmeticError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        text = f"config.json lacks a field or has one that makes no sense ({type(error).__name__}: {error})"
        raise ConfigError(f"{folder}: {text}; take the one that belongs to the weights") from error


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


SAM2_UPSTREAM = "grounding_encoder.sam2_model."
GROUNDER_PARTS = {
    "sam2.encoder": ("grounder.sam2.vision_encoder.",),
    "sam2.prompts": ("grounder.sam2.prompt_encoder.", "grounder.sam2.shared_image_embedding."),
    "sam2.memory": ("grounder.sam2.",),
    "language_decoder": ("grounder.language_decoder.",),
}


def components(family: Family) -> dict[str, tuple[str, ...]]:
    """Every part of a family's models by name, and how its tensors' names begin; the first that fits counts.

    The family's own groups come first, then what is left of the grounder.
    """
    return {**family.groups, **GROUNDER_PARTS}


def component_of(place: str, parts: Mapping[str, tuple[str, ...]]) -> str | None:
    """The part that a tensor of this name belongs to; `None` if it is of no known part."""
    return next((name for name, prefixes in parts.items() if place.startswith(prefixes)), None)


def key_table(config: GroundedConfig) -> KeyTable:
    """Official Sa2VA names to ours."""
    return [
        Rule(r"text_hidden_fcs\.([02])\.(weight|bias)", (r"seg_projector.\1.\2",)),
        *sam2.key_table(SAM2_UPSTREAM, "grounder.sam2.", "grounder.language_decoder."),
        *(rule.below("", "mllm.") for rule in FAMILIES[config.family].key_table(config.mllm_config)),
    ]


def build(config: GroundedConfig, *, dtype: torch.dtype, device: str, fill: bool = False) -> GroundedModel:
    """A model on a device in a precision. Its weights are whatever memory held, unless `fill` asks for random ones.

    The mask decoder stays in float32 whatever `dtype` is. Nothing asks for gradients until training does.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with nullcontext() if fill else _without_drawing(), torch.device(device):
            model = GroundedModel(config)
    finally:
        torch.set_default_dtype(before)
    for decoder in (model.grounder.sam2.mask_decoder, model.grounder.language_decoder):
        if decoder is not None:
            decoder.float()
    return model.eval().requires_grad_(False)


@contextmanager
def _without_drawing() -> Iterator[None]:
    """Modules built here keep whatever memory held, and the global random state stays where it was."""
    with no_init_weights(), torch.random.fork_rng(devices=[]):
        yield


def load(
    folder: Path, *, dtype: torch.dtype, device: str, filling: Filling | None = None
) -> tuple[GroundedModel, LoadReport]:
    """The model of a folder in the official or our own layout, complete or not at all.

    Judged from file headers on a model without memory first, so a folder that does not fit costs nothing. `filling`
    makes of the empty model what is told each place that has been filled, as `segue.weights.load` has it.

    Raises: ConfigError and CheckpointError, as `plan` and `segue.weights.check` do.
    """
    layout, places = plan(folder)
    headers = weights.read_headers(folder)
    contrast = zoo.contrast(read_json(folder / "config.json"), headers)
    weights.check(headers, places, layout.table, tied=layout.tied, contrast=contrast)
    model = build(layout.config, dtype=dtype, device=device)
    filled = filling(model) if filling else lambda place: False
    return model, weights.load(model, folder, layout.table, tied=layout.tied, filled=filled)


def expected(config: GroundedConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a model, computed without memory for any."""
    with torch.device("meta"), _without_drawing():
        return {name: tuple(tensor.shape) for name, tensor in GroundedModel(config).state_dict().items()}


def save(model: GroundedModel, folder: Path, *, dtype: torch.dtype | None = None, also: Callable[[Path], None]) -> None:
    """Write configuration and tensors in our own layout; `also` adds what else belongs into the folder.

    Everything is written under another name beside it, and the folder appears when all is there.

    Raises: CheckpointError, if it cannot be written; ConfigError, if weights are quantised or lie elsewhere.
    """
    if {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} != expected(model.config) or any(
        tensor.is_meta for tensor in model.state_dict().values()
    ):
        raise ConfigError("a model that was loaded with --quantize or --offload cannot be saved; load it without")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, prefix=".segue-") as scratch:
            part = Path(scratch) / folder.name
            part.mkdir()
            model.config.save_pretrained(part)
            weights.save(model, part, dtype=dtype)
            also(part)
            part.replace(folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"cannot write {folder}: {reason}; free space or choose another folder") from error
