"""How features are kept: losslessly, or in 8 bits with their measured error.

Letters in shapes: t tokens (all axes but the last), c channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from segue.errors import ConfigError, DataError

Parts = dict[str, Tensor]
"""The tensors of one entry by name, without what stands beside the features."""

NARROW = 96
"""Features with fewer channels than this have one scale per channel: a scale per token would weigh too much."""

CODES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""The floating types that towers compute in, as safetensors names them."""

TYPES = {code: dtype for dtype, code in CODES.items()}


@dataclass(frozen=True, slots=True)
class Loss:
    """What keeping features has cost: the relative L2 error, and the largest value over the root mean square.

    `peak` is the k of the rule that 8 bits with one scale for all have a relative error of k / 440.
    """

    error: float
    peak: float


@dataclass(frozen=True, slots=True)
class Format:
    """One way of keeping features: to parts and back. `nbytes` is what shape and type will weigh, or a bound on it."""

    name: str
    encode: Callable[[Tensor], Parts]
    decode: Callable[[Mapping[str, Tensor], torch.dtype], Tensor]
    nbytes: Callable[[Sequence[int], torch.dtype], int]
    is_lossless: bool


def lookup(name: str) -> Format:
    """The format of that name.

    Raises: ConfigError, naming those there are.
    """
    if name not in FORMATS:
        raise ConfigError(f"unknown feature format {name!r}; known: {', '.join(FORMATS)}")
    return FORMATS[name]


def check_finite(features: Float[Tensor, "*t c"]) -> None:
    """Refuse features that hold infinities or NaN: a tower that overflowed has nothing to say.

    Raises: DataError, with how many values they are.
    """
    bad = int(features.numel() - features.isfinite().sum())
    if bad:
        raise DataError(f"{bad} of {features.numel()} feature values are infinite or NaN; compute them in bf16 or fp32")


def measure(features: Float[Tensor, "*t c"], restored: Float[Tensor, "*t c"]) -> Loss:
    """The error of restored features, computed in float32, piece by piece along the first axis."""
    wrong = whole = largest = 0.0
    for first, second in zip(features.split(32), restored.split(32), strict=True):
        exact = first.float()
        wrong += float((second.float() - exact).square().sum(dtype=torch.float64))
        whole += float(exact.square().sum(dtype=torch.float64))
        largest = max(largest, float(exact.abs().max()) if exact.numel() else 0.0)
    rms = math.sqrt(whole / max(features.numel(), 1))
    return Loss(math.sqrt(wrong / whole) if whole else 0.0, largest / rms if rms else 0.0)


def _lossless(features: Tensor) -> Parts:
    return {"x": features.contiguous()}


