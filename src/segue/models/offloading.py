"""Language layers that live in main memory and pass through the GPU one after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from segue.errors import ConfigError


def check(device: str) -> None:
    """Refuse a device that no layer needs to make way for, or a missing library, before anything is loaded.

    Raises: ConfigError.
    """
    if not device.startswith("cuda"):
        raise ConfigError(
            f"--offload keeps layers in main memory for a small GPU; on {device} they lie there anyway, so leave it "
            "out (--quantize int8 or int4 needs less memory)"
        )
    _accelerate()


def offload(language_model: nn.Module, device: str | torch.device) -> int:
    """Let the layers of a language model lie in main memory; each goes to `device` for its turn alone.

    Returns how many layers. What they compute is unchanged.

    Raises: ConfigError, where accelerate is missing.
    """
    library = _accelerate()
    layers: Any = language_model.get_submodule("model.layers")
    for layer in layers:
        library.cpu_offload(layer, execution_device=torch.device(device))
    return len(layers)


def _accelerate() -> Any:
    try:
        import accelerate
    except ImportError as error:
        raise ConfigError("--offload needs accelerate; install it: pip install 'segue[quant]'") from error
    return accelerate
