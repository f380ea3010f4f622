"""Recordings of Qwen-VL: tower, resampler, language model and generation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerFast

from segue import loading, weights
from segue.errors import DataError
from segue.models.decoding import Decoding, decode
from segue.models.protocol import Batch
from segue.models.qwen_vl.model import QwenVLMLLM, architecture, key_table
from segue.models.qwen_vl.processor import image_slots, normalised
from segue.models.qwen_vl.tokenizer import VOCABULARY, from_tiktoken
from segue.parity import qwen_vl_text
from segue.parity.compare import TOLERANCE, Check, Ours, Replay, fact
from segue.parity.recording import TEXTS, Recording
from segue.weights import read_json

_STRETCHES = {"both": (True, True), "ntk_only": (True, False), "logn_only": (False, True), "off": (False, False)}


@dataclass(frozen=True, slots=True)
class QwenVLSubject:
    """The recorded model, and the tokenizer that the recorded texts were read with.

    They do not belong together: the recorded model has few tokens, so that it stays small.
    """

    mllm: QwenVLMLLM
    tokenizer: PreTrainedTokenizerFast


def load(recording: Recording, *, dtype: str = "fp32", device: str = "cpu") -> QwenVLSubject:
    """The recorded model and tokenizer.

    Raises: CheckpointError, if weights or vocabulary do not fit.
    """
    config = architecture(read_json(recording.folder / "config.json"))
    place = loading.pick_device(device)
    mllm = QwenVLMLLM(config).to(place, loading.pick_dtype(dtype, place)).eval()
    weights.load(mllm, recording.folder, key_table(config))
    mllm.language_model.set_attn_implementation("eager")
    return QwenVLSubject(mllm, from_tiktoken(recording.folder / VOCABULARY))


def replay(recording: Recording, seam: str, model: QwenVLSubject) -> Replay:
    """One seam: what ours makes of the same inputs."""
    if seam in TEXTS:
        return qwen_vl_text.replay(recording, seam, model.tokenizer)
    return _replay_tensors(recording, seam, model.mllm)


def _replay_tensors(recording: Recording, seam: str, mllm: QwenVLMLLM) -> Replay:
    replays = {
        "text": _replay_text,
        "mm": _replay_pictures,
        "gen": _replay_generation,
        "long": _replay_beyond,
        "mid": _replay_beyond,
        "decode_across": _replay_across,
    }
    if seam.startswith("preprocess"):
        return _replay_preprocessing(recording, seam)
    return replays[seam](recording, seam, mllm) if seam in replays else Replay()


def _replay_preprocessing(recording: Recording, seam: str) -> Replay:
    """The pictures that the manifest names, as squares of the side that it gives."""
    rows = recording.manifest["preprocess_file"].items()
    side = next(int(row["target"]) for _, row in rows if seam.endswith(str(row["target"])))
    pictures = [recording.picture(name) for name, row in rows if row["target"] == side]
    return Replay({f"{seam}.pixel_values": normalised(pictures, side)})


def _batch(recording: Recording, seam: str, mllm: QwenVLMLLM) -> Batch:
    """A recorded batch; what stands between image marks is a picture's whatever its ids."""
    ids = recording.given(f"{seam}.input_ids").to(mllm.device)
    attention = recording.inputs.get(f"{seam}.attention_mask", torch.ones_like(ids)).to(mllm.device)
    labels = recording.inputs.get(f"{seam}.labels")
    batch = Batch(ids, attention, None if labels is None else labels.to(mllm.device))
    if f"{seam}.pixel_values" not in recording.inputs:
        return batch
    slots = image_slots(ids, mllm.config.image_start_id, mllm.config.vision_config.num_queries)
    rows = torch.arange(int(slots.sum()), device=mllm.device)
    return Batch(ids, attention, batch.labels, visual_places=slots, visual_rows=rows)


