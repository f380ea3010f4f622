"""Messages to model-ready rows: the one path for training and inference.

A prompt is built in one place, here, from the turns of a dialogue and a family's processor, so that what a model was
trained on and what it is asked are the same tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from segue.errors import DataError, LimitError
from segue.features import Features
from segue.media import read_frames
from segue.media.sampling import choose
from segue.models.pieces import IGNORED, Marks, Piece, encode_row, framed
from segue.models.protocol import Batch, Processor, VisionInput, shown_as
from segue.types import Frames, MarkedText, Media, Message, Region

MOST_LETTERS = 400_000
"""Of all turns of a dialogue; more cannot have been meant to be read."""


@dataclass(slots=True, eq=False)
class MediaInput:
    """A medium as the language model is shown it: its visual tokens, the frames behind them, and the frame plan.

    `plan` are the frame numbers that were asked for, repeats included. `key` says what it is and how it is shown: media
    of one key in a batch are encoded once. Without a key a medium is itself alone.
    """

    media: Media
    vision: VisionInput
    plan: tuple[int, ...]
    key: tuple[str, str] | None = None
    decoded: Frames | None = None

    @property
    def shown(self) -> Frames:
        """The frames of the plan, each once; decoded now, if they were not before."""
        if self.decoded is None:
            self.decoded = _decode(self.media, self.plan)
        return self.decoded


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """One row: token ids, the labels to be learned from it (-100 elsewhere), and the media it shows, in order.

    `answer_start` is where the part of the reply that the caller gave begins; the length of the row if none was given.
    """

    ids: Int[Tensor, " s"]
    labels: Int[Tensor, " s"]
    answer_start: int
    media: tuple[MediaInput, ...] = ()

    @property
    def num_visual_tokens(self) -> int:
        """How many of its tokens stand for features."""
        return sum(len(medium.vision.rows) for medium in self.media)


def preprocess_media(
    media: Media,
    processor: Processor,
    *,
    frames: str,
    max_tiles: int = 12,
    key: tuple[str, str] | None = None,
    features: Features | None = None,
) -> MediaInput:
    """What the language model is to see of a medium: an image whole, a video by the plan `frames`.

    `frames` is a plan of `segue.media.sampling.choose`; an image ignores it. With `features`, computed before from the
    same medium shown in the same way, nothing is decoded.

    Raises: MediaError, LimitError and ConfigError, as decoding and choosing do.
    """
    plan = (0,) if media.kind == "image" else choose(frames, media.count, media.fps)
    if features is not None:
        grids = features.beside.get("grids")
        vision = shown_as(processor, media.kind, len(features.values), grids=grids, features=features.values)
        return MediaInput(media, vision, plan, key)
    return preprocess_frames(media, _decode(media, plan), plan, processor, max_tiles=max_tiles, key=key)


def preprocess_frames(
    media: Media,
    decoded: Frames,
    plan: tuple[int, ...],
    processor: Processor,
    *,
    max_tiles: int = 12,
    key: tuple[str, str] | None = None,
) -> MediaInput:
    """What the language model is to see of a medium whose frames are decoded already."""
    is_image = media.kind == "image"
    vision = processor.image(decoded.pixels[0], max_tiles=max_tiles) if is_image else processor.frames(decoded.pixels)
    return MediaInput(media, vision, plan, key, decoded)


def _decode(media: Media, plan: tuple[int, ...]) -> Frames:
    return read_frames(media, tuple(dict.fromkeys(plan)))


def prepare(
    messages: Sequence[Message],
    processor: Processor,
    *,
    frames: str = "first:5",
    max_tiles: int = 12,
    prefill: str | None = None,
    media: Sequence[MediaInput] = (),
) -> TokenizedExample:
    """A dialogue as one row. It may show several images or videos; the last one is what `[SEG]`s point into.

    Answers among the messages are labelled for learning, their terminator included. Marks in what a person wrote are
    text: they begin no turn, show nothing and ask for nothing. `prefill` is a reply that the caller gives in the
    model's stead; it is left open at its end. `media` are those that were preprocessed before.

    Raises: DataError, for a dialogue that no model here can be asked.
    """
    _check_turns(messages)
    _check_unicode(prefill or "")
    chat = processor.template
    row = _Row(processor)
    if messages[0].role != "system":
        row.add(framed(chat.opening, (), chat.learned))

    def seen(medium: Media) -> MediaInput:
        known = next((one for one in media if one.media is medium), None)
        return known or preprocess_media(medium, processor, frames=frames, max_tiles=max_tiles)

    inputs: list[MediaInput] = []
    for number, message in enumerate(messages):
        if message.role == "assistant":
            row.add([*_answer(message, processor, inputs), Piece(chat.answer_end, is_learned=True)])
            if number + 1 < len(messages):
                row.add([Piece(chat.separator)])
            continue
        content = _render(message, processor, seen, inputs)
        row.add(framed(chat.system if message.role == "system" else chat.user, content, chat.learned))
    answer_start = len(row.ids)
    if prefill is not None:
        row.add([Piece(prefill, is_learned=True, writer="model")])
    example = TokenizedExample(torch.tensor(row.ids), torch.tensor(row.labels), answer_start, tuple(inputs))
    found = row.ids.count(processor.visual_id)
    if found != example.num_visual_tokens:
        raise DataError(
            f"the prompt has {found} visual tokens where what it shows needs {example.num_visual_tokens}; "
            f"take {processor.visual_token} out of the text that is read with its marks"
        )
    return example


class _Row:
    """Token ids and labels, turn by turn."""

    def __init__(self, processor: Processor):
        self.tokenizer, self.apart = processor.tokenizer, processor.template.apart
        self.marks = Marks.of(self.tokenizer.get_added_vocab())
        self.ids: list[int] = list(processor.bos_ids)
        self.labels: list[int] = [IGNORED] * len(self.ids)

    def add(self, pieces: Sequence[Piece]) -> None:
        """Encode what stands together."""
        ids, labels = encode_row(pieces, self.tokenizer, self.marks, apart=self.apart)
        self.ids += ids
        self.labels += labels


def _check_unicode(text: str) -> None:
    """Refuse text that holds bytes that are none.

    Raises: DataError.
    """
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
    letters = sum(len(message.text) for message in messages)
    if letters > MOST_LETTERS:
        raise LimitError(f"the dialogue has {letters:,} letters; expected at most {MOST_LETTERS:,}: shorten it")
    for message in messages:
        _check_unicode(message.text + "".join(part.phrase for part in message.parts if isinstance(part, Region)))
    parts = [part for message in messages if message.role != "user" for part in message.parts]
    if any(isinstance(part, Media) for part in parts):
        raise DataError("an image or video stands in a turn that is not the user's; only users show things")


def _render(
    message: Message, processor: Processor, seen: Callable[[Media], MediaInput], inputs: list[MediaInput]
) -> list[Piece]:
    """A user's turn in pieces; what it shows, in reading order, is added to `inputs`."""
    pieces: list[Piece] = []
    regions = [part for part in message.parts if isinstance(part, Region)]
    written = {id(region): _placed(region, processor, message, inputs) for region in regions}
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
            medium = seen(part)
            if marked:
                medium = replace(medium, vision=_marked(processor, medium, marked))
            inputs.append(medium)
            block = processor.template.picture.format(number=len(inputs), medium=medium.vision.text)
            # PARITY(images_first): what a turn shows stands before its text, with nothing in between
            pieces.insert(shown if processor.shows_first else len(pieces), Piece(block))
            shown += 1
    return pieces


