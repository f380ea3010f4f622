"""A checkpoint and its base as one ordinary model folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from segue import engine, weights
from segue.errors import CheckpointError, ConfigError
from segue.grounding import trained


@dataclass(frozen=True, slots=True)
class Merged:
    """What was made: the folder, from which checkpoint, and how many layers and tensors of it were learned."""

    folder: Path
    checkpoint: Path
    folded: int
    placed: int
    model_hash: str


def merge(source: Path, out: Path, *, dtype: str = "bf16") -> Merged:
    """Write the model that a checkpoint, or the best one of a run, stands for, in our own layout.

    LoRA is folded in float32 and everything saved in `dtype` (the mask decoder too, which loads back into float32).
    The folder appears when all of it is written. Before that, every layer whose LoRA is not zero must differ from the
    base in that precision; after it, the files are read back and compared.

    Raises: CheckpointError, if a layer did not change, or the files differ from what was merged; as loading and
    saving do.
    """
    checkpoint = trained.find(source)
    if checkpoint is None:
        raise CheckpointError(f"{source} is no training checkpoint and no run; give the folder that holds one")
    if dtype not in engine.DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}; expected {', '.join(engine.DTYPES)}")
    precision = engine.DTYPES[dtype]
    base = engine.load(engine.base_of(checkpoint, trained.read(checkpoint)), device="cpu", dtype="fp32")
    places = base.model.state_dict()
    targets = [name for name in _targets(checkpoint) if name in places]
    before = _digests(((name, places[name]) for name in targets), precision)
    merged, applied = engine.put_onto(base, checkpoint)
    after = _digests(((name, places[name]) for name in targets), precision)
    lost = {name for name in applied.folded if _is_lost(checkpoint, name, before, after)}
    same = sorted(lost.union(applied.lost))
    if same:
        raise CheckpointError(
            f"merging {checkpoint} would lose what {len(same)} layers learned, the first {same[0]}: in {dtype} they "
            "are as in the base. Nothing was written; merge in fp32, or train longer or at a higher rate"
        )
    merged.save(out, dtype=dtype)
    _compare(out, {name: places[name] for name in (*targets, *applied.placed) if name in places}, precision)
    model_hash = weights.read_json(out / weights.LINEAGE)["model_hash"]
    return Merged(out, checkpoint, len(applied.folded), len(applied.placed), model_hash)


def _targets(checkpoint: Path) -> list[str]:
    """The weights that LoRA adds to."""
    names = weights.read_header(checkpoint / trained.TENSORS)
    return [name.removesuffix(".lora_B") + ".weight" for name in names if name.endswith(".lora_B")]


def _is_lost(checkpoint: Path, name: str, before: dict[str, str], after: dict[str, str]) -> bool:
    if before[name] != after[name]:
        return False
    tensor = f"{name.removesuffix('.weight')}.lora_B"
    (learned,) = weights.read_tensors(checkpoint / trained.TENSORS, [tensor])
    return bool(learned.any())


def _digests(tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype) -> dict[str, str]:
    return {name: _digest(tensor, dtype) for name, tensor in tensors}


def _digest(tensor: Tensor, dtype: torch.dtype) -> str:
    cast = tensor.detach().cpu().to(dtype).contiguous()
    return hashlib.sha256(cast.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


def _compare(out: Path, places: dict[str, Tensor], dtype: torch.dtype) -> None:
    headers = weights.read_headers(out)
    for name, tensor in places.items():
        (stored,) = weights.read_tensors(headers[name].file, [name])
        if _digest(stored, dtype) != _digest(tensor, dtype):
            raise CheckpointError(f"{out} does not hold {name} as it was merged; the disk may be failing, merge again")
