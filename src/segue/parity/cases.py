"""The seam of whole calls: a question with an image or a video in, text and masks out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from segue.engine import Engine
from segue.geometry.masks import upscale
from segue.grounding.following import decode_prompts
from segue.models.decoding import Decoding, decode
from segue.models.internvl.family import covered_cells
from segue.models.protocol import Batch, seg_states, visual_features
from segue.models.templates import stop_check
from segue.options import Options
from segue.parity.compare import Ours, Replay, Values, fact
from segue.parity.masks import Frames, given_masks
from segue.parity.preprocessing import example_of, question_of
from segue.parity.recording import Recording
from segue.prepare import MediaInput, TokenizedExample, collate
from segue.types import Region

SPARE_TOKENS = 8


@dataclass(frozen=True, slots=True)
class ReplayedCase:
    """A recorded call, ready to be answered: `name` begins the names of its tensors."""

    recording: Recording
    case: str
    engine: Engine
    example: TokenizedExample
    batch: Batch

    @property
    def name(self) -> str:
        """The seam's name."""
        return f"e2e.{self.case}"


def replay_case(recording: Recording, case: str, engine: Engine, plan: str, frames: Frames) -> Replay:
    """One recorded call; `plan` says which frames of a video the language model sees.

    States are computed with the recorded answer in place; the ids are what ours decodes by itself.
    """
    example = example_of(recording, case, engine.processor, plan)
    batch = collate([example], engine.processor).to(engine.model.device)
    batch = batch.with_features(visual_features(engine.model.mllm, batch))
    asked, found = ReplayedCase(recording, case, engine, example, batch), Replay()
    if example.media:
        _replay_media(asked, example.media[-1], found)
    _replay_words(asked, found)
    prompts = _replay_states(asked, found)
    if any("masks" in name for name in recording.names(f"{asked.name}.obj")):
        _replay_masks(asked, found)
        if recording.names(f"{asked.name}.obj0.first_"):
            _replay_consistent(asked, frames, prompts, found)
    return found


def _replay_media(asked: ReplayedCase, shown: MediaInput, found: Replay) -> None:
    """Tiles, the embeddings they become, and where marked regions fall on them."""
    name, vision = asked.name, shown.vision
    assert vision.pixels is not None
    found.values[f"{name}.pixel_values"] = vision.pixels
    found.values[f"{name}.inputs_embeds"] = asked.engine.model.mllm.prompt(asked.batch).embeddings[0]
    marks = asked.recording.inputs.get(f"{name}.mask_prompts")
    if marks is None:
        return
    for raster in asked.recording.names(f"{name}.prompt_masks_"):
        side = int(raster.rpartition("x")[2])
        cells = torch.zeros(len(marks), side * side)
        for number, mask in enumerate(marks.bool().numpy()):
            cells[number, covered_cells(mask, side)] = 1
        found.values[raster] = cells.view(1, -1, side, side)
    tiles = len(vision.pixels)
    # the features once each, then again those that a region repeats
    again = vision.rows[int(vision.rows.max()) + 1 :]
    has_marks = torch.zeros(tiles)
    has_marks[again // ((int(vision.rows.max()) + 1) // tiles)] = 1
    found.values[f"{name}.vp_overall_mask"] = has_marks


def _replay_words(asked: ReplayedCase, found: Replay) -> None:
    """Ids and text that ours decodes."""
    processor, record = asked.engine.processor, asked.recording.cases[asked.case]
    decoding = Decoding(
        is_over=stop_check(processor.tokenizer, processor.template, processor.eos_ids),
        seg_id=processor.seg_id,
        max_new_tokens=len(_answer(asked)) + SPARE_TOKENS,
    )
    ids = decode(asked.engine.model.mllm, asked.batch, decoding)[0].ids
    found.values[f"{asked.name}.generated_ids"] = torch.tensor(ids)
    # the original's slow tokenizers put spaces around special tokens
    texts = (processor.tokenizer.decode(ids, skip_special_tokens=False), record["prediction"])
    found.facts.append(fact(f"{asked.name}.prediction", *("".join(text.split()) for text in texts)))


def _replay_states(asked: ReplayedCase, found: Replay) -> Float[Tensor, "n e"]:
    """States under the recorded answer, and the mask prompts read from them."""
    name, example, model, processor = asked.name, asked.example, asked.engine.model, asked.engine.processor
    answer = _answer(asked)
    consumed = torch.cat([example.ids, answer[:-1]])
    whole = replace(example, ids=consumed, labels=torch.full_like(consumed, -100))
    batch = collate([whole], processor).to(model.device)
    _, hidden = model.mllm.forward(batch.with_features(asked.batch.features))
    states = hidden[:, len(example.ids) :]
    prompts = model.prompts(seg_states(states, answer[None, :-1].to(model.device), processor.seg_id))
    found.values |= {
        f"{name}.prompt_last_hidden": hidden[0, : len(example.ids)],
        f"{name}.generated_last_hidden": states[0],
    }
    found.values |= {f"{name}.obj{number}.language_embd": prompt[None] for number, prompt in enumerate(prompts)}
    return prompts


def _answer(asked: ReplayedCase) -> Tensor:
    return asked.recording.outputs[f"{asked.name}.generated_ids"].flatten()


def _replay_masks(asked: ReplayedCase, found: Replay) -> None:
    """The engine's whole answer: masks at both resolutions."""
    answer = asked.engine.answer([question_of(asked.recording, asked.case)], Options(keep_logits=True))
    found.facts.append(fact(f"{asked.name}.n_masks", len(answer.regions), asked.recording.cases[asked.case]["n_masks"]))
    for number, region in enumerate(answer.regions):
        found.values |= _region_values(region, f"{asked.name}.obj{number}")


def _region_values(region: Region, name: str) -> Values:
    track = region.masks
    assert track is not None and track.logits is not None
    masks = torch.from_numpy(np.stack([track.dense(position) for position in range(len(track))]))
    low = torch.from_numpy(track.logits)
    return {f"{name}.low_res_masks": low[:, None], f"{name}.masks": Ours(masks, logits=upscale(low, track.size))}


def _replay_consistent(asked: ReplayedCase, frames: Frames, prompts: Float[Tensor, "n e"], found: Replay) -> None:
    """The two steps of Sa2VA-i apart: first masks by language on the chosen frames, then the original tracker."""
    shown = asked.example.media[-1]
    clip = asked.recording.clip(shown.media.count)
    grounder, size = frames.grounder, clip.shape[1:3]
    first = {frame: decode_prompts(grounder, frames(clip[frame]), prompts).logits for frame in sorted(set(shown.plan))}
    direct = {
        frame: interpolate(logits[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        for frame, logits in first.items()
    }
    tracks = given_masks(frames, clip, {frame: logits > 0 for frame, logits in direct.items()})
    for number in range(len(prompts)):
        name = f"{asked.name}.obj{number}"
        low = torch.stack([first[frame][number] for frame in shown.plan])
        cut = torch.stack([direct[frame][number] for frame in shown.plan])
        tracked = tracks.values(name, number)
        # the masks compared are the engine's own
        found.values |= {key: value for key, value in tracked.items() if key not in found.values}
        found.values |= {f"{name}.first_low_res_masks": low[:, None], f"{name}.first_masks": Ours(cut > 0, logits=cut)}
