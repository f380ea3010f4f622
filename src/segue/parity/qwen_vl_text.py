"""Recordings of Qwen-VL: token ids, chat contexts, label masks, places in text, and the figures of its evaluation.

The original writes a picture's file name into its places, a byte each, and reads some marks that people type. Ours does
neither; here both are done on top of our tokenizer, so that ids can be compared.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from segue.errors import DataError
from segue.evals.metrics import grounding, vqa
from segue.evals.metrics.text import gqa_answer, relaxed, similarity
from segue.geometry import qwen_notation as notation
from segue.geometry.boxes import iou
from segue.models.pieces import Marks, Piece, encode_row, framed, pattern, recent
from segue.models.qwen_vl.tokenizer import END_OF_TEXT, MARKS, SPECIAL_TOKENS
from segue.models.templates import template
from segue.parity.compare import TOLERANCE, Check, Replay, fact
from segue.parity.recording import TEXTS, Recording
from segue.types import Answer, Sample

PICTURE_TOKENS = 256
WINDOW = 6144
_CHAT = template("qwen_vl_chat")


@dataclass(frozen=True, slots=True)
class OriginalIds:
    """Encodes as the original does: pictures as file names, and of what people type these marks as marks."""

    tokenizer: PreTrainedTokenizerFast
    typed_marks: Sequence[str]

    def encode(self, text: str, *, add_special_tokens: bool = False, split_special_tokens: bool = False) -> list[int]:
        """Token ids of a text.

        Raises: DataError, for an `<img>` that is not closed, holds marks or too long a name.
        """
        live = self.typed_marks if split_special_tokens else SPECIAL_TOKENS
        ids: list[int] = []
        open_name: list[str] | None = None
        for part in re.split(f"({pattern(live).pattern})", unicodedata.normalize("NFC", text)):
            if part == "<img>" and open_name is None and part in live:
                open_name = []
            elif part == "</img>" and open_name is not None:
                ids += self._picture("".join(open_name))
                open_name = None
            elif open_name is not None:
                if part in live:
                    raise DataError(f"the mark {part!r} stands inside <img>; only a file's name may")
                open_name.append(part)
            elif part in live:
                ids.append(self.tokenizer.convert_tokens_to_ids(part))
            else:
                ids += self.tokenizer.encode(part, add_special_tokens=False, split_special_tokens=True)
        if open_name is not None:
            raise DataError("the text has an <img> without its </img>")
        return ids

    def _picture(self, name: str) -> list[int]:
        letters = list(name.encode())
        if len(letters) > PICTURE_TOKENS:
            raise DataError(f"a picture's name has {len(letters)} bytes; the original takes {PICTURE_TOKENS} at most")
        start, end, pad = (self.tokenizer.convert_tokens_to_ids(mark) for mark in MARKS[-3:])
        return [start, *letters, *[pad] * (PICTURE_TOKENS - len(letters)), end]

    def decode(self, ids: Sequence[int], *, skip: str = "none") -> str:
        """The text of ids, pictures as their names; `skip` leaves out `all` special tokens, or all but `places`."""
        start, end, pad = (self.tokenizer.convert_tokens_to_ids(mark) for mark in MARKS[-3:])
        plain: list[int] = []
        rest = list(ids)
        while rest:
            token = rest.pop(0)
            plain.append(token)
            if token == start and end in rest:
                span = rest[: rest.index(end)]
                name = bytes(letter for letter in span if letter != pad).decode(errors="replace")
                plain += self.tokenizer.encode(name, add_special_tokens=False, split_special_tokens=True)
                rest = rest[len(span) :]
        first = self.tokenizer.convert_tokens_to_ids(END_OF_TEXT)
        kept = range(first + 208, first + 214) if skip == "places" else ()
        if skip != "none":
            plain = [token for token in plain if token < first or token in kept]
        return self.tokenizer.decode(plain, skip_special_tokens=False)


def replay(recording: Recording, seam: str, tokenizer: PreTrainedTokenizerFast) -> Replay:
    """One seam of texts."""
    content = json.loads((recording.folder / TEXTS[seam]).read_text("utf-8"))
    replays: dict[str, Callable[[Any, PreTrainedTokenizerFast], list[Check]]] = {
        "tokenizer": _tokenizer,
        "chat": _chat,
        "labels": _labels,
        "metrics": lambda recorded, _: _metrics(recorded),
    }
    return Replay(facts=replays[seam](content, tokenizer))


def _tokenizer(recorded: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> list[Check]:
    """Ids in the three ways of reading marks, texts in the three ways of leaving them out, and what is refused."""
    chat, inert = OriginalIds(tokenizer, MARKS), OriginalIds(tokenizer, ())
    found = [fact("tokenizer.size", len(tokenizer), recorded["vocab_size"])]
    for token, number in recorded["special_ids"].items():
        found.append(fact(f"tokenizer.id of {token}", tokenizer.convert_tokens_to_ids(token), number))
    for case in recorded["cases"]:
        words, ids, name = case["text"], case["ids"], f"tokenizer.{case['name']}"
        ours = {
            "ids": chat.encode(words),
            "ids_chat_content": chat.encode(words, split_special_tokens=True),
            "ids_no_special": inert.encode(words, split_special_tokens=True),
            "decoded": chat.decode(ids),
            "decoded_skip_special": chat.decode(ids, skip="all"),
            "decoded_skip_keep_image_special": chat.decode(ids, skip="places"),
        }
        found += [fact(f"{name} {key}", value, case[key]) for key, value in ours.items() if key in case]
    for case in recorded.get("edge_cases", ()):
        # long names of one letter are recorded by their length
        long = re.fullmatch(r"img_(\d+)_bytes", case["name"])
        words = f"<img>{'p' * int(long[1])}</img>" if long else case["text"]
        wanted = case["n_ids"] if case["tokenize"] == "ok" else None
        found.append(fact(f"tokenizer.{case['name']}", _length(chat, words), wanted))
    return found


def _length(encoder: OriginalIds, words: str) -> int | None:
    """How many ids a text has; `None` if it is refused."""
    try:
        return len(encoder.encode(words))
    except DataError:
        return None


def _chat(recorded: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> list[Check]:
    """Contexts of dialogues, replies cut out of what was generated, and lists of parts written and read."""
    encoder, found = OriginalIds(tokenizer, MARKS), []
    for case in recorded["make_context"]:
        name = f"chat.{case['name']}"
        pieces, ids = context(encoder, case["args"])
        found.append(fact(f"{name} ids", ids, case["context_tokens"]))
        found.append(fact(f"{name} text", "".join(piece.text for piece in pieces), case["raw_text"]))
        if "decoded_response" in case:
            found.append(fact(f"{name} reply", _reply(tokenizer, case["generated_ids"]), case["decoded_response"]))
    for number, case in enumerate(recorded["from_list_format"]):
        found.append(fact(f"chat.written list {number}", _written(case["list"]), case["text"]))
    for number, case in enumerate(recorded["to_list_format"]):
        # text with a control token fails in the original; ours reads it
        if not isinstance(case["list"], str):
            parts = list(notation.elements(case["text"]))
            ours = [{part.kind: part.inner} for part in parts]
            found.append(fact(f"chat.read list {number}", ours, case["list"]))
            found.append(fact(f"chat.boxes of list {number}", _boxes(parts), case["boxes_with_ref"]))
    return found


def context(encoder: OriginalIds, arguments: Mapping[str, Any]) -> tuple[list[Piece], list[int]]:
    """A dialogue's pieces and ids, without the oldest turns where they are too many."""
    if arguments.get("chat_format") == "raw":
        whole = [Piece(arguments["query"])]
        return whole, encoder.encode(arguments["query"])
    system = framed(_CHAT.system, [Piece(arguments["system"], writer="user")], _CHAT.learned)
    turns = [_turn(*turn) for turn in arguments["history"]]
    lengths = [len(_ids(encoder, pieces)) for pieces in turns]
    # the original counts the line break after the system turn with the turn that follows
    room = arguments.get("max_window_size", WINDOW) - len(_ids(encoder, system)) + 1
    kept = turns[len(turns) - recent(lengths, room) :]
    asked = framed(_CHAT.user, [Piece(arguments["query"], writer="user")], _CHAT.learned)
    pieces = [*system, *(piece for turn in kept for piece in turn), *asked]
    return pieces, _ids(encoder, pieces)


