"""Tokenizers of model folders, read without running anything that the folder brings.

The library's automatic classes are not used: they follow `auto_map` into remote code and ask for packages that are not
needed.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from segue.errors import CheckpointError
from segue.models.templates import MAX_TEMPLATE
from segue.reading import read_bytes
from segue.weights import read_json

MAX_FILE = 200_000_000  # bytes; the largest that is known has 35 million
_MULTIPLIES = re.compile(
    r"\*\s*\d{4,}|\*\*|\d{5,}\s*\*|range\(\s*\d{5,}"
    r"|(center|ljust|rjust|zfill)\(\s*\d{4,}|%\s*\d{5,}"
)
MAX_REPLACEMENT = 16  # characters
_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json", "tokenizer_config.json")
CONTROL, USER_DEFINED = 3, 4
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")
"""Any of these makes a tokenizer."""


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder: `tokenizer.json`, or a Qwen vocabulary with merges, or a SentencePiece model.

    It brings along the folder's chat template, so that whoever saves it keeps that too.

    Raises: CheckpointError, if none of these files is there or one cannot be read.
    """
    tokenizer = _read_tokenizer(folder)
    tokenizer.chat_template = load_chat_template(folder)
    return tokenizer


def _read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    for name in _FILES:
        try:
            if (folder / name).exists() and len(read_bytes(folder / name, MAX_FILE)) == 0:
                raise CheckpointError(f"{folder / name} is empty; fetch it again")
        except OSError as error:
            raise CheckpointError(f"{folder / name} cannot be read ({error.strerror}); fetch it again") from error
    try:
        if (folder / "tokenizer.json").is_file():
            _check_rewriting(folder / "tokenizer.json")
            backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
            return PreTrainedTokenizerFast(tokenizer_object=backend, **_settings(folder))
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            return Qwen2Tokenizer.from_pretrained(folder, local_files_only=True)
        if (folder / "tokenizer.model").is_file():
            backend = from_sentencepiece(folder / "tokenizer.model", _added_tokens(folder))
            return PreTrainedTokenizerFast(tokenizer_object=backend, **_settings(folder))
    except CheckpointError:
        raise
    except Exception as error:  # noqa: BLE001  the tokenizers library raises plain Exception for a bad file
        raise CheckpointError(f"the tokenizer files of {folder} cannot be read ({error})") from error
    raise CheckpointError(
        f"{folder} has no tokenizer; expected tokenizer.json, vocab.json with merges.txt, or tokenizer.model"
    )


def _check_rewriting(path: Path) -> None:
    """Refuse a tokenizer that rewrites text to far more text before it reads it, or searches it by a pattern that may
    take time without end.

    Raises: CheckpointError.
    """
    parts = [read_json(path).get(name) for name in ("normalizer", "pre_tokenizer", "decoder")]
    while parts:
        part = parts.pop()
        if isinstance(part, list):
            parts += part
        if not isinstance(part, dict):
            continue
        written = part.get("content")
        if isinstance(written, str) and len(written) > MAX_REPLACEMENT:
            raise CheckpointError(f"{path} replaces text by {len(written):,} characters; no model's tokenizer does")
        pattern = part.get("pattern")
        if isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str) and _is_slow(pattern["Regex"]):
            raise CheckpointError(f"{path} has the pattern {pattern['Regex'][:60]!r}, which may never end on some text")
        parts += [value for value in part.values() if isinstance(value, dict | list)]


