"""Options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

Model = Annotated[
    str, typer.Option("--model", "-m", help="Model: a folder, a hub id such as ByteDance/Sa2VA-4B, or demo.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")]
Dtype = Annotated[Literal["auto", "bf16", "fp16", "fp32"], typer.Option("--dtype", help="Precision to compute in.")]
Sam2 = Annotated[
    str | None,
    typer.Option(
        "--sam2",
        help="SAM 2's own file (sam2_hiera_large.pt), for a model with one mask decoder: videos are then followed "
        "consistently.",
    ),
]
Quantize = Annotated[
    Literal["int8", "int4"] | None,
    typer.Option("--quantize", help="Keep the layers of vision tower and language model in 8 or 4 bits."),
]
Offload = Annotated[bool, typer.Option("--offload", help="Keep language layers in main memory, for a small GPU.")]
IgnoreMemory = Annotated[
    bool, typer.Option("--ignore-memory", help="Load the model even where it will hardly fit into memory.")
]
Reprompt = Annotated[
    float,
    typer.Option(
        "--reprompt",
        min=0.0,
        max=1.0,
        help="Ask for an object again on frames of a video where its confidence falls below this; 0 never.",
    ),
]
Frames = Annotated[
    str,
    typer.Option(
        "--frames",
        help="Frames of a video that the language model sees: auto, first:k, uniform:k, fps:r, or numbers as 0,4,9.",
    ),
]
Policy = Annotated[
    Literal["auto", "upstream", "consistent"],
    typer.Option("--policy", help="How objects are followed: as the original code does, or as its weights do best."),
]
Threshold = Annotated[
    float, typer.Option("--threshold", min=0.0, max=1.0, help="Probability above which a pixel belongs to an object.")
]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")]
MaxTiles = Annotated[int, typer.Option("--max-tiles", min=1, help="Most tiles that an image is cut into.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write results into.")]
Window = Annotated[
    str | None,
    typer.Option(
        "--window",
        help="Values that become black and white in pictures of more than 8 bits, such as 0,4095; else their range.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.")]


def loading(
    device: str, dtype: str, sam2: str | None, quantize: str | None, offload: bool, ignore_memory: bool
) -> dict[str, Any]:
    """The options of loading a model as `segue.loading.load` takes them."""
    how = {"device": device, "dtype": dtype, "sam2": sam2, "quantize": quantize, "offload": offload}
    return {**how, "check_memory": not ignore_memory}


def parse_formats(text: str) -> tuple[str, ...]:
    """The output formats in a comma-separated list, without repeats, in the order in which they are documented.

    Raises: ConfigError, naming the formats there are.
    """
    from segue.errors import ConfigError
    from segue.output.results import FORMATS

    wanted = {word.strip() for word in text.split(",") if word.strip()}
    if unknown := wanted - set(FORMATS):
        raise ConfigError(f"unknown output format {', '.join(sorted(unknown))}; known: {', '.join(FORMATS)}")
    return tuple(name for name in FORMATS if name in wanted)


def parse_window(text: str | None) -> tuple[float, float] | None:
    """The two values of a window, the lower one first.

    Raises: ConfigError.
    """
    from segue.errors import ConfigError

    if text is None:
        return None
    match = re.fullmatch(r"(-?[0-9.]+)[,:](-?[0-9.]+)", text.replace(" ", ""))
    try:
        low, high = (float(one) for one in match.groups()) if match else (0.0, 0.0)
    except ValueError:
        low = high = 0.0
    if not low < high:
        raise ConfigError(f"the window is {text!r}; expected two numbers, the lower one first, such as 0,4095")
    return low, high


def check_frames(plan: str) -> None:
    """Refuse a frame plan that no video could follow, before anything is opened.

    Raises: ConfigError.
    """
    from segue.media.sampling import choose

    if plan != "auto":
        choose(plan, 1_000_000, 30.0)
