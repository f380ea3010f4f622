"""Grounded captions: what an image shows, in words, with a mask for every phrase. Figures are in percent.

Source: GLaMM's evaluation of grounded conversation generation (Rasheed et al. 2024); COCOeval for AP.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from pycocotools import mask as coco

from segue.evals.base import Row
from segue.evals.metrics import captions
from segue.evals.metrics.figures import mean, some
from segue.evals.metrics.meteor import stem
from segue.types import Answer, Sample

Similarity = Callable[[str, str], float]
"""How alike two phrases are, 1 if they say the same."""

ENOUGH = 0.5
MOST = 100
"""Masks of an image that count for AP, the first ones."""

_PHRASE = re.compile(r"<p>(.*?)</p>", re.DOTALL)
_TAG = re.compile(r"<[^>]*>|\[SEG\]")


def score(sample: Sample, answer: Answer) -> Row:
    """The caption and its phrases, and how each mask overlaps each true one (`target["masks"]`, `target["labels"]`).

    The i-th phrase belongs to the i-th mask; a mask without one has an empty phrase. What the figures need of the row
    is worked out here, not again for each resample of a confidence interval.
    """
    raw = (answer.raw_text or answer.text).replace("<s>", "").replace("\n", "")
    found = [region.masks.rle(0) for region in answer.regions if region.masks is not None]
    overlaps = _overlaps(found, sample.target["masks"])
    row = captions.told(sample, " ".join(_TAG.sub(" ", raw).split())) | {
        "phrases": [phrase.strip() for phrase in _PHRASE.findall(raw)],
        "labels": list(sample.target["labels"]),
        "overlaps": overlaps.tolist(),
        "masks": len(found),
        "truths": len(sample.target["masks"]),
        "hits": hits(overlaps),
        "paired": _paired(overlaps),
    }
    agreed = {name: _agreed(row, word_similarity, stops) for name, stops in (("agreed", True), ("agreed_all", False))}
    return row | agreed


def reduce(rows: Sequence[Row]) -> dict[str, float]:
    """`AP50`, `mIoU`, `mask recall (words)`, `mask recall, all pairs (words)`, and the figures of the captions.

    In brackets stands how phrases are compared: by the words they share. The original asks BERT, as `recall` with
    `bert_similarity` does.
    """
    figures = {
        "AP50": 100 * average_precision(some(rows)),
        "mIoU": 100 * mean(row["paired"] for row in rows),
        "mask recall (words)": 100 * _share([row["agreed"] for row in rows], rows),
        "mask recall, all pairs (words)": 100 * _share([row["agreed_all"] for row in rows], rows),
    }
    return figures | captions.reduce(rows)


def hits(overlaps: Float[np.ndarray, "n m"]) -> list[bool]:
    """Which of an image's found masks hit a true one, one each, with an IoU of `ENOUGH`; m is the number found.

    In order, each takes the free one it overlaps most, of equals the last, as COCOeval does.
    """
    free = set(range(len(overlaps)))
    result = []
    for place in range(min(overlaps.shape[1], MOST)):
        best = max(free, key=lambda truth: (overlaps[truth, place], truth), default=None)
        is_hit = best is not None and overlaps[best, place] >= ENOUGH
        free -= {best} if is_hit else set()
        result.append(bool(is_hit))
    return result


def average_precision(rows: Sequence[Row]) -> float:
    """AP at an IoU of 0.5, in [0, 1], where all masks are equally sure, so that the order of images decides: by id.

    Source: COCOeval, which reads the precision at 101 levels of recall.
    """
    ordered = sorted(rows, key=lambda row: str(row["id"]))
    truths = sum(row["truths"] for row in rows)
    found: Bool[np.ndarray, " n"] = np.array([hit for row in ordered for hit in row["hits"]], bool)
    if not truths or not len(found):
        return 0.0
    right = np.cumsum(found)
    precision = np.maximum.accumulate((right / np.arange(1, len(found) + 1))[::-1])[::-1]
    places = np.searchsorted(right / truths, np.linspace(0, 1, 101), side="left")
    return float(np.mean([precision[place] if place < len(precision) else 0.0 for place in places]))


def recall(rows: Sequence[Row], similarity: Similarity, *, stops: bool = True) -> float:
    """The share of labelled things that were found, in [0, 1]: mask and phrase must agree by `ENOUGH`.

    Pairs are taken by falling IoU. With `stops`, the first pair that does not agree ends the search in its image, even
    if others would; without, it is passed over.
    """
    return _share([_agreed(row, similarity, stops) for row in rows], rows)


def word_similarity(one: str, other: str) -> float:
    """The cosine of two phrases' counts of word stems."""
    counts = [Counter(stem(word) for word in captions.words(phrase)) for phrase in (one, other)]
    shared = sum(counts[0][word] * counts[1][word] for word in counts[0])
    lengths = [math.sqrt(sum(number**2 for number in count.values())) for count in counts]
    return shared / math.prod(lengths) if shared else 0.0


