"""Training checkpoints: the tensors that learned, over a base model that is named and checked by its hash.

A checkpoint is a folder with `trained.safetensors`, `checkpoint.json` and the tokenizer's files. Three kinds of tensors
stand in it, under the model's own names: `<layer>.lora_A` and `<layer>.lora_B`, which are added to the layer's weight
as alpha / rank * B @ A; `<table>.rows`, which replace the rows of the new tokens; and whole parameters. A base may be a
checkpoint itself: the end of an earlier stage.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from segue import weights
from segue.errors import CheckpointError
from segue.weights import Stored

log = logging.getLogger(__name__)

RECORD, TENSORS = "checkpoint.json", "trained.safetensors"
CHECKPOINTS, RECIPE = "checkpoints", "recipe.yaml"
FORMAT = 1
_LORA = re.compile(r"(.+)\.lora_([AB])")
_ROWS = re.compile(r"(.+)\.rows")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRecord:
    """What `checkpoint.json` says.

    `base` is the base model as the recipe calls it, `base_folder` where it lay (relative to the checkpoint if it lies
    in the same run), `base_hash` and `tensors_hash` what the weights of both must be. `lora` holds the values of a peft
    `adapter_config.json`. `token_ids` are the rows that `.rows` tensors replace. `stage` and `step` say how far the run
    was: `step` counts over all stages, `stage_step` within this one, `position` the samples that the stage has drawn.
    `metrics` is the last judgement, of which `metric` is the figure that counts. `image_side` is the side of the
    squares that it was shown, and `template` how it was talked to, where that is not the base's. `progress` is what the
    trainer needs to go on.
    """

    base: str
    base_folder: str
    base_hash: str
    tensors_hash: str
    stage: str
    step: int
    stage_step: int
    position: int
    format: int = FORMAT
    lora: dict[str, Any] | None = None
    token_ids: tuple[int, ...] = ()
    metric: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    recipe: str = ""
    image_side: int | None = None
    template: str | None = None
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def content_hash(self) -> str:
        """One hash over base and trained tensors: equal for equal weights."""
        return hashlib.sha256(f"{self.base_hash} {self.tensors_hash}".encode()).hexdigest()[:16]

    @property
    def score(self) -> float | None:
        """What checkpoints are compared by, if it was evaluated."""
        return rank(self.metrics, self.metric) if self.metric in self.metrics else None

    def write(self, folder: Path) -> None:
        """Write `checkpoint.json`."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"
        (folder / RECORD).write_text(text, encoding="utf-8")

    def summary(self) -> dict[str, Any]:
        """The parts of it that a model's lineage repeats."""
        told = ("stage", "step", "metrics", "base", "base_hash", "tensors_hash")
        return {name: getattr(self, name) for name in told}


def find(folder: Path) -> Path | None:
    """The checkpoint that a folder is, or the best one of the run that it is; None for any other folder.

    The best is the one with the highest figure among those of the last stage, the newest where none was judged.

    Raises: CheckpointError, for a run without checkpoints, or a checkpoint that cannot be read.
    """
    if (folder / RECORD).is_file():
        return folder
    if not (folder / CHECKPOINTS).is_dir() or not (folder / RECIPE).is_file():
        return None
    found = checkpoints(folder)
    if not found:
        raise CheckpointError(f"{folder} is a training run without a checkpoint yet; wait for its first")
    return best(found)


def checkpoints(run: Path) -> dict[Path, CheckpointRecord]:
    """The finished checkpoints of a run with what they say, oldest first.

    Raises: CheckpointError, if one cannot be read.
    """
    folders = sorted(path for path in (run / CHECKPOINTS).glob("step-*") if (path / RECORD).is_file())
    return {folder: read(folder) for folder in folders}


def rank(metrics: Mapping[str, float], metric: str) -> float:
    """What checkpoints are compared by: a figure of masks times the share of objects for which the model would say
    `[SEG]` by itself, for a mask that is never asked for is worth nothing to whoever uses the model.
    """
    said = 1.0 if metric == "emitted" else metrics.get("emitted", 1.0)
    return metrics[metric] * said


def best(found: Mapping[Path, CheckpointRecord]) -> Path:
    """The best of some checkpoints, one at least: the highest figure of the last stage, else the newest."""
    last = list(found.values())[-1].stage
    judged = {path: record.score for path, record in found.items() if record.stage == last and record.score is not None}
    return max(judged, key=lambda path: (judged[path], path.name)) if judged else list(found)[-1]


def read(folder: Path) -> CheckpointRecord:
    """What a checkpoint says of itself.

    Raises: CheckpointError, if that is not there, was written by another version of the format, or lacks a field or has
        one of another kind.
    """
    raw = weights.read_json(folder / RECORD)
    if raw.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / RECORD} is of format {raw.get('format')!r}, this version reads {FORMAT}; "
            "use the version of Segue that wrote it"
        )
    parts = {
        part.name: part.default is MISSING and part.default_factory is MISSING for part in fields(CheckpointRecord)
    }
    if wrong := sorted(
        (raw.keys() - parts) | {name for name, is_needed in parts.items() if is_needed and name not in raw}
    ):
        raise CheckpointError(f"{folder / RECORD} has other fields than expected ({', '.join(wrong)})")
    if wrong := _mistyped(raw):
        raise CheckpointError(f"{folder / RECORD} has values of another kind than expected ({', '.join(wrong)})")
    return CheckpointRecord(**{**raw, "token_ids": tuple(raw.get("token_ids", ()))})


