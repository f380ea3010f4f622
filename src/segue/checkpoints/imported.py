"""A training checkpoint of the original made into a model folder of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Sam2VideoConfig

from segue import weights
from segue.checkpoints.coverage import Coverage, coverage, plain
from segue.checkpoints.folders import (
    OpenedFolder,
    Target,
    check_target,
    hashed,
    open_folder,
    own_contents,
    precision,
    write,
)
from segue.checkpoints.model_folder import SAM2_UPSTREAM, sam2_architecture
from segue.checkpoints.pth import open_pth
from segue.checkpoints.sam2_weights import open_sam2
from segue.checkpoints.upstream_training import Merge, TrainingTensors, read_training, rows_of
from segue.errors import CheckpointError, ConfigError
from segue.grounding.model import expected
from segue.models import FAMILIES
from segue.models.protocol import GROUNDING_TOKENS
from segue.weights.lazy import Tensors

USUALLY_TRAINED = ("language", "embeddings", "connector", "seg_projector", "mask_decoder")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """What a training checkpoint of the original does not say of itself.

    `base` is the folder of the model that training began from, in the official or our layout; an InternVL without SAM 2
    will do, with `sam2` then, a Sa2VA folder or SAM 2's own file. `alpha` is LoRA's (default: twice its rank, as every
    published recipe has it). `template` is the chat template's name, where the base is not a Sa2VA (default: that of
    its language model).
    """

    base: Path
    sam2: Path | None = None
    alpha: float | None = None
    template: str | None = None


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What an import did: how much of the model the file decided, and `notes` on what it did not."""

    rows: tuple[Coverage, ...]
    notes: tuple[str, ...]


def import_training(source: Path, target: Target, options: TrainingOptions) -> ImportResult:
    """Merge a `.pth` of the original's trainer into the model that training began from; write a folder in our layout.

    LoRA pairs are multiplied out and added in float32. Tokens that the base's tokenizer lacks are added in the order in
    which training added them. What is written is compared with what the base holds: a tensor that LoRA moved and that
    comes out as it was is an error. The folder has the account as `load_report.json`.

    Raises: CheckpointError, naming every tensor without a place or a value; ConfigError, for a bad option.
    """
    sources = tuple(path for path in (source, options.base, options.sam2) if path is not None)
    check_target(target, *sources)
    base = open_base(options)
    file = open_pth(source)
    trained = read_training(file, base, options.alpha)
    tokenizer = base.tokenizer()
    rows = _add_tokens(tokenizer, rows_of(file, trained, base), base)
    merge = Merge(file, trained, base, rows)
    config = deepcopy(base.config)
    config.get_text_config().vocab_size = rows
    config.template = options.template or config.template
    model = replace(base, config=config, tensors=merge.tensors)
    found = coverage(model.tensors.specs, merge.statuses, base.parts, unused=trained.unused)
    notes = tuple(_notes(found, merge, file.others))
    made_from = {
        "command": "import",
        # sam2 may not have been given
        **{
            name: hashed(path, target.progress) for name, path in zip(("source", "base", "sam2"), sources, strict=False)
        },
        "lora": _lora(trained, merge),
    }
    type_of = precision(target.dtype)
    contents = replace(
        own_contents(model, tokenizer, target.dtype, made_from),
        check=lambda written: check_moved(merge, written, {place: type_of(place) for place in merge.moved}),
        report={"components": plain(found), "notes": list(notes)},
    )
    write(target, contents)
    return ImportResult(found, notes)