def _turn(question: str, answer: str | None) -> list[Piece]:
    if answer is None:
        # a turn without a reply leaves an empty line
        return [*_block("user", question), Piece("\n")]
    reply = [Piece(answer, writer="user"), *framed(_CHAT.answer_end, (), _CHAT.learned)]
    return [*framed(_CHAT.user, [Piece(question, writer="user")], _CHAT.learned), *reply]


def _block(role: str, words: str, *, is_learned: bool = False) -> list[Piece]:
    frame = _CHAT.system.replace("system", role)
    return framed(frame, [Piece(words, is_learned, writer="user")], _CHAT.learned)


def _ids(encoder: OriginalIds, pieces: Sequence[Piece]) -> list[int]:
    return encode_row(pieces, encoder, Marks.of(()), apart=_CHAT.apart)[0]


def _reply(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    stops = [tokenizer.convert_tokens_to_ids(stop) for stop in _CHAT.stops]
    end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
    return tokenizer.decode(ids[:end], skip_special_tokens=False).strip()


def _written(parts: Sequence[Mapping[str, Any]]) -> str:
    pieces, pictures = [], 0
    for part in parts:
        if "image" in part:
            pictures += 1
            block = _CHAT.picture.format(number=pictures, medium=f"<img>{part['image']}</img>")
            pieces.append(block + "\n")
        elif "text" in part:
            pieces.append(part["text"])
        else:
            named = f"<ref>{part['ref']}</ref>" if "ref" in part else ""
            boxes = part["box"] if isinstance(part["box"][0], list | tuple) else [part["box"]]
            pieces.append(named + "".join(notation.marked("box", np.reshape(box, (2, 2))) for box in boxes))
    return "".join(pieces)


def _boxes(parts: Sequence[notation.Element]) -> list[dict[str, Any]]:
    found = []
    for place, part in enumerate(parts):
        corners = notation.points(part)
        if part.kind == "box" and corners is not None:
            box: dict[str, Any] = {"box": corners.astype(int).flatten().tolist()}
            named = place and parts[place - 1].kind == "ref"
            found.append(box | ({"ref": parts[place - 1].inner.strip()} if named else {}))
    return found


def _labels(recorded: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> list[Check]:
    """Rows of a dialogue to learn from, padded and cut as the original does."""
    encoder, found = OriginalIds(tokenizer, SPECIAL_TOKENS), []
    pad, ignored = recorded["pad_token_id"], recorded["ignore_index"]
    for case in recorded["cases"]:
        turns = case["conversations"]
        turns = turns[1:] if turns[0]["from"] != "user" else turns
        pieces = _block("system", recorded["system_message"])
        for turn in turns:
            pieces += _block(turn["from"], turn["value"], is_learned=turn["from"] == "assistant")
        ids, labels = encode_row(pieces, encoder, Marks.of(()), apart=_CHAT.apart)
        length = case["max_len"]
        ids = (ids + [pad] * length)[:length]
        ours = {
            "input_ids": ids,
            "labels": (labels + [ignored] * length)[:length],
            "attention_mask": [token != pad for token in ids],
        }
        found += [fact(f"labels.{case['name']} {key}", value, case[key]) for key, value in ours.items()]
    return found


def _metrics(recorded: Mapping[str, Any]) -> list[Check]:
    """Answers brought into the form in which they are compared, and their scores."""
    found = []
    for case in recorded.get("vqa_normalise", ()):
        words = case["text"]
        found.append(fact(f"metrics.vqa punctuation {words!r}", vqa.without_punctuation(words), case["punct"]))
        found.append(fact(f"metrics.vqa {words!r}", vqa.normalised(words), case["final"]))
    for case in recorded.get("vqa_score", {}).get("cases", ()):
        ours = 100 * vqa.accuracy(case["pred"], case["answers"])
        found.append(_near(f"metrics.vqa score {case['pred']!r}", ours, case["score"]))
    for case in recorded.get("relaxed_accuracy", {}).get("cases", ()):
        name = f"metrics.relaxed {case['answer']!r} {case['annotation']!r}"
        swapped = relaxed(case["answer"], case["annotation"], share_of="answer")
        found.append(fact(f"{name} as recorded", bool(swapped), case["reference"]))
        found.append(fact(name, bool(relaxed(case["answer"], case["annotation"])), case["corrected"]))
    for case in recorded.get("anls", {}).get("cases", ()):
        ours = max(similarity(case["pred"], truth) for truth in case["gt"])
        found.append(_near(f"metrics.anls {case['pred']!r}", ours, case["score"]))
    for case in recorded.get("gqa_postprocess", ()):
        found.append(fact(f"metrics.gqa {case['text']!r}", gqa_answer(case["text"]), case["out"]))
    for case in recorded.get("grounding", ()):
        found += _grounding(case)
    return found


def _grounding(case: Mapping[str, Any]) -> list[Check]:
    """A box measured against the truth; the original has a box of nothing where ours has none."""
    truth = case["gt_bbox"]
    sample = Sample("", "chat", (), target={"box": truth, "size": case["height_width"]})
    row = grounding.score(sample, Answer(case["answer"]))
    name, box = f"metrics.box {case['answer']!r}", row["box"] or [0.0] * 4
    overlap = 0.0 if row["box"] is None else float(iou(np.array([box]), np.array([truth], float))[0, 0])
    return [
        *(_near(f"{name} edge {edge}", ours, case["pred_bbox"][edge]) for edge, ours in enumerate(box)),
        _near(f"{name} iou", overlap, case["iou"]),
        fact(f"{name} is right", row["iou"] >= grounding.ENOUGH, case["correct"]),
    ]


def _near(name: str, ours: float, recorded: float | int) -> Check:
    """The check of a number; boxes were recorded in float32."""
    is_near = abs(ours - recorded) <= TOLERANCE * max(abs(recorded), 1.0)
    return replace(fact(name, is_near, True), note="" if is_near else f"ours is {ours}, recorded is {recorded}")
