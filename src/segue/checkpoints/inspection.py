"""What a model folder is and whether it can be used: from file headers alone, or by reading every tensor once.

Nothing here builds a model with memory, runs one, or executes or unpickles what a folder brings.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from torch import Tensor

from segue import weights
from segue.checkpoints import footprint, zoo
from segue.checkpoints.model_folder import Layout, check, load_processor, plan, read_layout
from segue.errors import CheckpointError, SegueError
from segue.grounding import model as grounded
from segue.grounding.model import MODEL_TYPE, VisionLanguageConfig, component_of
from segue.models import FAMILIES
from segue.models.protocol import GROUNDING_TOKENS, Processor
from segue.models.quantised import BITS
from segue.models.tokenizers import TOKENIZER_FILES, single_id
from segue.weights import Stored
from segue.weights.keys import compiled, match

_WORDS = {"an image at its largest": footprint.LARGEST_IMAGE, "a video of 5 frames": footprint.Work(frames=5)}
WORK = {
    "an image at its largest": footprint.LARGEST_IMAGE,
    "a video, 1 object": footprint.Work(frames=5),
    "a video, 16 objects": footprint.Work(frames=5, objects=16),
}
_TITLES = {
    "vision": "vision tower",
    "connector": "projector",
    "language": "language model",
    "embeddings": "embeddings and head",
    "seg_projector": "segmentation projector",
    "sam2.encoder": "SAM 2 image encoder",
    "sam2.prompts": "SAM 2 prompt encoder",
    "mask_decoder": "SAM 2 mask decoder",
    "sam2.memory": "SAM 2 memory",
    "language_decoder": "language mask decoder",
    None: "of no known part",
}
_HEAD = r"\b(lm_head|language_model\.output)\.weight$"
ALL_ZEROS = "all zeros"
_CHUNK = 2**24
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Component:
    """One part of a model as its files hold it; `dtypes` are the headers' own words, the commonest first."""

    name: str
    tensors: int
    parameters: int
    nbytes: int
    dtypes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderReport:
    """What a folder is. Everything is as far as it can be told; sizes are in bytes.

    `architecture` is the known architecture that the weights have, or with `is_exact` false the one nearest to them;
    `described` and `found` are what config.json and the weights say, in words. `rows` is the length of the embedding
    table. `policy` is how videos are followed unless asked otherwise; a model without a grounder has none. `is_tied`
    says that the output head repeats the embeddings. `memory` is what the weights need in each precision (mask decoders
    stay in fp32, and layers of language model and vision tower alone are quantised), `working_memory` about what a
    question needs besides, by what is asked and then by precision. `code` and `pickles` are files that are never
    executed or read. `problems` are why the folder cannot be used: first lines are summaries, indented lines belong to
    the one above.
    """

    folder: Path
    family: str | None
    layout: Literal["official", "segue"] | None
    architecture: str | None
    is_exact: bool
    described: str
    found: str
    template: str | None
    rows: int | None
    policy: Literal["upstream", "consistent"] | None
    is_tied: bool
    components: tuple[Component, ...]
    files: tuple[str, ...]
    weight_bytes: int
    folder_bytes: int
    memory: Mapping[str, int]
    working_memory: Mapping[str, Mapping[str, int]]
    code: tuple[str, ...]
    pickles: tuple[str, ...]
    lineage: Mapping[str, Any] | None
    problems: tuple[str, ...]

    @property
    def is_usable(self) -> bool:
        """Whether the model would load."""
        return not self.problems

    @property
    def parameters(self) -> int:
        """How many numbers the weight files hold."""
        return sum(part.parameters for part in self.components)


