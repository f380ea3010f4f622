"""Hold a feature cache against features and answers without it, by the words of the older guide.

    python examples/verify_features.py --dataset Video-MME_128frame --model LongVA-7B --samples 100 --cache-dir features

All of it is done by `segue cache verify`; this translates names.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from preprocess_features import FORMATS, SETS

from segue.cli.main import main as segue


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dataset", required=True, help="such as Video-MME_128frame")
    parser.add_argument("--model", required=True)
    parser.add_argument("--cache-dir", required=True)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--quantize", choices=FORMATS, default="none", help="as the cache was built")
    parser.add_argument("--nframe", type=int, default=128)
    parser.add_argument("--data", type=Path, default=Path(), help="folder below which long_video/ lies")
    given = parser.parse_args()
    short = given.dataset.partition("_128frame")[0]
    if short not in SETS:
        parser.error(f"unknown dataset {given.dataset}; known: {', '.join(f'{one}_128frame' for one in SETS)}")
    words = ["cache", "verify", given.cache_dir, "--model", given.model, "--on", SETS[short][0], "--answers"]
    words += ["--samples", str(given.samples), "--format", FORMATS[given.quantize]]
    segue([*words, "--frames", f"uniform:{given.nframe}", "--data", str(given.data)])


if __name__ == "__main__":
    main()
