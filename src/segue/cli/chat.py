"""`segue chat`: talk about an image or a video, turn by turn; what the answers point at can be kept."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from segue.cli import options
from segue.cli.console import STDERR, Bar, error, say, visible
from segue.errors import ConfigError, SegueError
from segue.options import Options
from segue.reading import at_home, refuse_url
from segue.types import Answer, Event, Finished, FrameMasks, MaskTrack, Media, Message, ObjectsFound, Region, TextDelta

if TYPE_CHECKING:
    from segue.models.protocol import Parse

Stream = Callable[[Sequence[Message]], Iterator[Event]]
"""Answers the last of some messages. What it returns is a generator; closing it stops the model."""

HELP = """\
/open FILE   talk about another image, video or frame folder, from the beginning
/show FILE   show another one along with the next question; places are on the one shown last
/reset       forget the dialogue, keep the image or video
/save DIR    write the last answer there: text, scores, masks, overlay
/quit        leave (so does Ctrl-D); Ctrl-C stops an answer
Anything else is said to the model."""

_SPECIAL = re.compile(r"<\|[^<>|]+\|>|</s>")
_TERMINATOR = re.compile(rf"(\s*({_SPECIAL.pattern}))+\s*$")


@options.expanded
def command(
    media: Annotated[
        str | None,
        typer.Argument(metavar="[MEDIA]", help="An image, a video or a frame folder; - is what is piped in."),
    ] = None,
    *,
    loading: options.ModelOptions,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder that gets every answer that points at something.")
    ] = None,
    ask: Annotated[str | None, typer.Option("--ask", help="Ask this one question and leave.")] = None,
    answering: options.AnswerOptions,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, help="0 always takes the likeliest word.")
    ] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", min=0.0, max=1.0, help="Share of likely words to draw.")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the draws, where the temperature is above 0.")] = 0,
    formats: options.Formats = options.FORMATS,
    as_json: options.Json = False,
) -> None:
    """Talk about an image or a video; answers may carry regions.

    Type /help once inside. With --ask, the answer goes to stdout and a table
    of what it points at to stderr.
    """
    from segue.media import open_media

    if as_json and ask is None:
        raise ConfigError("--json needs --ask: a dialogue has no single result")
    wanted = options.parse_formats(formats)
    opened: Media | None = None
    if media in options.PIPED:
        if ask is None:
            raise ConfigError("the image or video is piped in, so that nothing can be typed; add --ask QUESTION")
        opened = open_media(options.read_piped())
    elif media is not None:
        refuse_url(media)
        opened = open_media(at_home(media))
    if not as_json:
        loading.tell_limits()

    drawing: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "seed": seed}
    settings = Options(**asdict(answering), **drawing, keep_logits="logits" in wanted)
    from segue.models.prefill import LastPrompt  # with PyTorch, so that what was said wrong is told before

    loaded, last_prompt = loading.load(), LastPrompt()
    session = Session(
        lambda messages: loaded.stream_answer(messages, settings, last_prompt=last_prompt),
        loaded.model.family.parse,
        opened,
        out=output,
        formats=wanted,
    )
    if ask is None:
        talk(session)
    elif session.ask(ask, quiet=as_json) is None:
        raise KeyboardInterrupt
    elif as_json:
        print(json.dumps(session.result()))


class Session:
    """A dialogue. Its list of messages is all the memory there is, beside `media`, which was shown last or will be.

    With `out`, every answer that points at something is written there while it comes, as answer-001 and so on.
    """

    def __init__(self, stream: Stream, parse: Parse, media: Media | None, *, out: Path | None, formats: Sequence[str]):
        self.media = media
        self.messages: list[Message] = []
        self._unseen = media
        self._stream = stream
        self._parse = parse
        self._out = out
        self._formats = formats
        self._last: Answer | None = None
        self._folder: Path | None = None

    def ask(self, text: str, *, quiet: bool = False) -> Answer | None:
        """Put a question and show the answer as it comes; `None` if Ctrl-C stopped it, which leaves no trace.

        `quiet` keeps text and table to itself.

        Raises: SegueError, if the question cannot be answered; the dialogue stays as it was.
        """
        from segue.jobs.manifest import disk_errors

        question = Message.user(text, self._unseen)
        self._folder = None
        try:
            events = cast("Generator[Event]", self._stream([*self.messages, question]))
            with disk_errors(self._out or Path()), closing(events):
                answer = self._follow(events, quiet=quiet)
        except KeyboardInterrupt:
            say("\nstopped; the question is forgotten")
            return None
        self.messages += [question, Message("assistant", (spoken(answer),))]
        self._unseen = None
        self._last = answer
        if not quiet:
            show_regions(answer)
            if self._folder is not None:
                say(f"written to {self._folder}")
        return answer

    def result(self) -> dict[str, Any]:
        """The last answer as JSON, with the folder it was written to, if it was."""
        from segue.output.results import describe

        if self._last is None:
            raise ConfigError("there is no answer yet; ask something first")
        return {**describe(self._last), "folder": None if self._folder is None else str(self._folder)}

    def open(self, path: str) -> None:
        """Talk about another medium, from the beginning.

        Raises: MediaError, LimitError; the dialogue stays as it was.
        """
        self.show(path)
        self.messages.clear()

    def show(self, path: str) -> None:
        """Show another medium along with the next question.

        Raises: MediaError, LimitError; the dialogue stays as it was.
        """
        from segue.media import open_media

        self.media = self._unseen = open_media(at_home(path))
        say(f"{self.media.name}: {describe_media(self.media)}")

    def reset(self) -> None:
        """Forget the dialogue and keep the medium."""
        self.messages.clear()
        self._unseen = self.media
        say("the dialogue is forgotten")

    def save(self, path: str) -> None:
        """Write the last answer to a folder, which must be new, empty, or such a folder already.

        Raises: ConfigError, if there is no answer or the folder holds something else; SegueError, if the disk cannot
        take it.
        """
        from segue.jobs.manifest import disk_errors
        from segue.output.results import save

        answer = self._last
        if answer is None or answer.media is None:
            raise ConfigError("there is no answer about an image or video to save yet; ask something first")
        folder = at_home(path)
        with disk_errors(folder.parent):
            save(answer, folder, self._formats)
        say(f"written to {folder}")

    def _follow(self, events: Iterator[Event], *, quiet: bool) -> Answer:
        """Take in an answer's events: show them, and write them down where the answer points at something."""
        from segue.output.results import ResultWriter, save

        answer: Answer | None = None
        writer: ResultWriter | None = None
        said = _Said(self._parse)
        with ExitStack() as stack:
            bar = stack.enter_context(Bar("answer", hidden=quiet))
            for event in events:
                if not quiet:
                    said.take(event)
                _move(event, bar)
                if isinstance(event, ObjectsFound) and self._out is not None:
                    self._folder = _next_folder(self._out)
                    writer = stack.enter_context(ResultWriter(self._folder, event.media, self._formats))
                if writer is not None:
                    writer.write(event)
                if isinstance(event, Finished):
                    answer = event.answer
            if answer is None:
                raise RuntimeError("the engine's stream ended without an answer")
            if writer is not None:
                writer.finish(answer)
            elif self._out is not None and answer.media is not None and answer.regions:
                self._folder = _next_folder(self._out)
                save(answer, self._folder, self._formats)
        return answer


