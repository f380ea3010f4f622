"""Messages to model-ready rows: the one path for training and inference.

A prompt is built in one place, here, from the turns of a dialogue and a family's processor, so that what a model was
trained on and what it is asked are the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from segue.errors import DataError
from segue.media import read_frames
from segue.media.sampling import choose
from segue.models.pieces import IGNORED, Marks, Piece, encode_row, framed
from segue.models.protocol import Batch, Processor, Visual
from segue.types import Frames, MarkedText, Media, Message, Region

MAX_CHARACTERS = 400_000
"""Of one turn: more than fits into the positions of any model."""


@dataclass(frozen=True, slots=True)
class View:
    """A medium as the language model is shown it: its visual tokens, the frames behind them, and the frame plan.

    `plan` are the frame numbers that were asked for, repeats included; `shown` has each of them once.
    """

    media: Media
    visual: Visual
    shown: Frames
    plan: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Example:
    """One row: token ids, the labels to be learned from it (-100 elsewhere), and the view it speaks of.

    `answer_start` is where the part of the reply that the caller gave begins; the length of the row if none was given.
    """

    ids: Int[Tensor, " s"]
    labels: Int[Tensor, " s"]
    answer_start: int
    view: View | None


def look(media: Media, processor: Processor, *, frames: str, max_tiles: int = 12) -> View:
    """Decode what the language model is to see of a medium: an image whole, a video by the plan `frames`.

    `frames` is a plan of `segue.media.sampling.choose`; an image ignores it.

    Raises: MediaError, LimitError and ConfigError, as decoding and choosing do.
    """
    plan = (0,) if media.kind == "image" else choose(frames, media.count, media.fps)
    return view_of(media, read_frames(media, tuple(dict.fromkeys(plan))), plan, processor, max_tiles=max_tiles)


def view_of(media: Media, shown: Frames, plan: tuple[int, ...], processor: Processor, *, max_tiles: int = 12) -> View:
    """The view of a medium whose frames are decoded already."""
    is_image = media.kind == "image"
    visual = processor.image(shown.pixels[0], max_tiles=max_tiles) if is_image else processor.frames(shown.pixels)
    return View(media, visual, shown, plan)


def prepare(
    messages: Sequence[Message],
    processor: Processor,
    *,
    frames: str = "first:5",
    max_tiles: int = 12,
    prefill: str | None = None,
    view: View | None = None,
) -> Example:
    """A dialogue as one row. It may show several images or videos; the last one is what `[SEG]`s point into.

    Answers among the messages are labelled for learning, their terminator included. Marks in what a person wrote are
    text: they begin no turn, show nothing and ask for nothing. `prefill` is a reply that the
    caller gives in the model's stead; it is left open at its end. `view` saves looking at its medium again.

    Raises: DataError, for a dialogue that no model here can be asked.
    """
    _check_turns(messages)
    chat = processor.template
    row = _Row(processor)
    if messages[0].role != "system":
        row.add(framed(chat.opening, (), chat.learned))

    def seen(media: Media) -> View:
        is_known = view is not None and view.media is media
        return view if is_known and view else look(media, processor, frames=frames, max_tiles=max_tiles)

    views: list[View] = []
    for number, message in enumerate(messages):
        if message.role == "assistant":
            row.add([*_answer(message, processor, views), Piece(chat.answer_end, is_learned=True)])
            if number + 1 < len(messages):
                row.add([Piece(chat.separator)])
            continue
        content = _render(message, processor, seen, views)
        row.add(framed(chat.system if message.role == "system" else chat.user, content, chat.learned))
    answer_start = len(row.ids)
    if prefill is not None:
        row.add([Piece(prefill, is_learned=True, writer="model")])
    whole = _together(views)
    _check_visual_tokens(row.ids.count(processor.visual_id), whole, processor)
    return Example(torch.tensor(row.ids), torch.tensor(row.labels), answer_start, whole)


class _Row:
    """Token ids and labels, turn by turn."""

    def __init__(self, processor: Processor):
        self.tokenizer, self.apart = processor.tokenizer, processor.template.apart
        self.marks = Marks.of(self.tokenizer.get_added_vocab())
        self.ids: list[int] = list(processor.bos_ids)
        self.labels: list[int] = [IGNORED] * len(self.ids)

    def add(self, pieces: Sequence[Piece]) -> None:
        """Encode what stands together.

        Raises: DataError, for text that no model reads.
        """
        for piece in pieces:
            _check_text(piece.text)
        ids, labels = encode_row(pieces, self.tokenizer, self.marks, apart=self.apart)
        self.ids += ids
        self.labels += labels


def _together(views: Sequence[View]) -> View | None:
    """The last of some views, with the visual tokens of all of them."""
    if len(views) < 2:
        return views[0] if views else None
    rows, encoded = [], 0
    for visual in (view.visual for view in views):
        rows.append(visual.rows + encoded)
        encoded += visual.features
    grids = [view.visual.grids for view in views if view.visual.grids is not None]
    visual = Visual(
        torch.cat([view.visual.pixels for view in views]),
        "".join(view.visual.text for view in views),
        torch.cat(rows),
        encoded,
        torch.cat(grids) if grids else None,
    )
    return replace(views[-1], visual=visual)


def _check_text(text: str) -> None:
    """Refuse what no model reads, before a tokenizer takes a thousand times its memory.

    Raises: DataError, for too much text, or bytes that are none.
    """
    if len(text) > MAX_CHARACTERS:
        raise DataError(f"a turn has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read: shorten it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"the text holds bytes that are no text, at character {error.start} ({text[:40]!r}); write it in UTF-8"
        ) from error


def _check_turns(messages: Sequence[Message]) -> None:
    roles = [message.role for message in messages if message.role != "system"]
    wanted = ["user", "assistant"] * len(roles)
    if not roles or roles != wanted[: len(roles)] or any(m.role == "system" for m in messages[1:]):
        raise DataError(
            f"the turns are {[message.role for message in messages]}; expected user and assistant in turn, "
            "beginning with the user, after at most one system message"
        )
    parts = [part for message in messages if message.role != "user" for part in message.parts]
    if any(isinstance(part, Media) for part in parts):
        raise DataError("an image or video stands in a turn that is not the user's; only users show things")


def _check_visual_tokens(found: int, view: View | None, processor: Processor) -> None:
    wanted = 0 if view is None else len(view.visual.rows)
    if found != wanted:
        raise DataError(
            f"the prompt has {found} visual tokens where what it shows needs {wanted}; "
            f"take {processor.visual_token} out of the text that is read with its marks"
        )


def _render(message: Message, processor: Processor, seen: Callable[[Media], View], views: list[View]) -> list[Piece]:
    """A user's turn in pieces; what it shows, in reading order, is added to `views`."""
    pieces: list[Piece] = []
    regions = [part for part in message.parts if isinstance(part, Region)]
    written = {id(region): _placed(region, processor, message, views) for region in regions}
    marked = [region for region in regions if written[id(region)] is None]
    count = sum(isinstance(part, Media) for part in message.parts)
    if marked and count != 1:
        raise DataError(
            f"the message marks {len(marked)} regions of {count or 'no'} images; give the one image that they are on "
            "in the same message"
        )
    shown = 0
    for part in message.parts:
        if isinstance(part, Region):
            pieces += written[id(part)] or []
        elif isinstance(part, str):
            pieces.append(Piece(part, writer="template" if isinstance(part, MarkedText) else "user"))
        else:
            view = seen(part)
            if marked:
                view = replace(view, visual=_marked(processor, view, marked))
            views.append(view)
            block = processor.template.picture.format(number=len(views), medium=view.visual.text)
            # PARITY(images_first): what a turn shows stands before its text, with nothing in between
            pieces.insert(shown if processor.shows_first else len(pieces), Piece(block))
            shown += 1
    return pieces


