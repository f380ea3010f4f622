"""Model folders as conversions see them: opened without a model being built, and written whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerFast

from segue import weights
from segue.checkpoints import zoo
from segue.checkpoints.model_folder import check, load_processor, plan
from segue.errors import CheckpointError, ConfigError
from segue.files import new_folder
from segue.grounding.model import VisionLanguageConfig, component_of, components
from segue.models import FAMILIES
from segue.models.protocol import Family
from segue.models.tokenizers import save_tokenizer
from segue.weights import lazy
from segue.weights.lazy import Tensors

DECODERS = ("mask_decoder.", "language_decoder.", "sam_mask_decoder.", "sam_mask_decoder_modified.")
REPORT = "load_report.json"
SPARE_BYTES = 100_000_000
Stage = Literal["hash", "write", "verify"]
Progress = Callable[[Stage, int, int], None]
"""Told the stage, the bytes done with since the last call, and the bytes of the whole stage."""


def no_progress(stage: Stage, done: int, total: int) -> None:
    """Nobody looks on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a model is written and how: `dtype` is bf16, fp16 or fp32, and mask decoders stay in float32.

    With `overwrite` a model folder that is there already is replaced when the new one is complete.
    """

    folder: Path
    dtype: str = "bf16"
    overwrite: bool = False
    progress: Progress = no_progress


@dataclass(frozen=True, slots=True)
class OpenedFolder:
    """A model folder that fits together: its tensors under our names, whatever its layout.

    `places` are names and shapes of all tensors that its model needs; `sizes` are what the weights betray.
    """

    folder: Path
    config: VisionLanguageConfig
    tensors: Tensors
    places: Mapping[str, tuple[int, ...]]
    sizes: zoo.Sizes

    @property
    def family(self) -> Family:
        """The record of its family."""
        return FAMILIES[self.config.family]

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Its tokenizer.

        Raises: CheckpointError, if it cannot be read.
        """
        return self.family.tokenizer(self.folder)

    @property
    def tables(self) -> frozenset[str]:
        """The tensors that have a row for each token."""
        prefixes = self.family.groups["embeddings"]
        return frozenset(place for place in self.places if place.startswith(prefixes))

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """The components of a model of this family."""
        return components(self.family)


