"""Tokenizers of model folders, read without running anything that the folder brings.

The library's automatic classes are not used: they follow `auto_map` into remote code and ask for packages that are not
needed.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from segue.errors import CheckpointError
from segue.weights import read_json

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
    try:
        if (folder / "tokenizer.json").is_file():
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
        if plain.is_file():
            return plain.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{plain} cannot be read ({error}); fetch it again") from error
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = read_json(folder / name).get("chat_template") if (folder / name).is_file() else None
        if isinstance(found, str):
            return found
    return None


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