def open_base(options: TrainingOptions) -> OpenedFolder:
    """The model that training began from, SAM 2 put to it where it has none and its family has such a form.

    Raises: ConfigError and CheckpointError, as `open_folder` does; ConfigError, if there would be two SAM 2.
    """
    raw, headers = weights.read_json(options.base / "config.json"), weights.read_headers(options.base)
    if any(name.startswith((SAM2_UPSTREAM, "grounder.")) for name in headers):
        if options.sam2:
            raise ConfigError(f"{options.base} has SAM 2 already; leave --sam2 out")
        return open_folder(options.base, chat=options.template)
    plain = open_folder(options.base, chat=options.template)
    if FAMILIES[plain.config.family].grounded is None:
        if options.sam2:
            raise ConfigError(f"{options.base} is a {plain.config.family}, which has no SAM 2; leave --sam2 out")
        return plain
    # a Sa2VA is taught the plain template of its language model, whatever its base was asked with
    is_internlm2 = "InternLM2ForCausalLM" in ((raw.get("llm_config") or {}).get("architectures") or [])
    base = open_folder(options.base, chat=options.template or ("internlm2_chat" if is_internlm2 else "qwen_chat"))
    config = deepcopy(base.config)
    config.sam2_config = sam2_architecture(options.base)
    grounder = Tensors({}, base.tensors.read)
    if options.sam2 and options.sam2.is_dir():
        grounder, config.sam2_config = _grounder_of(options.sam2)
    elif options.sam2:
        grounder = open_sam2(options.sam2)

    def read(place: str) -> Tensor:
        return (grounder if place in grounder.specs else base.tensors).read(place)

    tensors = Tensors({**base.tensors.specs, **grounder.specs}, read)
    return replace(base, config=config, tensors=tensors, places=expected(config))


def _grounder_of(source: Path) -> tuple[Tensors, Sam2VideoConfig]:
    """SAM 2's tensors in a Sa2VA folder."""
    other = open_folder(source)
    specs = {name: spec for name, spec in other.tensors.specs.items() if name.startswith("grounder.sam2.")}
    return Tensors(specs, other.tensors.read), other.config.sam2_config


def _add_tokens(tokenizer: PreTrainedTokenizerFast, rows: int | None, base: OpenedFolder) -> int:
    """Add the tokens that training adds to a model with a grounder; returns how many rows the tables need."""
    known, needed = tokenizer.get_vocab(), () if base.config.sam2_config is None else GROUNDING_TOKENS
    fresh = [AddedToken(token, special=True, normalized=False) for token in needed if token not in known]
    tokenizer.add_tokens(fresh, special_tokens=True)
    count = len(tokenizer)
    if rows is None:
        return max(count, base.config.get_text_config().vocab_size)
    if rows < count:
        raise CheckpointError(
            f"the training file's tables have {rows} rows and the tokenizer of {base.folder} has {count} tokens, "
            f"{len(fresh)} of them new; take as base the model that this training began from"
        )
    return rows


def _lora(trained: TrainingTensors, merge: Merge) -> dict[str, Any]:
    pairs = trained.pairs.values()
    return {
        "pairs": len(pairs),
        "ranks": sorted({pair.rank for pair in pairs}),
        "scales": sorted({pair.scale for pair in pairs}),
        "untrained": len(merge.still),
    }


def _notes(found: Sequence[Coverage], merge: Merge, others: Sequence[str]) -> Iterator[str]:
    for row in found:
        if row.component in USUALLY_TRAINED and not row.loaded:
            yield f"{row.component}: nothing of it in the file, though training usually changes it; kept from the base"
    if merge.still:
        yield f"{len(merge.still)} LoRA pairs have a B of zeros, so training has not moved their targets"
    for place, rows in merge.filled.items():
        yield f"{rows} rows of {place} are in neither file; they are the mean of the others, as training begins them"
    if others:
        yield f"beside the tensors, unread: {', '.join(others)}"


def check_moved(merge: Merge, written: OpenedFolder, dtypes: Mapping[str, torch.dtype]) -> None:
    """Refuse a model in which a tensor that LoRA moved is as it was without.

    Raises: CheckpointError, naming all of them.
    """
    same = [
        place
        for place, dtype in dtypes.items()
        if torch.equal(written.tensors.read(place), merge.unmoved(place).to(dtype))
    ]
    if same:
        text = f"{len(same)} of {len(dtypes)} tensors that LoRA moves came out as they were before"
        raise CheckpointError(
            f"{text}: training would be lost; nothing was written. Its changes may be smaller than the precision: "
            f"try --dtype fp32{weights.listing([f'unmoved: {place}' for place in same])}"
        )