def _from_lossless(parts: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    return parts["x"].to(dtype)


def _split(features: Tensor) -> Parts:
    """High bytes, which hold sign and exponent and compress, apart from the rest, which does not."""
    size = features.element_size()
    planes = features.contiguous().cpu().view(torch.uint8).view(-1, size)
    packed = _zstd().ZstdCompressor(level=1, write_checksum=True).compress(planes[:, -1].numpy().tobytes())
    return {
        "hi": torch.frombuffer(bytearray(packed), dtype=torch.uint8),
        "lo": planes[:, :-1].contiguous().view(*features.shape, size - 1),
    }


def _from_split(parts: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    low = parts["lo"].cpu()
    *shape, rest = low.shape
    zstd, count = _zstd(), math.prod(shape)
    try:
        high = zstd.ZstdDecompressor().decompress(parts["hi"].cpu().numpy().tobytes(), max_output_size=count)
    except zstd.ZstdError as error:
        raise DataError(f"a compressed plane of features is damaged ({error})") from error
    if len(high) != count:
        raise DataError(f"a compressed plane of features holds {len(high)} values where {count} were expected")
    planes = torch.empty(count, rest + 1, dtype=torch.uint8)
    planes[:, :-1] = low.reshape(count, rest)
    planes[:, -1] = torch.frombuffer(bytearray(high), dtype=torch.uint8) if count else planes[:, -1]
    kind = {1: torch.float16, 3: torch.float32}[rest] if dtype != torch.bfloat16 else torch.bfloat16
    return planes.view(kind).view(shape)


def _zstd():  # type: ignore[no-untyped-def]
    try:
        import zstandard
    except ImportError as error:
        raise ConfigError("the format lossless-split needs zstandard; pip install 'segue[cache]'") from error
    return zstandard


def _int8(features: Tensor) -> Parts:
    """Channels brought to one size by their root mean square, then 8 bits with a scale per token, all in float32.

    Source: specs of the feature cache, 2.3: the least error where few channels are far larger than the rest.
    """
    channels = features.shape[-1]
    if channels < NARROW:
        return _int8_by_channel(features)
    tokens = features.reshape(-1, channels)
    total = torch.zeros(channels, dtype=torch.float64, device=features.device)
    for piece in tokens.split(_rows(channels)):
        total += piece.float().square().sum(0, dtype=torch.float64)
    rms = (total / max(len(tokens), 1)).sqrt().float()
    rms[rms == 0] = 1
    scales = torch.empty(len(tokens), device=features.device)
    steps = torch.empty(tokens.shape, dtype=torch.int8, device=features.device)
    for start, piece in _pieces(tokens):
        level = piece.float() / rms
        scale = level.abs().amax(-1) / 127
        scales[start : start + len(piece)] = scale
        steps[start : start + len(piece)] = _rounded(level / _divisor(scale)[:, None], -127)
    return {"q": steps.view(features.shape), "token_scale": scales.view(features.shape[:-1]), "channel_rms": rms}


def _int8_by_channel(features: Tensor) -> Parts:
    tokens = features.reshape(-1, features.shape[-1]).float()
    scale = tokens.abs().amax(0) / 127 if len(tokens) else tokens.new_zeros(features.shape[-1])
    return {"q": _rounded(tokens / _divisor(scale), -127).view(features.shape), "channel_scale": scale}


def _from_int8(parts: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    steps = parts["q"]
    restored = torch.empty(steps.shape, dtype=dtype, device=steps.device)
    by_channel = parts.get("channel_scale")
    rows, flat = restored.view(-1, steps.shape[-1]), steps.reshape(-1, steps.shape[-1])
    for start, piece in _pieces(flat):
        if by_channel is not None:
            rows[start : start + len(piece)] = (piece * by_channel).to(dtype)
        else:
            scale = parts["token_scale"].reshape(-1, 1)[start : start + len(piece)]
            rows[start : start + len(piece)] = ((piece * scale) * parts["channel_rms"]).to(dtype)
    return restored


def _int8_per_tensor(features: Tensor) -> Parts:
    """One scale for all, as the guide has it. Large channels cost the others most of their bits."""
    exact = features.float()
    scale = exact.abs().max() / 127 if exact.numel() else exact.new_zeros(())
    return {"q": _rounded(exact / _divisor(scale), -128), "scale": scale.view(1)}


def _from_int8_per_tensor(parts: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    return (parts["q"].float() * parts["scale"]).to(dtype)


def _bf16(features: Tensor) -> Parts:
    return {"x": features.to(torch.bfloat16).contiguous()}


def _rounded(levels: Tensor, least: int) -> Tensor:
    # torch rounds halves to even
    return levels.round().clamp(least, 127).to(torch.int8)


def _divisor(scale: Tensor) -> Tensor:
    """Scales to divide by: nothing but zeros stands where one is 0, and 0 / 1 is 0."""
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def _rows(channels: int) -> int:
    # so many tokens at a time stay in the cache of a core, which is ten times as fast as all at once
    return max(1, 262_144 // max(channels, 1))


def _pieces(tokens: Tensor) -> list[tuple[int, Tensor]]:
    step = _rows(tokens.shape[-1])
    return [(number * step, piece) for number, piece in enumerate(tokens.split(step))]


def _native_bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def _int8_bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    *tokens, channels = shape
    scales = channels if channels < NARROW else math.prod(tokens) + channels
    return math.prod(shape) + 4 * scales


FORMATS: Mapping[str, Format] = {
    format.name: format
    for format in (
        Format("lossless", _lossless, _from_lossless, _native_bytes, is_lossless=True),
        Format("lossless-split", _split, _from_split, _native_bytes, is_lossless=True),
        Format("int8", _int8, _from_int8, _int8_bytes, is_lossless=False),
        Format(
            "int8-per-tensor",
            _int8_per_tensor,
            _from_int8_per_tensor,
            lambda shape, dtype: math.prod(shape) + 4,
            is_lossless=False,
        ),
        Format("bf16", _bf16, _from_lossless, lambda shape, dtype: 2 * math.prod(shape), is_lossless=False),
    )
}
"""Names to formats; `lossless` is the type that the tower computed in."""
