"""What entries weigh: computed before anything is built, and equal to the files that are built."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from segue.features import entries, formats


def entry_bytes(shape: Sequence[int], dtype: torch.dtype, form: str) -> int:
    """The length of the file of one medium's features of this shape, frame numbers included; of `lossless-split` the
    most it can be.

    Raises: ConfigError, for an unknown format.
    """
    return entries.file_size(formats.lookup(form).nbytes(shape, dtype) + 8 * shape[0])
