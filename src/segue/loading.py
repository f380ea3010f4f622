"""Find a model, choose where and how exactly it runs, and load it: the door to `segue.engine`."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from segue import weights
from segue.checkpoints import footprint, loaded, model_folder
from segue.checkpoints.locate import resolve, weights_folder
from segue.engine import Engine
from segue.errors import ConfigError, LimitError
from segue.grounding import model as grounded
from segue.models import offloading, quantised
from segue.models.fused import FusedLinear
from segue.models.quantised import Bits
from segue.models.quantised_cache import QuantisedCache
from segue.reading import at_home

LARGE = 100_000_000
CGROUP = Path("/sys/fs/cgroup")
"""Where Linux says how much memory a container may use."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """Where and how exactly a model runs; the fields are `load`'s."""

    device: str = "auto"
    dtype: str | torch.dtype = "auto"
    sam2: str | Path | None = None
    quantize: Bits | None = None
    quantize_kv: bool = False
    offload: bool = False
    check_memory: bool = True


def load(  # noqa: PLR0913  every choice by its own name
    model: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    sam2: str | Path | None = None,
    quantize: Bits | None = None,
    quantize_kv: bool = False,
    offload: bool = False,
    check_memory: bool = True,
) -> Engine:
    """A model from a folder in the official Sa2VA or our own layout, or from the hub by its id; or what a training run
    has made of one: a checkpoint, or a run folder, which stands for its best.

    `device` is auto, cpu, cuda, cuda:1, mps ..., `dtype` auto, bf16, fp16 or fp32; or PyTorch's own of either. `auto`
    takes the best device there is, and the precision that `pick_dtype` says. Nothing that the folder brings is
    executed.

    `sam2` is the file in which SAM 2 was published (or a model folder with both mask decoders), for a checkpoint with
    one mask decoder: objects are followed with SAM 2's own then, and videos by the policy `consistent`. `quantize`
    keeps the linear layers of vision tower and language model in 8 or 4 bits; SAM 2 stays exact. `quantize_kv` keeps
    in 8 bits what the language model has read, for long videos. `offload` keeps the language layers in main memory, for
    a small GPU. `check_memory` False loads even what will hardly fit.

    Raises: CheckpointError, if the weights do not fit; ConfigError, if nothing here knows the model or the device, or
    choices do not go together; LimitError, if memory would not do.
    """
    choice = Loading(
        device=pick_device(device),
        dtype=dtype,
        sam2=sam2,
        quantize=quantize,
        quantize_kv=quantize_kv,
        offload=offload,
        check_memory=check_memory,
    )
    _check_choice(choice)
    folder = resolve(model)
    counts = dtype == "auto" and choice.device == "cpu"
    precision = pick_dtype(dtype, choice.device, _parameters(weights_folder(folder)) if counts else 0)
    if check_memory:
        check_fit(str(model), weights_folder(folder), choice, precision)
    is_moved_later = offload or quantize is not None
    found = loaded.load(
        folder,
        dtype=precision,
        device="cpu" if is_moved_later else choice.device,
        filling=partial(_quantising, choice=choice) if quantize else None,
    )
    lineage = {**found.lineage, "model": str(model), "device": choice.device}
    new_cache = QuantisedCache if quantize_kv else DynamicCache
    engine = Engine(found.model, found.processor, lineage, new_cache=new_cache)
    _finish(engine, choice)
    return engine


def _check_choice(choice: Loading) -> None:
    if choice.quantize is not None:
        quantised.check(choice.quantize, choice.device)
    if choice.offload:
        offloading.check(choice.device)
    if choice.quantize and choice.offload:
        raise ConfigError("--quantize and --offload do not go together; --quantize int4 needs the least on a GPU")


def _quantising(model: grounded.VisionLanguageModel, choice: Loading) -> Callable[[str], bool]:
    """Quantise each layer as soon as all of it has been read, so that no more than one is held in full."""
    assert choice.quantize is not None
    bits, layers = choice.quantize, _layers(model, choice.quantize)
    owners = {f"{name}.{part}": name for name in layers for part, _ in model.get_submodule(name).named_parameters()}
    left = Counter(owners.values())

    def filled(place: str) -> bool:
        name = owners.get(place)
        if name is None:
            return False
        left[name] -= 1
        if not left[name]:
            quantised.quantise(model, [name], bits, choice.device)
        return True

    return filled


