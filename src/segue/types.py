"""The core data types, shared by every room of the house.

Letters in shapes: n objects (one per `[SEG]`), t frames, h w pixels, s the side of a low-resolution mask.
Everything here is numpy and plain Python, so importing it is cheap and values can be pickled between processes.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

MediaKind = Literal["image", "video"]
Role = Literal["system", "user", "assistant"]
StopReason = Literal["stop", "length", "prefilled", "cancelled"]
Task = Literal["segment", "chat", "caption", "region"]


class _Value:
    """Equality by content, for values that hold arrays; and a hash that equal ones share."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(_equal(mine, theirs) for mine, theirs in zip(_content(self), _content(other), strict=True))

    def __hash__(self) -> int:
        return hash((type(self).__name__, *map(_hashed, _content(self))))


def _content(value: Any) -> list[Any]:
    return [getattr(value, part.name) for part in fields(value)]


def _equal(mine: Any, theirs: Any) -> bool:
    if isinstance(mine, np.ndarray) or isinstance(theirs, np.ndarray):
        if not (isinstance(mine, np.ndarray) and isinstance(theirs, np.ndarray)) or mine.dtype != theirs.dtype:
            return False
        return np.array_equal(mine, theirs, equal_nan=mine.dtype.kind == "f")
    return bool(mine == theirs)


def _hashed(part: Any) -> int:
    """Arrays count by their shape, and mappings not at all: equal values have equal hashes, which is all it takes."""
    if isinstance(part, np.ndarray):
        return hash(part.shape)
    return 0 if isinstance(part, Mapping) else hash(part)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Media(_Value):
    """An image or a video that has been probed but not decoded; cheap and picklable.

    `size` is (height, width) in pixels as a viewer would show it, after EXIF orientation or rotation metadata.
    `count` is the number of frames (1 for an image) and is exact; `fps` is the mean frame rate of a video, `None`
    where it is unknown or does not apply. `source` is a path, the encoded bytes of a file, or decoded RGB
    pixels: `UInt8[h w 3]` for an image, `UInt8[t h w 3]` for a video. `window` are the values that become black and
    white in pictures of more than 8 bits. `notes` say for people what is not taken as it stands, such as a picture that
    was windowed or frames that are lost. `seconds` are the times at which the frames of decoded pixels are shown,
    counted from the first, where they are not even; of a file its decoder tells them.
    """

    source: Path | bytes | np.ndarray
    kind: MediaKind
    size: tuple[int, int]
    count: int = 1
    fps: float | None = None
    window: tuple[int | float, int | float] | None = None
    notes: tuple[str, ...] = ()
    seconds: Float[np.ndarray, " t"] | None = None

    def seconds_at(self, index: int) -> float | None:
        """When a frame is shown, in seconds from the first: its own time where that is known, else by the mean rate;
        None without a clock.
        """
        if self.seconds is not None:
            return float(self.seconds[index])
        return index / self.fps if self.fps else None

    @property
    def name(self) -> str:
        """A short name for people: the file or folder name, or what kind of value it is."""
        return self.source.name if isinstance(self.source, Path) else f"<{self.kind}>"

    def __repr__(self) -> str:
        length = f", {self.count} frames" if self.kind == "video" else ""
        rate = f", {self.fps:g} fps" if self.fps else ""
        return f"Media({self.name}, {self.kind}, {_sides(self.size)}{length}{rate})"


