"""Pictures whose bright part is known by formula."""

import json
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


def content(out: Path) -> dict[str, object]:
    """Every file, what tells the time left out."""

    def timeless(path: Path) -> object:
        if path.suffix not in (".json", ".jsonl"):
            return path.read_bytes()
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]

    return {str(path.relative_to(out)): timeless(path) for path in sorted(out.rglob("*")) if path.is_file()}
