"""Who learns: the groups of a stage switched on in a model, whole, by LoRA, or the rows of the new tokens alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from segue.errors import ConfigError
from segue.grounding.model import VisionLanguageModel
from segue.models.gptq import GptqLinear
from segue.models.protocol import GROUNDING_TOKENS, Processor
from segue.models.quantised import four_bits
from segue.train.recipe import Lora, Stage

GROUNDER = {
    "seg_projector": ("seg_projector.",),
    "mask_decoder": ("grounder.sam2.mask_decoder.",),
    "image_encoder": ("grounder.sam2.vision_encoder.",),
    "language_decoder": ("grounder.language_decoder.",),
    "prompt_encoder": ("grounder.sam2.prompt_encoder.", "grounder.sam2.no_memory_embedding"),
    "memory": (
        "grounder.sam2.memory_attention.",
        "grounder.sam2.memory_encoder.",
        "grounder.sam2.memory_temporal_positional_encoding",
        "grounder.sam2.object_pointer_proj.",
        "grounder.sam2.no_object_pointer",
    ),
}
"""Groups beside a family's own: the projector of prompts, SAM 2's decoder and image encoder, Sa2VA-i's decoder that
learned language, the embeddings that stand for no point, no mask and no memory, and what follows objects through a
video."""


@dataclass(frozen=True, slots=True)
class TrainableParameters:
    """What learns in a stage: parameters by group and by their name in the model; settings of LoRA; rows of tokens."""

    groups: dict[str, dict[str, nn.Parameter]] = field(default_factory=dict)
    lora: dict[str, Any] | None = None
    token_ids: tuple[int, ...] = ()

    @property
    def count(self) -> dict[str, int]:
        """How many numbers learn, by group."""
        return {name: sum(p.numel() for p in group.values()) for name, group in self.groups.items()}

    def renewed(self, model: nn.Module) -> TrainableParameters:
        """The same of a model whose parameters were put in place of others meanwhile, which could be given up then."""
        now = dict(model.named_parameters())
        groups = {name: {place: now[place] for place in group} for name, group in self.groups.items()}
        return replace(self, groups=groups)


class TrainedRows(nn.Module):
    """An embedding table or an output head of which only some rows learn.

    The rows stand apart, so that gradients and the optimizer's memory are theirs alone: five rows instead of two whole
    matrices, which at 8B are a billion numbers. peft's own way copies the whole matrix in every pass.
    """

    def __init__(self, base: nn.Embedding | nn.Linear, token_ids: Sequence[int]):
        super().__init__()
        self.base = base
        self.rows = nn.Parameter(base.weight[list(token_ids)].detach().float().clone())
        self.token_ids: Int[Tensor, " k"]
        self.register_buffer("token_ids", torch.tensor(token_ids, device=base.weight.device), persistent=False)

    @property
    def weight(self) -> Float[Tensor, "v d"]:
        """The matrix below, whose own rows of these tokens are out of date."""
        return self.base.weight

    def forward(self, given: Tensor) -> Tensor:
        """Rows of the table for ids `Int[...]`, or scores of all tokens for states `Float[... d]`."""
        out: Tensor = self.base(given)
        if isinstance(self.base, nn.Embedding):
            hit = given[..., None].eq(self.token_ids)
            mine = self.rows.to(out.dtype)[hit.int().argmax(-1)]
            return torch.where(hit.any(-1, keepdim=True), mine, out)
        return out.index_copy(-1, self.token_ids, nn.functional.linear(given, self.rows.to(given.dtype)).to(out.dtype))


def switch_on(model: VisionLanguageModel, stage: Stage, processor: Processor, *, seed: int) -> TrainableParameters:
    """Let the groups of a stage learn and nothing else; what learns is in float32, whatever the model is in.

    Changes the model in place. First LoRA weights follow from the seed.

    Raises: ConfigError, for a group that is unknown, holds nothing, or has nothing that could learn that way.
    """
    known = {**model.family.groups, **GROUNDER}
    packed = [name for name, module in model.named_modules() if isinstance(module, GptqLinear)]
    learns = [name for name, group in stage.groups.items() if group.how != "frozen" and name in known]
    if held := [name for name in learns if any(place.startswith(known[name]) for place in packed)]:
        raise ConfigError(
            f"the layers of {', '.join(held)} are packed in 4 bits (GPTQ) and cannot learn, by LoRA neither; start "
            "from the checkpoint that is not packed, with stages.0.lora.quantize=4bit where memory is short"
        )
    parts = {name: _parameters(model, name, known) for name in stage.groups}
    by_how = {
        how: [name for name, group in stage.groups.items() if group.how == how] for how in ("full", "lora", "rows")
    }
    model.requires_grad_(False)
    lora = (
        _add_lora(model, stage.lora, {name: known[name] for name in by_how["lora"]}, seed) if by_how["lora"] else None
    )
    token_ids = _add_rows(model, [known[name] for name in by_how["rows"]], processor) if by_how["rows"] else ()
    for name in by_how["full"]:
        for parameter in parts[name].values():
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    trainable = {
        name: {place: p for place, p in model.named_parameters() if p.requires_grad and place.startswith(known[name])}
        for how in by_how.values()
        for name in how
    }
    return TrainableParameters({name: trainable[name] for name in stage.groups if name in trainable}, lora, token_ids)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """All that draws from torch's own random state here, such as dropout, follows from a seed; it is restored after."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def stored_name(name: str) -> str:
    """A parameter's name in a checkpoint: LoRA matrices without the adapter's name."""
    return re.sub(r"\.lora_([AB])\.default\.weight$", r".lora_\1", name)


