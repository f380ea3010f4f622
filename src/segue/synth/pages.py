"""Generated pages: lines of text on a background, with the exact place of each as a quad.

Source: the idea of SynthDoG (Donut, arXiv 2111.15664), of which Qwen-VL's pages for reading were made.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from segue.data.base import Rows
from segue.errors import ConfigError, DataError
from segue.media import open_media
from segue.synth.backgrounds import choose, paint_background
from segue.synth.painting import COLOURS
from segue.synth.scenes import Split, check_split, checked_size, generator
from segue.synth.wording import LANGUAGES, Language, vocabulary
from segue.types import Message, Region, Sample

PROMPT = "OCR with grounding:"
FONT_FOLDERS = tuple(
    Path(folder).expanduser()
    for folder in (
        "/usr/share/fonts",
        "/usr/local/share/fonts",
        "~/.local/share/fonts",
        "~/.fonts",
        "/Library/Fonts",
        "/System/Library/Fonts",
        "C:/Windows/Fonts",
    )
)
FontChoice = Literal["pillow", "system"]

_LETTERS = {"en": "Qag59", "zh": "图文字的"}
_NO_LETTER = "\U000f0000"  # of private use, so that a font shows what it has for letters it lacks
_MARGIN = 0.04  # of the shorter side
_STEEPEST = 7.0  # degrees
_LEAST_HEIGHT = 9  # pixels


@dataclass(frozen=True, slots=True)
class Page:
    """A page and its lines from top to bottom, each with its words and the quad around its ink (pixels x y)."""

    name: str
    pixels: UInt8[np.ndarray, "h w 3"]
    lines: tuple[Region, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """What is written on a page: 1 to `most_lines` lines of a language.

    `fonts` is `pillow`, the one that comes with the library and is the same everywhere, or `system`, all of the
    machine's that have the language's letters. `words` are what may be written, parted by spaces; those of the scenes'
    vocabulary, and numbers, where there are none. A line has 1 to `most_words`; letters are `least_height` to
    `most_height` of the page high.
    """

    language: Language = "en"
    fonts: FontChoice = "pillow"
    most_lines: int = 8
    most_words: int = 4
    words: str = ""
    least_height: float = 0.035
    most_height: float = 0.09

    def __post_init__(self) -> None:
        known = self.language in LANGUAGES and self.fonts in ("pillow", "system")
        if not 0 < self.least_height <= self.most_height < 1:
            raise ConfigError(
                f"letters of {self.least_height} to {self.most_height} of a page cannot be drawn; expected shares "
                "between 0 and 1, the smaller first"
            )
        if not known or self.most_lines < 1 or self.most_words < 1:
            raise ConfigError(
                f"a page in {self.language!r} with {self.fonts!r} fonts and up to {self.most_lines} lines of "
                f"{self.most_words} words cannot be drawn; expected en or zh, pillow or system, and at least 1 of each"
            )


def page(
    seed: int,
    index: int,
    *,
    split: Split = "train",
    size: tuple[int, int] = (448, 448),
    writing: Writing | None = None,
) -> Page:
    """Page number `index` of a seed; the same arguments give the same page wherever the fonts are the same.

    Raises: ConfigError, for a size out of range; DataError, if there is no font for the language.
    """
    writing = writing or Writing()
    height, width = checked_size(size)
    rng = generator("page", split, seed, index)
    ground = choose(rng)
    picture = Image.fromarray(paint_background(ground, (height, width), rng))
    margin = _MARGIN * min(height, width)
    slant = math.radians(rng.uniform(-_STEEPEST, _STEEPEST)) * rng.integers(2)
    lines: list[Region] = []
    top = margin
    for _ in range(int(rng.integers(1, writing.most_lines + 1))):
        font = _font(
            rng, writing, max(_LEAST_HEIGHT, round(height * rng.uniform(writing.least_height, writing.most_height)))
        )
        ink = _ink(_words(rng, writing), font, (width - 2 * margin) / math.cos(slant))
        if ink is None:
            continue
        text, mask = ink
        across, down = _extent(mask, slant)
        if top + down > height - margin or across > width - 2 * margin:
            break
        left = margin + rng.uniform(0, width - 2 * margin - across)
        middle = (left + across / 2, top + down / 2)
        colour = COLOURS[str(rng.choice(ground.colours()))][0]
        quad = _write(picture, mask, middle, slant, tuple(int(part) for part in colour))
        lines.append(Region(phrase=text, quad=quad, box=np.concatenate([quad.min(0), quad.max(0)])))
        top += down + height * rng.uniform(0.02, 0.08)
    return Page(f"page-{split}-{seed}-{index}-{writing.language}", np.asarray(picture), tuple(lines))


def _extent(mask: Image.Image, slant: float) -> tuple[float, float]:
    """Width and height that turned ink takes."""
    cosine, sine = abs(math.cos(slant)), abs(math.sin(slant))
    return cosine * mask.width + sine * mask.height, sine * mask.width + cosine * mask.height


def _words(rng: np.random.Generator, writing: Writing) -> list[str]:
    known = tuple(writing.words.split()) or _corpus(writing.language)
    count = int(rng.integers(1, writing.most_words + 1))
    drawn = [known[int(number)] for number in rng.integers(len(known), size=count)]
    if not writing.words and rng.uniform() < 0.2:
        drawn[-1] = str(int(rng.integers(10_000)))
    return drawn


@cache
def _corpus(language: Language) -> tuple[str, ...]:
    """The words of the scenes' vocabulary, without what is to be filled in."""
    texts = [re.sub(r"\{\w+\}|<.*?>|\[\w+\]", " ", one) for many in vocabulary(language).values() for one in many]
    pattern = r"[a-z]{2,}" if language == "en" else r"[\u4e00-\u9fff]{1,4}"
    return tuple(sorted({word for text in texts for word in re.findall(pattern, text.lower())}))


