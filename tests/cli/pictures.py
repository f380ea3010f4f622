"""Pictures whose bright part is known by formula."""

from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 32, 48
BLOCK_HEIGHT, BLOCK_WIDTH = 8, 12
BLOCK_AREA = BLOCK_HEIGHT * BLOCK_WIDTH


def picture(shift: int = 0) -> np.ndarray:
    """A black picture with a white block whose upper left corner is at row 4, column `shift`."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    pixels[4 : 4 + BLOCK_HEIGHT, shift : shift + BLOCK_WIDTH] = 255
    return pixels


def make_image(path: Path, shift: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(shift)).save(path)
    return path


def make_frames(folder: Path, count: int = 3) -> Path:
    """A frame folder whose block moves 3 pixels to the right per frame."""
    for number in range(count):
        make_image(folder / f"{number:05d}.png", shift=3 * number)
    return folder
