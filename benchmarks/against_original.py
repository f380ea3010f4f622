"""Our way through Sa2VA beside the original's, on one CPU, in real size with random weights.

    python benchmarks/against_original.py [--architecture Sa2VA-1B] [--keep FOLDER] [--only image:3 clip:16 text:64]

Each answer is computed in a process of its own, on one thread: CPU seconds from the question to the last mask, without
building the model, and the peak of the process's memory with everything. `--keep` keeps what each process found, and
what is there is not measured again: in real size all takes half an hour of CPU time.

The original's formulation is told here in our own words, on the same weights: float32, attention that writes its
matrix out, the states of all layers kept while generating, and for each object a session of its own, in which SAM 2
encodes every frame, and every frame that the language model saw once more for the memory. All masks are kept at full
size until the end. Both say the same words, which are forced upon them token by token. In float32 both must find
the same masks: the table tells the largest difference of logits, relative to the largest logit.

A session costs the same for each object, so that of many objects is not run but counted: words, and the session of one
object times their number. The table marks it.

`text:64` is a question of 1,300 tokens about nothing that is shown, and 64 tokens of answer; `text:1` its first token
alone. What is compared is then the logits of the last token.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import LogitsProcessor

from segue.bench.stages import CLIP_SIZE, IMAGE_SIZE, PHRASE, blocks, peak_bytes, random_engine
from segue.engine import Engine
from segue.grounding.following import encode
from segue.media import open_media
from segue.options import Options
from segue.prepare import collate, prepare, preprocess_media
from segue.types import Media, Message

TEXT = "What is seen here? " * 68  # 1,292 tokens, for random models have a token for each byte
FRAMES = 5
MOST_SESSIONS = 3
ONLY = ["image:3", "clip:1", "clip:16", "text:1", "text:64"]
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--architecture", default="Sa2VA-1B")
    parser.add_argument("--only", nargs="+", default=ONLY, help="medium:objects, text:tokens")
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--keep", type=Path, help="folder of what each process found")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.one:
        one(settings.architecture, settings.one, settings.keep)
        return
    with TemporaryDirectory() as scratch:
        folder = settings.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{settings.architecture}, random weights, CPU seconds of one thread, torch {torch.__version__}\n")
        print("question    dtype   original   ours   ratio   peak GB: original   ours   difference of logits")
        for line in lines(settings, folder):
            print(line, flush=True)


def lines(settings: argparse.Namespace, folder: Path) -> Iterator[str]:
    """A line of the table for each question and precision."""
    for question in settings.only:
        medium, objects = question.split(":")
        is_counted = medium != "text" and int(objects) > MOST_SESSIONS
        theirs, logits = found(settings, folder, f"original:fp32:{medium}:{1 if is_counted else objects}")
        seconds = theirs["words"] + theirs["sessions"] * (int(objects) if is_counted else 1)
        for dtype in settings.dtypes:
            ours, same = found(settings, folder, f"ours:{dtype}:{question}")
            mark, least = ("*", ">") if is_counted else (" ", " ")
            peaks = f"{least}{theirs['peak'] / 1e9:18.2f}{ours['peak'] / 1e9:7.2f}"
            far = (
                f"{np.abs(logits - same).max() / np.abs(logits).max():.1e}"
                if dtype == "fp32" and not is_counted
                else ""
            )
            spent = ours["seconds"]
            yield f"{question:12}{dtype}{seconds:11.1f}{mark}{spent:6.1f}{seconds / spent:7.2f}x{peaks:>27}   {far}"
    yield "\n* words and one object's session measured, the session counted once per object"


def found(settings: argparse.Namespace, folder: Path, run: str) -> tuple[dict[str, float], np.ndarray]:
    """What a run found, which is run in a process of its own unless it was before."""
    stem = folder / run.replace(":", "_")
    if not stem.with_suffix(".json").is_file():
        command = [sys.executable, __file__, "--architecture", settings.architecture, "--one", run]
        subprocess.run([*command, "--keep", str(folder)], check=True)
    return json.loads(stem.with_suffix(".json").read_text()), np.load(stem.with_suffix(".npy"))


@torch.no_grad()
def one(architecture: str, run: str, folder: Path) -> None:
    """One answer; what it took and the logits of its masks go to files."""
    way, dtype, medium, number = run.split(":")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    engine = random_engine(architecture, device="cpu", dtype=dtype)
    if medium == "text":
        media, reply = None, "a" * (int(number) - 1)
    else:
        media = open_media(blocks(1, IMAGE_SIZE)[0] if medium == "image" else blocks(FRAMES, CLIP_SIZE))
        reply = "It is " + ", ".join(["[SEG]"] * int(number)) + "."
    ids = engine.processor.tokenizer(reply, add_special_tokens=False)["input_ids"]
    ids = [*ids, engine.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")]
    seconds, logits = (original if way == "original" else ours)(engine, media, ids)
    stem = folder / run.replace(":", "_")
    np.save(stem.with_suffix(".npy"), logits)
    stem.with_suffix(".json").write_text(json.dumps({**seconds, "peak": peak_bytes(CPU)}, indent=1) + "\n")


def question(engine: Engine, media: Media | None) -> str:
    """What is asked of both."""
    if media is None:
        return TEXT
    return engine.model.family.prompts[f"segment_{media.kind}"].replace("{phrase}", PHRASE)


def ours(engine: Engine, media: Media | None, ids: list[int]) -> tuple[dict[str, float], np.ndarray]:
    """The engine's answer, with its choice of tokens replaced by those given."""
    mllm, choose = engine.model.mllm, Forced(ids)
    head = mllm.head
    mllm.head = lambda hidden: choose(hidden, head(hidden))
    started = process_time()
    answer = engine.ask(media, question(engine, media), options=Options(keep_logits=True))
    spent = process_time() - started
    if media is None:
        return {"seconds": spent}, choose.last.float().numpy()
    return {"seconds": spent}, np.stack([region.masks.logits for region in answer.regions])


