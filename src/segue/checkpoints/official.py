"""From and to official Hugging Face layouts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segue import weights
from segue.checkpoints.folders import (
    FolderContents,
    OpenedFolder,
    Target,
    check_target,
    hashed,
    open_folder,
    own_contents,
    precision,
    write,
    write_json,
)
from segue.checkpoints.model_folder import key_table, official_layout
from segue.errors import ConfigError
from segue.grounding import sam2
from segue.grounding.model import VisionLanguageConfig, component_of
from segue.models.protocol import Official
from segue.models.tokenizers import save_tokenizer
from segue.weights import lazy
from segue.weights.keys import compiled, match


def import_folder(source: Path, target: Target) -> Mapping[str, Any]:
    """Write a model folder of either layout anew in ours; returns what its lineage says it was made from.

    Raises: ConfigError and CheckpointError, if the folder does not fit together or the new one cannot be written.
    """
    check_target(target, source)
    model = open_folder(source)
    made_from = {"command": "import", "source": hashed(source, target.progress)}
    contents = own_contents(model, model.tokenizer(), target.dtype, made_from)
    write(target, contents)
    return contents.made_from


def export(model: Path, target: Target) -> Mapping[str, Any]:
    """Write a model folder in the official layout; returns what its lineage says it was made from.

    Names and shapes are those that the original code saves. `auto_map` names files of the original, which are not
    written: without them the folder serves Segue, and with them the original code.

    Raises: ConfigError, if the family has no official layout here; else as `import_folder` does.
    """
    check_target(target, model)
    opened = open_folder(model)
    contents = _official_contents(opened, target.dtype, {"command": "export", "source": hashed(model, target.progress)})
    write(target, contents)
    return contents.made_from


def official_config(config: VisionLanguageConfig, vocabulary: Mapping[str, int]) -> dict[str, Any]:
    """The official config.json of a model whose tokens have these ids.

    Raises: ConfigError, if its family cannot be written in the official layout.
    """
    layout, frames = _layout(config), config.video_frames
    tokens = {field: vocabulary[token] for field, token in layout.tokens.items() if token in vocabulary}
    ours = {} if frames is None else {"video_frames": frames}
    fields = layout.config(config.mllm_config)
    return {"architectures": [layout.architecture], **fields, **tokens, "template": config.template, **ours}


def _layout(config: VisionLanguageConfig) -> Official:
    layout = official_layout(config)
    if layout is None:
        kind = "without a grounder" if config.sam2_config is None else "with a grounder"
        raise ConfigError(
            f"models of family {config.family} {kind} cannot be written in an official layout; use our own"
        )
    return layout


def _official_contents(opened: OpenedFolder, dtype: str, made_from: Mapping[str, Any]) -> FolderContents:
    layout, tokenizer, table = _layout(opened.config), opened.tokenizer(), key_table(opened.config)
    config = official_config(opened.config, tokenizer.get_vocab())
    files = layout.files(opened.config.mllm_config)
    shapes = weights.upstream_shapes(opened.tensors.shapes, table)
    rules, parts = compiled(table), opened.parts
    words = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}

    def small_files(folder: Path) -> None:
        save_tokenizer(tokenizer, folder)
        _make_old(folder, layout.tokenizer)
        if layout.save_tokenizer is not None:
            layout.save_tokenizer(tokenizer, folder)
        sizes = None if opened.config.sam2_config is None else sam2.sizes(opened.config.sam2_config)
        if sizes and sizes != dict(sam2.HIERA_L):
            write_json(folder / "sam2_config.json", sizes)
        for name, value in files.items():
            write_json(folder / name, value)
        write_json(folder / "config.json", {**config, "torch_dtype": words[dtype]})

    return FolderContents(
        tensors=lazy.upstream(opened.tensors, table, shapes).cast(precision(dtype)),
        small_files=small_files,
        groups={name: str(component_of(found.places[0], parts)) for name in shapes if (found := match(name, rules))},
        made_from={**made_from, "dtype": dtype},
    )


def _make_old(folder: Path, tokenizer: str) -> None:
    """Name the tokenizer's class as transformers 4 does too, with which the original code runs."""
    path = folder / "tokenizer_config.json"
    write_json(path, {**weights.read_json(path), "tokenizer_class": tokenizer})
