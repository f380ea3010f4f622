"""Cutting an image into the square tiles that a vision tower reads. Pure functions on PIL images and numbers.

Source: InternVL's dynamic preprocessing as Sa2VA calls it (bytedance/Sa2VA, `projects/sa2va/hf/models`).
"""

from __future__ import annotations

from PIL import Image

from segue.errors import DataError

MOST_OBLONG = 200


def check_oblong(height: int, width: int) -> None:
    """Refuse what would grow beyond bounds when its shorter side is brought to a length.

    Raises: DataError, for an image more than 200 times as long as it is wide.
    """
    if max(height, width) > MOST_OBLONG * min(height, width):
        raise DataError(f"the image is {width} x {height} pixels; expected sides of at most 1 to {MOST_OBLONG}")


def choose_grid(width: int, height: int, *, max_tiles: int = 12, side: int = 448) -> tuple[int, int]:
    """(columns, rows) of the grid of at most `max_tiles` tiles whose shape is nearest to the image's.

    Of grids equally near, a larger one is taken only if the image has more than half of its pixels.
    """
    grids = [
        (columns, rows)
        for columns in range(1, max_tiles + 1)
        for rows in range(1, max_tiles + 1)
        if columns * rows <= max_tiles
    ]
    best, nearest = (1, 1), float("inf")
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        distance = abs(width / height - columns / rows)
        # PARITY(tile_tie_break): the later grid wins an exact tie by the image's area alone
        if distance < nearest or (distance == nearest and width * height > 0.5 * side * side * columns * rows):
            best, nearest = (columns, rows), distance
    return best


def tile(image: Image.Image, *, max_tiles: int = 12, side: int = 448) -> list[Image.Image]:
    """The image's tiles row by row, then a thumbnail of the whole if there is more than one tile.

    The image is stretched to fill its grid exactly. Tiles are RGB and `side` pixels square.
    """
    columns, rows = choose_grid(*image.size, max_tiles=max_tiles, side=side)
    canvas = resize(image, columns * side, rows * side)
    tiles = [
        canvas.crop((column * side, row * side, (column + 1) * side, (row + 1) * side))
        for row in range(rows)
        for column in range(columns)
    ]
    if len(tiles) > 1:
        tiles.append(resize(image, side, side))
    return tiles


def resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """The RGB image stretched to exactly this size with Pillow's bicubic filter, on 8-bit values as upstream does."""
    return image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
