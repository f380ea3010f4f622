"""What this machine has to offer: packages, processors, memory, codecs, disk."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

GIB = 2**30
_DECODERS = ("h264", "hevc", "vp9", "av1", "mpeg4")


@dataclass(frozen=True, slots=True)
class EnvironmentCheck:
    """One thing found out: "ok", a "note" that stops nothing, or a "problem" that must be solved first."""

    name: str
    status: Literal["ok", "note", "problem"]
    value: str


def examine() -> list[EnvironmentCheck]:
    """Everything worth knowing about this machine, packages first; parts whose package is missing are left out."""
    findings = [
        EnvironmentCheck("python", "ok", f"{platform.python_version()} at {sys.executable}"),
        EnvironmentCheck("system", "ok", platform.platform()),
        EnvironmentCheck("segue", "ok", version("segue")),
        *packages(),
    ]
    missing = {found.name for found in findings if found.status == "problem"}
    if "torch" not in missing:
        findings += devices()
    findings.append(memory())
    if "av" not in missing:
        findings += codecs()
    return findings + [*disks()]


def packages() -> Iterator[EnvironmentCheck]:
    """Every package that Segue requires, with its version, and what each of its extras lacks."""
    needs = [Requirement(text) for text in requires("segue") or ()]
    for need in needs:
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            fault = _fault(need)
            yield EnvironmentCheck(need.name, "problem" if fault else "ok", fault or version(need.name))
    for extra in metadata("segue").get_all("Provides-Extra") or ():
        wanted = [need for need in needs if need.marker and need.marker.evaluate({"extra": extra})]
        faults = [fault for need in wanted if (fault := _fault(need))]
        yield EnvironmentCheck(f"extra {extra}", "note" if faults else "ok", "; ".join(faults) or "installed")
    yield EnvironmentCheck("torchvision", "ok", "not needed")


def devices() -> Iterator[EnvironmentCheck]:
    """The processors that torch can compute on, and whether they know bf16."""
    import torch

    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    knows_bf16 = any(known is True for name, known in capabilities.items() if "bf16" in name)
    bf16 = "bf16 in hardware" if knows_bf16 else "no bf16 in hardware, so fp32 is quicker"
    instructions = torch.backends.cpu.get_cpu_capability()
    threads = f"{torch.get_num_threads()} thread{'' if torch.get_num_threads() == 1 else 's'}"
    yield EnvironmentCheck("cpu", "ok", f"{os.cpu_count()} cores, {threads}, {instructions}, {bf16}")
    for number in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(number)
        bf16 = "bf16" if card.major >= 8 else "no bf16 in hardware, so take fp16"
        value = f"{card.name}, {card.total_memory / GIB:.0f} GiB, compute {card.major}.{card.minor}, {bf16}"
        yield EnvironmentCheck(f"cuda:{number}", "ok", value)
    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without it"
        yield EnvironmentCheck("cuda", "note", f"none ({built})")
    has_mps = torch.backends.mps.is_available()
    yield EnvironmentCheck("mps", "ok" if has_mps else "note", "available" if has_mps else "none")


def memory() -> EnvironmentCheck:
    """Main memory, in all and free, and the limit that a container sets."""
    try:
        page, total, free = (os.sysconf(name) for name in ("SC_PAGE_SIZE", "SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        return EnvironmentCheck("memory", "note", "unknown on this system")
    limit = Path("/sys/fs/cgroup/memory.max")
    stated = limit.read_text().strip() if limit.is_file() else "max"
    inside = "" if stated == "max" else f", this container may use {int(stated) / GIB:.1f} GiB"
    return EnvironmentCheck("memory", "ok", f"{page * total / GIB:.1f} GiB, {page * free / GIB:.1f} GiB unused{inside}")


def codecs() -> Iterator[EnvironmentCheck]:
    """Which videos can be read, and whether overlays can be written."""
    import av

    known = av.codecs_available
    readable = [name for name in _DECODERS if name in known]
    status: Literal["ok", "problem"] = "ok" if "h264" in readable else "problem"
    yield EnvironmentCheck("video in", status, f"{', '.join(readable)} (FFmpeg {av.ffmpeg_version_info})")
    has_x264 = "libx264" in known
    codec = "H.264" if has_x264 else "MPEG-4 part 2, which browsers do not play: this PyAV lacks libx264"
    yield EnvironmentCheck("video out", "ok" if has_x264 else "note", codec)


def disks() -> Iterator[EnvironmentCheck]:
    """Free space where results, temporary files and downloaded models go."""
    from huggingface_hub.constants import HF_HUB_CACHE

    places = {"here": Path.cwd(), "temporary files": Path(tempfile.gettempdir()), "model cache": Path(HF_HUB_CACHE)}
    for name, place in places.items():
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        free = shutil.disk_usage(there).free / GIB
        yield EnvironmentCheck(f"disk, {name}", "ok" if free >= 1 else "note", f"{free:.1f} GiB free at {place}")


def _fault(need: Requirement) -> str:
    """What is wrong with an installed package: missing or of another version; empty if nothing."""
    try:
        found = version(need.name)
    except PackageNotFoundError:
        return f"{need.name} is missing"
    if need.specifier.contains(found, prereleases=True):
        return ""
    return f"{need.name} is {found}, but {need.specifier} is needed"
