"""What reading features costs beside plain safetensors and beside computing them, what the tower costs beside the
library's (a CLIP ViT-L/14-336 in real size), and what questions about clips cost with a cache and without: a small
LongVA whose tower is sized to 40 % of the uncached time. Random weights, on the CPU. Seconds are processor time of one
thread.

    python benchmarks/feature_cache.py --frames 2 --repeats 3
    python benchmarks/feature_cache.py --questions
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import process_time

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from segue.engine import Engine, Options
from segue.features import FORMATS, FeatureCache, Features, Identity, Store
from segue.grounding.model import VisionLanguageConfig, build
from segue.media import open_media
from segue.models.longva.model import CLIP_L_336, LongVAConfig, LongVAMLLM
from segue.models.longva.processor import LongVAProcessor
from segue.types import Media, Message

IDENTITY = Identity({"family": "clip_vision", "fingerprint": "0" * 64, "compute_dtype": "F16"}, "tower", {})


def seconds(*works: Callable[[], object], repeats: int) -> list[float]:
    """The least processor time of each, done in turns."""
    least = [float("inf")] * len(works)
    for _ in range(repeats):
        for place, work in enumerate(works):
            start = process_time()
            work()
            least[place] = min(least[place], process_time() - start)
    return least


def small_longva() -> LongVAMLLM:
    """The real tower and a language model that is not used."""
    text = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 2, "vocab_size": 64}
    return LongVAMLLM(LongVAConfig(text_config=text)).eval().requires_grad_(False)


@torch.no_grad()
def towers(frames: int, repeats: int) -> float:
    """Print what the tower costs beside the library's; returns its seconds."""
    model = small_longva()
    library = CLIPVisionModel(CLIPVisionConfig(**CLIP_L_336)).eval().requires_grad_(False)
    library.load_state_dict(model.vision_tower.state_dict())
    pixels = torch.randn(frames, 3, 336, 336, generator=torch.Generator().manual_seed(0))
    theirs = library(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    print(f"largest difference to the library's layer -2: {(model.tower(pixels) - theirs).abs().max():.1e}")
    ours, whole = seconds(lambda: model.tower(pixels), lambda: library(pixels), repeats=repeats)
    print(f"{frames} frames through the tower: {ours:.2f} s; through the library's: {whole:.2f} s")
    print(f"ours / library's: {ours / whole:.3f} (23 of 24 layers are {23 / 24:.3f})")
    return ours


def reading(frames: int, computing: float, repeats: int) -> None:
    """Print what reading an entry of so many frames costs in every format; `computing` is what a frame does."""
    values = torch.randn(frames, 576, 1024, generator=torch.Generator().manual_seed(1)).half()
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.safetensors"
        save_file({"x": values}, plain)
        for form in FORMATS:
            cache = FeatureCache(Store(Path(folder) / form, reserve=0), IDENTITY, form)
            cache.put("clip", "u", Features(values, {"frame_index": torch.arange(frames)}))

            def first(form: str = form) -> object:
                """As a new process reads it: with its checksums."""
                return FeatureCache(Store(Path(folder) / form, reserve=0), IDENTITY, form).get("clip", "u")

            # the library maps the file; reading its numbers is what a user does next
            def known(cache: FeatureCache = cache) -> object:
                return cache.get("clip", "u")

            read, again, library = seconds(first, known, lambda: load_file(plain)["x"].clone(), repeats=repeats)
            print(
                f"{form:16} checked {read * 1e3:7.1f} ms, unchecked {again * 1e3:7.1f} ms, plain safetensors "
                f"{library * 1e3:7.1f} ms: {read / library:.2f} x and {again / library:.2f} x; "
                f"computing / checked: {frames * computing / read:,.0f} x"
            )


QUESTIONS = ("What moves?", "Where is it?", "How many are there?", "What comes first?", "What is red?")
FRAMES = 8
SHOWN = Options(frames=f"uniform:{FRAMES}", max_new_tokens=4)


def longva(folder: Path, tower_layers: int) -> Engine:
    """A small LongVA that sees frames as the real one does, 144 tokens each, through so many layers of a tower."""
    from segue.checkpoints.random_weights import write_tokenizer

    vision = {**CLIP_L_336, "hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 2}
    text = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 4, "num_attention_heads": 6}
    text |= {"num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 32_768}
    config = LongVAConfig({**vision, "num_hidden_layers": tower_layers + 1}, text)
    torch.manual_seed(0)
    whole = VisionLanguageConfig("longva", config, template="qwen_1_5")
    model = build(whole, dtype=torch.float32, device="cpu", fill=True).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=1.0 if "embed" in name else parameter[0].numel() ** -0.5)
    write_tokenizer(folder, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    return Engine(model, LongVAProcessor.load(folder, config, "qwen_1_5"), {"model": "random"})


def clips(count: int) -> list[Media]:
    """Clips of coloured fields that move, each of others."""
    found = []
    for seed in range(count):
        fields = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
        picture = np.kron(fields, np.ones((30, 30, 1), np.uint8))
        found.append(open_media(np.stack([np.roll(picture, 5 * step, axis=1) for step in range(FRAMES)])))
    return found


def ask(engine: Engine, media: list[Media], questions: int, *, forgets: bool = False) -> list[str]:
    """All answers; one that `forgets` sees every clip anew for each question."""
    answers = []
    for clip in media:
        for question in QUESTIONS[:questions]:
            if forgets:
                engine.forget()
            answers.append(engine.ask(clip, question, options=SHOWN).raw_text)
    return answers


def ask_together(engine: Engine, media: list[Media]) -> list[str]:
    """All answers about a clip at once, as an evaluation asks: each goes on from what the first has read of it."""
    dialogues = [[[Message.user(question, clip)] for question in QUESTIONS] for clip in media]
    return [answer.raw_text for of_clip in dialogues for answer in engine.answer_each(of_clip, SHOWN)]


@torch.no_grad()
def encode(engine: Engine, media: list[Media]) -> None:
    """Decode, preprocess and encode clips."""
    for clip in media:
        engine.forget()
        engine.encoder.encode([engine.encoder.preprocess(clip, frames=SHOWN.frames, max_tiles=SHOWN.max_tiles)])


def share(engine: Engine, media: list[Media], repeats: int) -> tuple[float, float]:
    """Which part of a question without a cache the encoder takes, and the seconds of the whole."""
    encoding, whole = seconds(
        lambda: encode(engine, media), lambda: ask(engine, media, 1, forgets=True), repeats=repeats
    )
    return encoding / whole, whole


def sized(folder: Path, media: list[Media], repeats: int) -> Engine:
    """The engine whose encoder takes 40 % of a question, or a little more."""
    layers = 6
    for _ in range(4):
        engine = longva(folder, layers)
        found, _ = share(engine, media[:1], repeats)
        wanted = max(1, round(layers * (1 - found) / found * 0.42 / 0.58))
        if abs(wanted - layers) <= 1:
            break
        layers = wanted
    return engine


def questions(count: int, repeats: int) -> None:
    """Print what questions about so many clips cost with a cache and without, and how often int8 answers otherwise."""
    media = clips(count)
    with tempfile.TemporaryDirectory() as folder:
        engine = sized(Path(folder), media, repeats)
        part, whole = share(engine, media, repeats)
        expected = ask(engine, media, 5, forgets=True)
        (five,) = seconds(lambda: ask(engine, media, 5, forgets=True), repeats=repeats)
        print(f"{count} clips of {FRAMES} frames, {144 * FRAMES:,} visual tokens; the encoder takes {100 * part:.0f} %")
        print(f"{len(expected)} answers without a cache, {len(set(expected))} different ones")
        for form in ("int8", "lossless"):
            # at this point a hit skips all that counts as the encoder here, the projector too
            cache = engine.use_cache(Store(Path(folder) / form, reserve=0), form=form, point="projected")
            answers = ask(engine, media, 5)
            error = max(cache.store.head(one.place).facts["loss"]["error"] for one in cache.store.entries())
            equal = sum(one == other for one, other in zip(answers, expected, strict=True))
            print(f"{form}: error of features {error:.2e}, {equal} of {len(expected)} answers as without a cache")
        cached, kept, together = seconds(
            lambda: ask(engine, media, 1),
            lambda: ask(engine, media, 5),
            lambda: ask_together(engine, media),
            repeats=repeats,
        )
        print(f"one question a clip: {whole:.2f} s without a cache, {cached:.2f} s with: {whole / cached:.2f} x")
        print(
            f"five questions a clip: {five:.2f} s without, {kept:.2f} s with: {five / kept:.2f} x; asked together "
            f"{together:.2f} s: {five / together:.2f} x"
        )


def main() -> None:
    """Measure as the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=2, help="frames that the towers are timed on")
    parser.add_argument("--clip", type=int, default=128, help="frames of the clip that is read")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--questions", action="store_true", help="questions about clips instead of reading and towers")
    parser.add_argument("--clips", type=int, default=4, help="clips that are asked about")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {platform.machine()}, one thread, processor time, least of {arguments.repeats}")
    if arguments.questions:
        questions(arguments.clips, arguments.repeats)
        return
    print("the tower computes in float32; the clip that is read is float16")
    computing = towers(arguments.frames, arguments.repeats)
    reading(arguments.clip, computing / arguments.frames, arguments.repeats)


if __name__ == "__main__":
    main()
