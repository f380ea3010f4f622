"""A recording of the original code: a model folder with inputs, outputs and a manifest beside the weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from segue.errors import DataError
from segue.media import open_media, read_image
from segue.weights import read_json

_FRAME = re.compile(r"video_(\d+)\.png")
_ONE_SEAM = ("pre", "vision", "llm")
TOGETHER, PREPROCESSED = "io.safetensors", "preprocess*.safetensors"
"""Where Qwen-VL's recordings have their tensors; what was given and what came back lie together."""

TEXTS = {
    "tokenizer": "tokenizer.json",
    "chat": "chat.json",
    "labels": "sft_labels.json",
    "metrics": "metrics.json",
}
"""The seams of a recording of Qwen-VL that are text, and their files."""

CACHED = {"int8": "int8_cache.safetensors", "pool_odd": "pool_odd.safetensors"}
"""The seams of a recording of LongVA that have a file of their own."""

_GIVEN = re.compile(r"\.(input_ids|attention_mask|labels|prefill_len)$")


@dataclass(frozen=True, slots=True)
class Recording:
    """What the original code was given and what it gave back.

    `inputs` and `outputs` are the recorded tensors by name, which begins with the seam; `manifest` says what they mean.
    """

    folder: Path
    manifest: Mapping[str, Any]
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]

    @classmethod
    def read(cls, folder: Path) -> Recording:
        """The recording of a folder; its weights are left alone.

        Raises: DataError, if the folder is none; CheckpointError, if its manifest is no JSON object.
        """
        is_together = (folder / TOGETHER).is_file()
        tensors = (TOGETHER,) if is_together else ("inputs.safetensors", "outputs.safetensors")
        wanted = ("config.json", "manifest.json", *tensors)
        missing = [name for name in wanted if not (folder / name).is_file()]
        if missing:
            raise DataError(f"{folder} is not a recording of the original code: it has no {', '.join(missing)}")
        manifest = read_json(folder / "manifest.json")
        if not is_together:
            return cls(folder, manifest, *(_tensors(folder / name) for name in tensors))
        found = {name: tensor for file in folder.glob(PREPROCESSED) for name, tensor in _tensors(file).items()}
        found = _tensors(folder / TOGETHER) | found
        outputs = {name: tensor for name, tensor in found.items() if not _GIVEN.search(name)}
        return cls(folder, manifest, found, outputs)

    @property
    def has_weights(self) -> bool:
        """Whether the model that was recorded lies in the folder; small recordings come without."""
        return any((self.folder / name).is_file() for name in ("weights.safetensors", "model.safetensors"))

    @property
    def kind(self) -> Literal["sa2va", "qwen_vl", "longva"]:
        """Which of the three systems was recorded; each has a module here that replays its recordings."""
        if (self.folder / TOGETHER).is_file():
            return "qwen_vl"
        config = self.folder / "config.json"
        is_longva = config.is_file() and read_json(config).get("model_type") == "llava_qwen"
        return "longva" if is_longva else "sa2va"

    @property
    def threads(self) -> int | None:
        """On how many threads it was made, where the manifest says so."""
        found = re.search(r"\btorch threads (\d+)", str(self.manifest.get("dtype", "")))
        return int(found[1]) if found else None

    @property
    def cases(self) -> Mapping[str, Mapping[str, Any]]:
        """The whole calls that were recorded, by name."""
        cases = self.manifest.get("cases", {})
        return {name: case for name, case in cases.items() if f"e2e.{name}.prompt_ids" in self.inputs}

    @property
    def seams(self) -> tuple[str, ...]:
        """The seams there is something recorded of, in the order of the data's flow."""
        found = {seam_of(name) for name in self.outputs} | ({"prompt"} if self.cases else set())
        # a model folder has a tokenizer.json of its own, so a file's name alone says nothing
        files = {"qwen_vl": TEXTS, "longva": CACHED}.get(self.kind, {})
        found |= {seam for seam, file in files.items() if (self.folder / file).is_file()}
        if self.kind == "longva":
            found |= {"pre"} | ({"keys"} if "fingerprints" in self.manifest else set())
        order = ("tokenizer", "chat", "labels", "pre", "prompt", "vision", "llm", "sam2", "tracker", "e2e")
        first = {name: place for place, name in enumerate(order)}
        return tuple(sorted(found, key=lambda seam: (first.get(seam.split(".")[0], len(order)), seam)))

    def given(self, name: str) -> Tensor:
        """A recorded input, without which its seam cannot be replayed.

        Raises: DataError, if the recording has none of that name.
        """
        if name not in self.inputs:
            raise DataError(f"{self.folder} has outputs of a seam and not its input {name}; copy the whole recording")
        return self.inputs[name]

    def names(self, prefix: str) -> list[str]:
        """Names of recorded outputs that begin so."""
        return [name for name in self.outputs if name.startswith(prefix)]

    def what(self, name: str) -> str:
        """What the manifest says about a recorded tensor; empty if it says nothing."""
        for tensors in self.manifest.get("tensors", {}).values():
            if name in tensors:
                return str(tensors[name].get("what") or "")
        return ""

    def picture(self, name: str) -> UInt8[np.ndarray, "h w 3"]:
        """The pixels of one of the recording's images, by file name."""
        return read_image(open_media(self.folder / name))

    def clip(self, count: int | None = None) -> UInt8[np.ndarray, "t h w 3"]:
        """The first `count` frames of the recording's video, or all.

        Raises: DataError, if it has fewer.
        """
        numbers = sorted(int(found[1]) for file in self.folder.iterdir() if (found := _FRAME.fullmatch(file.name)))
        if not numbers or len(numbers) < (count or 0):
            raise DataError(
                f"{self.folder} has {len(numbers)} files video_<n>.png; its manifest speaks of {count or 'some'}"
            )
        return np.stack([self.picture(f"video_{number}.png") for number in numbers[:count]])


def seam_of(name: str) -> str:
    """The seam that a recorded tensor belongs to: `llm` for llm.logits, `sam2.single` for sam2.single.ious."""
    parts = name.split(".")
    if parts[0] in _ONE_SEAM or len(parts) == 1:
        return parts[0]
    return ".".join(parts[:2] if parts[0] == "e2e" else parts[:-1])


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise DataError(f"{file} is damaged ({error}); copy the recording again") from error
