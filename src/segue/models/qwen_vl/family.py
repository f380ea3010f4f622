"""Qwen-VL as a family: what its checkpoints look like, how it is asked, and what of it can be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from segue.geometry import qwen_notation
from segue.models.protocol import Family, Official, VisionInput
from segue.models.qwen_vl.known import KNOWN, SIGNS
from segue.models.qwen_vl.model import ARCHITECTURE, QwenVLConfig, QwenVLMLLM, architecture, claims, key_table
from segue.models.qwen_vl.processor import QwenVLProcessor
from segue.models.qwen_vl.tokenizer import SPECIAL_TOKENS, VOCABULARY, load, write_tiktoken
from segue.models.tokenizers import TOKENIZER_FILES
from segue.types import Region
from segue.weights import read_json

CHAT_FORMATS = {"chatml": "qwen_vl_chat", "raw": "qwen_vl_raw"}


def parse(raw: str, size: tuple[int, int] | None, _: VisionInput | None) -> tuple[str, tuple[Region, ...]]:
    """An answer in Qwen-VL's notation; without the (height, width) of a medium there are no places."""
    text, regions = qwen_notation.parse(raw, size or (1, 1))
    return text, regions if size else ()


def template(folder: Path) -> str:
    """How an official folder's model is talked to: its `generation_config.json` says so; else it chats."""
    file = folder / "generation_config.json"
    said = read_json(file).get("chat_format") if file.is_file() else None
    return CHAT_FORMATS.get(str(said), "qwen_vl_chat")


def official(config: QwenVLConfig) -> dict[str, Any]:
    """The fields of an official config.json."""
    vision, text = config.vision_config, config.text_config
    packed = {"quant_method": "gptq", "bits": 4, "group_size": config.gptq_group, "desc_act": False, "sym": True}
    return {
        "model_type": "qwen",
        "hidden_size": text.hidden_size,
        "intermediate_size": 2 * text.intermediate_size,
        "num_hidden_layers": text.num_hidden_layers,
        "num_attention_heads": text.num_attention_heads,
        "kv_channels": text.head_dim,
        "vocab_size": text.vocab_size,
        "layer_norm_epsilon": text.rms_norm_eps,
        "rotary_emb_base": text.rope_parameters["rope_theta"],
        "rotary_pct": 1.0,
        "seq_length": text.max_position_embeddings,
        "use_dynamic_ntk": text.use_dynamic_ntk,
        "use_logn_attn": text.use_logn_attn,
        "no_bias": True,
        "tie_word_embeddings": False,
        "visual": {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "width": vision.hidden_size,
            "layers": vision.num_hidden_layers,
            "heads": vision.num_attention_heads,
            # so much above the whole number that the product is not rounded down to one less
            "mlp_ratio": (vision.intermediate_size + 0.5) / vision.hidden_size,
            "output_dim": vision.output_width,
            "n_queries": vision.num_queries,
            "image_start_id": config.image_start_id,
        },
        **({} if config.gptq_group is None else {"quantization_config": packed}),
    }


def _vocabulary(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    write_tiktoken(tokenizer, folder / VOCABULARY)


FAMILY = Family(
    name="qwen_vl",
    claims=claims,
    architecture=architecture,
    config=QwenVLConfig,
    build=QwenVLMLLM,
    processor=QwenVLProcessor.load,
    key_table=key_table,
    special_tokens=SPECIAL_TOKENS,
    signs=SIGNS,
    known=KNOWN,
    parse=parse,
    template=template,
    video_frames="uniform:4",
    prompts={
        "box": "<ref>{phrase}</ref>",
        "caption": "Describe the image in English:",
        "ocr": "OCR with grounding:",
    },
    groups={
        "vision": ("mllm.vision_tower.",),
        "connector": ("mllm.connector.",),
        "language": ("mllm.language_model.model.layers.", "mllm.language_model.model.norm."),
        "embeddings": ("mllm.language_model.model.embed_tokens.", "mllm.language_model.lm_head."),
    },
    official=Official(
        architecture=ARCHITECTURE,
        config=official,
        tokenizer="QWenTokenizer",
        save_tokenizer=_vocabulary,
    ),
    tokenizer=load,
    tokenizer_files=(VOCABULARY, *TOKENIZER_FILES),
)