def talk(session: Session) -> None:
    """Read lines and answer them until the end of input; errors are told and leave the session as it was."""
    prompt = "> " if sys.stdin.isatty() and sys.stdout.isatty() else ""
    if prompt:
        import readline  # noqa: F401 - importing it is what gives `input` a history

        if session.media is not None:
            say(f"{session.media.name}: {describe_media(session.media)}")
        say("/help lists the commands")
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            say("\n/quit or Ctrl-D leaves")
            continue
        if line == "/quit":
            return
        try:
            _act(session, line)
        except SegueError as problem:
            error(str(problem))


def spoken(answer: Answer) -> str:
    """What the model said, with its marks and without the token that ended it: a turn of the dialogue to come."""
    return _TERMINATOR.sub("", answer.raw_text)


def show_regions(answer: Answer) -> None:
    """Print a table of what an answer points at: phrase, estimated IoU, presence and share of the picture; of what it
    places in words, the box in pixels.

    Presence is the mean probability of being visible; the share is the mean over the frames that show any of it.
    """
    if not answer.regions:
        return
    if all(region.masks is None for region in answer.regions):
        _show_places(answer.regions)
        return
    table = Table("#", "phrase", "score", "presence", "area", box=SIMPLE_HEAD)
    for number, region in enumerate(answer.regions, start=1):
        presence = None if region.presence is None else float(region.presence.mean())
        table.add_row(
            str(number),
            Text(region.phrase),
            "-" if region.score is None else f"{region.score:.2f}",
            "-" if presence is None else f"{presence:.0%}",
            "-" if region.masks is None else f"{area_share(region.masks):.1%}",
        )
    STDERR.show(table)


