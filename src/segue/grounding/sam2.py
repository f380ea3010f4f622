"""SAM 2 prompted by language: the library's blocks, our own way through them.

A state of the language model becomes one extra sparse prompt. The library's own video path is not used: it has no place
for such a prompt, gates masks by the object score, loops over objects and keeps every frame.

Letters in shapes: f frames, n objects, d prompt width, s side of low-resolution masks, m width of a memory map.

Source: Sa2VA's `sam2.py` (bytedance/Sa2VA, `projects/sa2va/hf/models`) on SAM 2 (arXiv 2408.00714).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    PreTrainedConfig,
    Sam2VideoConfig,
    Sam2VideoMaskDecoderConfig,
    Sam2VideoModel,
    Sam2VideoPromptEncoderConfig,
)
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoMaskDecoder

from segue.grounding import hiera
from segue.models.tiling import resize
from segue.weights import KeyTable, Rule

# PARITY(grounding_bf16_constants): upstream rounds ImageNet's mean and deviation to bfloat16, whatever the model's type
MEAN = (0.484375, 0.455078125, 0.40625)
DEVIATION = (0.228515625, 0.2236328125, 0.224609375)
ABSENT = -1024.0
MEMORY_SCALE, MEMORY_BIAS = 20.0, -10.0
HIERA_L: Mapping[str, Any] = {
    "embed_dim": 144,
    "num_heads": 2,
    "stages": [2, 6, 36, 4],
    "global_att_blocks": [23, 33, 43],
    "window_pos_embed_bkg_spatial_size": [7, 7],
    "window_spec": [8, 4, 16, 8],
    "d_model": 256,
    "mem_dim": 64,
    "mem_attn_layers": 4,
    "mem_attn_ffn": 2048,
    "fuser_layers": 2,
    "image_size": 1024,
    "num_maskmem": 7,
    "mask_decoder_mlp_dim": 2048,
    "mask_decoder_heads": 8,
    "mask_decoder_depth": 2,
    "iou_head_hidden_dim": 256,
}


@dataclass(frozen=True, slots=True)
class Encoded:
    """Frames after the image encoder: `top` at stride 16, `fine` at strides 4 and 8, before any decoder's own layers.

    `position` is the sine encoding that belongs to `top`.
    """

    top: Float[Tensor, "f d h w"]
    fine: tuple[Float[Tensor, "f d h4 w4"], Float[Tensor, "f d h2 w2"]]
    position: Float[Tensor, "1 d h w"]

    def frame(self, number: int) -> Encoded:
        """One of the frames, still with its leading axis."""
        one = slice(number, number + 1)
        return Encoded(self.top[one], (self.fine[0][one], self.fine[1][one]), self.position)

    def copied(self) -> Encoded:
        """The same in memory of its own, so that one frame of several keeps no other."""
        return Encoded(self.top.clone(), (self.fine[0].clone(), self.fine[1].clone()), self.position)


@dataclass(frozen=True, slots=True)
class Decoded:
    """Objects on one frame.

    Mask logits, the estimated IoU of each mask in [0, 1], the logit that the object is visible, and the pointer by
    which later frames find the object again.
    """

    logits: Float[Tensor, "n s s"]
    iou: Float[Tensor, " n"]
    presence: Float[Tensor, " n"]
    pointer: Float[Tensor, "n d"]

    @classmethod
    def joined(cls, parts: Sequence[Decoded]) -> Decoded:
        """The objects of several, one after another."""
        return cls(*(torch.cat([getattr(part, one.name) for part in parts]) for one in fields(cls)))


class LanguageSam2(nn.Module):
    """SAM 2 whose mask decoder answers to language.

    `language_decoder` is there when a checkpoint keeps the decoder that learned language apart from the original
    one, which then does the tracking; otherwise one decoder does both.
    """

    def __init__(self, config: Sam2VideoConfig, *, two_decoders: bool):
        super().__init__()
        self.config = config
        self.sam2 = Sam2VideoModel(config)
        hiera.take_over(self.sam2.vision_encoder.backbone)
        self.language_decoder = Sam2VideoMaskDecoder(config.mask_decoder_config) if two_decoders else None
        width, memory = config.memory_attention_hidden_size, config.memory_encoder_output_channels
        for layer in self.sam2.memory_attention.layers:
            # the library fixes this width at 64
            if layer.cross_attn_image.kv_in_dim != memory:
                layer.cross_attn_image.k_proj = nn.Linear(memory, width)
                layer.cross_attn_image.v_proj = nn.Linear(memory, width)

    @property
    def side(self) -> int:
        """The side in pixels of the square that frames are stretched to."""
        return self.config.image_size

    def encode(self, pixels: Float[Tensor, "f 3 h w"]) -> Encoded:
        """Frames through the image encoder, once for all objects and both decoders."""
        output = self.sam2.vision_encoder(pixels.to(self.sam2.no_memory_embedding), return_dict=True)
        fine, middle, top = output.fpn_hidden_states
        return Encoded(top, (fine, middle), output.fpn_position_encoding[-1][:1])

    def prompted(self, encoded: Encoded, prompts: Float[Tensor, "n d"]) -> Decoded:
        """All objects on one frame, each asked for by its prompt, without memory.

        Upstream's mask for the frame: never gated by the object score, the best of three by estimated IoU.
        """
        return self.prompted_each(encoded, prompts[None])

    def prompted_each(self, encoded: Encoded, prompts: Float[Tensor, "f n d"]) -> Decoded:
        """As `prompted`, on several frames with the same number of objects each; the n of the result is f times n."""
        return self._best(*self._asked(encoded, prompts), gated=False)

    def candidates(self, encoded: Encoded, prompts: Float[Tensor, "f n d"]) -> Decoded:
        """As `prompted_each`, but all three masks of each object: the n of the result is f times n times three."""
        masks, ious, tokens, presence = self._asked(encoded, prompts)
        seen = presence.flatten().repeat_interleave(masks.shape[2])
        pointer = self._pointer(tokens.flatten(0, 2), seen)
        return Decoded(masks.flatten(0, 2).float(), ious.flatten().float(), seen.float(), pointer)

    def _asked(self, encoded: Encoded, prompts: Float[Tensor, "f n d"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        top = encoded.top + self.sam2.no_memory_embedding.view(1, -1, 1, 1)
        nothing = self._no_points(prompts.shape[1]).expand(len(prompts), -1, -1, -1)
        sparse = torch.cat([nothing, prompts[:, :, None].to(encoded.top)], dim=2)
        return self._run(self._language(), top, encoded, sparse, dense=None, several=True)

    def tracked(self, encoded: Encoded, top: Float[Tensor, "n d h w"], *, consistent: bool) -> Decoded:
        """All objects on one frame, from features that already remember them; `top` has one map per object.

        `consistent` asks the decoder that was trained to track, and like the original SAM 2 puts "nowhere" for the mask
        of an object judged invisible. Otherwise the decoder that learned language tracks too, as in Sa2VA.
        """
        decoder = self.sam2.mask_decoder if consistent else self._language()
        sparse = self._no_points(1).expand(len(top), -1, -1, -1)
        return self._best(*self._run(decoder, top, encoded, sparse, dense=None, several=True), gated=consistent)

    def decode_with_masks(self, encoded: Encoded, masks: Bool[Tensor, "n h w"]) -> Decoded:
        """Objects on one frame whose masks are known: the masks as logits, and pointers to find them again.

        Source: SAM 2's mask prompts, as Sa2VA-i uses them (kumuji/Sa2VA-i).
        """
        decoder, side = self.sam2.mask_decoder, self.side
        whole = functional.interpolate(masks[:, None].float(), (side, side), mode="bilinear", antialias=True) >= 0.5
        whole = whole.float()
        low = functional.interpolate(
            whole * MEMORY_SCALE + MEMORY_BIAS, (side // 4, side // 4), mode="bilinear", antialias=True
        )[:, 0]
        dense = self.sam2.prompt_encoder.mask_embed(self.sam2.mask_downsample(whole.to(encoded.top)))
        top = encoded.top.expand(len(masks), -1, -1, -1)
        sparse = self._no_points(1).expand(len(masks), -1, -1, -1)
        _, _, tokens, presence = self._run(decoder, top, encoded, sparse, dense=dense, several=False)
        pointer = self._pointer(tokens[:, 0, 0], presence.view(-1))
        is_there = whole.flatten(1).any(1)
        pointer = torch.where(is_there[:, None], pointer, self.sam2.no_object_pointer.to(pointer))
        certain = torch.where(is_there, MEMORY_SCALE + MEMORY_BIAS, MEMORY_BIAS)
        return Decoded(low, torch.ones_like(certain), certain, pointer)

    def encode_memory(self, encoded: Encoded, logits: Float[Tensor, "n s s"]) -> Float[Tensor, "n m h w"]:
        """Memory maps of objects on one frame, from the frame's features and the masks found there.

        An object's mask is not made binary. Maps are kept in bfloat16.
        """
        whole = functional.interpolate(logits[:, None], (self.side, self.side), mode="bilinear", align_corners=False)
        drawn = (whole.sigmoid() * MEMORY_SCALE + MEMORY_BIAS).to(encoded.top)
        maps, _ = self.sam2.memory_encoder(encoded.top.expand(len(logits), -1, -1, -1), drawn)
        # PARITY(memory_bf16): upstream rounds memory maps in float32 runs too
        return maps.to(torch.bfloat16)

    def memory_position(self, size: tuple[int, ...], like: Tensor) -> Float[Tensor, "m h w"]:
        """The sine encoding of places in a map of `size` (height, width), on the device and in the type of `like`."""
        shape = (1, self.config.memory_encoder_output_channels, *size)
        return self.sam2.memory_encoder.position_encoding(shape, like.device, like.dtype)[0]

    def _language(self) -> Sam2VideoMaskDecoder:
        return self.sam2.mask_decoder if self.language_decoder is None else self.language_decoder

    def _no_points(self, objects: int) -> Float[Tensor, "1 n 2 d"]:
        # an empty point and the library's padding: the prompt encoder's word for "no point given", twice
        return self.sam2.prompt_encoder.not_a_point_embed.weight.expand(1, objects, 2, -1)

    def _best(self, masks: Tensor, ious: Tensor, tokens: Tensor, presence: Tensor, *, gated: bool) -> Decoded:
        masks, ious, tokens, presence = masks.flatten(0, 1), ious.flatten(0, 1), tokens.flatten(0, 1), presence.view(-1)
        # PARITY(best_of_three): also without points, and while tracking; the single-mask token is never asked
        best = ious.argmax(-1)
        row = torch.arange(len(best), device=best.device)
        logits = masks[row, best].float()
        # PARITY(ungated_masks): Sa2VA leaves masks of objects judged invisible as they are; only the pointer changes
        if gated:
            logits = torch.where(presence[:, None, None] > 0, logits, ABSENT)
        pointer = self._pointer(tokens[row, best], presence)
        return Decoded(logits, ious[row, best].float(), presence.float(), pointer)

    def _run(
        self,
        decoder: Sam2VideoMaskDecoder,
        top: Tensor,
        encoded: Encoded,
        sparse: Tensor,
        *,
        dense: Tensor | None,
        several: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dtype = decoder.iou_token.weight.dtype
        fine = [
            layer(level.to(dtype)).expand(len(top), -1, -1, -1)
            for layer, level in zip((decoder.conv_s0, decoder.conv_s1), encoded.fine, strict=True)
        ]
        if dense is None:
            dense = self.sam2.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1).expand_as(top)
        return decoder(
            image_embeddings=top.to(dtype),
            image_positional_embeddings=self.image_position_encoding().to(dtype).expand(len(top), -1, -1, -1),
            sparse_prompt_embeddings=sparse.to(dtype),
            dense_prompt_embeddings=dense.to(dtype),
            multimask_output=several,
            high_resolution_features=fine,
        )

    def image_position_encoding(self) -> Float[Tensor, "1 d h w"]:
        """The random-Fourier encoding of places in a frame, as the prompt encoder knows them."""
        height, width = self.sam2.prompt_encoder.image_embedding_size
        gaussian = self.sam2.shared_image_embedding.positional_embedding
        rows = (torch.arange(height, device=gaussian.device) + 0.5) / height
        columns = (torch.arange(width, device=gaussian.device) + 0.5) / width
        grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
        return self.sam2.shared_image_embedding(grid.to(gaussian)).permute(2, 0, 1)[None]

    def _pointer(self, token: Float[Tensor, "n d"], presence: Float[Tensor, " n"]) -> Float[Tensor, "n d"]:
        pointer = self.sam2.object_pointer_proj(token.to(self.sam2.no_object_pointer))
        return torch.where(presence[:, None] > 0, pointer, self.sam2.no_object_pointer)


def frame_pixels(image: UInt8[np.ndarray, "h w 3"], side: int) -> Float[Tensor, "3 side side"]:
    """A frame as SAM 2 reads it: stretched to a square on 8-bit values, scaled, normalised in float32."""
    return normalised(frame_square(image, side))


def frame_square(image: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[Tensor, "3 side side"]:
    """A frame stretched to a square, not yet normalised."""
    square = np.asarray(resize(Image.fromarray(image), side, side)).copy()
    return torch.from_numpy(square).permute(2, 0, 1)


def normalised(squares: UInt8[Tensor, "... 3 side side"]) -> Float[Tensor, "... 3 side side"]:
    """Squares of 8-bit values, scaled and normalised in float32."""
    mean = torch.tensor(MEAN, device=squares.device).view(3, 1, 1)
    deviation = torch.tensor(DEVIATION, device=squares.device).view(3, 1, 1)
    return (squares / 255.0 - mean) / deviation


def architecture(sizes: Mapping[str, Any] | None = None) -> Sam2VideoConfig:
    """The library's configuration from a `sam2_config.json`, or Hiera-L, which every released Sa2VA has."""
    sizes = {**HIERA_L, **(sizes or {})}
    side, width, stages = sizes["image_size"], sizes["d_model"], len(sizes["stages"])
    embed = [sizes["embed_dim"] * 2**stage for stage in range(stages)]
    levels = [[side // stride] * 2 for stride in (4, 8, 16)]
    return whole_config(
        vision_config={
            "model_type": "sam2_vision_model",
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": sizes["embed_dim"],
                "num_attention_heads": sizes["num_heads"],
                "image_size": [side, side],
                "blocks_per_stage": sizes["stages"],
                "embed_dim_per_stage": embed,
                "num_attention_heads_per_stage": [sizes["num_heads"] * 2**stage for stage in range(stages)],
                "window_size_per_stage": sizes["window_spec"],
                "global_attention_blocks": sizes["global_att_blocks"],
                "window_positional_embedding_background_size": sizes["window_pos_embed_bkg_spatial_size"],
            },
            "backbone_channel_list": embed[::-1],
            "backbone_feature_sizes": levels,
            "fpn_hidden_size": width,
        },
        prompt_encoder_config={"hidden_size": width, "image_size": side},
        mask_decoder_config={
            "hidden_size": width,
            "mlp_dim": sizes["mask_decoder_mlp_dim"],
            "num_hidden_layers": sizes["mask_decoder_depth"],
            "num_attention_heads": sizes["mask_decoder_heads"],
            "iou_head_hidden_dim": sizes["iou_head_hidden_dim"],
        },
        image_size=side,
        num_maskmem=sizes["num_maskmem"],
        memory_attention_hidden_size=width,
        memory_attention_num_layers=sizes["mem_attn_layers"],
        memory_attention_feed_forward_hidden_size=sizes["mem_attn_ffn"],
        memory_attention_rope_feat_sizes=levels[-1],
        memory_encoder_hidden_size=width,
        memory_encoder_output_channels=sizes["mem_dim"],
        mask_downsampler_embed_dim=width,
        memory_fuser_num_layers=sizes["fuser_layers"],
        memory_fuser_embed_dim=width,
        memory_fuser_intermediate_dim=4 * width,
        enable_temporal_pos_encoding_for_object_pointers=False,
        enable_occlusion_spatial_embedding=False,
    )


def sizes(config: Sam2VideoConfig) -> dict[str, Any]:
    """The `sam2_config.json` of a configuration: `architecture` read backwards."""
    backbone, decoder = config.vision_config.backbone_config, config.mask_decoder_config
    return {
        "embed_dim": backbone.hidden_size,
        "num_heads": backbone.num_attention_heads,
        "stages": list(backbone.blocks_per_stage),
        "global_att_blocks": list(backbone.global_attention_blocks),
        "window_pos_embed_bkg_spatial_size": list(backbone.window_positional_embedding_background_size),
        "window_spec": list(backbone.window_size_per_stage),
        "d_model": config.vision_config.fpn_hidden_size,
        "mem_dim": config.memory_encoder_output_channels,
        "mem_attn_layers": config.memory_attention_num_layers,
        "mem_attn_ffn": config.memory_attention_feed_forward_hidden_size,
        "fuser_layers": config.memory_fuser_num_layers,
        "image_size": config.image_size,
        "num_maskmem": config.num_maskmem,
        "mask_decoder_mlp_dim": decoder.mlp_dim,
        "mask_decoder_heads": decoder.num_attention_heads,
        "mask_decoder_depth": decoder.num_hidden_layers,
        "iou_head_hidden_dim": decoder.iou_head_hidden_dim,
    }


def whole_config(**fields: Any) -> Sam2VideoConfig:
    """The library's configuration from plain values, as `config.json` holds them."""
    return deepcopy(_whole_config(json.dumps(fields)))


# the library checks every value, which takes forty times as long as a copy
@lru_cache(maxsize=32)
def _whole_config(text: str) -> Sam2VideoConfig:
    fields = json.loads(text)
    parts: dict[str, type[PreTrainedConfig]] = {
        "prompt_encoder_config": Sam2VideoPromptEncoderConfig,
        "mask_decoder_config": Sam2VideoMaskDecoderConfig,
    }
    # transformers 5.17 takes a mask decoder given as plain values for a prompt encoder
    built = {name: kind(**fields[name]) for name, kind in parts.items() if isinstance(fields.get(name), dict)}
    return Sam2VideoConfig(**{name: value for name, value in fields.items() if name != "model_type"} | built)


def key_table(upstream: str, sam2: str, language_decoder: str) -> KeyTable:
    """Original SAM 2 names, as Sa2VA saves them, to the library's. The arguments are the prefixes on both sides.

    One saved Gaussian matrix fills two places, and four saved point embeddings are the rows of one.
    """
    rules = [
        *_renames("image_encoder.trunk.", "vision_encoder.backbone.", _TRUNK),
        Rule(r"image_encoder\.neck\.convs\.(\d+)\.conv\.(.+)", (r"vision_encoder.neck.convs.\1.\2",)),
        *_renames("memory_attention.", "memory_attention.", _MEMORY_ATTENTION),
        *_renames("memory_encoder.", "memory_encoder.", _MEMORY_ENCODER),
        *_mask_downsampler(),
        *_prompt_encoder(),
        *_renames("sam_mask_decoder.", "mask_decoder.", _MASK_DECODER),
        *_renames("", "", _TOP),
    ]
    modified = _renames("sam_mask_decoder_modified.", "", _MASK_DECODER)
    prefix = upstream.replace(".", r"\.")
    return [*(rule.below(prefix, sam2) for rule in rules), *(rule.below(prefix, language_decoder) for rule in modified)]


_LAST = r"(weight|bias)"
_TRUNK = {
    r"patch_embed\.proj\.(.+)": r"patch_embed.projection.\1",
    r"(pos_embed(?:_window)?)": r"\1",
    r"blocks\.(\d+)\.norm([12])\.(.+)": r"blocks.\1.layer_norm\2.\3",
    r"blocks\.(\d+)\.mlp\.layers\.0\.(.+)": r"blocks.\1.mlp.proj_in.\2",
    r"blocks\.(\d+)\.mlp\.layers\.1\.(.+)": r"blocks.\1.mlp.proj_out.\2",
    r"(blocks\.\d+\.(?:attn\.qkv|attn\.proj|proj)\..+)": r"\1",
}
_MEMORY_ATTENTION = {
    rf"norm\.{_LAST}": r"layer_norm.\1",
    rf"layers\.(\d+)\.norm([123])\.{_LAST}": r"layers.\1.layer_norm\2.\3",
    rf"layers\.(\d+)\.(self_attn|cross_attn_image)\.out_proj\.{_LAST}": r"layers.\1.\2.o_proj.\3",
    rf"(layers\.\d+\.(?:self_attn|cross_attn_image)\.[qkv]_proj)\.{_LAST}": r"\1.\2",
    rf"(layers\.\d+\.linear[12])\.{_LAST}": r"\1.\2",
}
_MEMORY_ENCODER = {
    rf"pix_feat_proj\.{_LAST}": r"feature_projection.\1",
    rf"out_proj\.{_LAST}": r"projection.\1",
    rf"fuser\.layers\.(\d+)\.dwconv\.{_LAST}": r"memory_fuser.layers.\1.depthwise_conv.\2",
    rf"fuser\.layers\.(\d+)\.pwconv([12])\.{_LAST}": r"memory_fuser.layers.\1.pointwise_conv\2.\3",
    rf"fuser\.layers\.(\d+)\.norm\.{_LAST}": r"memory_fuser.layers.\1.layer_norm.\2",
    # SAM 2's own files and training checkpoints say gamma, Sa2VA's exports g_weight
    r"fuser\.layers\.(\d+)\.(?:g_weight|gamma)": r"memory_fuser.layers.\1.scale",
    rf"mask_downsampler\.encoder\.12\.{_LAST}": r"mask_downsampler.final_conv.\1",
}
_ATTENTION = r"(self_attn|cross_attn_token_to_image|cross_attn_image_to_token)"
_MASK_DECODER = {
    rf"output_upscaling\.0\.{_LAST}": r"upscale_conv1.\1",
    rf"output_upscaling\.1\.{_LAST}": r"upscale_layer_norm.\1",
    rf"output_upscaling\.3\.{_LAST}": r"upscale_conv2.\1",
    rf"(output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head)\.layers\.0\.{_LAST}": r"\1.proj_in.\2",
    rf"(output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head)\.layers\.1\.{_LAST}": r"\1.layers.0.\2",
    rf"(output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head)\.layers\.2\.{_LAST}": r"\1.proj_out.\2",
    rf"transformer\.norm_final_attn\.{_LAST}": r"transformer.layer_norm_final_attn.\1",
    rf"transformer\.final_attn_token_to_image\.out_proj\.{_LAST}": r"transformer.final_attn_token_to_image.o_proj.\1",
    rf"(transformer\.final_attn_token_to_image\.[qkv]_proj)\.{_LAST}": r"\1.\2",
    rf"transformer\.layers\.(\d+)\.norm([1234])\.{_LAST}": r"transformer.layers.\1.layer_norm\2.\3",
    rf"transformer\.layers\.(\d+)\.mlp\.layers\.0\.{_LAST}": r"transformer.layers.\1.mlp.proj_in.\2",
    rf"transformer\.layers\.(\d+)\.mlp\.layers\.1\.{_LAST}": r"transformer.layers.\1.mlp.proj_out.\2",
    rf"transformer\.layers\.(\d+)\.{_ATTENTION}\.out_proj\.{_LAST}": r"transformer.layers.\1.\2.o_proj.\3",
    rf"(transformer\.layers\.\d+\.{_ATTENTION}\.[qkv]_proj)\.{_LAST}": r"\1.\3",
    r"((?:iou_token|mask_tokens|obj_score_token)\.weight)": r"\1",
    rf"(conv_s[01])\.{_LAST}": r"\1.\2",
}
_TOP = {
    "maskmem_tpos_enc": "memory_temporal_positional_encoding",
    "no_mem_embed": "no_memory_embedding",
    "no_mem_pos_enc": "no_memory_positional_encoding",
    "no_obj_ptr": "no_object_pointer",
    rf"mask_downsample\.{_LAST}": r"mask_downsample.\1",
    rf"obj_ptr_proj\.layers\.0\.{_LAST}": r"object_pointer_proj.proj_in.\1",
    rf"obj_ptr_proj\.layers\.1\.{_LAST}": r"object_pointer_proj.layers.0.\1",
    rf"obj_ptr_proj\.layers\.2\.{_LAST}": r"object_pointer_proj.proj_out.\1",
}


def _renames(theirs: str, ours: str, names: Mapping[str, str]) -> Sequence[Rule]:
    return [Rule(theirs.replace(".", r"\.") + old, (ours + new,)) for old, new in names.items()]


def _mask_downsampler() -> Sequence[Rule]:
    # a flat sequence of convolution, norm, activation upstream; pairs of layers in the library
    return [
        Rule(
            rf"memory_encoder\.mask_downsampler\.encoder\.{3 * layer + offset}\.{_LAST}",
            (rf"memory_encoder.mask_downsampler.layers.{layer}.{name}.\1",),
        )
        for layer in range(4)
        for offset, name in enumerate(("conv", "layer_norm"))
    ]


def _prompt_encoder() -> Sequence[Rule]:
    theirs, ours = r"sam_prompt_encoder\.", "prompt_encoder."
    masks = {0: "conv1", 1: "layer_norm1", 3: "conv2", 4: "layer_norm2", 6: "conv3"}
    return [
        Rule(
            theirs + r"pe_layer\.positional_encoding_gaussian_matrix",
            (ours + "shared_embedding.positional_embedding", "shared_image_embedding.positional_embedding"),
        ),
        *(
            Rule(rf"{theirs}point_embeddings\.{row}\.weight", (ours + "point_embed.weight",), row=row)
            for row in range(4)
        ),
        *(
            Rule(rf"{theirs}mask_downscaling\.{old}\.{_LAST}", (rf"{ours}mask_embed.{new}.\1",))
            for old, new in masks.items()
        ),
        Rule(theirs + r"((?:no_mask_embed|not_a_point_embed)\.weight)", (ours + r"\1",)),
    ]
