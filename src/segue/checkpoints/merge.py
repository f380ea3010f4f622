"""A checkpoint and its base as one ordinary model folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from segue import weights
from segue.checkpoints import adapters, loaded
from segue.checkpoints.folders import FolderContents, Progress, Target, check_target, no_progress, precision, write
from segue.checkpoints.loaded import LoadedModel
from segue.checkpoints.locate import base_of
from segue.errors import CheckpointError
from segue.grounding.model import component_of, components
from segue.weights import lazy


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What was made: the folder, from which checkpoint, and how many layers and tensors of it were learned."""

    folder: Path
    checkpoint: Path
    folded: int
    placed: int
    model_hash: str


def merge(
    source: Path, out: Path, *, dtype: str = "bf16", overwrite: bool = False, progress: Progress = no_progress
) -> MergeResult:
    """Write the model that a checkpoint, or the best one of a run, stands for, in our own layout.

    LoRA is folded in float32 and saved in `dtype`; mask decoders stay in float32. Before anything is written, every
    layer whose LoRA is not zero must differ from the base in that precision. The folder appears when all of it is
    written, read back and compared; with `overwrite` it then replaces an older model folder.

    Raises: CheckpointError, if a layer did not change; as loading a checkpoint and `folders.write` do.
    """
    target = Target(folder=out, dtype=dtype, overwrite=overwrite, progress=progress)
    checkpoint = adapters.find(source)
    if checkpoint is None:
        raise CheckpointError(f"{source} is no training checkpoint and no run; give the folder that holds one")
    below = base_of(checkpoint, adapters.read(checkpoint))
    check_target(target, source, checkpoint, below)
    base = loaded.load(below, device="cpu", dtype=torch.float32)
    places, type_of = base.model.state_dict(), precision(dtype)
    learned = _learned(checkpoint)
    before = _digests(learned, places, type_of)
    merged, applied = loaded.apply(base, checkpoint)
    same = [name for name, digest in _digests(learned, places, type_of).items() if digest == before[name]]
    if same:
        raise CheckpointError(
            f"merging {checkpoint} would lose what {len(same)} layers learned, the first {same[0]}: in {dtype} they "
            "are as in the base. Nothing was written; merge in fp32, or train longer or at a higher rate"
        )
    write(target, _contents(merged, places, dtype))
    model_hash = weights.read_json(out / weights.LINEAGE)["model_hash"]
    return MergeResult(out, checkpoint, len(applied.folded), len(applied.placed), model_hash)


def _learned(checkpoint: Path) -> list[str]:
    """The weights that LoRA adds something to: a layer whose B is still zero, as at the start, is none of them."""
    file = checkpoint / adapters.TENSORS
    names = sorted(name for name in weights.read_header(file) if name.endswith(".lora_B"))
    tensors = zip(names, weights.read_tensors(file, names), strict=True)
    return [f"{name.removesuffix('.lora_B')}.weight" for name, tensor in tensors if bool(tensor.any())]


def _digests(names: list[str], places: Mapping[str, Tensor], type_of: Callable[[str], torch.dtype]) -> dict[str, str]:
    # a name without a place is told, with all others of its kind, when the checkpoint is put onto its base
    return {name: lazy.digest(places[name].to(type_of(name))) for name in names if name in places}


def _contents(merged: LoadedModel, places: Mapping[str, Tensor], dtype: str) -> FolderContents:
    specs = {name: lazy.Spec(tuple(tensor.shape), tensor.dtype) for name, tensor in places.items()}
    parts = components(merged.model.family)

    def small_files(folder: Path) -> None:
        merged.processor.save(folder)
        merged.model.config.save_pretrained(folder)

    return FolderContents(
        tensors=lazy.Tensors(specs, places.__getitem__).cast(precision(dtype)),
        small_files=small_files,
        groups={name: str(component_of(name, parts)) for name in places},
        made_from={"command": "merge", **merged.lineage, "dtype": dtype},
    )
