"""Generated scenes: stills and clips of drawn things, with exact masks and words for everything that is true of them.

`scene` and `clip` draw; `Scene` holds the pixels, the truth and the words; the functions of
`segue.synth.samples` make samples of it. Everything follows from (split, seed, index) alone. A split's name is
part of the seed, so splits never meet: what is drawn for "train" never turns up in "test", whatever its seed. **The**
test split is `scene(0, index, split="test")` and `clip(0, index, split="test")`, from index 0.
"""

from segue.synth.clips import clip
from segue.synth.dialogues import box_sample, mixed_sample, regions_sample
from segue.synth.phrases import Caption, Phrase, Question
from segue.synth.samples import caption_sample, question_sample, region_of, region_sample, segmentation_sample
from segue.synth.scenes import Scene, scene

__all__ = [
    "Caption",
    "Phrase",
    "Question",
    "Scene",
    "box_sample",
    "caption_sample",
    "clip",
    "mixed_sample",
    "question_sample",
    "region_of",
    "region_sample",
    "regions_sample",
    "scene",
    "segmentation_sample",
]