def report(folder: Path) -> FolderReport:
    """What a folder is, from its small files and the headers of the large ones; also of folders that do not fit.

    Raises: CheckpointError, if there is no such folder.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; expected a model folder with config.json and *.safetensors")
    problems: list[str] = []
    raw = _attempt(problems, weights.read_json, folder / "config.json") or {}
    files = _attempt(problems, weights.checkpoint_files, folder) or ()
    headers: dict[str, Stored] = {}
    for file in files:
        headers |= _attempt(problems, weights.read_header, file) or {}
    planned = None if problems else _attempt(problems, plan, folder)
    layout, places = planned or (None, {})
    fits = layout is not None and _attempt(problems, check, layout, places, headers) is not None
    family = layout.config.family if layout else _family_name(raw)
    wanted = FAMILIES[family].tokenizer_files if family is not None and family in FAMILIES else TOKENIZER_FILES
    if not any((folder / name).is_file() for name in wanted):
        problems.append(f"{folder} has no tokenizer; expected one of {', '.join(wanted)}")
    sizes = zoo.Sizes.of_shapes({name: stored.shape for name, stored in headers.items()})
    nearest = zoo.nearest(sizes)
    config = layout.config if layout else None
    has_both = config.two_decoders if config else bool(sizes.two_decoders)
    return FolderReport(
        folder=folder,
        family=family,
        layout=None if layout is None else "official" if layout.table is not None else "segue",
        architecture=nearest,
        is_exact=nearest is not None and zoo.is_exactly(sizes, nearest),
        described=str(zoo.Sizes.of_config(config) if config else zoo.Sizes()),
        found=str(sizes),
        template=config.template if config else None,
        rows=sizes.rows,
        policy=None if sizes.sam2 is None else "consistent" if has_both else "upstream",
        is_tied=bool(layout and layout.tied) and not any(re.search(_HEAD, name) for name in headers),
        components=components(headers, layout),
        files=tuple(file.name for file in files),
        weight_bytes=sum(file.stat().st_size for file in files),
        folder_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        memory=_weights(places, config) if config and fits else {},
        working_memory=_working(config) if config and fits else {},
        code=_code(folder, raw),
        pickles=weights.pickled(folder),
        lineage=_lineage(folder),
        problems=tuple(problems),
    )


def _attempt(problems: list[str], function: Callable[..., _Result], *arguments: Any) -> _Result | None:
    """What the function returns, or its error among the problems."""
    try:
        return function(*arguments)
    except SegueError as error:
        problems.extend(str(error).splitlines())
        return None


def _family_name(raw: Mapping[str, Any]) -> str | None:
    if raw.get("model_type") == MODEL_TYPE:
        return str(raw.get("family"))
    return next((name for name in FAMILIES if FAMILIES[name].claims(raw)), None)


def components(headers: Mapping[str, Stored], layout: Layout | None) -> tuple[Component, ...]:
    """The parts of a model and what the files hold of each; without a layout, by the first word of the names."""
    found: dict[str, list[Stored]] = {}
    if layout is None:
        for name, stored in headers.items():
            found.setdefault(name.split(".")[0], []).append(stored)
        return tuple(_component(title, tensors) for title, tensors in found.items())
    known = grounded.components(FAMILIES[layout.config.family])
    rules = None if layout.table is None else compiled(layout.table)
    for name, stored in headers.items():
        write = match(name, rules)
        part = component_of(write.places[0] if write else "", known)
        found.setdefault(_TITLES.get(part, str(part)), []).append(stored)
    return tuple(
        _component(title, found[title]) for title in {**dict.fromkeys(_TITLES.values()), **found} if title in found
    )


def _component(name: str, tensors: list[Stored]) -> Component:
    dtypes: Counter[str] = Counter()
    for stored in tensors:
        dtypes[stored.dtype] += stored.numel
    words = tuple(word for word, _ in dtypes.most_common())
    return Component(name, len(tensors), dtypes.total(), sum(stored.nbytes for stored in tensors), words)


def _weights(places: footprint.Shapes, config: VisionLanguageConfig) -> dict[str, int]:
    exact = {name: footprint.weight_memory(places, size) for name, size in footprint.SIZES.items()}
    size = footprint.SIZES["bf16"]
    return exact | {bits: footprint.placed_memory(places, size, config.family, quantize=bits) for bits in BITS}


def _working(config: VisionLanguageConfig) -> dict[str, dict[str, int]]:
    works = _WORDS if config.sam2_config is None else WORK
    return {
        name: {dtype: footprint.working_memory(config, size, work) for dtype, size in footprint.SIZES.items()}
        for name, work in works.items()
    }


def _code(folder: Path, raw: Mapping[str, Any]) -> tuple[str, ...]:
    files = sorted(path.name for path in folder.glob("*.py"))
    return (*files, *(["auto_map in config.json"] if raw.get("auto_map") else []))


def _lineage(folder: Path) -> Mapping[str, Any] | None:
    path = folder / weights.LINEAGE
    try:
        return weights.read_json(path) if path.is_file() else None
    except CheckpointError as error:
        return {"unreadable": str(error)}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing found out about a folder's contents: fine, a note that stops nothing, or a problem."""

    name: str
    status: Literal["ok", "note", "problem"]
    value: str


