"""The seams of SAM 2: image features, masks of one image, and masks through a video."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from segue.errors import DataError
from segue.geometry.masks import upscale
from segue.grounding.following import encode
from segue.grounding.sam2 import Decoded, Encoded, LanguageSam2, frame_pixels
from segue.grounding.tracking import VideoMemory, conditioning, step
from segue.parity.compare import Replay, Values
from segue.parity.recording import Recording


@dataclass(slots=True)
class Call:
    """What went into a module, without names and by name, and what came out, once."""

    arguments: tuple[Any, ...]
    given: Mapping[str, Any]
    output: Any


@contextmanager
def overheard(module: nn.Module) -> Iterator[list[Call]]:
    """The calls of a module while the context lasts, as they come."""
    calls: list[Call] = []
    hook = module.register_forward_hook(
        lambda _, arguments, given, output: calls.append(Call(arguments, given, output)), with_kwargs=True
    )
    try:
        yield calls
    finally:
        hook.remove()


class Frames:
    """The recording's frames through SAM 2's image encoder, each encoded once however often it is asked for."""

    def __init__(self, grounder: LanguageSam2):
        self.grounder = grounder
        self._encoded: dict[bytes, Encoded] = {}

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> Encoded:
        """The features of a frame."""
        key = image.tobytes()
        if key not in self._encoded:
            self._encoded[key] = encode(self.grounder, [image])
        return self._encoded[key]


@dataclass(slots=True)
class Tracks:
    """What was found on each frame, in order, and what is remembered of it."""

    found: list[Decoded] = field(default_factory=list)
    maps: list[Float[Tensor, "n m h w"]] = field(default_factory=list)

    def logits(self, number: int = 0) -> Float[Tensor, "t s s"]:
        """One object's mask logits."""
        return torch.stack([decoded.logits[number] for decoded in self.found])

    def values(self, prefix: str, number: int = 0) -> Values:
        """One object's recorded values: masks (frames, 1, side, side), scores, pointers and memory."""
        return {
            f"{prefix}.low_res_masks": self.logits(number)[:, None],
            f"{prefix}.object_score_logits": torch.stack([decoded.presence[number] for decoded in self.found])[:, None],
            f"{prefix}.obj_ptr": torch.stack([decoded.pointer[number] for decoded in self.found]),
            f"{prefix}.maskmem_features": torch.stack([maps[number] for maps in self.maps]),
        }


def replay_image(recording: Recording, grounder: LanguageSam2) -> Replay:
    """One image: pixels, trunk, feature levels and position codes, and all that the decoder gives back."""
    source, prompts = _image(recording, "sam2."), _prompts(recording, grounder)
    eyes, decoder = grounder.sam2.vision_encoder, grounder.sam2.mask_decoder
    with overheard(eyes.backbone) as trunks, overheard(eyes) as encodings:
        encoded = encode(grounder, [source])
    with overheard(decoder) as calls:
        decoded = grounder.prompted(encoded, prompts)
    levels = calls[0].given["high_resolution_features"]
    values: Values = {
        "sam2.g_pixel_values": frame_pixels(source, grounder.side)[None],
        "sam2.fpn_0": levels[0][:1],
        "sam2.fpn_1": levels[1][:1],
        "sam2.fpn_2": encoded.top,
        "sam2.dense_pe": calls[0].given["image_positional_embeddings"][:1],
        "sam2.sparse_empty_prompt": calls[0].given["sparse_prompt_embeddings"][:, 0, :-1],
        "sam2.inject_language_embd": decoded.logits[None],
    }
    for number, stage in enumerate(trunks[0].output.intermediate_hidden_states):
        values[f"sam2.trunk_{number}"] = stage.permute(0, 3, 1, 2)
    for number, place in enumerate(encodings[0].output.fpn_position_encoding):
        values[f"sam2.pos_{number}"] = place
    return Replay(values=values)


