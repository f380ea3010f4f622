"""What an entry is the features of: which weights, which pixels, chosen and prepared how. Names never count.

A key is the SHA-256 of an object that holds all of it; two media, models or settings that differ in anything that
matters have two keys, and a copy or a rename has the same one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from segue.features.formats import CODES

VERSION = 1
"""Of the key object. Another meaning of a field is another version."""

PREPROCESSING = 1
"""Of the way from files to pixels. Another way is another number: what was kept of the old one is not found then."""

_LAYOUT = ("select_layer", "tile_side", "most_tiles", "least_pixels", "most_pixels", "resolutions", "pool")
"""What a family's configuration may say of how pixels become states, beside its tower's own."""

_PLAIN = (int, float, str, bool, list)
_UNSEEN = ("transformers_version", "dtype", "torch_dtype", "architectures", "model_type", "id2label", "label2id")


def fingerprint(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> str:
    """One hash over the weights that features depend on, as they compute in `dtype`.

    Names are relative to the part (`encoder.layers.0.mlp.fc1.weight`). Values count after the cast, so that a copy in
    another precision that says the same is the same. Buffers on any device are read one at a time.
    """
    return joined(fingerprints(tensors, dtype))


def fingerprints(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, str]:
    """What each weight adds to the fingerprint of all, by name."""
    lines = {}
    for name in sorted(tensors, key=str.encode):
        tensor = tensors[name].detach().to("cpu", dtype).contiguous()
        shape = "x".join(map(str, tensor.shape))
        digest = hashlib.sha256(tensor.flatten().view(torch.uint8).numpy().data).hexdigest()
        lines[name] = f"{name}\t{CODES[dtype]}\t{shape}\t{digest}\n"
    return lines


def joined(lines: Mapping[str, str]) -> str:
    """The fingerprint of all weights of which these are the `fingerprints`."""
    return hashlib.sha256("".join(lines.values()).encode()).hexdigest()


def canonical(value: Any) -> str:
    """JSON with one spelling: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(value: Any) -> str:
    """The SHA-256 of a value's canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Identity:
    """What the features of one model are made by: `encoder` with its fingerprint, the point they are taken at (`tower`
    or `projected`), and how pixels are prepared.

    `encoder` has `family`, `fingerprint`, `compute_dtype` (F32, F16 or BF16) and the settings that decide the result.
    """

    encoder: Mapping[str, Any]
    point: str
    preprocess: Mapping[str, Any]

    @property
    def dtype(self) -> str:
        """The type that features are computed in: F32, F16 or BF16."""
        return str(self.encoder["compute_dtype"])

    def describe(self) -> dict[str, Any]:
        """All of it as plain JSON."""
        return {"encoder": dict(self.encoder), "point": self.point, "preprocess": dict(self.preprocess)}

    def key(self, source: str, sampling: str) -> Key:
        """The key of one medium: the hash of its content, and the rule by which its frames are chosen."""
        return Key({"v": VERSION, **self.describe(), "source": source, "sampling": sampling})

    def namespace(self, form: str) -> str:
        """The folder that entries of this identity share in one format: 16 hexadecimal digits."""
        return digest({**self.describe(), "mode": form, "dtype": self.dtype})[:16]


def identity_of(model: Any, weights: str, dtype: torch.dtype, point: str) -> Identity:
    """The identity of features that a model makes, from its configuration and the fingerprint of the weights below the
    point. What decides the states of the tower alone is told apart from what decides projected features.
    """
    family, config = model.family, model.mllm_config
    names = _LAYOUT if point == "tower" else sorted(vars(config))
    encoder = {
        "family": family,
        "fingerprint": weights,
        "compute_dtype": CODES[dtype],
        **_plain({name: getattr(config, name, None) for name in names}),
        "tower": _plain(config.vision_config.to_dict()),
    }
    pixels = {"version": PREPROCESSING, "processor": family, "resize": "pillow", "decoder": "pyav"}
    return Identity(encoder, point, pixels)


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a configuration that say something about numbers."""
    return {
        name: value
        for name, value in fields.items()
        if isinstance(value, _PLAIN) and not name.startswith("_") and name not in _UNSEEN
    }


@dataclass(frozen=True, slots=True)
class Key:
    """An entry's key: all that it depends on, and the hash of that."""

    parts: Mapping[str, Any]
    hash: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "hash", digest(self.parts))


def differences(first: Any, second: Any, where: str = "") -> list[str]:
    """The fields in which two JSON values differ, each as `dotted.name: one is not other`."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        found: list[str] = []
        for name in sorted({*first, *second}):
            inner = f"{where}.{name}" if where else str(name)
            found += differences(first.get(name), second.get(name), inner)
        return found
    return [] if first == second else [f"{where}: {_short(first)} is not {_short(second)}"]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