def _show_places(regions: Sequence[Region]) -> None:
    table = Table("#", "phrase", "left", "top", "right", "bottom", "", box=SIMPLE_HEAD)
    for number, region in enumerate(regions, start=1):
        edges = ["-"] * 4 if region.box is None else [f"{edge:.0f}" for edge in region.box]
        table.add_row(str(number), Text(region.phrase), *edges, "" if region.quad is None else "quad")
    STDERR.show(table)


def area_share(track: MaskTrack) -> float:
    """Share of the picture under a mask, the mean over the frames in which it is not empty; 0 if it always is."""
    from pycocotools import mask as coco

    areas = [int(coco.area(track.rle(position))) for position in range(len(track))]
    visible = [area for area in areas if area]
    height, width = track.size
    return sum(visible) / len(visible) / (height * width) if visible else 0.0


def describe_media(media: Media) -> str:
    """What a medium is, in a few words."""
    height, width = media.size
    if media.kind == "image":
        return f"image, {width} x {height}"
    rate = "" if media.fps is None else f", {media.fps:.3g} per second"
    return f"video, {width} x {height}, {media.count} frames{rate}"


def _act(session: Session, line: str) -> None:
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    if not line.startswith("/"):
        if line:
            session.ask(line)
    elif name == "/help":
        say(HELP)
    elif name == "/reset":
        session.reset()
    elif name in ("/open", "/show", "/save"):
        if not rest:
            raise ConfigError(f"{name} needs a path")
        {"/open": session.open, "/show": session.show, "/save": session.save}[name](rest)
    else:
        raise ConfigError(f"unknown command {name}; /help lists the commands")


class _Said:
    """Prints an answer's text while it comes; a mark or a place in words is never cut, for it is never shown."""

    def __init__(self, parse: Parse) -> None:
        from segue.clean_text import CleanText

        self._text = CleanText(parse)
        self._is_over = False

    def take(self, event: Event) -> None:
        """Print what can be told now."""
        if isinstance(event, TextDelta):
            print(visible(self._text.add(event.text)), end="", flush=True)
        elif isinstance(event, ObjectsFound | Finished) and not self._is_over:
            self._is_over = True
            print(visible(self._text.finish()), flush=True)


def _move(event: Event, bar: Bar) -> None:
    if isinstance(event, ObjectsFound):
        bar.start_frames(event.media.name, event.media.count)
    if isinstance(event, FrameMasks):
        bar.step_frame()


def _next_folder(out: Path) -> Path:
    """answer-001, or the first number after the highest that is there."""
    found = (re.fullmatch(r"answer-([0-9]+)", path.name) for path in out.glob("answer-*"))
    return out / f"answer-{max((int(match[1]) for match in found if match), default=0) + 1:03d}"