def _replay_text(recording: Recording, seam: str, mllm: QwenVLMLLM) -> Replay:
    """Text alone; it is learned whole."""
    batch = _batch(recording, seam, mllm)
    batch = Batch(batch.input_ids, batch.attention, batch.input_ids if batch.labels is None else batch.labels)
    first: list[Tensor] = []
    hook = mllm.language_model.model.layers[0].register_forward_hook(lambda *call: first.append(call[2]))
    loss, hidden = mllm(batch)
    hook.remove()
    return Replay(
        {f"{seam}.hidden_after_layer0": first[0], f"{seam}.logits": mllm.head(hidden), f"{seam}.loss": _one(loss)}
    )


def _replay_pictures(recording: Recording, seam: str, mllm: QwenVLMLLM) -> Replay:
    """Rows with pictures among their text, in reading order, and what tower and resampler make of them."""
    pixels = recording.given(f"{seam}.pixel_values").to(mllm.device, mllm.dtype)
    tower, batch = mllm.vision_tower, _batch(recording, seam, mllm)
    embedded, states = tower.embed(pixels), mllm.tower(pixels)
    features = mllm.project(states)
    shown = batch.with_features(features)
    loss, hidden = mllm(shown)
    learned, gradients = _learned(recording, mllm, replace(batch, pixels=pixels))
    is_read = batch.attention.bool().cpu()
    return Replay(
        {
            f"{seam}.pixel_values": _pictures(recording, seam, mllm),
            f"{seam}.vit_ln_pre": embedded,
            f"{seam}.vit_block0": tower.layers[0](embedded),
            f"{seam}.vit_last": states,
            f"{seam}.resampler_out": mllm.connector.resampler(states),
            f"{seam}.image_embeds": features.view(len(pixels), -1, features.shape[-1]),
            f"{seam}.inputs_embeds": Ours(mllm.prompt(shown).embeddings, where=is_read),
            f"{seam}.logits": Ours(mllm.head(hidden), where=is_read),
            f"{seam}.loss": _one(loss),
            f"{seam}.train_loss": _one(learned),
        },
        gradients,
    )


@torch.enable_grad()
def _learned(recording: Recording, mllm: QwenVLMLLM, batch: Batch) -> tuple[Float[Tensor, ""] | None, list[Check]]:
    """The loss in training, and how long the gradient of each recorded parameter is."""
    mllm.train().requires_grad_(True)
    loss, _ = mllm(batch)
    assert loss is not None
    loss.backward()
    recorded = recording.manifest.get("train_mode_gradient_norms", {})
    found = {name: value.grad for name, value in mllm.named_parameters() if value.grad is not None}
    ours = weights.to_upstream(found, key_table(mllm.config), recorded)
    checks = []
    for name, norm in recorded.items():
        is_near = abs(float(ours[name].norm()) - norm) <= TOLERANCE * norm
        checks.append(fact(f"mm.gradient of {name.replace('.', '/')}", is_near, True))
    mllm.eval().requires_grad_(False)
    mllm.zero_grad()
    return loss.detach(), checks


def _pictures(recording: Recording, seam: str, mllm: QwenVLMLLM) -> Float[Tensor, "p 3 s s"]:
    """The pictures that the ids name: the original writes a file's name into its picture's places, a byte each.

    Raises: DataError, if a name is no file of the recording.
    """
    ids = recording.given(f"{seam}.input_ids")
    slots = image_slots(ids, mllm.config.image_start_id, mllm.config.vision_config.num_queries)
    spans = ids[slots].view(-1, mllm.config.vision_config.num_queries).tolist()
    pictures = []
    for span in spans:
        name = bytes(token for token in span if token != mllm.config.visual_id).decode()
        if "/" in name or not (recording.folder / name).is_file():
            raise DataError(f"{recording.folder} lacks {name!r}, which its rows show; copy the whole recording")
        pictures.append(recording.picture(name))
    side: int = recording.given(f"{seam}.pixel_values").shape[-1]
    return normalised(pictures, side)


def _one(loss: Float[Tensor, ""] | None) -> Float[Tensor, " 1"]:
    assert loss is not None
    return loss[None]


