"""A family of models without a grounder, as somebody would add one: this file, and one line in the table."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import AutoModelForCausalLM, CLIPVisionConfig, PreTrainedConfig, PreTrainedModel, Qwen2Config

from segue.geometry.notation import parse
from segue.models.known import KnownModel, Signs
from segue.models.protocol import (
    PUBLISHED_TILES,
    Family,
    Official,
    Prompt,
    forward_loss,
    merge_visual_embeddings,
    positions,
    shown_as,
    visual_features,
    weights_of,
)
from segue.models.templates import Template, template
from segue.models.tiling import resize
from segue.models.tokenizers import load_tokenizer, save_tokenizer, single_id
from segue.weights import Rule

SIDE, TOKEN = 28, "<seen>"


class ToyConfig(PreTrainedConfig):
    """An image is one square, and one token."""

    model_type = "segue_toy"
    sub_configs = {"vision_config": CLIPVisionConfig, "text_config": Qwen2Config}

    def __init__(self, vision_config: Any = None, text_config: Any = None, **kwargs: Any):
        self.vision_config, self.text_config = vision_config, text_config
        if not isinstance(vision_config, PreTrainedConfig):
            self.vision_config = CLIPVisionConfig(**(vision_config or {}))
        if not isinstance(text_config, PreTrainedConfig):
            sizes = {name: value for name, value in (text_config or {}).items() if name != "model_type"}
            self.text_config = Qwen2Config(**sizes)
        super().__init__(**kwargs | {"tie_word_embeddings": False})

    def largest_image(self, max_tiles: int = PUBLISHED_TILES) -> tuple[int, int]:
        return 1, 1

    def largest_frame(self) -> tuple[int, int]:
        return 1, 1


class ToyMLLM(PreTrainedModel):
    """A matrix for a tower, and Qwen2."""

    config_class = ToyConfig
    base_model_prefix = "mllm"

    def __init__(self, config: ToyConfig):
        super().__init__(config)
        self.width = config.text_config.hidden_size
        self.vision_tower = nn.ModuleDict({"see": nn.Linear(3 * SIDE**2, config.vision_config.hidden_size)})
        self.projector = nn.Linear(config.vision_config.hidden_size, self.width)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.post_init()

    def tower(self, pixels, grids=None):  # states of all images one after another: [tokens, width of the tower]
        return self.vision_tower["see"](pixels.to(self.dtype).flatten(1))

    def project(self, states, grids=None):  # the same tokens: [tokens, width of the language model]
        return self.projector(states)

    def below(self, point):
        return weights_of(self, ("vision_tower.",) if point == "tower" else ("vision_tower.", "projector."))

    def prompt(self, batch):
        words = self.language_model.get_input_embeddings()(batch.input_ids)
        merged = merge_visual_embeddings(words, batch, visual_features(self, batch))
        return Prompt(merged, batch.attention, positions(batch.attention))

    def forward(self, batch):
        return forward_loss(self, batch)

    def head(self, hidden):
        return self.language_model.lm_head(hidden)


@dataclass(slots=True)
class ToyProcessor:
    tokenizer: Any
    template: Template
    visual_id: int
    eos_ids: tuple[int, ...]
    bos_ids: tuple[int, ...] = ()
    seg_id: int | None = None
    visual_token: str = TOKEN
    shows_first: bool = True

    @classmethod
    def load(cls, folder: Path, config: ToyConfig, chat: str) -> "ToyProcessor":
        tokenizer = load_tokenizer(folder)
        visual_id = single_id(tokenizer, TOKEN, config.text_config.vocab_size)
        return cls(tokenizer, template(chat), visual_id, (tokenizer.eos_token_id,))

    def image(self, pixels: np.ndarray, *, max_tiles: int):
        return self.frames(pixels[None])

    def frames(self, pixels: np.ndarray):
        squares = np.stack([np.asarray(resize(Image.fromarray(one), SIDE, SIDE)) for one in pixels])
        return shown_as(self, "image", len(squares), pixels=torch.from_numpy(squares).permute(0, 3, 1, 2) / 255)

    def placeholder(self, kind, num_features, grids=None):
        return TOKEN * num_features

    def regions(self, vision, masks):
        raise AssertionError("never asked here")

    def place(self, region, size):
        return None

    def save(self, folder: Path) -> None:
        save_tokenizer(self.tokenizer, folder)


def official(config: ToyConfig) -> dict[str, Any]:
    parts = {"vision_config": config.vision_config.to_dict(), "text_config": config.text_config.to_dict()}
    return {"model_type": "toy", **parts}


TEXT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
TEXT |= {"intermediate_size": 96, "vocab_size": 260, "bos_token_id": None, "eos_token_id": None}
FAMILY = Family(
    name="toy",
    claims=lambda config: config.get("model_type") == "toy",
    architecture=lambda config: ToyConfig(config["vision_config"], config["text_config"]),
    config=ToyConfig,
    build=ToyMLLM,
    processor=ToyProcessor.load,
    key_table=lambda _: [
        Rule(r"eye\.(.+)", (r"vision_tower.see.\1",)),
        Rule(r"glue\.(.+)", (r"projector.\1",)),
        Rule(r"talk\.(.+)", (r"language_model.\1",)),
    ],
    special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>", TOKEN),
    signs=Signs(
        tower="toy",
        tower_width=r"eye\.bias|mllm\.vision_tower\.see\.bias",
        tower_layer=r"(?:eye|mllm\.vision_tower\.see)\.(\d+)",
        languages={"qwen2": ("Qwen2", r"(?:talk|mllm\.language_model)\.model\.norm\.weight")},
        embeddings=r"(?:talk|mllm\.language_model)\.model\.embed_tokens\.weight",
        layer=r"(?:talk|mllm\.language_model)\.model\.layers\.(\d+)\..+",
        mlp_out=r"(?:talk|mllm\.language_model)\.model\.layers\.0\.mlp\.down_proj\.weight",
    ),
    known={
        "tiny-toy": KnownModel(
            config={
                "vision_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
                "text_config": TEXT,
            },
            template="qwen_chat",
            billions=0.001,
        )
    },
    parse=parse,
    video_frames="first:5",
    prompts={},
    groups={
        "vision": ("mllm.vision_tower.",),
        "connector": ("mllm.projector.",),
        "language": ("mllm.language_model.model.layers.", "mllm.language_model.model.norm."),
        "embeddings": ("mllm.language_model.model.embed_tokens.", "mllm.language_model.lm_head."),
    },
    official=Official(architecture="ToyForCausalLM", config=official),
)
