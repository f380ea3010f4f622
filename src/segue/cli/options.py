"""Options that several commands share: each is declared once, here, and those that go together are a dataclass."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints

import typer

from segue.cli.console import say
from segue.processes import cores

if TYPE_CHECKING:
    from segue.engine import Engine


PIPED = frozenset({"-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"})
"""What stands for standard input where an image or video is expected."""


def read_piped() -> bytes:
    """All that is piped in.

    Raises: ConfigError, if that is nothing; LimitError.
    """
    from segue.errors import ConfigError
    from segue.media.limits import DEFAULT_LIMITS

    content = b"" if sys.stdin.isatty() else sys.stdin.buffer.read(DEFAULT_LIMITS.file_bytes + 1)
    if not content:
        raise ConfigError("nothing is piped in; pipe an image or a video into `segue ... -`, or give its path")
    DEFAULT_LIMITS.check_bytes("what is piped in", len(content))
    return content


def check_model(model: str | None) -> str | None:
    """Refuse a model that can be neither a folder nor on the hub before anything heavy is imported.

    Raises: CheckpointError.
    """
    from segue.checkpoints.locate import find

    if model is not None:
        find(model)
    return model


def check_device(device: str) -> str:
    """Refuse what is the name of no device; whether it is there is another question.

    Raises: ConfigError.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]+)?", device):
        from difflib import get_close_matches

        from segue.errors import ConfigError

        near = get_close_matches(device, ["auto", "cpu", "cuda", "cuda:0", "mps"], n=1)
        meant = f"; did you mean {near[0]}?" if near else "."
        raise ConfigError(f"there is no device {device!r}{meant} Expected auto, cpu, cuda, cuda:1 or mps")
    return device


