"""Segue as a model of VLMEvalKit: a file to be dropped into its `vlmeval/vlm/`, or imported from here.

`docs/adapters.md` says how to register it. Prompts of image benchmarks are those that Sa2VA's figures were made with;
a video is shown as itself, by the model's own plan of frames. Imported by VLMEvalKit alone, which has to be there.

Source: Sa2VA's `Sa2VAChat`. It shows a model the first five of several images; here all are shown. What it says of
tiles and of lengths per benchmark never reached its model, so that 12 tiles and 2048 tokens are what its figures used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from string import ascii_uppercase
from typing import Any

from vlmeval.dataset import DATASET_MODALITY, DATASET_TYPE
from vlmeval.vlm.base import BaseModel

from segue.errors import DataError
from segue.evals.harnesses.harness_adapter import HarnessAdapter, HarnessRequest
from segue.options import Options

Part = dict[str, str]
"""A piece of a message: `type` is text, image or video, `value` the text or a path."""

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
DETAIL = "Answer this question in detail."
DIRECT = "Please answer the question directly."
LETTER_CHINESE, DIRECT_CHINESE = "请直接回答选项字母。", "请直接回答问题。"
_OWN_PROMPT = ("MMDU", "MME-RealWorld", "MME-RealWorld-CN")
_BARE = ("MathVista", "MathVision", "VCR", "MTVQA", "MMVet", "MathVerse")


class Segue(BaseModel):
    """A model of Segue's behind the interface of VLMEvalKit.

    `model` is what `segue.load` takes; `options` are fields of `segue.Options`. With `nframe` so many frames are spread
    over a video, or as many as a data set wants, which VLMEvalKit writes there before each question. Features of media
    are kept in the folder `cache_dir` and taken from there, unless `enable_cache` is false.
    """

    INSTALL_REQ = False
    INTERLEAVE = True
    VIDEO_LLM = True
    allowed_types = ["text", "image", "video"]  # noqa: RUF012 - the base class has a list too

    def __init__(  # noqa: PLR0913 - all of it is written in a configuration of VLMEvalKit
        self,
        model: str = "demo",
        *,
        device: str = "auto",
        dtype: str = "auto",
        cache_dir: str | None = None,
        enable_cache: bool | None = None,
        nframe: int | None = None,
        **options: Any,
    ):
        super().__init__()
        self.nframe = nframe
        self._options = Options(keep_masks=False, **options)
        self._adapter = HarnessAdapter.load(
            model,
            device=device,
            dtype=dtype,
            cache_dir=cache_dir,
            enable_cache=enable_cache,
        )

    def generate_inner(self, message: Sequence[Part], dataset: str | None = None) -> str:
        """The answer to a message: its texts as lines, after what it shows.

        Raises: DataError, for a part that is none of text, image and video; MediaError and LimitError, as opening does.
        """
        if unknown := sorted({part["type"] for part in message} - set(self.allowed_types)):
            raise DataError(f"the message has parts of {', '.join(unknown)}; expected text, image and video")
        text = "\n".join(part["value"] for part in message if part["type"] == "text")
        shown = tuple(part["value"] for part in message if part["type"] != "text")
        frames = self._options.frames if self.nframe is None else f"uniform:{self.nframe}"
        return self._adapter.answer(HarnessRequest(text, shown, replace(self._options, frames=frames)))

    def use_custom_prompt(self, dataset: str) -> bool:
        """Whether `build_prompt` is used: for choices, yes or no and short answers about images, but MME-RealWorld."""
        is_asked = DATASET_MODALITY(dataset) == "IMAGE" and DATASET_TYPE(dataset) in ("MCQ", "Y/N", "VQA")
        return is_asked and dataset not in _OWN_PROMPT

    def build_prompt(self, line: Mapping[str, Any], dataset: str) -> list[Part]:
        """The message for a row of an image benchmark."""
        pictures = self.dump_image(line, dataset)
        pictures = [pictures] if isinstance(pictures, str) else list(pictures)
        text = prompt(line, dataset, DATASET_TYPE(dataset))
        return [{"type": "image", "value": path} for path in pictures] + [{"type": "text", "value": text}]


def prompt(line: Mapping[str, Any], dataset: str, kind: str) -> str:
    """What is asked about a row of a benchmark of that kind, in the words that Sa2VA's figures were made with."""
    question = str(line["question"])
    if kind == "MCQ":
        return _choice(line, question)
    if kind == "Y/N":
        if "HallusionBench" in dataset:
            return f"{question} Please answer yes or no. {SHORT}"
        return f"{question} {SHORT}" if "MME" in dataset else question
    if any(name in dataset for name in _BARE):
        return question
    if "LLaVABench" in dataset:
        return f"{question}\n{DETAIL}"
    return f"{question}\n{SHORT}"


def _choice(line: Mapping[str, Any], question: str) -> str:
    options = {letter: line[letter] for letter in ascii_uppercase if letter in line and _is_said(line[letter])}
    lines = [str(line["hint"])] if "hint" in line and _is_said(line["hint"]) else []
    lines += [question, *(f"{letter}. {text}" for letter, text in options.items())]
    whole = "\n".join(lines)
    is_chinese = re.search("[\u4e00-\u9fff]", whole) is not None
    if options:
        return f"{whole}\n{LETTER_CHINESE if is_chinese else LETTER}"
    return f"{whole}\n{DIRECT_CHINESE if is_chinese else DIRECT}"


def _is_said(value: object) -> bool:
    """Whether a cell of a table holds something: an empty one is None, NaN or no text."""
    return value is not None and value == value and str(value) != ""