def _is_slow(pattern: str) -> bool:
    """Whether a pattern repeats a group, refers back, or repeats without bound more than twice in one branch: on some
    text that takes time by a power of its length. Those of published models do not.
    """
    if re.search(r"\\[1-9kg]", pattern):
        return True
    bare = re.sub(r"\\[pP]\{[^}]*\}|\\.", "x", pattern)
    bare = re.sub(r"([*+?}])[+?]", r"\1", re.sub(r"\[[^\]]*\]", "x", bare))
    is_nested = re.search(r"\)([*+]|\{)", bare) is not None
    return is_nested or any(len(re.findall(r"[*+]|,\}", branch)) > 2 for branch in bare.split("|"))


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, and the chat template if there is one."""
    tokenizer.save_pretrained(folder)


def single_id(tokenizer: PreTrainedTokenizerFast, token: str, rows: int) -> int:
    """The id of a token that must be one token and have a row among the model's `rows` embeddings.

    Raises: CheckpointError, if it is unknown, splits into pieces, or lies beyond the embeddings.
    """
    ids = tokenizer.encode(token, add_special_tokens=False)
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise CheckpointError(
            f"the tokenizer reads {token!r} as {ids}; expected one token of its own. "
            "Take the tokenizer files (added_tokens.json too) that belong to the checkpoint"
        )
    if ids[0] >= rows:
        raise CheckpointError(
            f"token {token!r} has id {ids[0]} and the model {rows} embedding rows; take the tokenizer of these weights"
        )
    return ids[0]


def known_id(tokenizer: PreTrainedTokenizerFast, token: str, rows: int) -> int | None:
    """As `single_id`, or `None` for a token that the vocabulary does not have."""
    return single_id(tokenizer, token, rows) if token in tokenizer.get_vocab() else None


def check_length(tokenizer: PreTrainedTokenizerFast, rows: int, folder: Path) -> None:
    """See that every token has a row among the model's `rows` embeddings.

    Raises: CheckpointError, if there are more tokens than rows.
    """
    if len(tokenizer) > rows:
        raise CheckpointError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens and the model {rows} embedding rows; "
            "take the tokenizer of these weights"
        )


def load_chat_template(folder: Path) -> str | None:
    """The chat template of a model folder, in any of the places where the library keeps one; `None` if it has none.

    Raises: CheckpointError, if a file cannot be read.
    """
    plain = folder / "chat_template.jinja"
    try:
        if plain.exists():
            return _bounded(read_bytes(plain, MAX_TEMPLATE).decode("utf-8"), plain)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{plain} cannot be read ({reason}); fetch it again") from error
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = read_json(folder / name).get("chat_template") if (folder / name).is_file() else None
        if isinstance(found, str):
            return _bounded(found, folder / name)
    return None


def _bounded(chat_template: str, path: Path) -> str:
    """A template, unless it could make itself longer than memory: ranges of huge numbers and repeated text.

    Raises: CheckpointError.
    """
    if len(chat_template) > MAX_TEMPLATE:
        raise CheckpointError(f"the chat template in {path} has more than {MAX_TEMPLATE:,} characters")
    if strange := _MULTIPLIES.search(chat_template):
        raise CheckpointError(f"the chat template in {path} multiplies ({strange[0].strip()!r}), which no model's does")
    return chat_template


def _settings(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    named = {key: config.get(f"{key}_token") for key in ("bos", "eos", "pad", "unk")}
    tokens = {
        f"{key}_token": value["content"] if isinstance(value, dict) else value for key, value in named.items() if value
    }
    return {**tokens, "clean_up_tokenization_spaces": False}


def _added_tokens(folder: Path) -> dict[str, int]:
    path = folder / "added_tokens.json"
    return read_json(path) if path.is_file() else {}


def from_sentencepiece(model: Path, added: dict[str, int]) -> Tokenizer:
    """A byte-fallback BPE with the pieces of a SentencePiece file and further special tokens at given ids.

    Every way to put a piece together from two others becomes a merge, in order of the pieces' ids: those are
    SentencePiece's own scores in rank order.

    Raises: CheckpointError, if the file is not such a model, or an added id is not the next free one.

    Source: InternLM2's slow tokenizer as Sa2VA ships it; each text between two added tokens is encoded on its own.
    """
    from sentencepiece import sentencepiece_model_pb2 as schema

    proto = schema.ModelProto()
    proto.ParseFromString(model.read_bytes())
    if proto.trainer_spec.model_type != schema.TrainerSpec.BPE or not proto.trainer_spec.byte_fallback:
        raise CheckpointError(f"{model} is not a SentencePiece BPE model with byte fallback, which InternLM2 has")
    ids = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    merges = sorted(
        (ids[piece], piece[:cut], piece[cut:])
        for piece in ids
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    )
    unknown = proto.pieces[proto.trainer_spec.unk_id].piece
    backend = Tokenizer(
        BPE(ids, [(left, right) for _, left, right in merges], unk_token=unknown, byte_fallback=True, fuse_unk=True)
    )
    spaces = [normalizers.Replace(" ", "▁")]
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), *spaces] if proto.normalizer_spec.add_dummy_prefix else spaces
    )
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = [piece.piece for piece in proto.pieces if piece.type in (CONTROL, USER_DEFINED)]
    extra = [token for token, number in sorted(added.items(), key=lambda item: item[1]) if number >= len(ids)]
    numbers = sorted(number for number in added.values() if number >= len(ids))
    if numbers and (numbers[0] != len(ids) or any(after - before != 1 for before, after in pairwise(numbers))):
        raise CheckpointError(
            f"added_tokens.json beside {model} has ids {numbers}; expected {len(ids)} and on without gaps"
        )
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in [unknown, *special, *extra]])
    return backend
