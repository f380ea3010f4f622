"""CIDEr of whole images' captions: what Nocaps and Flickr30k are quoted by, without the other scorers."""

from __future__ import annotations

from collections.abc import Sequence

from segue.evals import captions
from segue.evals.base import Row
from segue.evals.figures import mean, some, unparsed
from segue.types import Answer, Sample


def score(sample: Sample, answer: Answer) -> Row:
    """What was said, and `target["references"]`; the row names the image as a results file of COCO does."""
    return {"image_id": sample.target["image_id"], **captions.score(sample, answer)}


def reduce(rows: Sequence[Row]) -> dict[str, float]:
    """`cider` times 100, which can be above 100 and is 0 for a single image."""
    found = [captions.words(row["caption"]) for row in some(rows)]
    truth = [[captions.words(text) for text in row["references"]] for row in rows]
    return {"cider": 100 * mean(captions.cider(found, truth))} | unparsed(rows)
