"""Checkpoints of the original into ours and back, and parts of one model into another.

Nothing is unpickled or executed, no model is built, and tensors pass through one shard at a time. A folder appears
under its name when all of it is written, flushed and read back.
"""

from segue.checkpoints.folders import Target
from segue.checkpoints.imported import ImportResult, TrainingOptions, import_training
from segue.checkpoints.official import export, import_folder
from segue.checkpoints.transfer import TransferOptions, TransferResult, init_from, initialise

__all__ = [
    "ImportResult",
    "TransferResult",
    "Target",
    "TrainingOptions",
    "TransferOptions",
    "export",
    "import_folder",
    "import_training",
    "init_from",
    "initialise",
]
