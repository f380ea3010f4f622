"""`masks/PHRASE/` beside `images/`: one folder a phrase, one mask picture an image, 255 where the thing is.

Everything lies in `train/`, `val/` or `test/`. Images of a patient are in a folder of their own. Phrases that fit
nothing cannot be told in this form.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from segue.files import atomic_path
from segue.synth.writers.base import Drawing, Format, Order, marked, write_image


def write(root: Path, order: Order, drawings: Iterator[Drawing]) -> None:
    """Write the drawings below a folder.

    Raises: MediaError, if a file cannot be written.
    """
    base = root / order.folder_split
    for one in (marked(drawing, order.languages) for drawing in drawings):
        write_image(base / "images" / one.path, one.pixels)
        for text, mask in one.objects:
            path = base / "masks" / text / one.path
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                Image.fromarray(mask.astype(np.uint8) * 255).save(temporary, format="PNG")


FORMAT = Format(write, "marks", "folder")
