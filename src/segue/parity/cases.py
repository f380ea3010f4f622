"""The seam of whole calls: a question with an image or a video in, text and masks out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from segue.engine import Engine, Options
from segue.geometry.masks import upscale
from segue.grounding.following import find
from segue.models.base import Batch, Decoding, finished, seg_states
from segue.models.internvl import covered_cells
from segue.models.templates import stop_check
from segue.parity.compare import Found, Ours, fact
from segue.parity.masks import Frames, given_masks
from segue.parity.preprocessing import example_of, question_of
from segue.parity.recording import Recording
from segue.prepare import Example, View, collate
from segue.types import Region

SPARE_TOKENS = 8


def replay_case(recording: Recording, case: str, engine: Engine, plan: str, frames: Frames) -> Found:
    """One recorded call; `plan` says which frames of a video the language model sees.

    States are computed with the recorded answer in place; the ids are what ours decodes by itself.
    """
    example = example_of(recording, case, engine.processor, plan)
    batch = collate([example], engine.processor).to(engine.model.device)
    features = None if batch.pixels is None else engine.model.mllm.encode(batch.pixels)
    found = Found()
    if example.view is not None:
        _replay_view(recording, case, example.view, found)
        found.values[f"e2e.{case}.inputs_embeds"] = engine.model.mllm.embed(batch, features)[0]
    prompts = _replay_answer(recording, case, engine, batch, features, example, found)
    if recording.names(f"e2e.{case}.obj"):
        _replay_masks(recording, case, engine, found)
        if recording.names(f"e2e.{case}.obj0.first_"):
            _replay_consistent(recording, case, frames, example, prompts, found)
    return found


def _replay_view(recording: Recording, case: str, view: View, found: Found) -> None:
    """Tiles, and where marked regions fall on them."""
    visual = view.visual
    found.values[f"e2e.{case}.pixel_values"] = visual.pixels
    marks = recording.inputs.get(f"e2e.{case}.mask_prompts")
    for name in recording.names(f"e2e.{case}.prompt_masks_") if marks is not None else ():
        side = int(name.rpartition("x")[2])
        rasters = torch.zeros(1, len(marks), side * side)
        for number, mask in enumerate(marks.bool().numpy()):
            rasters[0, number, covered_cells(mask, side)] = 1
        found.values[name] = rasters.unflatten(-1, (side, side))
    tiles = len(visual.pixels)
    unmarked = (visual.rows.diff() < 0).nonzero().flatten()
    whole = int(unmarked[0]) + 1 if len(unmarked) else len(visual.rows)
    has_marks = torch.zeros(tiles)
    has_marks[visual.rows[whole:] // (whole // tiles)] = 1
    found.values[f"e2e.{case}.vp_overall_mask"] = has_marks


def _replay_answer(
    recording: Recording,
    case: str,
    engine: Engine,
    batch: Batch,
    features: Float[Tensor, "v d"] | None,
    example: Example,
    found: Found,
) -> Float[Tensor, "n e"]:
    """Ids and text that ours decodes, states under the recorded ids, and the mask prompts read from them."""
    name, record, tokenizer = f"e2e.{case}", recording.cases[case], engine.processor.tokenizer
    recorded = recording.outputs[f"{name}.generated_ids"].flatten()
    ids = _generated(engine, batch, features, len(recorded) + SPARE_TOKENS)
    found.values[f"{name}.generated_ids"] = torch.tensor(ids)
    if "prediction" in record:
        # the original's slow tokenizers put spaces around special tokens
        texts = (tokenizer.decode(ids, skip_special_tokens=False), record["prediction"])
        found.facts.append(fact(f"{name}.prediction", *("".join(text.split()) for text in texts)))
    consumed = torch.cat([example.ids, recorded[:-1]])
    whole = replace(example, ids=consumed, labels=torch.full_like(consumed, -100))
    _, hidden = engine.model.mllm.forward(collate([whole], engine.processor).to(engine.model.device), features)
    found.values[f"{name}.prompt_last_hidden"] = hidden[0, : len(example.ids)]
    found.values[f"{name}.generated_last_hidden"] = hidden[0, len(example.ids) :]
    reply = recorded[None, :-1].to(hidden.device)
    prompts = engine.model.prompts(seg_states(hidden[:, len(example.ids) :], reply, engine.processor.seg_id))
    found.values |= {f"{name}.obj{number}.language_embd": prompt[None] for number, prompt in enumerate(prompts)}
    return prompts


def _generated(engine: Engine, batch: Batch, features: Tensor | None, longest: int) -> list[int]:
    processor = engine.processor
    decoding = Decoding(
        is_over=stop_check(processor.tokenizer, processor.template, processor.eos_ids),
        seg_id=processor.seg_id,
        max_new_tokens=longest,
    )
    return finished(engine.model.mllm.generate(batch, features, decoding))[0].ids


def _replay_masks(recording: Recording, case: str, engine: Engine, found: Found) -> None:
    """The engine's whole answer: masks at both resolutions."""
    answer = engine.answer([question_of(recording, case)], Options(keep_logits=True))
    count = recording.cases[case].get("n_masks")
    found.facts.append(fact(f"e2e.{case}.n_masks", len(answer.regions), count))
    for number, region in enumerate(answer.regions):
        found.values |= _region_values(region, f"e2e.{case}.obj{number}")


def _region_values(region: Region, name: str) -> dict[str, Tensor | Ours]:
    track = region.masks
    assert track is not None and track.logits is not None
    masks = torch.from_numpy(np.stack([track.dense(position) for position in range(len(track))]))
    low = torch.from_numpy(track.logits)
    return {f"{name}.low_res_masks": low[:, None], f"{name}.masks": Ours(masks, logits=upscale(low, track.size))}


def _replay_consistent(
    recording: Recording, case: str, frames: Frames, example: Example, prompts: Float[Tensor, "n e"], found: Found
) -> None:
    """The two steps of Sa2VA-i apart: first masks by language on the chosen frames, then the original tracker."""
    view = example.view
    assert view is not None
    clip = recording.clip(view.media.count)
    grounder, size = frames.grounder, clip.shape[1:3]
    first = {frame: find(grounder, frames(clip[frame]), prompts).logits for frame in sorted(set(view.plan))}
    direct = {
        frame: interpolate(logits[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        for frame, logits in first.items()
    }
    tracks = given_masks(frames, clip, {frame: logits > 0 for frame, logits in direct.items()})
    for number in range(len(prompts)):
        name = f"e2e.{case}.obj{number}"
        low = torch.stack([first[frame][number] for frame in view.plan])
        cut = torch.stack([direct[frame][number] for frame in view.plan])
        tracked = tracks.values(name, number)
        # the engine's own masks are the ones compared
        found.values |= {key: value for key, value in tracked.items() if key not in found.values}
        found.values |= {f"{name}.first_low_res_masks": low[:, None], f"{name}.first_masks": Ours(cut > 0, logits=cut)}