def _parameters(
    model: VisionLanguageModel, group: str, known: Mapping[str, tuple[str, ...]]
) -> dict[str, nn.Parameter]:
    if group not in known:
        raise ConfigError(f"the model has no group {group!r}; it has {', '.join(known)}")
    found = {name: parameter for name, parameter in model.named_parameters() if name.startswith(known[group])}
    if not found:
        raise ConfigError(f"the group {group!r} holds nothing in this model; take it out of the stage")
    return found


def _linears(model: nn.Module, prefixes: tuple[str, ...]) -> Iterator[str]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and f"{name}.".startswith(prefixes) and not name.endswith("lm_head"):
            yield name


def _add_lora(
    model: VisionLanguageModel, settings: Lora, groups: Mapping[str, tuple[str, ...]], seed: int
) -> dict[str, Any]:
    """Lay LoRA beside every linear layer of some groups; returns what an adapter_config.json would say."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError("LoRA needs peft; install the extra: pip install 'segue[train]'") from error
    targets = []
    for group, prefixes in groups.items():
        linears = [
            name
            for name in _linears(model, prefixes)
            if settings.layers is None or name.rpartition(".")[2] in settings.layers
        ]
        if not linears:
            raise ConfigError(f"the group {group!r} has no linear layer for LoRA; train it full or leave it frozen")
        targets += linears
    if settings.quantize == "4bit":
        quantize(model, targets)
    alpha: Any = settings.alpha  # annotated as a whole number, used as any
    config = LoraConfig(
        r=settings.rank, lora_alpha=alpha, lora_dropout=settings.dropout, bias="none", target_modules=targets
    )
    with seeded(seed, model.device):
        inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
    return {
        "peft_type": "LORA",
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "bias": "none",
        "target_modules": targets,
    }


def _add_rows(model: VisionLanguageModel, groups: Sequence[tuple[str, ...]], processor: Processor) -> tuple[int, ...]:
    vocabulary = {token: processor.tokenizer.encode(token, add_special_tokens=False) for token in GROUNDING_TOKENS}
    token_ids = tuple(ids[0] for ids in vocabulary.values() if len(ids) == 1)
    if not token_ids:
        raise ConfigError(
            f"the model has none of the tokens {', '.join(vocabulary)}; train embeddings full, or not at all"
        )
    language: Any = model.mllm.language_model
    name = "mllm.language_model."
    if not all(f"{name}lm_head.".startswith(prefixes) for prefixes in groups):
        raise ConfigError("only the group of embeddings and head has rows of tokens; train the other group otherwise")
    language.set_input_embeddings(TrainedRows(language.get_input_embeddings(), token_ids))
    language.lm_head = TrainedRows(language.lm_head, token_ids)
    return token_ids


def quantize(model: nn.Module, names: Sequence[str]) -> None:
    """Keep linear layers in 4 bits (NF4), in place; what they compute with is unpacked to bfloat16 on the way.

    Raises: ConfigError, where bitsandbytes is missing.
    """
    for name in names:
        old: Any = model.get_submodule(name)
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, four_bits(old, old.weight.device))
    # the word by which peft knows such a model
    model.is_loaded_in_4bit = True  # type: ignore[assignment]