def _mistyped(raw: Mapping[str, Any]) -> list[str]:
    """The fields of a record whose values no checkpoint has."""
    hints: dict[str, Any] = get_type_hints(CheckpointRecord) | {"token_ids": list}
    kinds = {name: get_args(hint) if isinstance(hint, UnionType) else (hint,) for name, hint in hints.items()}
    wrong = [
        name
        for name, value in raw.items()
        if not isinstance(value, tuple(get_origin(kind) or kind for kind in kinds[name]))
    ]
    if wrong:
        return wrong
    sound = {
        "base_folder": "\0" not in raw["base_folder"],
        "lora": raw.get("lora") is None or _is_lora(raw["lora"]),
        "token_ids": all(isinstance(row, int) for row in raw.get("token_ids", ())),
        "metrics": all(isinstance(figure, int | float) for figure in raw.get("metrics", {}).values()),
    }
    return [name for name, is_sound in sound.items() if not is_sound]


def _is_lora(settings: Mapping[str, Any]) -> bool:
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    return isinstance(rank, int) and rank > 0 and isinstance(alpha, int | float) and math.isfinite(alpha)


def check_base(checkpoint: Path, record: CheckpointRecord, found: str) -> None:
    """Refuse a base that is not the one the checkpoint was trained on; `found` is its content hash.

    Raises: CheckpointError.
    """
    if found != record.base_hash:
        raise CheckpointError(
            f"{checkpoint} was trained on {record.base} with the hash {record.base_hash}; the weights found there have "
            f"{found}. Nothing was loaded; bring back the base that it was trained on"
        )


@dataclass(frozen=True, slots=True)
class Applied:
    """What was put onto a base: LoRA layers folded in, parameters and rows placed, and layers that stayed as they were
    although their LoRA is not zero, because the precision could not hold the difference.
    """

    folded: tuple[str, ...]
    placed: tuple[str, ...]
    lost: tuple[str, ...]


@torch.no_grad()
def apply(model: nn.Module, checkpoint: Path, record: CheckpointRecord) -> Applied:
    """Put the trained tensors of a checkpoint onto the base it belongs to, all of them or none.

    Raises: CheckpointError, naming every tensor that has no place, no partner or another shape; or if the file is not
    the one that was written.
    """
    file = checkpoint / TENSORS
    headers = weights.read_header(file)
    if weights.file_hash(file) != record.tensors_hash:
        raise CheckpointError(f"{file} is not the file that was written with {RECORD}; restore both from one copy")
    places = dict(model.state_dict())
    problems = [problem for name in headers for problem in _problems(name, headers, places, record)]
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems[: weights.MAX_LINES])
        raise CheckpointError(
            f"{checkpoint} does not fit its base {record.base} ({len(problems)} tensors); nothing was loaded{lines}"
        )
    folded, placed, lost = [], [], []
    names = sorted(headers)  # lora_A stands before its lora_B
    held: Tensor | None = None
    for name, tensor in zip(names, weights.read_tensors(file, names), strict=True):
        if match := _LORA.fullmatch(name):
            if match[2] == "A":
                held = tensor
                continue
            weight = places[f"{match[1]}.weight"]
            assert held is not None
            has_changed = fold(weight, held, tensor, record.lora or {})
            folded.append(f"{match[1]}.weight")
            if not has_changed and bool(tensor.any()):
                lost.append(f"{match[1]}.weight")
        elif match := _ROWS.fullmatch(name):
            weight = places[f"{match[1]}.weight"]
            weight[list(record.token_ids)] = tensor.to(weight)
            placed.append(name)
        else:
            places[name].copy_(tensor)
            placed.append(name)
    log.info("%s: %d layers with LoRA, %d tensors placed", checkpoint, len(folded), len(placed))
    if lost:
        log.warning("%s: %d layers learned less than their precision can hold; load in fp32", checkpoint, len(lost))
    return Applied(tuple(folded), tuple(placed), tuple(lost))


def fold(weight: Tensor, a: Tensor, b: Tensor, lora: Mapping[str, Any]) -> bool:
    """Add alpha / rank * B @ A to a weight in place, reckoned in float32; returns whether that changed it."""
    scale = float(lora["lora_alpha"]) / int(lora["r"])
    before = weight.clone()
    added = (b.to(weight.device).float() @ a.to(weight.device).float()) * scale
    weight.copy_(weight.float() + added)
    return not torch.equal(before, weight)


def _problems(
    name: str, headers: Mapping[str, Stored], places: Mapping[str, Tensor], record: CheckpointRecord
) -> list[str]:
    shape = headers[name].shape
    wanted: tuple[int, ...]
    if match := _LORA.fullmatch(name):
        partner = headers.get(f"{match[1]}.lora_{'B' if match[2] == 'A' else 'A'}")
        weight = places.get(f"{match[1]}.weight")
        if weight is None or partner is None or record.lora is None:
            return [f"{name} {list(shape)} has no {'place' if weight is None else 'partner or no lora settings'}"]
        rank, side = int(record.lora["r"]), weight.shape[0 if match[2] == "B" else 1]
        wanted = (side, rank) if match[2] == "B" else (rank, side)
    elif match := _ROWS.fullmatch(name):
        table = places.get(f"{match[1]}.weight")
        if table is None or not all(0 <= row < len(table) for row in record.token_ids):
            return [f"{name} {list(shape)} has no place"]
        wanted = (len(record.token_ids), table.shape[1])
    elif name in places:
        wanted = tuple(places[name].shape)
    else:
        return [f"{name} {list(shape)} has no place"]
    return [] if shape == wanted else [f"{name} is {list(shape)}, its place needs {list(wanted)}"]