@dataclass(frozen=True, slots=True)
class TensorScan:
    """One tensor that has been read: its bytes on disk, and what is wrong with its numbers, if anything is."""

    name: str
    nbytes: int
    fault: str

    @property
    def is_zero(self) -> bool:
        """Whether it is nothing but zeros: odd for a matrix, and no more than that."""
        return self.fault == ALL_ZEROS


def scan(folder: Path) -> Iterator[TensorScan]:
    """Read every tensor of a folder once, one at a time, and judge its numbers.

    Raises: CheckpointError, if a file cannot be read.
    """
    headers = weights.read_headers(folder)
    for file in weights.checkpoint_files(folder):
        names = [name for name, stored in headers.items() if stored.file == file]
        for name, tensor in zip(names, weights.read_tensors(file, names), strict=True):
            yield TensorScan(name, headers[name].nbytes, fault(tensor))


def fault(tensor: Tensor) -> str:
    """What is wrong with a tensor's numbers: NaN, infinite, or a whole matrix of zeros; empty if nothing is."""
    if not tensor.is_floating_point():
        return ""
    bad, is_zero = 0, tensor.ndim > 1 and tensor.numel() > 1
    for start in range(0, tensor.numel(), _CHUNK):
        part = tensor.flatten()[start : start + _CHUNK]
        numbers = part.float() if part.element_size() == 1 else part
        bad += int((~numbers.isfinite()).sum())
        is_zero = is_zero and not bool(numbers.any())
    if bad:
        return f"{bad} of {tensor.numel()} numbers are NaN or infinite"
    return ALL_ZEROS if is_zero else ""


def check_tokenizer(folder: Path) -> list[Check]:
    """Whether the tokenizer of a folder whose headers fit loads, knows the tokens that the model speaks in, and agrees
    with its embedding rows.
    """
    config = read_layout(folder).config
    rows = config.mllm_config.text_config.vocab_size
    try:
        processor = load_processor(folder, config)
    except SegueError as error:
        return [Check("tokenizer", "problem", str(error))]
    tokenizer: Any = processor.tokenizer
    checks = [_check_length(len(tokenizer), rows)]
    for token in GROUNDING_TOKENS if config.sam2_config is not None else ():
        try:
            checks.append(Check(token, "ok", f"one token, id {single_id(tokenizer, token, rows)}"))
        except SegueError as error:
            checks.append(Check(token, "problem", str(error)))
    return [*checks, _check_stops(processor, config.template)]


def _check_stops(processor: Processor, name: str) -> Check:
    pieces = {stop: processor.tokenizer.encode(stop, add_special_tokens=False) for stop in processor.template.stops}
    words = [f"{stop} ({f'{len(ids)} tokens of text' if ids[1:] else 'one token'})" for stop, ids in pieces.items()]
    return Check("template", "ok", f"{name}; an answer ends at {' or '.join(words)}")


def _check_length(tokens: int, rows: int) -> Check:
    if tokens > rows:
        return Check("tokenizer", "problem", f"{tokens} tokens for {rows} embedding rows; it belongs to another model")
    if tokens < rows:
        return Check("tokenizer", "note", f"{tokens} tokens, {rows - tokens} embedding rows are never used")
    return Check("tokenizer", "ok", f"{tokens} tokens, as many as embedding rows")
