"""The seams in front of the model: tiles, the grounding image, and prompt ids."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from segue.errors import DataError
from segue.geometry.masks import track
from segue.media import open_media
from segue.models.native_resolution.patches import first_resize
from segue.models.protocol import Processor, VisionInput
from segue.models.tiling import choose_grid, resize, tile
from segue.parity.compare import Replay, fact
from segue.parity.recording import Recording
from segue.prepare import TokenizedExample, prepare
from segue.types import Media, Message, Region

FORMULA_STEPS = np.arange(0, 20.5, 0.5)
BFLOAT16_PIXELS = (
    "the original rounds these pixels to bfloat16 before or after scaling; ours stay float32 (docs/parity.md)"
)
LOST_SOURCE = "its source is neither a file of the recording nor an image of the manifest's formula"


def replay_preprocessing(recording: Recording, processor: Processor) -> Replay:
    """Tiles and grounding images of every recorded picture, with their hashes, and the table of tile grids."""
    found, manifest = Replay(), recording.manifest
    table = manifest.get("dynamic_preprocess_table", {})
    limits = dict(re.findall(r"(max_num|image_size)=(\d+)", table.get("args", "")))
    most, side = int(limits.get("max_num", 12)), int(limits.get("image_size", 448))
    for number, row in enumerate(table.get("rows", ())):
        ours = _grid_row(row, most, side)
        found.facts.append(fact(f"pre.dynamic_preprocess_table.{number}", ours, {name: row[name] for name in ours}))
    for name, row in manifest.get("preprocess", {}).items():
        pixels = source_of(recording, name, row)
        if pixels is None:
            found.skipped |= {tensor: LOST_SOURCE for tensor in recording.names(f"pre.{name}.")}
            continue
        _replay_picture(found, f"pre.{name}", pixels, row, most, processor)
    for name in recording.names("pre."):
        if "grounding_bf16" in name:
            found.skipped[name] = BFLOAT16_PIXELS
        elif frame := re.match(r"pre\.video(\d+)_frame", name):
            number = int(frame[1])
            shown = processor.frames(recording.clip(number + 1)[number:])
            assert shown.pixels is not None
            found.values[frame[0]] = shown.pixels[0]
    return found


def _grid_row(row: Mapping[str, Any], most: int, side: int) -> dict[str, int]:
    """What our tiling says about a row of the table, in its words; a `_max6` column is about 6 tiles at most."""
    ours: dict[str, int] = {"cols": 0, "rows": 0}
    ours["cols"], ours["rows"] = choose_grid(row["width"], row["height"], max_tiles=most, side=side)
    for column in (name for name in row if name.startswith("tiles_with_thumbnail")):
        limit = re.search(r"_max(\d+)$", column)
        columns, rows = choose_grid(row["width"], row["height"], max_tiles=int(limit[1]) if limit else most, side=side)
        ours[column] = columns * rows + (columns * rows > 1)
    return ours


def _replay_picture(
    found: Replay,
    name: str,
    pixels: UInt8[np.ndarray, "h w 3"],
    row: Mapping[str, Any],
    most: int,
    processor: Processor,
) -> None:
    vision, image = processor.image(pixels, max_tiles=most), Image.fromarray(pixels)
    assert vision.pixels is not None
    found.values |= {f"{name}.tiles": vision.pixels, f"{name}.pixel_values": vision.pixels}
    found.facts.append(fact(f"{name}.size", [image.width, image.height], row["size"]))
    found.facts.append(fact(f"{name}.source_sha256", _sha256(pixels), row["source_sha256"]))
    if vision.grids is not None:
        _replay_grid(found, name, first_resize(pixels), row, vision)
    if "tile_sha256" in row:
        tiles = tile(image, max_tiles=most, side=vision.pixels.shape[-1])
        hashes = [_sha256(np.asarray(square)) for square in tiles]
        found.facts.append(fact(f"{name}.tile_sha256", hashes, row["tile_sha256"]))
    for key in row:
        if wanted := re.fullmatch(r"grounding_(\d+)_sha256", key):
            square = np.array(resize(image, int(wanted[1]), int(wanted[1])))
            found.values[f"{name}.grounding"] = torch.from_numpy(square)
            found.facts.append(fact(f"{name}.{key}", _sha256(square), row[key]))


def _replay_grid(
    found: Replay, name: str, once: UInt8[np.ndarray, "h w 3"], row: Mapping[str, Any], vision: VisionInput
) -> None:
    """The two resizings of an image that keeps its resolution, and the patches and tokens that it becomes."""
    ours = {
        "after_qwen_vl_utils": [once.shape[1], once.shape[0]],
        "after_qwen_vl_utils_sha256": _sha256(once),
        "grid_thw": grids_of(vision),
        "n_image_tokens": vision.num_features,
    }
    found.facts += [fact(f"{name}.{key}", value, row[key]) for key, value in ours.items()]


def grids_of(vision: VisionInput) -> list[list[int]]:
    """The grids of a visual's images as the original counts them, with one moment in front."""
    return [] if vision.grids is None else [[1, *grid] for grid in vision.grids.tolist()]