def replay_single(recording: Recording, grounder: LanguageSam2, frames: Frames) -> Replay:
    """One object on one image: the four masks of the decoder, their scores and tokens, and the one that is taken."""
    encoded = frames(_image(recording, "sam2.single."))
    prompts, recorded = _prompts(recording, grounder), _first_masks(recording, "sam2.single.best_low_res_mask")
    row = nearest_row(grounder.prompted(encoded, prompts).logits, recorded)
    decoder = grounder.sam2.mask_decoder
    with overheard(decoder) as calls:
        decoded = grounder.prompted(encoded, prompts[row : row + 1])
    masks, ious, tokens, presence = (output[0] for output in calls[0].output)
    first = _first_token(decoder, calls[0].given)
    values: Values = {
        "low_res_multimasks": masks,
        "ious": ious,
        "decoder_all4_masks": torch.cat([first[0][0], masks], dim=1),
        "decoder_all4_ious": torch.cat([first[1][0], ious], dim=1),
        "decoder_mask_tokens_out": torch.cat([first[2][0], tokens], dim=1),
        "object_score_logits": presence.view(1, 1),
        "best_low_res_mask": decoded.logits[None],
        "mask_1024": upscale(decoded.logits, (grounder.side, grounder.side))[None],
        "obj_ptr": decoded.pointer,
    }
    notes = [f"sam2.single was recorded with row {row} of sam2.language_embd"]
    return Replay({f"sam2.single.{name}": value for name, value in values.items()}, notes=notes)


