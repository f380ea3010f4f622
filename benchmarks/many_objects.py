"""What many objects cost beside one, late in a video, with SAM 2 in the size of Sa2VA's (Hiera-L) and random weights.

    python benchmarks/many_objects.py [--objects 1,16] [--dtype bf16] [--repeats 1] [--ways library exact pooled]

A frame is followed whose memory is as full as it gets: five prompted frames, six more maps, fifteen more pointers.
What is timed is attention to the memory, mask decoding and remembering, in CPU seconds of one thread, the ways in
turns; beside them how long it takes to encode a frame, which is done once for all objects. `library` calls the
library's memory attention, which computes for each object what depends on the frame alone; `exact` and `pooled` are
`--memory` of `segue segment`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from itertools import combinations
from time import process_time
from unittest.mock import patch

import torch
from torch import Tensor

from segue.bench.stages import IMAGE_SIZE, LONG, blocks, late_memory
from segue.grounding import tracking
from segue.grounding.following import encode
from segue.grounding.sam2 import HIERA_L, Encoded, LanguageSam2, architecture

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
WAYS = ("library", "exact", "pooled")
SHOWN = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--objects", default="1,16")
    parser.add_argument("--dtype", default="bf16", choices=DTYPES)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        measure(settings)


def measure(settings: argparse.Namespace) -> None:
    dtype, objects = DTYPES[settings.dtype], [int(word) for word in settings.objects.split(",")]
    grounder, image = build(dtype), blocks(1, IMAGE_SIZE)
    frame = encode(grounder, image)
    jobs = {
        key: job for number in objects for key, job in ways(grounder, frame, number).items() if key[1] in settings.ways
    }
    print(f"SAM 2 with Hiera-L, {settings.dtype}, torch {torch.__version__}, one thread")
    logits = {way: jobs[objects[0], way]() for way in settings.ways}
    if {"library", "exact"} <= set(logits):
        apart = float((logits["library"] - logits["exact"]).abs().max() / logits["library"].abs().max())
        print(f"largest difference of mask logits, library and exact: {apart:.1e} of the largest logit", flush=True)
    encoding, seconds = float("inf"), dict.fromkeys(jobs, float("inf"))
    for _ in range(settings.repeats):
        encoding = min(encoding, spent(partial(encode, grounder, image)))
        print(f"encoding the frame    {encoding:8.2f} CPU s", flush=True)
        for key, job in jobs.items():
            seconds[key] = min(seconds[key], spent(job))
            print(f"{key[0]:3} objects  {key[1]:8} {seconds[key]:8.2f} CPU s", flush=True)
    for way in settings.ways:
        for number in objects[1:]:
            many, one = seconds[number, way], seconds[objects[0], way]
            whole = (encoding + many) / (encoding + one)
            print(f"{way}: {number} objects / {objects[0]} = {many / one:.2f}x, with encoding {whole:.2f}x")
    for one, other in combinations(settings.ways, 2):
        for number in objects:
            print(f"{number} objects: {one} / {other} = {seconds[number, one] / seconds[number, other]:.2f}x")
    if {"exact", "pooled"} <= set(logits):
        many, one = seconds[objects[-1], "pooled"], seconds[objects[0], "exact"]
        whole = (encoding + many) / (encoding + one)
        print(f"{objects[-1]} pooled / {objects[0]} exact = {many / one:.2f}x, with encoding {whole:.2f}x")


def spent(job: Callable[[], object]) -> float:
    """Seconds of processor time of a job."""
    started = process_time()
    job()
    return process_time() - started


def build(dtype: torch.dtype) -> LanguageSam2:
    """SAM 2 with random weights."""
    torch.manual_seed(0)
    grounder = LanguageSam2(architecture(HIERA_L), two_decoders=False)
    grounder.to(dtype).sam2.mask_decoder.float()
    return grounder.eval()


def ways(grounder: LanguageSam2, frame: Encoded, objects: int) -> dict[tuple[int, str], Callable[[], Tensor]]:
    """The three ways of following so many objects on a frame, each giving mask logits."""
    prompts = torch.randn(objects, 256, generator=torch.Generator().manual_seed(2))
    exact, pooled = (
        late_memory(grounder, frame, prompts, shown=SHOWN, pooled=is_pooled) for is_pooled in (False, True)
    )

    def follow(memory: tracking.VideoMemory) -> Tensor:
        return tracking.step(grounder, LONG, frame, memory, consistent=False)[0].logits

    def follow_as_library() -> Tensor:
        with patch.object(tracking, "attend", attend_as_library):
            return follow(exact)

    return {
        (objects, "library"): follow_as_library,
        (objects, "exact"): partial(follow, exact),
        (objects, "pooled"): partial(follow, pooled),
    }


def attend_as_library(
    attention: torch.nn.Module, states: Tensor, memory: Tensor, places: Tensor, num_pointers: int, pool: int
) -> Tensor:
    """`segue.grounding.memory_attention.attend` by the library's own way."""
    assert pool == 1
    found: Tensor = attention(
        current_vision_features=states.transpose(0, 1).expand(-1, len(memory), -1),
        memory=memory.transpose(0, 1),
        memory_posision_embeddings=places.expand_as(memory).transpose(0, 1),
        num_object_pointer_tokens=num_pointers,
    )[0]
    return found.reshape(len(memory), *states.shape[1:])


if __name__ == "__main__":
    main()