def source_of(recording: Recording, name: str, row: Mapping[str, Any]) -> UInt8[np.ndarray, "h w 3"] | None:
    """The picture that a row of the manifest is about: a file, or drawn anew by the manifest's formula.

    The formula has a free number that the manifest does not give; the one is taken whose picture has the recorded
    hash. `None` if there is none.
    """
    if (recording.folder / f"{name}.png").is_file():
        return recording.picture(f"{name}.png")
    drawn = (formula_image(float(step), *row["size"]) for step in FORMULA_STEPS)
    return next((pixels for pixels in drawn if _sha256(pixels) == row["source_sha256"]), None)


def formula_image(k: float, width: int, height: int) -> UInt8[np.ndarray, "h w 3"]:
    """The test picture of the recordings: two waves and an ellipse; `k` is its free number.

    Source: the field `formula_image` of the recordings' manifests.
    """
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    across, down, turn = x / width, y / height, 2 * np.pi
    red = 127.5 + 127.5 * np.sin(turn * (across * (2 + k) + down))
    green = 127.5 + 127.5 * np.cos(turn * (down * (3 + k) - across * 0.5))
    inside = ((x - width * (0.35 + 0.03 * k)) / (0.22 * width)) ** 2 + ((y - 0.55 * height) / (0.28 * height)) ** 2 < 1
    blue = np.where(inside, 220, 40) + 20 * np.sin(0.7 * x + 0.3 * y)
    return np.clip(np.floor(np.stack([red, green, blue], axis=-1) + 0.5), 0, 255).astype(np.uint8)


def replay_prompts(recording: Recording, processor: Processor, frames: str) -> Replay:
    """Prompt ids of every recorded call, and the ids of the special tokens. `frames` is the plan for videos."""
    found = Replay()
    for token, number in recording.manifest.get("special_token_ids", {}).items():
        ours = processor.tokenizer.encode(token, add_special_tokens=False)
        found.facts.append(fact(f"prompt.special_token_ids {token}", ours, [number]))
    for case in recording.cases:
        example = example_of(recording, case, processor, frames)
        recorded = recording.inputs[f"e2e.{case}.prompt_ids"]
        found.facts.append(fact(f"prompt.{case}", example.ids.tolist(), recorded.flatten().tolist()))
        grids = recording.inputs.get(f"e2e.{case}.image_grid_thw")
        if grids is not None and example.media:
            found.facts.append(fact(f"prompt.{case}.grids", grids_of(example.media[-1].vision), grids.tolist()))
    return found


def example_of(recording: Recording, case: str, processor: Processor, frames: str) -> TokenizedExample:
    """A recorded call as a model-ready row, its reply still to come."""
    return prepare([question_of(recording, case)], processor, frames=frames)


def question_of(recording: Recording, case: str) -> Message:
    """What was asked in a recorded call, with its image or video and the regions that were marked.

    Raises: DataError, if the recording lacks the files that the call names.
    """
    masks = recording.inputs.get(f"e2e.{case}.mask_prompts")
    regions = (
        []
        if masks is None
        else [Region(masks=track(mask[None], np.zeros(1, np.int64))) for mask in masks.bool().numpy()]
    )
    return Message.user(recording.cases[case]["text"], _media(recording, case), tuple(regions))


def _media(recording: Recording, case: str) -> Media | None:
    record = recording.cases[case]
    files, count = record.get("files"), record.get("n_frames")
    grids = recording.inputs.get(f"e2e.{case}.image_grid_thw")
    if files is None and not count and grids is not None:
        return open_media(recording.clip() if len(grids) > 1 else recording.picture(_by_grid(recording, case, grids)))
    if files is None and not count:
        return None
    if files is None or "*" in str(files):
        return open_media(recording.clip(count))
    if not isinstance(files, str):
        return open_media(np.stack([recording.picture(name) for name in files]))
    if not (recording.folder / files).is_file():
        raise DataError(f"{recording.folder} lacks {files}, which its call {case!r} is about; copy the whole recording")
    return open_media(recording.folder / files)


def _by_grid(recording: Recording, case: str, grids: Int[Tensor, "1 3"]) -> str:
    """The file of a call that does not name it: the recorded picture that makes the same grid of patches."""
    pictures = recording.manifest.get("preprocess", {}).items()
    names = [f"{name}.png" for name, row in pictures if row.get("grid_thw") == grids.tolist()]
    found = [name for name in names if (recording.folder / name).is_file()]
    if len(found) != 1:
        raise DataError(f"{recording.folder} does not tell which picture its call {case!r} is about; found {found}")
    return found[0]


def _sha256(pixels: np.ndarray) -> str:
    return hashlib.sha256(pixels.tobytes()).hexdigest()