def _first_token(decoder: Any, given: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """The mask of the single-mask token, which the decoder would replace by another where it is unstable."""
    chooses = decoder.dynamic_multimask_via_stability
    decoder.dynamic_multimask_via_stability = False
    try:
        masks, ious, tokens, presence = decoder(**{**given, "multimask_output": False})
        return masks, ious, tokens, presence
    finally:
        decoder.dynamic_multimask_via_stability = chooses


def replay_frames(recording: Recording, grounder: LanguageSam2, frames: Frames) -> Replay:
    """A video's frames as the encoder sees them, and the sine code of places in its memory."""
    values: Values = {}
    for name in recording.names("sam2.video.g_pixel_values"):
        clip = recording.clip(len(recording.outputs[name]))
        values["sam2.video.g_pixel_values"] = torch.stack([frame_pixels(image, grounder.side) for image in clip])
    if recording.names("sam2.video.maskmem_pos_enc"):
        encoded = frames(recording.clip(1)[0])
        values["sam2.video.maskmem_pos_enc"] = grounder.memory_position(encoded.top.shape[-2:], encoded.top)[None]
    return Replay(values)


def replay_video(recording: Recording, seam: str, grounder: LanguageSam2, frames: Frames) -> Replay:
    """A video with the first frames found by a prompt and the others followed; `sam2.video.cond3` prompts three."""
    prompts, recorded = _prompts(recording, grounder), _first_masks(recording, f"{seam}.low_res_masks")
    clip, prompted = recording.clip(len(recorded)), int(seam.rpartition("cond")[2])
    row = nearest_row(grounder.prompted(frames(clip[0]), prompts).logits, recorded)
    with overheard(grounder.sam2.mask_decoder) as calls:
        tracks = followed(frames, clip, prompts[row : row + 1], prompted)
    values = tracks.values(seam)
    values[f"{seam}.ious"] = torch.cat([call.output[1].flatten(0, 1) for call in calls])
    values[f"{seam}.pix_feat_with_mem"] = torch.cat([call.given["image_embeddings"] for call in calls[prompted:]])
    values[f"{seam}.masks_1024"] = upscale(tracks.logits(), (grounder.side, grounder.side))[:, None]
    return Replay(values, notes=[f"{seam} was recorded with row {row} of sam2.language_embd"])


def followed(
    frames: Frames, clip: UInt8[np.ndarray, "t h w 3"], prompts: Float[Tensor, "n d"], prompted: int
) -> Tracks:
    """Objects found by their prompts on the first frames and followed through the others, as Sa2VA does."""
    given = {frame: frames.grounder.prompted(frames(clip[frame]), prompts) for frame in range(prompted)}
    return _track(frames, clip, given, consistent=False)


def given_masks(
    frames: Frames, clip: UInt8[np.ndarray, "t h w 3"], masks: Mapping[int, Bool[Tensor, "n h w"]]
) -> Tracks:
    """Objects whose masks are known on some frames, followed through the others, as Sa2VA-i does."""
    given = {
        frame: frames.grounder.decode_with_masks(frames(clip[frame]), known) for frame, known in sorted(masks.items())
    }
    return _track(frames, clip, given, consistent=True)


def _track(
    frames: Frames, clip: UInt8[np.ndarray, "t h w 3"], given: Mapping[int, Decoded], *, consistent: bool
) -> Tracks:
    grounder, tracks = frames.grounder, Tracks()
    known = {frame: conditioning(grounder, frame, frames(clip[frame]), decoded) for frame, decoded in given.items()}
    memory = VideoMemory(tuple(known.values()))
    for frame, image in enumerate(clip):
        if frame in given:
            decoded, newest = given[frame], known[frame]
        else:
            decoded, memory = step(grounder, frame, frames(image), memory, consistent=consistent)
            newest = memory.recent[-1]
        assert newest.maps is not None, "the newest frame's map is never too old"
        tracks.found.append(decoded)
        tracks.maps.append(newest.maps)
    return tracks


def replay_tracker(recording: Recording, seam: str, grounder: LanguageSam2, frames: Frames) -> Replay:
    """Masks given on some frames and followed through the others; some recordings push the object score far down.

    Frames whose recorded score is exactly that of a given mask are those it was given on.
    """
    scores = recording.outputs[f"{seam}.object_score_logits"].flatten()
    words = " ".join(recording.what(name) for name in recording.names(f"{seam}."))
    shift = re.search(r"pred_obj_score_head last bias shifted by (-?\d+(?:\.\d+)?)", words)
    places = [frame for frame, score in enumerate(scores.tolist()) if abs(score) == 10.0]
    masks = recording.given("tracker.masks").bool().to(grounder.sam2.no_memory_embedding.device)
    given = dict(zip(places, masks[:, None], strict=True))
    with _shifted(grounder.sam2.mask_decoder.pred_obj_score_head.proj_out.bias, float(shift[1]) if shift else 0.0):
        return Replay(given_masks(frames, recording.clip(len(scores)), given).values(seam))


@contextmanager
def _shifted(bias: Tensor, amount: float) -> Iterator[None]:
    before = bias.detach().clone()
    with torch.no_grad():
        bias += amount
    try:
        yield
    finally:
        with torch.no_grad():
            bias.copy_(before)


def nearest_row(masks: Float[Tensor, "n s s"], recorded: Float[Tensor, "t 1 u u"]) -> int:
    """Which of several objects a recorded first mask belongs to: recordings do not say. `recorded` may be strided."""
    stride = masks.shape[-1] // recorded.shape[-1]
    distance = (masks[:, ::stride, ::stride].float().cpu() - recorded[0, 0]).abs().flatten(1).amax(1)
    return int(distance.argmin())


def _first_masks(recording: Recording, name: str) -> Float[Tensor, "t 1 u u"]:
    found = recording.names(name)
    if not found:
        raise DataError(f"{recording.folder} has no {name}, by which its other tensors are understood; record it too")
    return recording.outputs[found[0]]


def _image(recording: Recording, seam: str) -> UInt8[np.ndarray, "h w 3"]:
    """The image of a seam: recorded beside it, or a file that the manifest names."""
    named = re.search(r"\w+\.png", " ".join(recording.what(name) for name in recording.names(seam)))
    if named and "sam2.image_source" not in recording.inputs:
        return recording.picture(named[0])
    return recording.given("sam2.image_source").numpy()


def _prompts(recording: Recording, grounder: LanguageSam2) -> Float[Tensor, "n d"]:
    return recording.given("sam2.language_embd").to(grounder.sam2.no_memory_embedding)
