"""Checkpoints of the original into ours and back, and parts of one model into another.

Nothing is unpickled or executed, no model is built, and tensors pass through one shard at a time. A folder appears
under its name when all of it is written, flushed and read back.
"""

from segue.checkpoints.folders import Target
from segue.checkpoints.imported import Imported, Training, import_training
from segue.checkpoints.official import export, import_folder
from segue.checkpoints.transfer import Poured, Wish, init_from, initialise

__all__ = [
    "Imported",
    "Poured",
    "Target",
    "Training",
    "Wish",
    "export",
    "import_folder",
    "import_training",
    "init_from",
    "initialise",
]
