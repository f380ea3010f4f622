"""What reading features costs beside plain safetensors and beside computing them, and what the tower costs beside the
library's: a CLIP ViT-L/14-336 in real size with random weights, on the CPU. Seconds are processor time of one thread.

    python benchmarks/feature_cache.py --frames 2 --repeats 3
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import process_time

import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from segue.features import FORMATS, FeatureCache, Features, Identity, Store
from segue.models.longva.model import CLIP_L_336, LongVAConfig, LongVAMLLM

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


def main() -> None:
    """Measure as the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=2, help="frames that the towers are timed on")
    parser.add_argument("--clip", type=int, default=128, help="frames of the clip that is read")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {platform.machine()}, one thread, processor time, least of {arguments.repeats}")
    print("the tower computes in float32; the clip that is read is float16")
    computing = towers(arguments.frames, arguments.repeats)
    reading(arguments.clip, computing / arguments.frames, arguments.repeats)


if __name__ == "__main__":
    main()