class Forced(LogitsProcessor):
    """Lets nothing be chosen but the tokens given; `last` are the scores that it took the place of last."""

    last: Tensor

    def __init__(self, ids: list[int]):
        self.said = iter(ids)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores by which the next of the tokens is the best."""
        self.last = scores
        scores = torch.full_like(scores, -torch.inf)
        scores[:, next(self.said)] = 0
        return scores


def original(engine: Engine, media: Media | None, ids: list[int]) -> tuple[dict[str, float], np.ndarray]:
    """The original's formulation: words with the states of all layers, then a session per object."""
    engine.model.set_attn_implementation("eager")
    parts = (engine.model.mllm.language_model, engine.model.mllm.vision_tower, engine.model.grounder.sam2)
    kinds = {part.config._attn_implementation for part in parts}
    kinds.add(engine.model.grounder.sam2.vision_encoder.backbone.config._attn_implementation)
    assert kinds == {"eager"}, kinds
    started, choose = process_time(), Forced(ids)
    shown = [] if media is None else [preprocess_media(media, engine.processor, frames="first:5")]
    states = words(engine, shown, ids, choose)
    spoken = process_time()
    if media is None:
        return {"words": spoken - started, "sessions": 0.0}, choose.last.numpy()
    logits = [session(engine, list(shown[0].shown.pixels), prompt) for prompt in engine.model.prompts(states)]
    ended = process_time()
    return {"words": spoken - started, "sessions": ended - spoken}, np.stack(logits)


def words(engine: Engine, shown: list[Any], ids: list[int], choose: Forced) -> Tensor:
    """The states on the segmentation tokens, out of those of every layer and token."""
    media = shown[0].media if shown else None
    message = Message.user(question(engine, media), media)
    batch = collate([prepare([message], engine.processor, media=shown)], engine.processor)
    mllm = engine.model.mllm
    output = mllm.language_model.generate(
        inputs_embeds=mllm.prompt(batch).embeddings,
        attention_mask=batch.attention,
        max_new_tokens=len(ids),
        do_sample=False,
        eos_token_id=ids[-1],
        pad_token_id=ids[-1],
        logits_processor=[choose],
        output_hidden_states=True,
        return_dict_in_generate=True,
    )
    last = torch.cat([step[-1][0, -1:] for step in output.hidden_states])
    # the state on a token comes of the step after it
    return last[1:][output.sequences[0, :-1] == engine.processor.seg_id]


def session(engine: Engine, frames: list[np.ndarray], prompt: Tensor) -> np.ndarray:
    """One object on frames that the language model saw: all it needs is computed for it alone."""
    grounder, found, memory = engine.model.grounder, [], []
    last, encoded = -1, None
    for number, frame in enumerate(frames):
        last, encoded = number, encode(grounder, [frame])
        found.append(grounder.prompted(encoded, prompt[None]))
    for number, frame in enumerate(frames):
        if number != last:  # the features of the frame before are kept, no others
            last, encoded = number, encode(grounder, [frame])
        memory.append(grounder.encode_memory(encoded, found[number].logits))
    side = [grounder.side] * 2
    whole = torch.cat([functional.interpolate(one.logits[None], side, mode="bilinear") for one in found])
    (functional.interpolate(whole, frames[0].shape[:2], mode="bilinear").sigmoid() > 0.5).numpy()
    return torch.cat([one.logits for one in found]).numpy()


if __name__ == "__main__":
    main()
