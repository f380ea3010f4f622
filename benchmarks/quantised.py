"""What 8 or 4 bits cost and save: masks against the same model's unquantised ones, CPU seconds, memory of weights.

    python benchmarks/quantised.py [--model demo] [--bits int8,int4] [--dtype fp32] [--scenes 20] [--json FILE]
    python benchmarks/quantised.py --architecture Sa2VA-1B --scenes 1      # real size, random weights: no IoU then

Scenes and clips are numbers 0, 1, 2 ... of the fixed test split of the generated scenes (`segue.synth`); each
phrase is asked for in a question of its own. IoU is over all masks of a phrase together, 1 where neither finds
anything. Seconds are of the CPU, on one thread, for reading the picture and answering in words, which is all that
quantisation touches; masks are the same work in both.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from torch import nn

import segue
from segue.bench.stages import random_engine
from segue.checkpoints import footprint
from segue.engine import Engine
from segue.models.quantised import Bits, quantise
from segue.options import Options
from segue.synth import Scene, clip, scene
from segue.types import Answer, Message

TOKENS = 24


@dataclass(frozen=True, slots=True)
class Figures:
    """One kind of quantisation beside none: `same_text` and IoUs in [0, 1], the rest as shares of the unquantised."""

    bits: str
    questions: int
    same_text: float
    mean_iou: float
    least_iou: float
    seconds: float
    decoding: float
    memory: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--architecture")
    parser.add_argument("--bits", default="int8")
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--scenes", type=int, default=20)
    parser.add_argument("--json", type=Path)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    scenes = [draw(0, number, split="test") for number in range(settings.scenes) for draw in (scene, clip)]
    rows = [measure(settings, bits, scenes) for bits in settings.bits.split(",")]
    print("      questions  same text  mean IoU  least IoU  CPU seconds   decoding    weights")
    for row in rows:
        shares = (row.same_text, row.mean_iou, row.least_iou, row.seconds, row.decoding, row.memory)
        print(f"{row.bits:6}{row.questions:9}" + "".join(f"{share:11.3f}" for share in shares))
    if settings.json:
        settings.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")


def measure(settings: argparse.Namespace, bits: Bits, scenes: list[Scene]) -> Figures:
    """Ask everything of the model, quantise it in place, and ask everything again."""
    engine = (
        random_engine(settings.architecture, device="cpu", dtype=settings.dtype)
        if settings.architecture
        else segue.load(settings.model, device="cpu", dtype=settings.dtype)
    )
    exact, seconds = asked(engine, scenes)
    step, size = decoding(engine), held(engine.model)
    pack(engine, bits)
    packed, less = asked(engine, scenes)
    overlaps = [overlap(one, other) for one, other in zip(exact, packed, strict=True)]
    same = [one.text == other.text for one, other in zip(exact, packed, strict=True)]
    return Figures(
        bits,
        len(exact),
        float(np.mean(same)),
        float(np.mean(overlaps)),
        float(np.min(overlaps)),
        less / seconds,
        decoding(engine) / step,
        held(engine.model) / size,
    )


def pack(engine: Engine, bits: Bits) -> None:
    """What `segue.load(..., quantize=bits)` does, to a model that is there already."""
    shapes = {name: tuple(tensor.shape) for name, tensor in engine.model.state_dict().items()}
    quantise(engine.model, footprint.quantised_layers(shapes, engine.model.config.family, bits), bits, "cpu")


def asked(engine: Engine, scenes: list[Scene]) -> tuple[list[Answer], float]:
    """The answers to all phrases, and the CPU seconds that words took."""
    answers, seconds = [], 0.0
    for drawn in scenes:
        for phrase in drawn.phrases:
            question = engine.model.family.prompts[f"segment_{drawn.media.kind}"]
            message = Message.user(question.replace("{phrase}", phrase.words["en"]), drawn.media)
            begun = process_time()
            events = engine.stream_answer([message], Options(max_new_tokens=TOKENS))
            for event in events:
                if not isinstance(event, segue.TextDelta):
                    seconds += process_time() - begun
                    break
            answers.append(event.answer if isinstance(event, segue.Finished) else last(events))
    return answers, seconds


def last(events: Any) -> Answer:
    """The answer at the end of a stream."""
    return next(event.answer for event in events if isinstance(event, segue.Finished))


@torch.no_grad()
def decoding(engine: Engine) -> float:
    """CPU seconds of one token through the language model after a prompt of 512, the least of five."""
    language = engine.model.mllm.language_model
    model = language.model
    ids = torch.ones(1, 512, dtype=torch.long)
    cache = model(inputs_embeds=language.get_input_embeddings()(ids), use_cache=True).past_key_values
    found = []
    for _ in range(5):
        begun = process_time()
        state = model(inputs_embeds=language.get_input_embeddings()(ids[:, :1]), past_key_values=cache, use_cache=True)
        language.lm_head(state.last_hidden_state)
        found.append(process_time() - begun)
    return min(found)


def held(model: nn.Module) -> int:
    """Bytes of a model's weights."""
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def overlap(one: Answer, other: Answer) -> float:
    """Intersection over union of all that two answers found, over all frames."""
    first, second = (union(answer) for answer in (one, other))
    joined = np.count_nonzero(first | second)
    return 1.0 if not joined else float(np.count_nonzero(first & second) / joined)


def union(answer: Answer) -> np.ndarray:
    """All masks of an answer as one per frame."""
    assert answer.media is not None
    found = np.zeros((answer.media.count, *answer.media.size), bool)
    for region in answer.regions:
        if region.masks is not None:
            found |= np.stack([region.masks.dense(frame) for frame in range(len(region.masks))])
    return found


if __name__ == "__main__":
    main()
