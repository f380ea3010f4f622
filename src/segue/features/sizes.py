"""What entries weigh: computed before anything is built, and equal to the files that are built."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from segue.features import entries, formats

GRID = 16
"""Bytes of what stands beside the features of one medium in most families: two numbers that say how it is laid out."""


def entry_bytes(shape: Sequence[int], dtype: torch.dtype, form: str, *, beside: int = GRID) -> int:
    """The length of the file of one medium's features of this shape; of `lossless-split` the most it can be. `beside`
    are the bytes of what is kept with them.

    Raises: ConfigError, for an unknown format.
    """
    return entries.file_size(formats.lookup(form).nbytes(shape, dtype) + beside)
