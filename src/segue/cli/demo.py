"""`segue demo`: the main job on a scene and a clip made on the spot, and how well it went, for their truth is known."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from segue.cli import options, segment
from segue.cli.console import VisibleConsole, say, visible
from segue.errors import ConfigError
from segue.options import Options
from segue.types import Event, Finished, FrameMasks, Media, ObjectsFound

if TYPE_CHECKING:
    from segue.demo import Challenge
    from segue.jobs.run import Segment
else:
    # Drawing scenes brings numpy's and Pillow's heavier parts along, which `--help` can do without.
    Challenge = Any

_INPUTS, _COMPARED = "input", "compared"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the demo's table: what was asked of which input, how many things it means, how many were found.

    Things of a score below `segment.WEAK` are probably not there: `weak` says whether all that were found are such.
    `iou` in [0, 1] compares all that was found with all that was meant, the mean over frames.
    """

    input: str
    phrase: str
    meant: int
    found: int
    weak: bool
    iou: float


@options.expanded
def command(
    output: options.Output = Path("segue-out"),
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, help="Of the scene and the clip; without one they are new every time."),
    ] = None,
    *,
    loading: options.ModelOptions,
    as_json: options.Json = False,
) -> None:
    """Run the main job on a scene and a clip made on the spot.

    Asks for a thing, an attribute, a relation, something that is not there
    and, in the clip, a motion. Writes masks and overlays as `segue segment`
    does, and truth and answer side by side.
    """
    from segue import demo

    seed = secrets.randbelow(2**31) if seed is None else seed
    say(f"Drawing a scene and a clip from seed {seed}.")
    asked = demo.challenges(seed)
    lines, compared = _run(asked, output, loading)
    mean = float(np.mean([line.iou for line in lines]))
    if as_json:
        result = {"seed": seed, "model": loading.model, "output": str(output), "mean_iou": mean}
        print(json.dumps({**result, "answers": [asdict(line) for line in lines]}))
        return
    VisibleConsole().show(_table(lines, mean))
    print(visible(f"truth and answer side by side: {'  '.join(str(path) for path in compared)}"))


def _run(asked: Sequence[Challenge], output: Path, loading: options.ModelOptions) -> tuple[list[Line], list[Path]]:
    """Do the job as `segue segment` does it, and compare; also the pictures of truth and answer side by side.

    Raises: SegueError, if the model, the folder or an input cannot be used.
    """
    from segue.jobs.manifest import disk_errors
    from segue.jobs.run import BatchJob

    with disk_errors(output):
        sources = _write(asked, output)
    found: dict[str, _FoundMasks] = {}

    def load() -> Segment:
        loaded = loading.load()

        def ask(media: Media) -> Iterator[Event]:
            challenge = asked[[source.name for source in sources].index(media.name)]
            found[challenge.name] = _FoundMasks({}, {}, {})
            phrases = [phrase.words["en"] for phrase in challenge.phrases]
            yield from _watched(loaded.stream_segment(media, phrases, Options()), media, found[challenge.name])

        return ask

    settings = {"demo": {source.name: challenge.scene.group for source, challenge in zip(sources, asked, strict=True)}}
    job = BatchJob(
        out=output, formats=("png", "coco", "overlay"), settings={**settings, **asdict(loading)}, overwrite=True
    )
    tally = segment.run(sources, job, load)
    if tally.failed:
        raise typer.Exit(2)
    with disk_errors(output):
        pictures = [challenge.compare(found[challenge.name].masks, output / _COMPARED) for challenge in asked]
    return [line for challenge in asked for line in _compared(challenge, found[challenge.name])], pictures


@dataclass(frozen=True, slots=True)
class _FoundMasks:
    """What was found of each phrase: how many things, all of them as one mask per frame, and the best score."""

    counts: dict[str, int]
    masks: dict[str, np.ndarray]
    scores: dict[str, float]


def _watched(events: Iterator[Event], media: Media, found: _FoundMasks) -> Iterator[Event]:
    """The events as they come, noting what they bring."""
    phrases: list[str] = []
    for event in events:
        if isinstance(event, ObjectsFound):
            phrases = [region.phrase for region in event.regions]
            for phrase in phrases:
                found.counts[phrase] = phrases.count(phrase)
                found.masks[phrase] = np.zeros((media.count, *media.size), dtype=bool)
        if isinstance(event, FrameMasks):
            for phrase, mask in zip(phrases, event.masks, strict=True):
                found.masks[phrase][event.index] |= mask
        if isinstance(event, Finished):
            for region in event.answer.regions:
                if region.score is not None:
                    found.scores[region.phrase] = max(region.score, found.scores.get(region.phrase, 0.0))
        yield event


def _compared(challenge: Challenge, found: _FoundMasks) -> Iterator[Line]:
    for phrase in challenge.phrases:
        words = phrase.words["en"]
        masks = found.masks.get(words)
        if masks is None:
            masks = np.zeros(challenge.scene.frames.shape[:3], dtype=bool)
        score = challenge.score(phrase, masks)
        yield Line(
            input=challenge.name,
            phrase=words,
            meant=len(phrase.objects),
            found=found.counts.get(words, 0),
            weak=found.scores.get(words, 1.0) < segment.WEAK,
            iou=round(score, 4),
        )


def _write(asked: Sequence[Challenge], output: Path) -> list[Path]:
    """Write what is asked about; returns its paths. The folder of comparisons is made too.

    Raises: ConfigError, if there is a file where a folder should be.
    """
    try:
        for name in (_INPUTS, _COMPARED):
            (output / name).mkdir(parents=True, exist_ok=True)
        return [challenge.write(output / _INPUTS).resolve() for challenge in asked]
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"{error.filename} is a file; -o takes a folder to write results into") from error


def _table(lines: Sequence[Line], mean: float) -> Table:
    table = Table(box=SIMPLE_HEAD, show_footer=True)
    for title, footer in (("input", "mean"), ("asked for", ""), ("there", ""), ("found", ""), ("IoU", f"{mean:.2f}")):
        table.add_column(title, footer, justify="left" if title in ("input", "asked for") else "right")
    for line in lines:
        found = f"{line.found}, probably not there" if line.weak else str(line.found)
        table.add_row(line.input, Text(line.phrase), str(line.meant), found, f"{line.iou:.2f}")
    return table
