"""Where a model lies: a folder, the demo model that comes with the package, or a snapshot from the hub."""

from __future__ import annotations

import re
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from segue.errors import CheckpointError

if TYPE_CHECKING:
    from segue.checkpoints import adapters  # which brings torch along

DEMO = "demo"
DEMO_FOLDER = Path(__file__).parents[1] / "demo_model"
"""The model of that name, which comes with the package; the model card in it says what it can do."""

WANTED_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"]


def find(model: str | Path) -> Path | None:
    """The folder of a model that is here; None for the id of one on the hub. Nothing of it is read.

    Raises: CheckpointError, if it can be neither, with the nearest name there is.
    """
    folder = DEMO_FOLDER if str(model) == DEMO else Path(model)
    if folder.is_dir():
        return folder
    parts = str(model).split("/")
    is_id = len(parts) == 2 and all(parts) and not folder.is_absolute() and parts[0] not in (".", "..", "~")
    if is_id and not Path(parts[0]).is_dir():
        return None
    if folder.is_file():
        raise CheckpointError(f"{model} is a file; give the folder of the model, in which its config.json lies")
    near = _nearest(str(model))
    meant = f"; did you mean {near!r}?" if near else "."
    raise CheckpointError(
        f"there is no folder {str(model)!r}{meant} Expected a model folder, a hub id such as ByteDance/Sa2VA-4B, or "
        f"{DEMO}"
    )


def resolve(model: str | Path) -> Path:
    """The folder of a model: itself, a snapshot of the hub repository of that id, or that of the model named "demo".

    Raises: CheckpointError, if it is neither.
    """
    if (folder := find(model)) is not None:
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(model), allow_patterns=WANTED_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(f"{model!r} is no folder here and could not be fetched from the hub ({error})") from error


def base_of(checkpoint: Path, record: adapters.CheckpointRecord) -> Path:
    """The folder of a checkpoint's base: where it lay, or else by the name that the recipe had for it.

    Raises: CheckpointError, if it is in neither place.
    """
    folder = (checkpoint / record.base_folder).resolve()
    try:
        return folder if folder.is_dir() else resolve(record.base)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint} needs its base {record.base}, which is gone: {error}") from error


def weights_folder(folder: Path) -> Path:
    """The folder of the weights that a model stands on: itself, or the base of a training checkpoint or run.

    Raises: CheckpointError, if a base is gone.
    """
    from segue.checkpoints import adapters

    while (checkpoint := adapters.find(folder)) is not None:
        folder = base_of(checkpoint, adapters.read(checkpoint))
    return folder


def _nearest(model: str) -> str | None:
    """What was perhaps meant: the id in an address of the hub, the demo model, or a folder of nearly that name."""
    if address := re.match(r"(?:https?://)?huggingface\.co/([^/]+/[^/?#]+)", model):
        return address[1]
    path = Path(model)
    try:
        beside = [str(path.parent / one.name) for one in islice(path.parent.iterdir(), 1000) if one.is_dir()]
    except OSError:
        beside = []
    return next(iter(get_close_matches(model, [DEMO, *beside], n=1)), None)