def _ink(words: list[str], font: ImageFont.FreeTypeFont, room: float) -> tuple[str, Image.Image] | None:
    """As many of the words as fit into a line, and their ink cropped to its edges; `None` if not even one fits."""
    for count in range(len(words), 0, -1):
        text = " ".join(words[:count])
        left, upper, right, lower = font.getbbox(text)
        if right - left <= room:
            canvas = Image.new("L", (math.ceil(right - left) + 4, math.ceil(lower - upper) + 4))
            ImageDraw.Draw(canvas).text((2 - left, 2 - upper), text, fill=255, font=font)
            return text, canvas.crop(canvas.getbbox())
    return None


def _write(
    picture: Image.Image, mask: Image.Image, middle: tuple[float, float], slant: float, colour: tuple[int, ...]
) -> Float[np.ndarray, "4 2"]:
    """Put ink onto the picture, turned about its middle; returns its corners, clockwise from the upper left."""
    cosine, sine = math.cos(slant), math.sin(slant)
    half = np.array([mask.width / 2, mask.height / 2])
    # from a pixel of the picture to one of the ink
    back = (
        *(cosine, sine, half[0] - cosine * middle[0] - sine * middle[1]),
        *(-sine, cosine, half[1] + sine * middle[0] - cosine * middle[1]),
    )
    turned = mask.transform(picture.size, Image.Transform.AFFINE, back, Image.Resampling.BICUBIC)
    picture.paste(Image.new("RGB", picture.size, colour), mask=turned)
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * half
    turn = np.array([[cosine, sine], [-sine, cosine]])
    quad: np.ndarray = corners @ turn + middle
    return quad


def _font(rng: np.random.Generator, writing: Writing, height: int) -> ImageFont.FreeTypeFont:
    language = writing.language
    if writing.fonts == "pillow" and language == "en":
        font = ImageFont.load_default(height)
        assert isinstance(font, ImageFont.FreeTypeFont)
        return font
    known = fonts_for(language)
    if not known:
        raise DataError(
            f"no font of this machine has the letters of {language!r}; install one (fonts-noto-cjk has Chinese), or "
            "take English with the font that comes along"
        )
    return ImageFont.truetype(known[int(rng.integers(len(known)))], height)


@cache
def fonts_for(language: Language) -> tuple[Path, ...]:
    """The fonts of this machine that have a language's letters, in order of their paths."""
    files = (file for folder in FONT_FOLDERS if folder.is_dir() for file in folder.rglob("*"))
    return tuple(
        file for file in sorted(files) if file.suffix.lower() in (".ttf", ".otf", ".ttc") and _has(file, language)
    )


def _has(file: Path, language: Language) -> bool:
    try:
        font = ImageFont.truetype(file, 24)
    except OSError:
        return False
    lacking = bytes(font.getmask(_NO_LETTER))
    masks = [font.getmask(letter) for letter in _LETTERS[language]]
    return all(mask.getbbox() is not None and bytes(mask) != lacking for mask in masks)


def page_sample(drawn: Page) -> Sample:
    """The page and the request to read it; the answer is its lines, each with its place, from top to bottom."""
    media = open_media(drawn.pixels)
    messages = Message("user", (media, PROMPT)), Message("assistant", drawn.lines)
    target = {"answers": [line.phrase for line in drawn.lines]}
    return Sample(drawn.name, "caption", messages, source="pages", group=drawn.name, frames=(0,), target=target)


def load(root: Path, split: str, *, count: int = 1_000_000, side: int = 448, **writing: Any) -> Rows:
    """A row per square page, written as the fields of `Writing` say; nothing lies on a disk, the root is not used.

    Raises: ConfigError, for a split that is not train, validation or test, or a field that `Writing` does not have.
    """
    chosen = check_split(split)
    known = [one.name for one in fields(Writing)]
    if unknown := sorted(set(writing) - set(known)):
        raise ConfigError(f"generated pages have no option {', '.join(unknown)}; known are {', '.join(known)}")
    how = Writing(**writing)
    draw = partial(page, 0, split=chosen, size=(side, side), writing=how)
    return Rows(f"pages/{how.language}/{split}", range(count), partial(_sample, draw=draw))


def _sample(index: int, rng: np.random.Generator, *, draw: partial[Page]) -> Sample:
    return page_sample(draw(index))
