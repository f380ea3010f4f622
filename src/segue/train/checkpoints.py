"""Writing checkpoints while training, and going on from one."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from segue import weights
from segue.checkpoints.adapters import CHECKPOINTS, RECORD, TENSORS, CheckpointRecord, best, checkpoints
from segue.errors import CheckpointError, DataError
from segue.files import new_folder, recover
from segue.models.protocol import Processor
from segue.weights import lazy

log = logging.getLogger(__name__)

STATE = "state"
OPTIMIZER = "optimizer.safetensors"
STATE_HASH = "state_hash"
"""In a record's `progress`, the hash of the optimizer's memory; checkpoints of older versions have none."""


def versions() -> dict[str, str]:
    """What a run is computed with."""
    return {name: version(name) for name in ("segue", "torch", "transformers", "accelerate")}


def write(
    folder: Path,
    record: CheckpointRecord,
    tensors: Mapping[str, Tensor],
    processor: Processor,
    *,
    state: Mapping[str, Tensor] | None = None,
) -> CheckpointRecord:
    """Write a checkpoint whole or not at all; returns its record with the hash of its tensors.

    `state` is the optimizer's memory; a checkpoint without one can be used and built upon, but not gone on from.

    Raises: CheckpointError, if it cannot be written; older checkpoints stay as they are. DataError, if a number in it
        is infinite or none: such a model is of no use, and would take the place of one that is.
    """
    _check_numbers(tensors, folder)
    try:
        with new_folder(folder) as part:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part / TENSORS)
            if state is not None:
                (part / STATE).mkdir()
                save_file(dict(state), part / STATE / OPTIMIZER)
            processor.save(part)
            record = replace(record, tensors_hash=weights.file_hash(part / TENSORS))
            if state is not None:
                told = {**record.progress, STATE_HASH: weights.file_hash(part / STATE / OPTIMIZER)}
                record = replace(record, progress=told)
            record.write(part)
            for path in (*part.rglob("*"), part):
                lazy.flush(path)
        lazy.flush(folder.parent)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(
            f"cannot write {folder}: {reason}; the checkpoints before it are whole. Free space and go on with --resume"
        ) from error
    return record


def _check_numbers(tensors: Mapping[str, Tensor], folder: Path) -> None:
    wrong = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if wrong:
        raise DataError(
            f"{len(wrong)} tensors, the first {wrong[0]}, have numbers that are infinite or none, so {folder.name} was "
            "not written. The checkpoints before it are good: start a new run on top of one, at a lower rate"
        )


def tidy(run: Path) -> None:
    """Remove what a killed process left half written or half removed; nothing that a reader would take for whole."""
    recover(run / CHECKPOINTS)
    for folder in (run / CHECKPOINTS).glob("step-*"):
        if not (folder / RECORD).is_file():
            shutil.rmtree(folder, ignore_errors=True)


def prune(run: Path, keep: int) -> list[Path]:
    """Remove all checkpoints but the `keep` newest and the best; returns what is gone."""
    found = checkpoints(run)
    if not found:
        return []
    kept = {*list(found)[-keep:], best(found)}
    gone = [folder for folder in found if folder not in kept]
    for folder in gone:
        # first the name by which it is known, so that a half-removed one is none
        (folder / RECORD).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    return gone


def newest(run: Path, stages: Sequence[str]) -> tuple[Path, CheckpointRecord] | None:
    """The checkpoint to go on from; None, where the run ended before its first. `stages` are the names of the run's.

    Raises: CheckpointError, if it cannot be read, holds no state, or is not as it was written.
    """
    found = checkpoints(run)
    if not found:
        return None
    folder, record = list(found.items())[-1]
    if not (folder / STATE / OPTIMIZER).is_file():
        raise CheckpointError(f"{folder} holds no state of the optimizer, so a run cannot go on from it")
    if damaged := _damaged(folder, record, stages):
        raise CheckpointError(
            f"{damaged} is not as it was written: the disk may be failing. Move {folder} away, and --resume goes on "
            "from the checkpoint before it"
        )
    return folder, record


def _damaged(folder: Path, record: CheckpointRecord, stages: Sequence[str]) -> Path | None:
    """The file of a checkpoint that is not as it was written, if there is one."""
    kept = record.progress
    is_sound = (
        record.stage in stages
        and record.stage_step >= 0
        and isinstance(kept.get("best", ""), int | float | None)
        and all(isinstance(kept.get(name), int) for name in ("waited", "per_step", "is_over"))
        and isinstance(kept.get("evaluated_at", kept.get("judged_at", -1)), int)
    )
    if not is_sound:
        return folder / RECORD
    hashes = {folder / TENSORS: record.tensors_hash, folder / STATE / OPTIMIZER: kept.get(STATE_HASH)}
    return next((file for file, known in hashes.items() if known and weights.file_hash(file) != known), None)


def read_state(folder: Path) -> dict[str, Tensor]:
    """The optimizer's memory in a checkpoint.

    Raises: CheckpointError, if it cannot be read.
    """
    return read_all(folder / STATE / OPTIMIZER)


def read_all(file: Path) -> dict[str, Tensor]:
    """All tensors of a file by name.

    Raises: CheckpointError, if it cannot be read.
    """
    names = list(weights.read_header(file))
    return dict(zip(names, weights.read_tensors(file, names), strict=True))
