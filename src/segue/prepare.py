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
from segue.models.protocol import Batch, Processor, Visual
from segue.types import Frames, Media, Message, Region

IGNORED = -100


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

    Answers among the messages are labelled for learning, their terminator included. `prefill` is a reply that the
    caller gives in the model's stead; it is left open at its end. `view` saves looking at its medium again.

    Raises: DataError, for a dialogue that no model here can be asked.
    """
    _check_turns(messages)
    chat = processor.template
    segments: list[tuple[str, bool]] = [] if messages[0].role == "system" else [(chat.opening, False)]

    def seen(media: Media) -> View:
        is_known = view is not None and view.media is media
        return view if is_known and view else look(media, processor, frames=frames, max_tiles=max_tiles)

    views: list[View] = []
    for number, message in enumerate(messages):
        if message.role == "assistant":
            segments.append((message.text + chat.answer_end, True))
            if number + 1 < len(messages):
                segments.append((chat.separator, False))
            continue
        text, shown = _render(message, processor, seen)
        views += shown
        frame = chat.system if message.role == "system" else chat.user
        segments.append((frame.replace("{text}", text), False))
    ids, labels = list(processor.bos_ids), [IGNORED] * len(processor.bos_ids)
    for text, is_learned in segments:
        _append(ids, labels, processor.tokenizer.encode(text, add_special_tokens=False), is_learned)
    answer_start = len(ids)
    if prefill is not None:
        _append(ids, labels, processor.tokenizer.encode(prefill, add_special_tokens=False), True)
    whole = _together(views)
    _check_visual_tokens(ids.count(processor.visual_id), whole, processor)
    return Example(torch.tensor(ids), torch.tensor(labels), answer_start, whole)


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


def _append(ids: list[int], labels: list[int], pieces: list[int], is_learned: bool) -> None:
    ids += pieces
    labels += pieces if is_learned else [IGNORED] * len(pieces)


def _check_turns(messages: Sequence[Message]) -> None:
    roles = [message.role for message in messages if message.role != "system"]
    wanted = ["user", "assistant"] * len(roles)
    if not roles or roles != wanted[: len(roles)] or any(m.role == "system" for m in messages[1:]):
        raise DataError(
            f"the turns are {[message.role for message in messages]}; expected user and assistant in turn, "
            "beginning with the user, after at most one system message"
        )
    if any(not isinstance(part, str) for message in messages if message.role != "user" for part in message.parts):
        raise DataError("an image, video or region stands in a turn that is not the user's; only users show things")


def _check_visual_tokens(found: int, view: View | None, processor: Processor) -> None:
    wanted = 0 if view is None else len(view.visual.rows)
    if found != wanted:
        raise DataError(
            f"the prompt has {found} visual tokens where what it shows needs {wanted}; "
            f"take {processor.visual_token} out of the text"
        )


def _render(message: Message, processor: Processor, seen: Callable[[Media], View]) -> tuple[str, list[View]]:
    """A user's turn as text, and what it shows in reading order."""
    pieces: list[str] = []
    views: list[View] = []
    regions = [part for part in message.parts if isinstance(part, Region)]
    count = sum(isinstance(part, Media) for part in message.parts)
    if regions and count != 1:
        raise DataError(
            f"the message marks {len(regions)} regions of {count or 'no'} images; give the one image that they are on "
            "in the same message"
        )
    for part in message.parts:
        if isinstance(part, str):
            pieces.append(part)
        elif isinstance(part, Media):
            view = seen(part)
            if regions:
                view = replace(view, visual=_marked(processor, view, regions))
            # PARITY(images_first): what a turn shows stands before its text, with nothing in between
            pieces.insert(len(views) if processor.shows_first else len(pieces), view.visual.text)
            views.append(view)
    return "".join(pieces), views


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
