"""A model folder whose weights torch has pickled, or whose names have a prefix, rewritten as safetensors; nothing is
unpickled.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from segue import weights
from segue.checkpoints.folders import Progress, check_space, no_progress
from segue.checkpoints.pth import open_pth
from segue.errors import CheckpointError, ConfigError
from segue.files import atomic_folder
from segue.weights import lazy
from segue.weights.lazy import Tensors

INDEX, SINGLE = "pytorch_model.bin.index.json", "pytorch_model.bin"
SMALL_FILES = ("*.json", "*.tiktoken", "*.model", "*.txt", "*.jinja", "LICENSE*", "NOTICE*")
"""What else of a folder is copied: nothing that could be executed, and no index of the pickled files."""


def open_pickled(folder: Path) -> Tensors:
    """The tensors of a folder's pickled files, under the names that they have there; none of them is read yet.

    Raises: CheckpointError, if there are none, one is missing or damaged or holds anything but tensors, or two hold one
        of the same name.
    """
    parts: dict[str, Tensors] = {}
    for file in _files(folder):
        tensors = open_pth(file).tensors
        for name in tensors.specs:
            if name in parts:
                raise CheckpointError(f"tensor {name} stands in two files of {folder}; fetch it again")
            parts[name] = tensors
    return Tensors({name: tensors.specs[name] for name, tensors in parts.items()}, lambda name: parts[name].read(name))


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if not index.is_file():
        if not (folder / SINGLE).is_file():
            raise CheckpointError(f"{folder} has neither {INDEX} nor {SINGLE}; expected a folder of pickled weights")
        return [folder / SINGLE]
    shards = weights.read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise CheckpointError(f"{index} has no weight_map from tensor names to files; fetch it again")
    names = sorted(set(shards.values()))
    if strange := [name for name in names if Path(name).name != name]:
        raise CheckpointError(f"{index} names the file {strange[0]!r}; expected files beside it")
    if missing := [name for name in names if not (folder / name).is_file()]:
        text = f"{folder} lacks {len(missing)} of the {len(names)} files that its index names"
        raise CheckpointError(f"{text}; fetch {', '.join(missing)}")
    return [folder / name for name in names]


def rewrite(folder: Path, out: Path, *, strip: str = "", progress: Progress = no_progress) -> int:
    """Write the folder as `out`, weights as safetensors in the types they have; returns how many tensors there are.

    `strip` is what every name begins with and is written without; then the weights may be safetensors already. `out`
    appears when all is there.

    Raises: ConfigError, if `out` exists, or a name does not begin with `strip`; CheckpointError, as `open_pickled` and
        for too little space.
    """
    if out.exists():
        raise ConfigError(f"{out} exists already; choose a new folder")
    is_safe = bool(strip) and next(folder.glob("*.safetensors"), None) is not None
    files = weights.checkpoint_files(folder) if is_safe else _files(folder)
    tensors = _stripped(lazy.stored(weights.read_headers(folder)) if is_safe else open_pickled(folder), strip)
    out.parent.mkdir(parents=True, exist_ok=True)
    check_space(out.parent, tensors.nbytes)
    with atomic_folder(out) as part:
        lazy.write_shards(part, tensors, advance=lambda done: progress("write", done, tensors.nbytes))
        for pattern in SMALL_FILES:
            for file in folder.glob(pattern):
                if file.is_file() and not file.name.endswith(".index.json"):
                    shutil.copyfile(file, part / file.name)
        names = [file.name for file in files]
        made_from = {"command": "safetensors", "name": folder.name, "files": names, "strip": strip}
        weights.write_lineage(part, made_from)
    return len(tensors.specs)


def _stripped(tensors: Tensors, start: str) -> Tensors:
    if strange := [name for name in tensors.specs if not name.startswith(start) or name == start]:
        count = f"{len(strange)} of {len(tensors.specs)} tensors"
        raise ConfigError(f"--strip {start}: the names of {count} do not begin so, such as {strange[0]}")
    specs = {name.removeprefix(start): spec for name, spec in tensors.specs.items()}
    return Tensors(specs, lambda name: tensors.read(start + name))
