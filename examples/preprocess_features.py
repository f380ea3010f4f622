"""Encode the videos of long-video sets before they are asked, by the words of the older guide.

    python examples/preprocess_features.py --datasets Video-MME_128frame MLVU_128frame --model-path LongVA-7B \\
        --cache-dir features --quantize int8 --nframe 128

All of it is done by `segue cache build`, which has more options; this translates names. `--quantize none`, the default,
loses nothing and needs 0.755 TB for all seven sets (docs/cache.md); `bfloat16` is as large and rounds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from segue.cli.main import main as segue

SETS = {
    "Video-MME": ("video_mme",),
    "Video_Holmes": ("video_holmes",),
    "TempCompass": ("tempcompass",),
    "MLVU": ("mlvu_choice", "mlvu_open"),
    "VideoMMMU": ("video_mmmu",),
    "MMBench_Video": ("mmbench_video",),
    "LongVideoBench": ("longvideobench",),
}
FORMATS = {"none": "lossless", "int8": "int8", "bfloat16": "bf16"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--datasets", nargs="+", required=True, help="such as Video-MME_128frame")
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--cache-dir", required=True)
    parser.add_argument("--quantize", choices=FORMATS, default="none")
    parser.add_argument("--nframe", type=int, default=128)
    parser.add_argument("--num-workers", type=int, help="without effect: two videos are decoded ahead")
    parser.add_argument("--data", type=Path, default=Path(), help="folder below which long_video/ lies")
    given = parser.parse_args()
    if given.num_workers is not None:
        print(
            "--num-workers has no effect: two videos are decoded ahead; --shard of `segue cache build` shares the work"
        )
    short = [name.partition("_128frame")[0] for name in given.datasets]
    if unknown := [name for name in short if name not in SETS]:
        parser.error(f"unknown datasets {', '.join(unknown)}; known: {', '.join(f'{one}_128frame' for one in SETS)}")
    benchmarks = ",".join(benchmark for name in short for benchmark in SETS[name])
    words = ["cache", "build", benchmarks, "--model", given.model_path, "--cache", given.cache_dir]
    words += ["--format", FORMATS[given.quantize], "--frames", f"uniform:{given.nframe}", "--data", str(given.data)]
    segue(words)


if __name__ == "__main__":
    main()