def open_folder(folder: Path, *, chat: str | None = None) -> OpenedFolder:
    """A folder in the official or our own layout, judged from its headers as for loading.

    `chat` as `read_layout`.

    Raises: ConfigError and CheckpointError, as `segue.checkpoints.model_folder.load` does.
    """
    layout, places = plan(folder, chat)
    headers = weights.read_headers(folder)
    writes, report = check(layout, places, headers)
    tied = {place: layout.tied[place] for place in report.tied}
    tensors = lazy.native(lazy.stored(headers), writes, tied)
    sizes = zoo.Sizes.of_shapes({name: stored.shape for name, stored in headers.items()})
    return OpenedFolder(folder, layout.config, tensors, places, sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderContents:
    """A model folder about to be written. `tensors` are under the names that they will have there.

    `small_files` writes everything but the weights, `config.json` too, into a folder; `report` becomes its
    `load_report.json`. `groups` says for each tensor
    the component that it is hashed with. `check` judges the written folder beyond that; it raises where it is wrong.
    `made_from` goes into `lineage.json`.
    """

    tensors: Tensors
    small_files: Callable[[Path], None]
    groups: Mapping[str, str]
    made_from: Mapping[str, Any]
    check: Callable[[OpenedFolder], None] | None = None
    report: Mapping[str, Any] | None = None


def check_target(target: Target, *sources: Path) -> None:
    """Refuse a folder that cannot be written, before any work.

    Raises: ConfigError, if it exists and `overwrite` is not said, if it is no model folder, or if a source lies in it;
    or for an unknown precision.
    """
    out = target.folder
    precision(target.dtype)
    taken = [source for source in sources if out.resolve() in (source.resolve(), *source.resolve().parents)]
    if taken:
        raise ConfigError(f"{out} holds {taken[0]}, which is read; choose another folder to write")
    if out.exists() and not target.overwrite:
        raise ConfigError(f"{out} exists already; choose a new folder, or say --overwrite to replace it")
    if out.exists() and not (out / "config.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is no model folder, so it is not overwritten; choose a new one, or move it away")


def write(target: Target, contents: FolderContents) -> None:
    """Write a model folder beside its final name, test it, and only then give it that name.

    The test reads every tensor back and compares each component's hash with what was meant, and judges the folder as a
    loader would. A folder of that name is replaced at the very end. Whatever goes wrong, an older one stays as it was.

    Raises: CheckpointError, if there is too little space, if it cannot be written, or if the test fails.
    """
    out, progress = target.folder, target.progress
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        check_space(out.parent, contents.tensors.nbytes)
        with new_folder(out) as part:
            total = contents.tensors.nbytes
            digests = lazy.write_shards(part, contents.tensors, advance=lambda done: progress("write", done, total))
            _finish(part, contents, digests, progress)
        lazy.flush(out.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"cannot write {out}: {reason}; free space or choose another folder") from error


def _finish(part: Path, contents: FolderContents, digests: Mapping[str, str], progress: Progress) -> None:
    """All that comes after the weights; `config.json`, without which nothing loads, comes after their test."""
    _compare(part, contents, digests, progress)
    contents.small_files(part)
    if contents.report:
        write_json(part / REPORT, contents.report)
    for file in part.iterdir():
        lazy.flush(file)
    lazy.flush(part)
    written = open_folder(part)
    load_processor(part, written.config)
    if contents.check:
        contents.check(written)
    made_from = {**contents.made_from, "segue": version("segue"), "groups": group_hashes(digests, contents.groups)}
    weights.write_lineage(part, made_from)
    lazy.flush(part / weights.LINEAGE)


def _compare(part: Path, contents: FolderContents, digests: Mapping[str, str], progress: Progress) -> None:
    written = lazy.stored(weights.read_headers(part))
    found, total = {}, contents.tensors.nbytes
    for name, spec in written.specs.items():
        found[name] = lazy.digest(written.read(name))
        progress("verify", spec.nbytes, total)
    if written.specs != contents.tensors.specs or found != digests:
        meant, is_there = group_hashes(digests, contents.groups), group_hashes(found, contents.groups)
        wrong = [group for group in meant if meant[group] != is_there.get(group)]
        raise CheckpointError(
            f"what was read back from {part.parent.parent} is not what was written ({', '.join(wrong)}); "
            "the disk may be failing: write to another one"
        )


def group_hashes(digests: Mapping[str, str], groups: Mapping[str, str]) -> dict[str, str]:
    """One hash per component over the names and digests of its tensors, 16 hexadecimal digits each."""
    parts: dict[str, dict[str, str]] = {}
    for name, found in digests.items():
        parts.setdefault(groups.get(name, "of no known part"), {})[name] = found
    return {group: weights.joint_hash(members) for group, members in parts.items()}


def check_space(folder: Path, needed: int) -> None:
    """Refuse to begin what cannot end.

    Raises: CheckpointError, with both sizes.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE_BYTES:
        sizes = f"{(needed + SPARE_BYTES) / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB free"
        raise CheckpointError(f"too little space in {folder}: {sizes}; free some or choose another disk")


def precision(name: str) -> Callable[[str], torch.dtype]:
    """The type of each tensor of a model that is written in a precision: mask decoders stay in float32.

    Raises: ConfigError, for an unknown precision.
    """
    dtype = weights.as_dtype(name)
    return lambda tensor: torch.float32 if any(f".{part}" in f".{tensor}" for part in DECODERS) else dtype


def own_contents(
    model: OpenedFolder, tokenizer: PreTrainedTokenizerFast, dtype: str, made_from: Mapping[str, Any]
) -> FolderContents:
    """What a folder in our layout will hold."""
    parts = model.parts

    def small_files(folder: Path) -> None:
        save_tokenizer(tokenizer, folder)
        model.config.save_pretrained(folder)

    return FolderContents(
        tensors=model.tensors.cast(precision(dtype)),
        small_files=small_files,
        groups={place: str(component_of(place, parts)) for place in model.tensors.specs},
        made_from={**made_from, "dtype": dtype},
    )


def hashed(source: Path, progress: Progress = no_progress) -> dict[str, Any]:
    """A source for the lineage: its name, the hash of each weight file, one over all, and what it was made from."""
    files = weights.checkpoint_files(source) if source.is_dir() else (source,)
    total = sum(file.stat().st_size for file in files)
    digests = {}
    for file in files:
        digests[file.name] = weights.file_hash(file)
        progress("hash", file.stat().st_size, total)
    found: dict[str, Any] = {"name": source.name, "files": digests, "model_hash": weights.joint_hash(digests)}
    if (source / weights.LINEAGE).is_file():
        found["made_from"] = weights.read_json(source / weights.LINEAGE).get("made_from")
    return found


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object as JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