def _placed(region: Region, processor: Processor, message: Message, views: Sequence[View]) -> list[Piece] | None:
    """A region as the family writes it; it lies on the last medium shown up to its turn."""
    here = [part for part in message.parts if isinstance(part, Media)]
    media = here[-1] if here else views[-1].media if views else None
    return processor.place(region, media.size if media else (1, 1))


def _answer(message: Message, processor: Processor, views: Sequence[View]) -> list[Piece]:
    """An answer in pieces, all of them learned.

    Raises: DataError, for a region where the family writes no places.
    """
    pieces: list[Piece] = []
    for part in message.parts:
        if isinstance(part, str):
            pieces.append(Piece(part, writer="model"))
        elif isinstance(part, Region):
            written = _placed(part, processor, message, views)
            if written is None:
                raise DataError("an answer holds a region, and this family writes no places in words; answer with text")
            pieces += written
    return [replace(piece, is_learned=True) for piece in pieces]


def _marked(processor: Processor, view: View, regions: Sequence[Region]) -> Visual:
    if view.media.kind == "video":
        raise DataError(f"{len(regions)} regions are marked in a video; region prompts are for images")
    return processor.regions(view.visual, np.stack([_region_mask(region, view.media.size) for region in regions]))


def _region_mask(region: Region, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    if region.masks is not None:
        if region.masks.size != size:
            raise DataError(f"a region's mask is {region.masks.size} (height, width), its image is {size}")
        return region.masks.dense(0)
    if region.box is None:
        raise DataError("a region prompt has neither a mask nor a box")
    if not np.isfinite(region.box).all():
        raise DataError(f"a region prompt's box is {region.box.tolist()}; expected x0 y0 x1 y1 in pixels")
    mask = np.zeros(size, bool)
    left, top, right, bottom = (round(float(edge)) for edge in region.box)
    mask[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
    return mask


def collate(examples: Sequence[Example], processor: Processor) -> Batch:
    """Rows to a batch, padded on the left. A view that several rows share is encoded once."""
    ids = _pad_left([example.ids for example in examples], 0)
    attention = _pad_left([torch.ones_like(example.ids) for example in examples], 0)
    labels = _pad_left([example.labels for example in examples], IGNORED)
    first_row: dict[int, int] = {}
    shown: list[Visual] = []
    rows: list[Tensor] = []
    encoded = 0
    for view in (example.view for example in examples if example.view is not None):
        key = view.visual.pixels.data_ptr()
        if key not in first_row:
            first_row[key] = encoded
            shown.append(view.visual)
            encoded += view.visual.features
        rows.append(view.visual.rows + first_row[key])
    if not rows:
        return Batch(ids, attention, labels)
    places = (ids == processor.visual_id) & (attention == 1)
    grids = [visual.grids for visual in shown if visual.grids is not None]
    pixels = torch.cat([visual.pixels for visual in shown])
    return Batch(ids, attention, labels, pixels, places, torch.cat(rows), torch.cat(grids) if grids else None)


def _pad_left(rows: Sequence[Int[Tensor, " _"]], value: int) -> Int[Tensor, "b s"]:
    return pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side="left")