def _placed(region: Region, processor: Processor, message: Message, inputs: Sequence[MediaInput]) -> list[Piece] | None:
    """A region as the family writes it; it lies on the last medium shown up to its turn."""
    here = [part for part in message.parts if isinstance(part, Media)]
    media = here[-1] if here else inputs[-1].media if inputs else None
    return processor.place(region, media.size if media else (1, 1))


def _answer(message: Message, processor: Processor, inputs: Sequence[MediaInput]) -> list[Piece]:
    """An answer in pieces, all of them learned.

    Raises: DataError, for a region where the family writes no places.
    """
    pieces: list[Piece] = []
    for part in message.parts:
        if isinstance(part, str):
            pieces.append(Piece(part, writer="model"))
        elif isinstance(part, Region):
            written = _placed(part, processor, message, inputs)
            if written is None:
                raise DataError("an answer holds a region, and this family writes no places in words; answer with text")
            pieces += written
    return [replace(piece, is_learned=True) for piece in pieces]


def _marked(processor: Processor, shown: MediaInput, regions: Sequence[Region]) -> VisionInput:
    if shown.media.kind == "video":
        raise DataError(f"{len(regions)} regions are marked in a video; region prompts are for images")
    return processor.regions(shown.vision, np.stack([_region_mask(region, shown.media.size) for region in regions]))


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


def collate(examples: Sequence[TokenizedExample], processor: Processor) -> Batch:
    """Rows to a batch, padded on the left. A medium that several rows share, by its key, is in it once.

    Media without pixels, states and features are given to the model by the caller.

    Raises: DataError, if some media come as pixels and others as states or features.
    """
    ids = _pad_left([example.ids for example in examples], 0)
    attention = _pad_left([torch.ones_like(example.ids) for example in examples], 0)
    labels = _pad_left([example.labels for example in examples], IGNORED)
    first_row: dict[object, int] = {}
    shown: list[VisionInput] = []
    rows: list[Tensor] = []
    encoded = 0
    for number, medium in enumerate(medium for example in examples for medium in example.media):
        key = medium.key or number
        if key not in first_row:
            first_row[key] = encoded
            shown.append(medium.vision)
            encoded += medium.vision.num_features
        rows.append(medium.vision.rows + first_row[key])
    if not rows:
        return Batch(ids, attention, labels)
    places = (ids == processor.visual_id) & (attention == 1)
    grids = [vision.grids for vision in shown if vision.grids is not None]
    return Batch(
        ids,
        attention,
        labels,
        visual_places=places,
        visual_rows=torch.cat(rows),
        grids=torch.cat(grids) if grids else None,
        **_given(shown),
    )


def content_of(example: TokenizedExample, processor: Processor) -> Int[Tensor, " s"]:
    """What stands at each place of a row: the id of text; at a visual token a negative number that says of which medium
    it is which feature, equal only for equal features.

    Raises: DataError, for a medium without a key.
    """
    content, features = example.ids.clone(), []
    for medium in example.media:
        if medium.key is None:
            raise DataError(f"{medium.media.name} has no key by which another prompt could know it")
        number = int.from_bytes(hashlib.sha256("\n".join(medium.key).encode()).digest()[:4], "big")
        features.append(-1 - (medium.vision.rows + (number << 31)))
    if features:
        content[content == processor.visual_id] = torch.cat(features)
    return content


def _given(shown: Sequence[VisionInput]) -> dict[str, Tensor]:
    """What media are given as, together."""
    found = {
        name: [part for vision in shown if (part := getattr(vision, name)) is not None]
        for name in ("pixels", "states", "features")
    }
    if len(given := {name: parts for name, parts in found.items() if parts}) > 1:
        raise DataError(f"media of one batch are given as {' and '.join(given)}; give all of them in one form")
    return {name: torch.cat(parts) for name, parts in given.items()}


def _pad_left(rows: Sequence[Int[Tensor, " _"]], value: int) -> Int[Tensor, "b s"]:
    return pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side="left")