def _layers(model: grounded.VisionLanguageModel, bits: str) -> list[str]:
    """The linear layers that are to be quantised and are not yet."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    known = footprint.quantised_layers(shapes, model.config.family, bits)
    return [name for name in known if type(model.get_submodule(name)) in (nn.Linear, FusedLinear)]


def _finish(engine: Engine, choice: Loading) -> None:
    """What is done to a loaded model, and what its lineage says of it."""
    model, lineage = engine.model, engine.lineage
    if choice.sam2 is not None:
        from segue.checkpoints.sam2_weights import attach_sam2

        attached = attach_sam2(model, at_home(choice.sam2))
        hashes = {"model": lineage["model_hash"], "sam2": attached["model_hash"]}
        lineage |= {"sam2": attached, "model_hash": weights.joint_hash(hashes)}
    if choice.quantize is not None:
        quantised.quantise(model, _layers(model, choice.quantize), choice.quantize, choice.device)
        model.to(choice.device)
        lineage["dtype"] += f"+{choice.quantize}"
    if choice.quantize_kv:
        lineage["dtype"] += "+kv8"
    if choice.offload:
        layers = model.mllm.language_model.model.layers
        model.mllm.language_model.model.layers = nn.ModuleList()
        model.to(choice.device)
        model.mllm.language_model.model.layers = layers
        lineage["offloaded_layers"] = offloading.offload(model.mllm.language_model, choice.device)


def check_fit(name: str, folder: Path, choice: Loading, precision: torch.dtype) -> None:
    """Refuse a model that cannot fit where it is to run, judged from headers; warn where only small questions fit.

    Raises: LimitError, with both sizes and what would fit; ConfigError and CheckpointError, as
    `segue.grounding.model.plan` does.
    """
    free = available_memory(choice.device)
    if free is None:
        return
    layout, places = model_folder.plan(folder)
    config, size = layout.config, precision.itemsize
    need = footprint.placed_memory(places, size, config.family, quantize=choice.quantize, offload=choice.offload)
    least = need + footprint.working_memory(config, size, footprint.SMALLEST)
    most = need + footprint.working_memory(config, size, footprint.LARGEST_IMAGE)
    if least > free:
        raise LimitError(
            f"{name} needs about {least / 1e9:.1f} GB on {choice.device} and {free / 1e9:.1f} GB are free there;"
            f" {_what_fits(config, places, free, choice.device)}. --ignore-memory tries all the same"
        )
    if most > free:
        log.warning(
            "%.1f GB are free on %s and an image in its most tiles needs about %.1f GB: ask with fewer (--max-tiles)",
            free / 1e9,
            choice.device,
            most / 1e9,
        )


def _what_fits(config: grounded.VisionLanguageConfig, places: footprint.Shapes, free: int, device: str) -> str:
    is_cuda = device.startswith("cuda")
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        "--dtype bf16": ("bf16", {}),
        "--quantize int8": ("bf16", {"quantize": "int8"}),
        "--quantize int4": ("bf16", {"quantize": "int4"}),
        **({"--dtype bf16 --offload": ("bf16", {"offload": True})} if is_cuda else {}),
    }
    found = []
    for words, (dtype, way) in ways.items():
        size = footprint.SIZES[dtype]
        need = footprint.placed_memory(places, size, config.family, **way)
        need += footprint.working_memory(config, size, footprint.SMALLEST)
        if need <= free:
            found.append(f"{words} ({need / 1e9:.1f} GB)")
    return f"what would fit: {', '.join(found)}" if found else "take a smaller model (`segue models` lists them)"


def available_memory(device: str) -> int | None:
    """Bytes that are free on a device; for the CPU, what the system and a container's limit leave. `None`: unknown."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(torch.device(device))[0]
    if device.startswith("mps"):
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    try:
        limit, used, parts = (
            (CGROUP / f"memory.{name}").read_text(encoding="ascii") for name in ("max", "current", "stat")
        )
    except OSError:
        return free
    if limit.strip() == "max":
        return free
    # what is kept of files counts as used, and makes way for whoever needs memory
    kept = sum(int(line.split()[1]) for line in parts.splitlines() if line.startswith(("active_file", "inactive_file")))
    return min(free, int(limit) - int(used) + kept)


def pick_device(device: str | torch.device) -> str:
    """The name of a device that is there; `auto` is the best of them.

    Raises: ConfigError, for a device that is unknown or not available.
    """
    name, has_mps = str(device), torch.backends.mps.is_available()
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    there = {"cpu": 1, "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0, "mps": int(has_mps)}
    try:
        chosen = torch.device(name)
        count = there[chosen.type]
    except (RuntimeError, KeyError) as error:
        raise ConfigError(f"unknown device {name!r}; expected auto, cpu, cuda, cuda:1 or mps") from error
    if (chosen.index or 0) >= count:
        raise ConfigError(f"device {name!r} is not available on this machine; use --device cpu or auto")
    return name


def pick_dtype(dtype: str | torch.dtype, device: str, parameters: int = 0) -> torch.dtype:
    """The precision of that name (`segue.weights.as_dtype`), for a model of that many parameters.

    `auto` is bfloat16 on a GPU that has it, and for a model of `LARGE` parameters or more on a CPU that multiplies
    bfloat16 itself (AMX, AVX512-BF16). It is float32 elsewhere: there, and for small models, bfloat16 would be slower.

    Raises: ConfigError, for another name.
    """
    if dtype != "auto":
        return weights.as_dtype(dtype)
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    is_faster = device == "cpu" and parameters >= LARGE and multiplies_bf16()
    return torch.bfloat16 if is_faster else torch.float32


def multiplies_bf16() -> bool:
    """Whether this processor multiplies bfloat16 itself; others are several times slower in it than in float32."""
    # PyTorch 2.11 cannot tell yet
    abilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(abilities.get("amx_bf16") or abilities.get("avx512_bf16"))


def _parameters(folder: Path) -> int:
    return sum(math.prod(stored.shape) for stored in weights.read_headers(folder).values())
