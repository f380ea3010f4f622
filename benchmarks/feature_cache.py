"""What the feature cache costs and saves, on the CPU; seconds are processor time of one thread.

    python benchmarks/feature_cache.py                 # reading beside plain safetensors, CLIP-L beside the library's
    python benchmarks/feature_cache.py --questions     # what questions cost with it, for an encoder of 40 % of the time
    python benchmarks/feature_cache.py --answers       # how many answers another format changes
    python benchmarks/feature_cache.py --resume        # a finished store of 5,000 entries, gone over again
    python benchmarks/feature_cache.py --training      # epochs of a fine-tune of the demo model

Weights are random but for the demo model's.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from segue.data.base import Rows
from segue.engine import Engine
from segue.evals.metrics.confidence import wilson
from segue.evals.run import feature_cache
from segue.evals.run.evaluation import EvaluationSpec
from segue.features import FORMATS, FeatureCache, Features, Identity, Store, entries
from segue.grounding.model import VisionLanguageConfig, build
from segue.media import open_media
from segue.models.longva.model import CLIP_L_336, LongVAConfig, LongVAMLLM
from segue.models.longva.processor import LongVAProcessor
from segue.options import Options
from segue.progress import UNWATCHED
from segue.types import Media, Message, Sample

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

            def known(cache: FeatureCache = cache) -> object:
                return cache.get("clip", "u")

            # the library maps the file; reading its numbers is what a user does next
            read, again, library = seconds(first, known, lambda: load_file(plain)["x"].clone(), repeats=repeats)
            print(
                f"{form:16} first {read * 1e3:7.1f} ms, again {again * 1e3:7.1f} ms, plain safetensors "
                f"{library * 1e3:7.1f} ms: {read / library:.2f} x; "
                f"computing / first: {frames * computing / read:,.0f} x"
            )


QUESTIONS = tuple(
    f"{first} {second}?"
    for first in ("What is", "Where is", "How many are", "Which comes after", "Who has")
    for second in ("red", "left")
)
FRAMES = 8
SHOWN = Options(frames=f"uniform:{FRAMES}", max_new_tokens=4)
REAL = {
    **{**CLIP_L_336, "hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 2},
    "text": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 4},
}
"""As many tokens as the real one: 576 patches and 144 tokens a frame."""
TINY = {
    **{**CLIP_L_336, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "image_size": 56},
    "text": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
}


def longva(folder: Path, sizes: dict[str, Any], tower_layers: int, *, seed: int = 0) -> Engine:
    """A LongVA with random weights; all but those of the tower depend on the seed."""
    from segue.checkpoints.random_weights import write_tokenizer

    vision = {name: value for name, value in sizes.items() if name != "text"}
    text = {**sizes["text"], "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 32_768}
    config = LongVAConfig({**vision, "num_hidden_layers": tower_layers + 1}, text)
    whole = VisionLanguageConfig("longva", config, template="qwen_1_5")
    torch.manual_seed(0)
    model = build(whole, dtype=torch.float32, device="cpu", fill=True).eval()
    tower, rest = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                chance = tower if "vision_tower" in name else rest
                parameter.normal_(std=0.3 if "embed" in name else parameter[0].numel() ** -0.5, generator=chance)
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
    """All answers, each asked alone; one that `forgets` sees every clip anew for each question."""
    answers = []
    for clip in media:
        for question in QUESTIONS[:questions]:
            if forgets:
                engine.forget()
            answers.append(engine.ask(clip, question, options=SHOWN).raw_text)
    return answers


def ask_together(engine: Engine, media: list[Media], questions: int) -> list[str]:
    """All answers about a clip at once, as an evaluation asks: each goes on from what the first has read of it."""
    dialogues = [[[Message.user(question, clip)] for question in QUESTIONS[:questions]] for clip in media]
    return [answer.raw_text for of_clip in dialogues for answer in engine.answer_each(of_clip, SHOWN)]


def encode(engine: Engine, media: list[Media]) -> None:
    """What a hit skips: decode, preprocess and encode clips."""
    for clip in media:
        engine.forget()
        shown = engine.encoder.preprocess(clip, frames=SHOWN.frames, max_tiles=SHOWN.max_tiles)
        engine.encoder.computed(shown.vision, "tower")


def sized(folder: Path, media: list[Media], repeats: int) -> Engine:
    """An engine whose encoder takes about 40 % of a question."""
    layers = 6
    for _ in range(4):
        engine = longva(folder, REAL, layers)
        encoding, whole = seconds(
            partial(encode, engine, media), partial(ask, engine, media, 1, forgets=True), repeats=repeats
        )
        wanted = max(1, round(layers * (whole - encoding) / encoding * 0.41 / 0.59))
        if abs(wanted - layers) <= 1:
            break
        layers = wanted
    return engine


def questions(count: int, repeats: int) -> None:
    """Print what questions about so many clips cost with a cache and without; what is compared is done in turns."""
    media = clips(count)
    with tempfile.TemporaryDirectory() as folder:
        plain = sized(Path(folder), media[:1], repeats)
        cached = Engine(plain.model, plain.processor, plain.lineage)
        cached.use_cache(Store(Path(folder) / "cache", reserve=0))
        expected = ask(plain, media, 1, forgets=True)
        assert ask(cached, media, 1) == expected == ask(cached, media, 1), "a lossless cache changes no answer"
        encoding, one, hit, five, hits, together = seconds(
            lambda: encode(plain, media),
            lambda: ask(plain, media, 1, forgets=True),
            lambda: ask(cached, media, 1),
            lambda: ask(plain, media, 5, forgets=True),
            lambda: ask(cached, media, 5),
            lambda: ask_together(cached, media, 5),
            repeats=repeats,
        )
    print(f"{count} clips of {FRAMES} frames, {144 * FRAMES:,} visual tokens")
    print(f"one question a clip: {one:.2f} s without a cache, {hit:.2f} s with: {one / hit:.2f} x")
    share = encoding / one
    print(f"decoding and encoding take {100 * share:.1f} % of the first, so that {1 / (1 - share):.2f} x is the most")
    print(
        f"five questions a clip: {five:.2f} s without, {hits:.2f} s with: {five / hits:.2f} x; asked together "
        f"{together:.2f} s: {five / together:.2f} x"
    )


def changed_answers(count: int) -> None:
    """Print how many answers of a tiny LongVA and two siblings a cache changes. One has another language model and
    projector; of the third the last rows of the projector are others.
    """
    media = clips(count)
    changed, asked = dict.fromkeys(("lossless", "int8", "int8-per-tensor"), 0), 0
    with tempfile.TemporaryDirectory() as folder:
        models = [longva(Path(folder), TINY, 4, seed=seed) for seed in (0, 1, 0)]
        with torch.no_grad():
            models[2].model.mllm.projector[2].weight[-8:] *= -1
        for number, engine in enumerate(models):
            expected = ask_together(engine, media, len(QUESTIONS))
            first = [Message.user(QUESTIONS[0], media[0])]
            logits = engine.logits(first, SHOWN)
            asked += len(expected)
            print(f"model {number}: {len(expected):,} answers, {len(set(expected))} different ones")
            for form in changed:
                found = engine.use_cache(Store(Path(folder) / form, reserve=0), form=form).usage
                for clip in media:
                    engine.encoder.encode([engine.encoder.preprocess(clip, frames=SHOWN.frames, max_tiles=1)])
                cache = engine.use_cache(Store(Path(folder) / form, reserve=0), form=form)
                answers = ask_together(engine, media, len(QUESTIONS))
                other = sum(one != other for one, other in zip(answers, expected, strict=True))
                errors = [cache.store.head(one.place).facts["loss"]["error"] for one in cache.store.entries()]
                is_same = torch.equal(engine.logits(first, SHOWN), logits)
                changed[form] += other
                print(
                    f"  {form}: build {found.hits} hits, {found.misses} misses; run {cache.usage.hits} hits, "
                    f"{cache.usage.misses} misses; error of features up to {max(errors):.2e}; {other} others among the "
                    f"answers, logits {'the same' if is_same else 'others'}"
                )
    for form, other in changed.items():
        low, high = wilson(other, asked)
        print(
            f"{form}: {other} of {asked:,} answers are others, {100 * other / asked:.2f} % (with 95 % confidence "
            f"{100 * low:.2f} to {100 * high:.2f} %)"
        )


def resume(count: int) -> None:
    """Print what a build does that finds all of so many files kept already, in seconds of the clock."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        home, engine = Path(folder), longva(Path(folder), TINY, 4)
        cache = engine.use_cache(Store(home / "cache", reserve=0))
        files = [home / f"{number}.png" for number in range(count)]
        for number, path in enumerate(files):
            Image.fromarray(np.full((8, 8, 3), (number % 256, number // 256, 0), np.uint8)).save(path)
        said = Message("assistant", ("A.",))
        rows = Rows("files", files, lambda path, _: Sample("", "chat", (Message.user("?", open_media(path)), said)))
        spec = EvaluationSpec(model="", on="video_mme", data=home, out=home)
        this = feature_cache.CachedBenchmark(spec.evaluation(), rows, engine, cache)
        states = Features(torch.zeros(1, 16, 32), {"grids": torch.tensor([[1, 1]])})
        for path in files:
            cache.put(*engine.encoder.key(open_media(path), **this.shown), states)
        reads, read = [], entries.read_head
        entries.read_head = lambda *given: reads.append(1) or read(*given)  # every read begins with it
        for what in ("first", "second"):
            start, began = perf_counter(), process_time()
            listed = feature_cache.list_media(this)
            feature_cache.build(this, listed.absent, UNWATCHED)
            print(
                f"{what} time over {len(listed.there):,} entries, {len(listed.absent)} missing: "
                f"{perf_counter() - start:.1f} s, {process_time() - began:.1f} s of them of the processor; "
                f"{len(reads)} entries read"
            )


class _EpochWatcher:
    """Takes down the processor time at the end of every epoch of so many steps."""

    def __init__(self, steps: int):
        self.steps, self.times = steps, list[float]()

    def say(self, text: str) -> None:
        if "features:" in text:
            print(f"  {text}")

    def start(self, stage: str, steps: int, done: int) -> None:
        self.times = [process_time()]

    def step(self, step: int, values: object) -> None:
        if step % self.steps == 0:
            self.times.append(process_time())

    @property
    def epochs(self) -> list[float]:
        return [end - start for start, end in zip(self.times, self.times[1:], strict=False)]


def training(images: int, repeats: int) -> None:
    """Print what epochs of a fine-tune of the demo model cost with a cache and without, and the encoder's share."""
    from dataclasses import replace

    from segue.checkpoints.locate import resolve, weights_folder
    from segue.checkpoints.model_folder import read_layout
    from segue.cli.main import main as segue
    from segue.models.internvl.family import InternVLMLLM
    from segue.train.presets import FinetuneOptions, finetune
    from segue.train.run import train
    from segue.train.run_logger import lines

    spent, tower = [0.0], InternVLMLLM.tower

    def timed(*given: Any) -> Any:
        start = process_time()
        states = tower(*given)
        spent[0] += process_time() - start
        return states

    InternVLMLLM.tower = timed  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        for split, count in (("train", images), ("validation", 1)):
            place = str(home / "shapes" / split)
            with suppress(SystemExit):
                segue(["data", "synth", place, "--split", split, "--count", str(count), "--size", "128x128"])
        config = read_layout(weights_folder(resolve("demo"))).config
        made = finetune(
            FinetuneOptions(folder=home / "shapes", base="demo", output=home, epochs=3), config, device="cpu"
        )
        steps = made.stages[0].steps // 3
        plain, cached, losses = list[list[float]](), list[list[float]](), list[list[float]]()
        for turn in range(repeats):
            for times, cache in ((plain, None), (cached, home / f"cache-{turn}")):
                run = replace(made, validation=None, cache=cache, output=home / f"{turn}-{cache is None}", log_every=1)
                watcher, spent[0] = _EpochWatcher(steps), 0.0
                train(run, watcher, device="cpu")
                times.append(watcher.epochs)
                losses.append([line["loss"] for line in lines(run.output / "log.jsonl") if line["kind"] == "step"])
                if cache is None:
                    shares = spent[0] / sum(watcher.epochs)
                    print(f"  the tower takes {100 * shares:.1f} % of the processor time without a cache")
    assert all(one == losses[0] for one in losses), "a lossless cache changes no loss"
    without, first, later = (
        min(of[epoch] for of in times for epoch in which)
        for times, which in ((plain, (0, 1, 2)), (cached, (0,)), (cached, (1, 2)))
    )
    print(f"{len(losses[0])} losses are equal with the cache and without")
    print(f"an epoch of {steps} steps: {without:.1f} s without a cache; {first:.1f} s the first with one, ", end="")
    print(f"{later:.1f} s a later one: {without / later:.2f} x")


def main() -> None:
    """Measure as the arguments say."""
    parser = argparse.ArgumentParser(description="What the feature cache costs and saves.")
    parser.add_argument("--frames", type=int, default=2, help="frames that the towers are timed on")
    parser.add_argument("--clip", type=int, default=128, help="frames of the clip that is read")
    parser.add_argument("--repeats", type=int, default=3)
    what = parser.add_mutually_exclusive_group()
    for name in ("questions", "answers", "resume", "training"):
        what.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--count", type=int, help="clips, entries or images")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {platform.machine()}, one thread, processor time, least of {given.repeats}")
    if given.questions:
        questions(given.count or 2, given.repeats)
    elif given.answers:
        changed_answers(given.count or 100)
    elif given.resume:
        resume(given.count or 5000)
    elif given.training:
        training(given.count or 16, given.repeats)
    else:
        print("the tower computes in float32; the clip that is read is float16")
        computing = towers(given.frames, given.repeats)
        reading(given.clip, computing / given.frames, given.repeats)


if __name__ == "__main__":
    main()