@dataclass(frozen=True, slots=True, eq=False)
class Frames(_Value):
    """Decoded frames: RGB pixels, the frame number of each in its source, and its time in seconds from the start."""

    pixels: UInt8[np.ndarray, "t h w 3"]
    index: Int[np.ndarray, " t"]
    seconds: Float[np.ndarray, " t"]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class MaskTrack(_Value):
    """One object's masks over the frames of a medium (a single frame for an image).

    `size` is (height, width) of the medium; `index` holds the frame numbers in the source, in order; `rles` one COCO
    compressed run-length string per frame (column-major, as pycocotools writes it). `logits` are the decoder's
    low-resolution mask logits and are kept only on request, so that a threshold can move without another run
    (`segue.geometry.masks.at_threshold`).
    """

    size: tuple[int, int]
    index: Int[np.ndarray, " t"]
    rles: tuple[str, ...]
    logits: Float[np.ndarray, "t s s"] | None = None

    def __len__(self) -> int:
        return len(self.rles)

    def __repr__(self) -> str:
        return f"MaskTrack({_sides(self.size)}, {len(self)} frame{'s' * (len(self) != 1)})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All masks, for `np.asarray`: `Bool[t h w]`, or of another type if one is asked for."""
        if copy is False:
            raise ValueError("masks are decoded from run lengths, which takes a copy; ask with copy=None or True")
        masks = np.zeros((len(self), *self.size), bool)
        for position in range(len(self)):
            masks[position] = self.dense(position)
        return masks if dtype is None else masks.astype(dtype)

    def rle(self, position: int) -> dict[str, Any]:
        """The mask at a position of the track as a COCO RLE object: {"size": [h, w], "counts": str}."""
        return {"size": list(self.size), "counts": self.rles[position]}

    def dense(self, position: int = 0) -> Bool[np.ndarray, "h w"]:
        """The mask at a position of the track (not a frame number), decoded to `Bool[h w]`."""
        from pycocotools import mask as coco

        encoded = {"size": list(self.size), "counts": self.rles[position].encode("ascii")}
        mask: Bool[np.ndarray, "h w"] = coco.decode(encoded).astype(bool)
        return mask


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Region(_Value):
    """Something pointed at: by a user (a region prompt), by an annotation, or by a model's answer.

    `phrase` is what it was called; `span` where in the answer's text that stands, as [start, stop) characters.
    `box` is x0 y0 x1 y1 in pixels of the original medium, right and bottom exclusive; with masks it is the tight box
    of the first frame in which the mask is not empty. `score` in [0, 1] is the mask decoder's own estimate of its IoU,
    the mean over frames. `scores` and `presence` say it per frame: estimated IoU, and the probability that the object
    is visible there. `quad` are the corners x y of a slanted place such as a line of text, clockwise from its upper
    left, in the same pixels; `box` is then around them.
    """

    phrase: str = ""
    span: tuple[int, int] | None = None
    box: Float[np.ndarray, " 4"] | None = None
    masks: MaskTrack | None = None
    score: float | None = None
    scores: Float[np.ndarray, " t"] | None = None
    presence: Float[np.ndarray, " t"] | None = None
    quad: Float[np.ndarray, "4 2"] | None = None

    def __repr__(self) -> str:
        told = [repr(self.phrase)]
        if self.box is not None:
            told.append(f"box={tuple(round(float(edge), 1) for edge in self.box)}")
        if self.score is not None:
            told.append(f"score={self.score:.3f}")
        if self.masks is not None:
            told.append(repr(self.masks))
        return f"Region({', '.join(told)})"


def _sides(size: tuple[int, int]) -> str:
    """A (height, width) for people, width first."""
    return f"{size[1]}x{size[0]}"


class MarkedText(str):
    """Text of a question in which marks count, such as `<ref>`. Code writes it; what a person wrote is a plain `str`,
    whose marks are letters and nothing else.
    """

    __slots__ = ()


