"""Where a model lies: a folder, the demo model that comes with the package, or a snapshot from the hub."""

from __future__ import annotations

from pathlib import Path

from segue.checkpoints import adapters
from segue.errors import CheckpointError

DEMO = "demo"
DEMO_FOLDER = Path(__file__).parents[1] / "demo_model"
"""The model of that name, which comes with the package; the model card in it says what it can do."""

WANTED_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"]


def resolve(model: str | Path) -> Path:
    """The folder of a model: itself, a snapshot of the hub repository of that id, or that of the model named "demo".

    Raises: CheckpointError, if it is neither.
    """
    if str(model) == DEMO:
        return DEMO_FOLDER
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
    while (checkpoint := adapters.find(folder)) is not None:
        folder = base_of(checkpoint, adapters.read(checkpoint))
    return folder
