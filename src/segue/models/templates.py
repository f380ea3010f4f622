"""Chat templates: how turns become prompt text, and when an answer is over.

Source: the prompt templates of Sa2VA (bytedance/Sa2VA, `projects/sa2va/hf/models/templates.py`). Only the parts that
released checkpoints were trained with are here; no checkpoint was trained with a system turn.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, runtime_checkable

from segue.errors import CheckpointError, ConfigError


@runtime_checkable
class TextTokenizer(Protocol):
    """What Segue asks of a tokenizer: text to ids and back, special tokens included, nothing added."""

    def encode(self, text: str, *, add_special_tokens: bool, split_special_tokens: bool = False) -> list[int]:
        """Token ids of a text; with `split_special_tokens`, special tokens in it are ordinary text."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of token ids."""
        ...

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """The id of one token, or of the unknown token."""
        ...

    def get_added_vocab(self) -> dict[str, int]:
        """The tokens beyond ordinary text, with their ids."""
        ...


@dataclass(frozen=True, slots=True)
class Template:
    """The strings around a turn.

    `user` holds `{text}`; `answer_end` closes an answer, in training as in a dialogue's history; `stops` are the
    strings that end generation; `separator` stands between turns; `opening` begins a dialogue without a system turn.
    `picture` holds `{medium}` and says how each picture of a dialogue is introduced, with its `{number}` from 1.
    `learned` are parts of the frames that are labelled in every turn, whoever's it is; `apart` says that what stands in
    a frame is tokenised by itself.
    """

    system: str
    user: str
    answer_end: str
    stops: tuple[str, ...]
    separator: str = "\n"
    opening: str = ""
    picture: str = "{medium}"
    learned: tuple[str, ...] = ()
    apart: bool = False


_IM_START = "<|im_start|>{role}\n{{text}}<|im_end|>\n"
_IM_USER = _IM_START.format(role="user") + "<|im_start|>assistant\n"
_QWEN_VL_SYSTEM = "You are a helpful assistant."

TEMPLATES = {
    "qwen_chat": Template(
        system=_IM_START.format(role="system"),
        user=_IM_USER,
        answer_end="<|im_end|>",
        stops=("<|im_end|>", "<|endoftext|>"),
    ),
    # PARITY(longva_system_message): LongVA's prompts always begin with this turn
    "qwen_1_5": Template(
        system=_IM_START.format(role="system"),
        user=_IM_USER,
        answer_end="<|im_end|>",
        stops=("<|im_end|>", "<|endoftext|>"),
        opening=_IM_START.format(role="system").format(text="You are a helpful assistant."),
    ),
    "internvl2_5": Template(
        system=_IM_START.format(role="system"),
        user=_IM_USER,
        answer_end="<|im_end|>",
        stops=("<|im_end|>",),
        opening=_IM_START.format(role="system").replace(
            "{text}",
            "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。",
        ),
    ),
    "internlm2_chat": Template(
        system=_IM_START.format(role="system"), user=_IM_USER, answer_end="<|im_end|>", stops=("<|im_end|>",)
    ),
    "phi3_chat": Template(
        system="<|system|>\n{text}<|end|>\n",
        user="<|user|>\n{text}<|end|>\n<|assistant|>\n",
        answer_end="<|end|>",
        stops=("<|end|>",),
    ),
    # PARITY(chatml_labels): the ends of every turn are learned, a user's too
    "qwen_vl_chat": Template(
        system=_IM_START.format(role="system"),
        user=_IM_USER,
        answer_end="<|im_end|>\n",
        stops=("<|im_end|>", "<|im_start|>", "<|endoftext|>"),
        separator="",
        opening=_IM_START.format(role="system").format(text=_QWEN_VL_SYSTEM),
        picture="Picture {number}: {medium}",
        learned=("<|im_start|>", "<|im_end|>\n"),
        apart=True,
    ),
    # the base model continues text
    "qwen_vl_raw": Template(
        system="{text}", user="{text}", answer_end="<|endoftext|>", stops=("<|endoftext|>",), separator=""
    ),
}


RAW = TEMPLATES["qwen_vl_raw"]
"""Text that is continued, without turns."""


def template(name: str) -> Template:
    """The template of that name; checkpoints spell names with `-` or `_`.

    Raises: ConfigError, for a name that no released checkpoint uses.
    """
    key = name.replace("-", "_")
    if key not in TEMPLATES:
        raise ConfigError(f"unknown chat template {name!r}; known are {', '.join(TEMPLATES)}")
    return TEMPLATES[key]


MAX_TEMPLATE = 200_000
MAX_RENDERED = 1_000_000
MAX_SECONDS = 5
"""Bounds of a checkpoint's own chat template: its characters, those that it writes for a question, and its time."""


@runtime_checkable
class Renderer(Protocol):
    """A tokenizer with a checkpoint's chat template, which the library renders in a sandbox."""

    def apply_chat_template(
        self, conversation: list[dict[str, Any]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        """The dialogue as one text."""
        ...


@contextmanager
def _in_time() -> Iterator[None]:
    """Ends what runs too long, in the main thread, where a signal can; a template is a program with loops.

    Raises: TimeoutError.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def late(*_: object) -> NoReturn:
        raise TimeoutError(f"it took more than {MAX_SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def opening(renderer: Renderer, chat: Template, block: str) -> str:
    """What a checkpoint's own template puts in front of a dialogue: a default system turn, or nothing.

    `block` is the text that holds an image's place.

    Raises: CheckpointError, if the template cannot be rendered, or writes turns in another way than `chat` does.
    """
    words = "a question"
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": words}]}
    try:
        with _in_time():
            text = renderer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    except Exception as error:  # noqa: BLE001  a template may raise whatever it likes
        raise CheckpointError(f"the chat template of the checkpoint cannot be rendered ({error})") from error
    if not isinstance(text, str) or len(text) > MAX_RENDERED:
        most = f"{MAX_RENDERED:,} characters"
        raise CheckpointError(f"the chat template of the checkpoint writes more than {most} for a question")
    ending = chat.user.replace("{text}", block + words)
    if not text.endswith(ending):
        raise CheckpointError(
            f"the chat template of the checkpoint writes a question as {text[:200]!r}; expected it to end in "
            f"{ending!r}. Take the template that belongs to the weights"
        )
    return text.removesuffix(ending)


def stop_check(
    tokenizer: TextTokenizer, chat: Template, eos_ids: Sequence[int], also: Sequence[str] = ()
) -> Callable[[Sequence[int]], bool]:
    """A function that tells from the ids generated so far whether the answer is over. `also` are a caller's own stops.

    A stop string that is one token is compared as an id. One that is ordinary text to this tokenizer can merge with
    what stands before it, so it is looked for in the decoded tail.
    """
    # PARITY(stop_text): upstream looks for stop strings in the whole decoded text after every token; a special
    # token cannot appear there in any other way than as its id.
    ids, texts = set(eos_ids), []
    for stop in chat.stops:
        pieces = tokenizer.encode(stop, add_special_tokens=False)
        if len(pieces) == 1:
            ids.add(pieces[0])
        else:
            texts.append((stop, len(stop.encode()) + 8))
    texts += [(stop, len(stop.encode()) + 8) for stop in also]

    def is_over(generated: Sequence[int]) -> bool:
        if not generated:
            return False
        if generated[-1] in ids:
            return True
        return any(
            stop in tokenizer.decode(generated[-length:], skip_special_tokens=False).replace("\r\n", "")
            for stop, length in texts
        )

    return is_over