def chosen_workers(given: int | None, count_inputs: Callable[[], int], model: str, device: str) -> int:
    """How many processes do so many inputs: as many as are given; else one a core for a small model on a CPU.

    `count_inputs` is called where it matters alone: counting may mean reading.
    """
    from segue.checkpoints.locate import find

    if given is not None:
        return given
    worthwhile = min(count_inputs() // _WORTH_A_WORKER, _MOST_WORKERS)
    if worthwhile < 2:
        return 1
    folder, gpus = find(model), (Path("/dev/nvidiactl"), Path("/dev/kfd"))
    size = 0 if folder is None else sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    is_cpu = device == "cpu" or (device == "auto" and sys.platform != "darwin" and not any(map(Path.exists, gpus)))
    return min(cores(), worthwhile) if is_cpu and 0 < size <= SMALL else 1


def check_frames(plan: str | None) -> str | None:
    """Refuse a frame plan that no video could follow, before anything is opened.

    Raises: ConfigError.
    """
    if plan is not None and plan != "auto":
        from segue.media.sampling import choose

        choose(plan, 1_000_000, 30.0)
    return plan


Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.", callback=check_device)]
Dtype = Annotated[Literal["auto", "bf16", "fp16", "fp32"], typer.Option("--dtype", help="Precision to compute in.")]
Formats = Annotated[str, typer.Option("--formats", help="What to write, of png, coco, overlay and logits.")]
FORMATS = "png,coco,overlay"
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write results into.")]
Phrase = Annotated[
    str | None,
    typer.Option("--phrase", help="Of your own images and masks: what mask pictures show, where they do not say it."),
]
Split = Annotated[str | None, typer.Option("--split", help="Of a folder of your own: train, val, test or all.")]
GroupPattern = Annotated[
    str | None,
    typer.Option(
        "--group", help="Of your own images and masks: regular expression that finds the patient or video in a name."
    ),
]
Window = Annotated[
    str | None,
    typer.Option(
        "--window",
        help="Values that become black and white in pictures of more than 8 bits, such as 0,4095; else their range.",
    ),
]
Shard = Annotated[
    str | None, typer.Option("--shard", help="Shard i/N, from 0: every machine does one, into the same OUT.")
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Processes on this machine; else as many as are worth it on a CPU."),
]
SMALL = 500_000_000
"""Bytes of weights up to which a model is held by several processes, one a core, without being asked."""
_WORTH_A_WORKER = 8  # inputs, below which a process takes longer to start than it saves
_MOST_WORKERS = 8
Json = Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.")]


QuantizeKv = Annotated[
    bool, typer.Option("--quantize-kv", help="Keep what the language model has read in 8 bits, for long videos.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """Which model answers and how it is loaded; see `expanded`."""

    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="Model: a folder, a hub id such as ByteDance/Sa2VA-4B, or demo.",
            callback=check_model,
        ),
    ] = "demo"
    device: Device = "auto"
    dtype: Dtype = "auto"
    sam2: Annotated[
        str | None,
        typer.Option(
            "--sam2",
            help="SAM 2's own file (sam2_hiera_large.pt), for a model with one mask decoder: videos are then followed "
            "consistently.",
        ),
    ] = None
    quantize: Annotated[
        Literal["int8", "int4"] | None,
        typer.Option("--quantize", help="Keep the layers of vision tower and language model in 8 or 4 bits."),
    ] = None
    quantize_kv: QuantizeKv = False
    offload: Annotated[
        bool, typer.Option("--offload", help="Keep language layers in main memory, for a small GPU.")
    ] = False
    ignore_memory: Annotated[
        bool, typer.Option("--ignore-memory", help="Load the model even where it will hardly fit into memory.")
    ] = False

    def load(self) -> Engine:
        """The model; what `segue.loading.load` raises."""
        from segue import loading

        how = asdict(self)
        return loading.load(how.pop("model"), check_memory=not how.pop("ignore_memory"), **how)

    def tell_limits(self) -> None:
        """Say, before the demo model answers, what its answers are worth; of other models nothing."""
        if self.model == "demo":
            say("The demo model knows drawn scenes only (segue data synth); what it says of photographs means nothing.")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerOptions:
    """How a model answers: fields of `segue.Options`; see `expanded`."""

    frames: Annotated[
        str,
        typer.Option(
            "--frames",
            help="Frames of a video that the language model sees: auto, first:k, uniform:k, fps:r, or numbers as "
            "0,4,9.",
            callback=check_frames,
        ),
    ] = "auto"
    policy: Annotated[
        Literal["auto", "upstream", "consistent"],
        typer.Option(
            "--policy", help="How objects are followed: as the original code does, or as its weights do best."
        ),
    ] = "auto"
    threshold: Annotated[
        float,
        typer.Option("--threshold", min=0.0, max=1.0, help="Probability above which a pixel belongs to an object."),
    ] = 0.5
    reprompt: Annotated[
        float,
        typer.Option(
            "--reprompt",
            min=0.0,
            max=1.0,
            help="Ask for an object again on frames of a video where its confidence falls below this; 0 never.",
        ),
    ] = 0.0
    memory: Annotated[
        Literal["exact", "pooled"],
        typer.Option(
            "--memory", help="What is remembered of a video's frames: all, or averages, faster with many objects."
        ),
    ] = "exact"
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")] = 2048
    max_tiles: Annotated[int, typer.Option("--max-tiles", min=1, help="Most tiles that an image is cut into.")] = 12

    def __post_init__(self) -> None:
        check_frames(self.frames)


def expanded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A command whose parameters that are dataclasses of options become those options.

    A parameter `Annotated[dict[str, Any], AnswerOptions]` becomes them without defaults, and gets those that were
    given.
    """
    signature = inspect.signature(function)
    hints = get_type_hints(function, include_extras=True)
    groups = {name: hints[name] for name in signature.parameters if _group_of(hints[name]) is not None}
    parameters: list[Parameter] = []
    for name, parameter in signature.parameters.items():
        if name in groups:
            parameters += _options_of(groups[name])
        else:
            parameters.append(parameter.replace(annotation=hints[name], kind=Parameter.KEYWORD_ONLY))

    @wraps(function)
    def command(**given: Any) -> Any:
        made = {}
        for name, hint in groups.items():
            group = _group_of(hint)
            assert group is not None
            values = {field.name: given.pop(field.name) for field in fields(group)}
            is_made = hint is group
            made[name] = group(**values) if is_made else {key: one for key, one in values.items() if one is not None}
        return function(**given, **made)

    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del command.__wrapped__  # type: ignore[attr-defined]
    return command


def _group_of(hint: Any) -> Any:
    """The dataclass of options that a parameter stands for; None for a parameter that is an option itself."""
    return next((one for one in (hint, *get_args(hint)) if is_dataclass(one)), None)


def _options_of(hint: Any) -> list[Parameter]:
    group = _group_of(hint)
    hints = get_type_hints(group, include_extras=True)
    defaults = {field.name: field.default if hint is group else None for field in fields(group)}
    assert MISSING not in defaults.values(), "an option has a default"
    return [
        Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=hints[name])
        for name, default in defaults.items()
    ]


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


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """Shard (i, N) in words: 0/4.

    Raises: ConfigError.
    """
    from segue.errors import ConfigError

    if text is None:
        return None
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal()) or int(number) >= int(count):
        raise ConfigError(f"--shard {text!r} is no shard; expected i/N with i from 0 to N - 1, such as 0/4")
    return int(number), int(count)


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
