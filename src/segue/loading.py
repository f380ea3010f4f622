"""Find a model, choose where and how exactly it runs, and load it: the door to `segue.engine`."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import torch

from segue import demo, weights
from segue.engine import DTYPES, Engine
from segue.errors import CheckpointError, ConfigError
from segue.grounding import model as grounded
from segue.grounding import trained

WANTED_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def load(model: str | Path, *, device: str = "auto", dtype: str = "auto") -> Engine:
    """A model from a folder in the official Sa2VA or our own layout, or from the hub by its id; or what a training run
    has made of one: a checkpoint, or a run folder, which stands for its best.

    `device` is auto, cpu, cuda, cuda:1, mps ...; `dtype` auto, bf16, fp16 or fp32. `auto` takes the best device there
    is, and bfloat16 on a GPU that has it, float32 elsewhere. Nothing that the folder brings is executed.

    Raises: CheckpointError, if the weights do not fit; ConfigError, if nothing here knows the model or the device.
    """
    folder = resolve(model)
    checkpoint = trained.find(folder)
    if checkpoint is not None:
        return _load_trained(model, checkpoint, device=device, dtype=dtype)
    place = pick_device(device)
    precision = pick_dtype(dtype, place)
    loaded, report = grounded.load(folder, dtype=precision, device=place)
    processor = loaded.family.processor(folder, loaded.config.mllm_config, loaded.config.template)
    lineage = {
        "model": str(model),
        **weights.lineage(folder, report),
        "family": loaded.config.family,
        "dtype": str(precision).removeprefix("torch."),
        "device": place,
        "versions": {name: version(name) for name in ("segue", "torch", "transformers")},
        "python": platform.python_version(),
    }
    return Engine(loaded, processor, lineage)


def _load_trained(model: str | Path, checkpoint: Path, *, device: str, dtype: str) -> Engine:
    """The base of a checkpoint with what was learned put onto it."""
    base = load(base_of(checkpoint, trained.read(checkpoint)), device=device, dtype=dtype)
    engine, _ = put_onto(base, checkpoint)
    engine.lineage["model"] = str(model)
    return engine


def put_onto(base: Engine, checkpoint: Path) -> tuple[Engine, trained.Applied]:
    """What a checkpoint has learned, put onto its base, whose weights change; and which tensors those were.

    Raises: CheckpointError, if it is not its base, or a tensor does not fit.
    """
    record = trained.read(checkpoint)
    trained.check_base(checkpoint, record, base.lineage["model_hash"])
    applied = trained.apply(base.model, checkpoint, record)
    config = base.model.config
    processor = base.model.family.processor(checkpoint, config.mllm_config, config.template)
    lineage = {
        **base.lineage,
        "model": str(checkpoint),
        "model_hash": record.content_hash,
        "files": {**base.lineage["files"], trained.TENSORS: record.tensors_hash},
        "trained": {"checkpoint": checkpoint.name, **record.summary()},
    }
    return Engine(base.model, processor, lineage), applied


def base_of(checkpoint: Path, record: trained.Record) -> Path:
    """The folder of a checkpoint's base: where it lay, or else by the name that the recipe had for it.

    Raises: CheckpointError, if it is in neither place.
    """
    try:
        return trained.base_folder(checkpoint, record) or resolve(record.base)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint} needs its base {record.base}, which is gone: {error}") from error


def resolve(model: str | Path) -> Path:
    """The folder of a model: itself, a snapshot of the hub repository of that id, or that of the model named "demo".

    Raises: CheckpointError, if it is neither.
    """
    if str(model) == demo.MODEL:
        return demo.FOLDER
    folder = Path(model)
    if folder.is_dir():
        return folder
    parts = str(model).split("/")
    if len(parts) != 2 or not all(parts) or folder.is_absolute() or parts[0] in (".", ".."):
        raise CheckpointError(
            f"there is no folder {str(model)!r}; expected a model folder or a hub id such as ByteDance/Sa2VA-4B"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(model), allow_patterns=WANTED_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(f"{model!r} is no folder here and could not be fetched from the hub ({error})") from error


def pick_device(name: str) -> str:
    """The name of a device that is there; `auto` is the best of them.

    Raises: ConfigError, for a device that is unknown or not available.
    """
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise ConfigError(f"unknown device {name!r}; expected auto, cpu, cuda, cuda:1 or mps") from error
    if (kind == "cuda" and not torch.cuda.is_available()) or (kind == "mps" and not has_mps):
        raise ConfigError(f"device {name!r} is not available on this machine; use --device cpu or auto")
    return name


def pick_dtype(name: str, device: str) -> torch.dtype:
    """The precision of that name; `auto` is bfloat16 on a GPU that has it, float32 elsewhere.

    Raises: ConfigError, for another name.
    """
    if name == "auto":
        return torch.bfloat16 if device.startswith("cuda") and torch.cuda.is_bf16_supported() else torch.float32
    if name not in DTYPES:
        raise ConfigError(f"unknown dtype {name!r}; expected auto, {', '.join(DTYPES)}")
    return DTYPES[name]