def bert_similarity(folder: Path) -> Similarity:
    """The cosine of the means of BERT's last states, as the original compares phrases, with the model of a folder.

    The original's is `bert-base-uncased`. Nothing is downloaded.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model: Any = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    known: dict[str, Any] = {}

    @torch.no_grad()
    def state(phrase: str) -> Any:
        if phrase not in known:
            tokens = tokenizer(phrase, return_tensors="pt", truncation=True, max_length=512)
            known[phrase] = model(**tokens).last_hidden_state[0].mean(dim=0)
        return known[phrase]

    return lambda one, other: float(torch.nn.functional.cosine_similarity(state(one), state(other), dim=0))


def _overlaps(found: Sequence[Any], truth: Sequence[Any]) -> Float[np.ndarray, "n m"]:
    """IoU of every true mask, a row each, with every found one."""
    if not found or not truth:
        return np.zeros((len(truth), len(found)))
    true, mine = ([{**one, "counts": one["counts"].encode("ascii")} for one in masks] for masks in (truth, found))
    overlaps: np.ndarray = coco.iou(mine, true, [0] * len(true)).T
    return overlaps


def _share(agreed: Sequence[int], rows: Sequence[Row]) -> float:
    labelled = sum(len(row["labels"]) for row in rows)
    return sum(agreed) / labelled if labelled else 0.0


def _matrix(row: Row) -> Float[np.ndarray, "n m"]:
    return np.array(row["overlaps"], np.float64).reshape(row["truths"], row["masks"])


def _paired(overlaps: Float[np.ndarray, "n m"]) -> float:
    """The mean IoU of pairs, taken by falling IoU; what has no partner does not count, and no pair is 0."""
    rest = overlaps.copy()
    pairs = []
    while rest.size and rest.max() > 0:
        truth, found = _largest(rest)
        pairs.append(float(rest[truth, found]))
        rest[truth], rest[:, found] = 0, 0
    return mean(pairs) if pairs else 0.0


def _agreed(row: Row, similarity: Similarity, stops: bool) -> int:
    """How many of an image's labelled things were found."""
    rest = _matrix(row)
    count = 0
    while rest.size and rest.max() >= ENOUGH:
        truth, found = _largest(rest)
        if similarity(_text(row["labels"], truth), _text(row["phrases"], found)) >= ENOUGH:
            count += 1
            rest[truth], rest[:, found] = 0, 0
        elif stops:
            # PARITY(recall_stops): pairs of lower overlap are not looked at, even if they would agree
            break
        else:
            rest[truth, found] = 0
    return count


def _largest(overlaps: Float[np.ndarray, "n m"]) -> tuple[int, int]:
    row, column = np.unravel_index(overlaps.argmax(), overlaps.shape)
    return int(row), int(column)


def _text(texts: Sequence[str], place: int) -> str:
    return texts[place] if place < len(texts) else ""