def _replay_generation(recording: Recording, seam: str, mllm: QwenVLMLLM) -> Replay:
    """What greedy decoding says after rows padded on the left, and the scores that it chose by."""
    batch = _batch(recording, seam, mllm)
    pixels = recording.inputs.get(f"{seam}.pixel_values")
    if pixels is not None:
        batch = batch.with_features(mllm.project(mllm.tower(pixels.to(mllm.device))))
    wanted = recording.outputs[f"{seam}.tokens"]
    decoding = Decoding(is_over=lambda _: False, seg_id=None, max_new_tokens=wanted.shape[1])
    tokens = torch.tensor([row.ids for row in decode(mllm, batch, decoding)])
    scores = _scores(mllm, batch, tokens.to(mllm.device))
    found = Replay({f"{seam}.tokens": tokens, f"{seam}.step_logits": scores})
    if pixels is not None:
        found.values[f"{seam}.pixel_values"] = _pictures(recording, seam, mllm)
    return found


def _scores(mllm: QwenVLMLLM, batch: Batch, tokens: Int[Tensor, "b k"]) -> Float[Tensor, "b k c"]:
    """The scores of the token to come before each of those."""
    said = tokens[:, :-1]
    places = batch.visual_places
    if places is not None:
        places = torch.cat([places, torch.zeros_like(said, dtype=torch.bool)], 1)
    whole = Batch(
        torch.cat([batch.input_ids, said], 1),
        torch.cat([batch.attention, torch.ones_like(said)], 1),
        visual_places=places,
        visual_rows=batch.visual_rows,
        features=batch.features,
    )
    _, hidden = mllm(whole)
    return mllm.head(hidden[:, -tokens.shape[1] :])


def _trained_on(mllm: QwenVLMLLM, recording: Recording) -> None:
    mllm.config.text_config.max_position_embeddings = int(recording.manifest["long_seq_length"])


def _replay_beyond(recording: Recording, seam: str, mllm: QwenVLMLLM) -> Replay:
    """A text longer than the trained length, with and without what is done about it, and in training."""
    text, found = mllm.config.text_config, Replay()
    before = (text.use_dynamic_ntk, text.use_logn_attn, text.max_position_embeddings)
    _trained_on(mllm, recording)
    for name in recording.names(f"{seam}.logits_"):
        kind = name.partition("logits_")[2]
        ids = recording.given("long.input_ids")[:, : recording.outputs[name].shape[1]].to(mllm.device)
        text.use_dynamic_ntk, text.use_logn_attn = _STRETCHES.get(kind, (True, True))
        mllm.train(kind == "train_mode")
        _, hidden = mllm(Batch(ids, torch.ones_like(ids)))
        found.values[name] = mllm.head(hidden)
    mllm.eval()
    text.use_dynamic_ntk, text.use_logn_attn, text.max_position_embeddings = before
    return found


def _replay_across(recording: Recording, seam: str, mllm: QwenVLMLLM) -> Replay:
    """A prompt within the trained length and given tokens after it, one by one, beyond that length."""
    text = mllm.config.text_config
    before = text.max_position_embeddings
    _trained_on(mllm, recording)
    length = int(recording.given(f"{seam}.prefill_len"))
    steps = recording.outputs[f"{seam}.step_logits"].shape[1]
    ids = recording.given("long.input_ids")[:, : length + steps - 1].to(mllm.device)
    cache, scores = DynamicCache(), []
    for start, stop in [(0, length), *((place, place + 1) for place in range(length, ids.shape[1]))]:
        where = torch.arange(start, stop, device=mllm.device)[None]
        output = mllm.language_model(ids[:, start:stop], position_ids=where, past_key_values=cache, use_cache=True)
        scores.append(output.logits[:, -1:])
    text.max_position_embeddings = before
    return Replay({f"{seam}.step_logits": torch.cat(scores, 1), f"{seam}.alpha": torch.ones(1)})