Part = str | Media | Region


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a dialogue: text, media and region prompts in reading order.

    Text parts stand verbatim in the prompt: a medium is replaced by its visual tokens with nothing added around them.
    `Message.user` adds the line break that the models were trained with. A region in an answer is written as the family
    writes places.
    """

    role: Role
    parts: tuple[Part, ...]

    @classmethod
    def user(cls, text: str, media: Media | None = None, regions: tuple[Region, ...] = ()) -> Message:
        """A user's turn about at most one medium.

        A literal `<image>` in the text says where the medium goes; without one it goes first, on a line of its
        own, as in training. Region prompts belong to the medium.

        Raises: DataError, if the text is none, or the medium not opened, or if `<image>` occurs twice, or without a
        medium.
        """
        from segue.errors import DataError

        if not isinstance(text, str):
            raise DataError(f"what is asked is text, and {text!r} is none; write it in quotes")
        if media is not None and not isinstance(media, Media):
            # a path would stand in the question as words
            raise DataError(
                f"a message shows an opened image or video, and {reprlib.repr(media)} is none; "
                "open it with segue.open_media first"
            )
        places = text.count("<image>")
        if places > 1 or (places == 1 and media is None):
            raise DataError(
                f"the text has {places} <image> placeholders for {0 if media is None else 1} medium; "
                "write at most one, and only when an image or video is given"
            )
        if media is None:
            return cls("user", (*regions, text))
        before, after = text.split("<image>") if places else ("", "\n" + text)
        parts: tuple[Part, ...] = (before, media, *regions, after)
        return cls("user", tuple(part for part in parts if not isinstance(part, str) or part))

    @property
    def text(self) -> str:
        """The text parts joined, without media and regions."""
        return "".join(part for part in self.parts if isinstance(part, str))


def target_media(messages: Sequence[Message]) -> Media | None:
    """The medium that masks of a dialogue lie on, which is the last that was shown; None if none was."""
    shown = [part for message in messages for part in message.parts if isinstance(part, Media)]
    return shown[-1] if shown else None


@dataclass(frozen=True, slots=True, eq=False)
class Sample(_Value):
    """One thing to learn from or to be measured on: a dialogue and the regions that its answers point at.

    `id` is unique within its dataset, `source` names the dataset. `regions` stand in the order of the `[SEG]`s in the
    answers, all on the last medium of the dialogue, with masks at `frames`: the frame numbers that are shown, (0,)
    for an image and () for text alone. `group` is what must not be parted between training and test, such as a
    patient or a video; `task` the kind of question. `target` holds what only a score needs beside the dialogue:
    reference answers, options, the right letter, the kind of question; values that JSON can hold.
    """

    id: str
    task: Task
    messages: tuple[Message, ...]
    regions: tuple[Region, ...] = ()
    frames: tuple[int, ...] = ()
    source: str = ""
    group: str = ""
    target: Mapping[str, Any] = field(default_factory=dict)

    @property
    def target_media(self) -> Media | None:
        """The medium that the regions lie on."""
        return target_media(self.messages)


@dataclass(frozen=True, slots=True, eq=False)
class Usage(_Value):
    """What an answer cost: token counts, frames that went through the mask encoder, and wall seconds per stage.

    `cached_tokens` of the prompt were not read again, but known from a prompt that began alike.
    """

    prompt_tokens: int = 0
    visual_tokens: int = 0
    answer_tokens: int = 0
    encoded_frames: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token of an answer as text, its log-probability (at most 0), and the likeliest in its place with theirs."""

    text: str
    logprob: float
    likeliest: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Answer(_Value):
    """What a model said and what it pointed at.

    `text` is clean; `raw_text` is what was generated, special tokens and terminator included. `regions` stand in
    reading order, one per `[SEG]`, and lie on `media`; boxes that were given in words come after them, without masks.
    `lineage` names model, code version, precision and every choice that decided the result (policy, frames, threshold,
    prompt ...). `scores` say on request how likely each token of `raw_text` was.
    """

    text: str
    regions: tuple[Region, ...] = ()
    raw_text: str = ""
    media: Media | None = None
    usage: Usage = field(default_factory=Usage)
    stop_reason: StopReason = "stop"
    lineage: dict[str, Any] = field(default_factory=dict)
    scores: tuple[TokenScore, ...] = ()

    def __repr__(self) -> str:
        pieces = self.text if len(self.text) <= 80 else self.text[:77] + "..."
        regions = "".join(f", {region!r}" for region in self.regions[:3])
        more = f", and {len(self.regions) - 3} regions more" if len(self.regions) > 3 else ""
        return f"Answer({pieces!r}{regions}{more})"


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of answer text as it is generated."""

    text: str


@dataclass(frozen=True, slots=True)
class ObjectsFound:
    """The language side is done: these regions will be followed on `media`. They carry phrases and spans, no masks."""

    media: Media
    regions: tuple[Region, ...]


@dataclass(frozen=True, slots=True, eq=False)
class FrameMasks(_Value):
    """Masks of all objects on one frame, in frame order; `index` is the frame number in the source.

    `image` holds the frame's RGB pixels, so that a reader can draw on them without decoding again. `scores` are
    estimated IoUs, `presence` probabilities that the object is visible; both in [0, 1].
    """

    index: int
    seconds: float
    image: UInt8[np.ndarray, "h w 3"]
    masks: Bool[np.ndarray, "n h w"]
    scores: Float[np.ndarray, " n"]
    presence: Float[np.ndarray, " n"]


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a stream: the whole answer."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class Failed:
    """A request that could not be answered, and why; those beside it go on."""

    error: Exception


Event = TextDelta | ObjectsFound | FrameMasks | Finished
