"""Checkpoints in the official Sa2VA layout: which tensors one holds, and ones with random weights.

A random checkpoint exercises everything that a trained one does, in the size of any known architecture; its masks are
noise.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor

from segue import weights
from segue.checkpoints import zoo
from segue.checkpoints.model_folder import key_table
from segue.checkpoints.official import official_config
from segue.grounding import sam2
from segue.grounding.model import VisionLanguageConfig, build, expected

ANSWER, ANSWER_IN_WORDS = "Sure, [SEG].<|im_end|>", "Sure.<|im_end|>"
_SPREAD = {
    r".*\.embed_tokens\.weight|.*\.positional_embedding": 1.0,
    r".*(_tokens?|_embed|cls_token|pos_embed|pos_embed_window|position_embeddings)(\.weight)?": 0.5,
    r".*\.(no_memory_\w+|no_object_pointer|memory_temporal_positional_encoding)": 0.5,
    r".*\.lm_head\.weight": 0.01,
}
_SINGLE = {r".*\.bias": 0.0, r".*\.(lambda_[12]|scale)": 0.1}


def official_shapes(config: VisionLanguageConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a checkpoint in the official layout, computed without memory for any."""
    return weights.upstream_shapes(expected(config), key_table(config))


def random_checkpoint(folder: Path, name: str = "tiny", *, seed: int = 0, grounder: bool = True) -> Path:
    """Write a model folder in the official layout with random float32 weights; returns the folder.

    The weights are of ordinary size for each layer, so that nothing vanishes or explodes, and follow from the seed
    alone. The tokenizer knows single bytes and the special tokens. Decoded greedily, the model answers every question
    with `ANSWER`, or without a grounder with `ANSWER_IN_WORDS`. Its `lineage.json` says that it is random. The tiny one
    has 4 MB, a real one 4 bytes per parameter.

    Raises: ConfigError, for an unknown name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = zoo.config_of(name, grounder=grounder)
    answer = ANSWER_IN_WORDS if config.sam2_config is None else ANSWER
    with torch.random.fork_rng(devices=[]):
        state = build(config, dtype=torch.float32, device="cpu").state_dict()
    tokenizer = write_tokenizer(folder, config.special_tokens)
    _randomise(state, seed)
    _teach(state, tokenizer, answer)
    save_torch_state_dict(weights.to_upstream(state, key_table(config), official_shapes(config)), folder)
    _write_json(folder / "config.json", official_config(config, tokenizer.get_vocab()))
    sizes = None if config.sam2_config is None else sam2.sizes(config.sam2_config)
    if sizes and sizes != dict(sam2.HIERA_L):
        _write_json(folder / "sam2_config.json", sizes)
    weights.write_lineage(folder, {"random": True, "architecture": name, "seed": seed})
    return folder


def _randomise(state: dict[str, Tensor], seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    for name, tensor in state.items():
        if tensor.ndim < 2:
            tensor.fill_(_first(_SINGLE, name, 1.0))
            continue
        spread = _first(_SPREAD, name, tensor[0].numel() ** -0.5)
        # each language layer adds little to its token, so that `_teach` holds
        is_output = re.fullmatch(r".*language_model.*\.(o_proj|down_proj)\.weight", name)
        tensor.normal_(std=0.1 * spread if is_output else spread, generator=draws)


def _first(table: dict[str, float], name: str, default: float) -> float:
    return next((value for pattern, value in table.items() if re.fullmatch(pattern, name)), default)


def _teach(state: dict[str, Tensor], tokenizer: Tokenizer, answer: str) -> None:
    """Let each token of an answer be what follows the one before it; a line break comes before the first."""
    ids = tokenizer.encode("\n" + answer).ids
    embedded = state["mllm.language_model.model.embed_tokens.weight"]
    for before, after in pairwise(ids):
        state["mllm.language_model.lm_head.weight"][after] = embedded[before]


def write_tokenizer(folder: Path, special: Sequence[str]) -> Tokenizer:
    """Write the files of a tokenizer that knows single bytes and these special tokens; returns it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    _write_json(folder / "tokenizer_config.json", named)
    return tokenizer


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
