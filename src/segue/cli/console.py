"""What a person reads while a command works: plain lines, logs and a progress bar, all on stderr.

On a terminal there is a bar with the time left; elsewhere only plain lines, so that logs stay readable.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from types import TracebackType

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_UNBOUNDED = 10_000  # characters across
_LONGEST = 8_000  # characters of an error
_EVERY = 15.0  # seconds between two lines of progress where there is no terminal


def visible(text: str) -> str:
    """Text with what would steer the terminal, turn its direction, or is no character at all, made visible.

    Names of files and tensors, phrases, categories and answers are written by others.
    """
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def one_line(text: str) -> str:
    """Text with its line breaks made visible, which names of files may have."""
    return text.replace("\n", "\\n")


def shortened(text: str) -> str:
    """Text of an error without its middle, where a file has put megabytes into it."""
    left_out = len(text) - _LONGEST
    half = _LONGEST // 2
    return text if left_out <= 0 else f"{text[:half]} ... ({left_out:,} characters are left out) ... {text[-half:]}"


class VisibleConsole(Console):
    """A console on which nothing that others wrote steers the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is printed, with its text made visible."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)

    def show(self, table: Table) -> None:
        """Print a table with no word of it cut: as wide as it is where nothing bounds that (a pipe), wrapped between
        words where they fit, else row by row, each cell behind its heading. Lines of a pipe end without blanks.
        """
        wide = self.options.update(width=_UNBOUNDED)
        ranges = [self._range(column, wide) for column in table.columns]
        frame = Measurement.get(self, wide, table).maximum - sum(most for _, most in ranges)
        if not self.is_terminal and "COLUMNS" not in os.environ:
            self.width = max(self.width, frame + sum(most for _, most in ranges))
        widths = [most for _, most in ranges]
        while sum(widths) > self.width - frame:
            loose = [place for place, (least, _) in enumerate(ranges) if widths[place] > least]
            if not loose:
                self._show_rows(table)
                return
            widths[max(loose, key=widths.__getitem__)] -= 1
        for column, width in zip(table.columns, widths, strict=True):
            column.width, column.no_wrap, column.overflow = width, False, "fold"
        if self.is_terminal:
            self.print(table)
            return
        with self.capture() as drawn:
            self.print(table)
        self.file.write("".join(f"{line.rstrip()}\n" for line in drawn.get().splitlines()))
        self.file.flush()

    def _range(self, column: Column, wide: ConsoleOptions) -> tuple[int, int]:
        """The least and the most characters across that a column takes with whole words."""
        cells = [Measurement.get(self, wide, cell) for cell in (column.header, *column.cells, column.footer)]
        most = max(cell.maximum for cell in cells)
        return most if column.no_wrap else max(cell.minimum for cell in cells), most

    def _show_rows(self, table: Table) -> None:
        if table.title is not None:
            self.print(self._line(table.title))
        heads = [self._line(column.header) for column in table.columns] if table.show_header else []
        rows = [list(row) for row in zip(*(column.cells for column in table.columns), strict=True)]
        if table.show_footer:
            rows.append([column.footer for column in table.columns])
        for first, *others in rows:
            pairs = zip(heads[1:] or [Text()] * len(others), map(self._line, others), strict=True)
            told = [Text.assemble(head, " " * bool(head), cell) for head, cell in pairs if cell]
            name = self._line(first)
            name.stylize("bold")
            self.print(Text.assemble(name, ": " * bool(told), Text(", ").join(told)))

    def _line(self, cell: RenderableType) -> Text:
        """A cell on one line."""
        text = cell if isinstance(cell, Text) else self.render_str(str(cell))
        return Text(" ").join(text.split("\n"))


STDERR = VisibleConsole(stderr=True)


def say(text: str, *, style: str | None = None) -> None:
    """Print one line for people, never wrapped and never read as markup."""
    STDERR.print(Text(text, style=style or ""), soft_wrap=True)


def error(text: str) -> None:
    """Print one line that says what went wrong."""
    STDERR.print(Text.assemble(("error: ", "bold red"), one_line(shortened(text))), soft_wrap=True)


class LogHandler(logging.Handler):
    """Logs as plain lines above whatever progress bar is showing."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record."""
        say(f"{record.levelname.lower()}: {self.format(record)}", style="dim")


@contextmanager
def told_forms() -> Iterator[None]:
    """Says of folders of one's own what they are read as, and which rows a split is, where that is guessed."""
    log = logging.getLogger("segue.own_data.folder")
    before = log.level
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(before)


class Bar:
    """How far a command is, with the time left: `segue.progress.Progress` for people; a context manager.

    A bar on a terminal, with a second one for the frames of the input at work; elsewhere a line every now and then.
    Shows from the first `start` on, and not where `hidden`. Failures are counted, and the first few of them told.
    """

    def __init__(self, title: str, *, hidden: bool = False, failures_told: int = 5):
        self._is_plain = not STDERR.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=STDERR,
            disable=hidden or self._is_plain,
            redirect_stdout=False,
            transient=True,
        )
        self._is_hidden = hidden
        self._title, self._failures_told = title, failures_told
        self._total = self._before = self._done = self._failed = 0
        self._began = self._told = 0.0  # when the first step was over; when a line was printed last
        self._steps = self._progress.add_task(title, total=None, visible=False)
        self._frames = self._progress.add_task("frames", total=None, visible=False)

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def start(self, total: int, done: int = 0) -> None:
        """So many steps are to be done, so many of which are done already."""
        self._progress.start()
        self._total, self._before = total, done
        if not self._done:
            self._told = perf_counter()
        if done:
            say(f"{self._title}: {done:,} of {total:,} are done already")
        self._progress.update(self._steps, total=total, completed=done + self._done, visible=total > 1)

    def step(self, failure: str | None = None) -> None:
        """One more step is done, or has failed for this reason."""
        self._done += 1
        now = perf_counter()
        if self._done == 1:
            self._began = now  # it has loaded the model, which no other does
        if failure is not None:
            self._failed += 1
            if self._failed <= self._failures_told:
                error(failure)
        failed = f", {self._failed} failed" if self._failed else ""
        self._progress.update(self._frames, visible=False)
        self._progress.update(self._steps, completed=self._before + self._done, description=self._title + failed)
        if self._is_plain and not self._is_hidden and now - self._told >= _EVERY:
            self._told, done = now, self._before + self._done
            seconds = (now - self._began) / max(self._done - 1, 1) * (self._total - done)
            left = f", {seconds:.0f} s left" if self._done > 1 and done < self._total else ""
            say(f"{self._title}: {done:,} of {self._total:,}{failed}{left}", style="dim")

    def start_frames(self, name: str, frames: int) -> None:
        """The step at work is an input of so many frames."""
        self._progress.start()
        self._progress.reset(self._frames, total=frames, description=one_line(name), visible=True)

    def step_frame(self) -> None:
        """One more frame of it is done."""
        self._progress.advance(self._frames)
