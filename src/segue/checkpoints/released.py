"""What the cards of the released checkpoints say: their bases, licences and published scores.

Source: the model cards and papers of Sa2VA (arXiv 2501.04001) and Sa2VA-i (arXiv 2509.19082). Nothing here was measured
by this repository.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A released checkpoint as its card tells it.

    `base` is the model that it was trained from. `licence` is what its card states, `None` where we have not read it;
    `part_licence` is the licence of the language model inside where that is narrower and goes on holding. `scores` are
    published figures by name: cIoU of RefCOCO, RefCOCO+ and RefCOCOg (validation), J&F of MeViS (`mevis_u`: the
    validation part with known truth), Ref-YouTube-VOS and Ref-DAVIS17, MMBench, and MME's two sums.
    """

    base: str
    licence: str | None = None
    part_licence: str | None = None
    scores: Mapping[str, float | int] = field(default_factory=dict)


RESEARCH = "qwen-research"


def _scores(*figures: float | int) -> dict[str, float | int]:
    names = ("refcoco", "refcoco+", "refcocog", "mevis_u", "davis17", "mme_perception", "mme_cognition", "mmbench")
    return dict(zip(names, figures, strict=True))


def _followed(*figures: float | int) -> dict[str, float | int]:
    return dict(zip(("mevis", "ref_ytvos", "davis17"), figures, strict=True))


RELEASES: Mapping[str, Release] = {
    "Sa2VA-1B": Release(
        base="InternVL2.5-1B",
        licence="apache-2.0",
        scores={**_scores(79.6, 73.6, 77.7, 53.4, 69.5, 1504, 434, 71.9), **_followed(47.0, 68.0, 69.5)},
    ),
    "Sa2VA-4B": Release(
        base="InternVL2.5-4B",
        licence="apache-2.0",
        part_licence=RESEARCH,
        scores={**_scores(82.4, 77.6, 79.7, 55.9, 73.7, 1691, 610, 81.8), **_followed(46.4, 71.3, 73.7)},
    ),
    "Sa2VA-8B": Release(
        base="InternVL2.5-8B",
        licence="apache-2.0",
        scores={**_scores(82.6, 78.0, 80.3, 58.9, 75.9, 1690, 610, 84.4), **_followed(51.5, 72.3, 75.9)},
    ),
    "Sa2VA-26B": Release(
        base="InternVL2.5-26B",
        licence="apache-2.0",
        scores={**_scores(82.9, 79.3, 81.2, 61.8, 78.6, 1698, 653, 85.8), **_followed(52.1, 75.1, 78.6)},
    ),
    "Sa2VA-InternVL3-2B": Release(base="InternVL3-2B", scores=_scores(81.4, 75.7, 80.3, 53.9, 74.5, 1631, 559, 79.8)),
    "Sa2VA-InternVL3-8B": Release(base="InternVL3-8B", scores=_scores(83.3, 78.9, 81.8, 56.4, 76.3, 1743, 633, 83.0)),
    "Sa2VA-InternVL3-14B": Release(base="InternVL3-14B", scores=_scores(83.6, 79.9, 83.6, 59.2, 76.6, 1746, 724, 84.3)),
    "Sa2VA-i-1B": Release(base="Sa2VA-1B", scores=_followed(52.6, 70.3, 73.6)),
    "Sa2VA-i-4B": Release(base="Sa2VA-4B", part_licence=RESEARCH, scores=_followed(56.6, 73.2, 78.6)),
    "Sa2VA-i-8B": Release(base="Sa2VA-8B", scores=_followed(59.5, 73.9, 79.1)),
    "Sa2VA-i-26B": Release(base="Sa2VA-26B", scores=_followed(63.2, 76.5, 81.2)),
    "Sa2VA-Qwen2_5-VL-3B": Release(
        base="Qwen2.5-VL-3B-Instruct",
        part_licence=RESEARCH,
        scores=_scores(79.6, 74.0, 77.1, 51.6, 73.4, 1533, 572, 78.4),
    ),
    "Sa2VA-Qwen2_5-VL-7B": Release(
        base="Qwen2.5-VL-7B-Instruct", scores=_scores(82.4, 77.5, 81.5, 56.4, 79.4, 1552, 676, 84.5)
    ),
    "Sa2VA-Qwen3-VL-2B": Release(base="Qwen3-VL-2B-Instruct"),
    "Sa2VA-Qwen3-VL-4B": Release(
        base="Qwen3-VL-4B-Instruct", scores=_scores(81.7, 77.4, 80.0, 57.1, 75.9, 1660, 655, 86.3)
    ),
    "Qwen-VL": Release(base="OpenCLIP ViT-bigG, Qwen-7B"),
    "Qwen-VL-Chat": Release(base="Qwen-VL", scores={"mme_perception": 1488, "mme_cognition": 361}),
    "Qwen-VL-Chat-Int4": Release(base="Qwen-VL-Chat"),
    "LongVA-7B": Release(base="CLIP ViT-L/14-336, Qwen2-7B-Instruct"),
    "LongVA-7B-DPO": Release(base="LongVA-7B"),
}
"""By the names of `segue.checkpoints.zoo.known`."""
