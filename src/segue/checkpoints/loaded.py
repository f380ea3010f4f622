"""Models in memory: of a folder, or of a training checkpoint with all that it stands on."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from segue import weights
from segue.checkpoints import adapters, model_folder
from segue.checkpoints.locate import base_of
from segue.checkpoints.model_folder import Filling
from segue.grounding.model import VisionLanguageModel
from segue.models.protocol import Processor


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model, its preprocessing, and where its weights come from, in what precision and with which versions."""

    model: VisionLanguageModel
    processor: Processor
    lineage: dict[str, Any]


def load(folder: Path, *, dtype: torch.dtype, device: str, filling: Filling | None = None) -> LoadedModel:
    """The model of a folder; of a checkpoint, or of the best of a run, what was learned put onto its base.

    `filling` as in `segue.checkpoints.model_folder.load`; of a checkpoint it is not used.

    Raises: ConfigError and CheckpointError, as `segue.checkpoints.model_folder.load` and `apply` do.
    """
    checkpoint = adapters.find(folder)
    if checkpoint is not None:
        base = load(base_of(checkpoint, adapters.read(checkpoint)), dtype=dtype, device=device)
        return apply(base, checkpoint)[0]
    model, report = model_folder.load(folder, dtype=dtype, device=device, filling=filling)
    lineage = {
        "model": str(folder),
        **weights.lineage(report),
        "family": model.config.family,
        "dtype": str(dtype).removeprefix("torch."),
        "device": device,
        "versions": {name: version(name) for name in ("segue", "torch", "transformers")},
        "python": platform.python_version(),
    }
    return LoadedModel(model, model_folder.load_processor(folder, model.config), lineage)


def apply(base: LoadedModel, checkpoint: Path) -> tuple[LoadedModel, adapters.Applied]:
    """What a checkpoint has learned, put onto its base, whose weights change; and which tensors those were.

    Raises: CheckpointError, if it is not its base, or a tensor does not fit.
    """
    record = adapters.read(checkpoint)
    adapters.check_base(checkpoint, record, base.lineage["model_hash"])
    applied = adapters.apply(base.model, checkpoint, record)
    model_folder.change(base.model.config, image_side=record.image_side, chat=record.template)
    lineage = {
        **base.lineage,
        "model": str(checkpoint),
        "model_hash": record.content_hash,
        "files": {**base.lineage["files"], adapters.TENSORS: record.tensors_hash},
        "trained": {"checkpoint": checkpoint.name, **record.summary()},
    }
    processor = model_folder.load_processor(checkpoint, base.model.config)
    return LoadedModel(base.model, processor, lineage), applied
