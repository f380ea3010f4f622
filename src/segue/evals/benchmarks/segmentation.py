"""Benchmarks that are answered with masks, and captions of regions: the suite of Sa2VA, gRefCOCO and ReasonSeg.

A prompt is an option of the data. Figures are in percent. Published figures are those of model cards and papers, by the
name of the model; what Sa2VA's authors call DAVIS17 is measured by expression, so it stands with `davis17_expr`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from segue.data.prompts import SEGMENT_PROMPTS
from segue.data.refcoco import SHARED_IMAGES, VARIANTS
from segue.evals.base import Benchmark, Reduce, Score
from segue.evals.metrics import captions, grounded_captions, referring, region_captions, videos

IMAGE_PROMPT = f"<image>\n {SEGMENT_PROMPTS['image']}"
VIDEO_PROMPTS = (f"<image>\n{SEGMENT_PROMPTS['video']}", "<image>\n {phrase} Please respond with a segmentation mask.")
REASON_PROMPTS = (IMAGE_PROMPT, "<image>\n {phrase} Please respond with a segmentation mask.")
CAPTION_PROMPT = (
    "<image>\nCould you please give me a brief description of the image? "
    "Please respond with interleaved segmentation masks for the corresponding parts of the answer."
)
REGION_PROMPT = "<image>\nPlease give me a short description of the region in the picture marked by region1."

_GREEDY = {"max_new_tokens": 2048, "temperature": 0.0, "threshold": 0.5}
_FOLLOWED = {**_GREEDY, "frames": "auto", "policy": "auto"}
"""Each checkpoint sees the frames, and is followed in the way, that it was published with: Sa2VA the first five and by
its one decoder, Sa2VA-i five spread over the video and by both."""

_MODELS = (
    *(f"Sa2VA-{size}" for size in ("1B", "4B", "8B", "26B")),
    *(f"Sa2VA-InternVL3-{size}" for size in ("2B", "8B", "14B")),
    *("Sa2VA-Qwen2_5-VL-3B", "Sa2VA-Qwen2_5-VL-7B", "Sa2VA-Qwen3-VL-4B"),
)
_PAPER = tuple(f"Sa2VA-{size} (paper, InternVL2)" for size in ("1B", "4B", "8B", "26B"))
_CONSISTENT = tuple(f"Sa2VA-i-{size}" for size in ("1B", "4B", "8B", "26B"))


def _by(models: tuple[str, ...], *figures: float | None) -> dict[str, float]:
    """Figures by model, in order; None where none is stated."""
    return {model: value for model, value in zip(models, figures, strict=True) if value is not None}


_RES = {
    "refcoco_val": _by(_MODELS, 79.6, 82.4, 82.6, 82.9, 81.4, 83.3, 83.6, 79.6, 82.4, 81.7)
    | _by(_PAPER, 77.4, 80.4, 81.9, 82.5),
    "refcoco+_val": _by(_MODELS, 73.6, 77.6, 78.0, 79.3, 75.7, 78.9, 79.9, 74.0, 77.5, 77.4)
    | _by(_PAPER, 69.9, 74.3, 76.5, 78.8),
    "refcocog_val": _by(_MODELS, 77.7, 79.7, 80.3, 81.2, 80.3, 81.8, 83.6, 77.1, 81.5, 80.0)
    | _by(_PAPER, 72.3, 76.7, 78.9, 79.7),
}
_SPLITS = {
    "refcoco": ("val", "testA", "testB", "test"),
    "refcoco+": ("val", "testA", "testB", "test"),
    "refcocog": ("val", "test"),
}


def _images(variant: str, split: str, name: str, score: Score, reduce: Reduce, protocol: str) -> Benchmark:
    """A split of one of the variants of RefCOCO."""
    return Benchmark(
        name=name,
        dataset="refcoco",
        split=split,
        task="segment",
        options={"variant": variant, "prompt": IMAGE_PROMPT},
        settings=_GREEDY,
        score=score,
        reduce=reduce,
        headline="cIoU",
        protocol=protocol,
        files=(
            f"ref_seg/{variant}/instances.json",
            f"ref_seg/{variant}/{VARIANTS[variant]}.*",
            f"ref_seg/{variant}/coco2014/train2014 | {SHARED_IMAGES}",
        ),
        published=_RES.get(name.removesuffix("_upstream"), {}) if variant != "grefcoco" else {},
    )


_REFERRING = (
    *(
        _images(variant, split, f"{variant}_{split}", referring.score, referring.reduce, "res-ciou/1")
        for variant, splits in _SPLITS.items()
        for split in splits
    ),
    *(
        _images(
            variant,
            "val",
            f"{variant}_val_upstream",
            referring.score_first,
            referring.reduce_answered,
            "res-ciou/1 protocol=upstream",
        )
        for variant in _SPLITS
    ),
    *(
        _images(
            "grefcoco", split, f"grefcoco_{split}", referring.score_general, referring.reduce_general, "gres-ciou/1"
        )
        for split in ("val", "testA", "testB")
    ),
    *(
        Benchmark(
            name=f"reasonseg_{split}",
            dataset="reason_seg",
            split=split,
            task="segment",
            options={"prompt": REASON_PROMPTS},
            settings=_GREEDY,
            score=referring.score,
            reduce=referring.reduce,
            headline="gIoU",
            protocol="reasonseg-giou/1",
            files=(f"reason_seg/ReasonSeg/{split}/*.json", f"reason_seg/ReasonSeg/{split}/*.jpg"),
        )
        for split in ("val", "test")
    ),
)


def _videos(name: str, of: tuple[str, str], files: tuple[str, ...], **others: Any) -> Benchmark:
    """A split of the reader `ref_vos`, `of` naming its variant and split; `others` are fields of the record."""
    variant, split = of
    usual: Mapping[str, Any] = {"score": videos.score, "reduce": videos.reduce, "headline": "J&F"}
    return Benchmark(
        name=name,
        dataset="ref_vos",
        split=split,
        task="segment",
        options={"variant": variant, "prompt": VIDEO_PROMPTS},
        settings=_FOLLOWED,
        files=tuple(f"video_datas/{file}" for file in files),
        **{**usual, **others},
    )


_SERVER: Mapping[str, Any] = {
    "score": videos.score_hidden,
    "reduce": videos.reduce_hidden,
    "headline": "answers",
    "protocol": "submission/1",
    "submit": videos.submit,
}
_DAVIS = ("davis17/valid/JPEGImages", "davis17/meta_expressions/valid/meta_expressions.json")

_FOLLOWING = (
    _videos(
        "mevis_u",
        ("mevis", "valid_u"),
        ("mevis/valid_u/JPEGImages", "mevis/valid_u/meta_expressions.json", "mevis/valid_u/mask_dict.json"),
        protocol="j&f/1",
        published=_by(_MODELS, 53.4, 55.9, 58.9, 61.8, 53.9, 56.4, 59.2, 51.6, 56.4, 57.1)
        | _by(_PAPER, 50.8, 52.1, 57.0, None),
    ),
    _videos(
        "mevis_valid", ("mevis", "valid"), ("mevis/valid/JPEGImages", "mevis/valid/meta_expressions.json"), **_SERVER
    ),
    _videos(
        "mevis_test",
        ("mevis", "test"),
        ("mevis/test/JPEGImages", "mevis/test/meta_expressions_release.json"),
        **_SERVER,
    ),
    _videos(
        "ref_ytvos_valid",
        ("ref_ytvos", "valid"),
        ("rvos/valid/JPEGImages", "rvos/meta_expressions/valid/meta_expressions.json"),
        **_SERVER,
    ),
    _videos(
        "davis17_expr",
        ("ref_davis17", "valid"),
        (*_DAVIS, "davis17/valid/mask_dict.*"),
        protocol="davis_expr/1",
        published=_by(_MODELS, 69.5, 73.7, 75.9, 78.6, 74.5, 76.3, 76.6, 73.4, 79.4, 75.9)
        | _by(_PAPER, 72.3, 73.8, 75.2, 77.0)
        | _by(_CONSISTENT, 73.6, 78.6, 79.1, 81.2),
    ),
    _videos(
        "davis17_official",
        ("ref_davis17_objects", "valid"),
        (*_DAVIS, "davis17/valid/Annotations"),
        score=videos.score_objects,
        reduce=videos.reduce_objects,
        protocol="davis_official/1",
    ),
    _videos(
        "revos",
        ("revos", "valid"),
        ("revos/meta_expressions_valid_.json", "revos/mask_dict.json", "revos/mask_dict_foreground.json"),
        score=videos.score_revos,
        reduce=videos.reduce_revos,
        protocol="revos/1",
        published=_by(_MODELS, None, None, None, None, 56.2, 60.8, 60.7, 52.0, 58.3, 56.7)
        | _by(_PAPER, 47.6, 53.2, 57.6, 58.4),
    ),
    _videos(
        "ref_sav",
        ("ref_sav", "valid"),
        ("ref_sav_eval/videos", "ref_sav_eval/meta_expressions_valid.json", "ref_sav_eval/mask_dict.json"),
        reduce=videos.reduce_kinds(long=0, short=1),
        protocol="ref-sav/1",
        published={"Sa2VA-8B (paper, zero-shot)": 41.3, "Sa2VA-8B (paper, with Ref-SAV)": 50.0},
    ),
)


def _described(split: str, *, upstream: bool = False) -> Benchmark:
    """Grounded captions of GranD-f's images."""
    # PARITY(caption_prompt_spaces): the original's prompt has a line's indentation in it
    prompt = CAPTION_PROMPT.replace("interleaved ", "interleaved" + 5 * " ") if upstream else CAPTION_PROMPT
    names = [f"gcg_val_test/{split}_gcg_coco_{what}_gt.json" for what in ("mask", "caption")]
    truth = tuple(f"{name} | glamm_data/annotations/{name}" for name in names)
    return Benchmark(
        name=f"gcg_{split}" + ("_upstream" if upstream else ""),
        dataset="gcg",
        split=split,
        task="caption",
        options={"variant": "grandf", "prompt": prompt},
        settings=_GREEDY,
        score=grounded_captions.score,
        reduce=grounded_captions.reduce,
        headline="AP50",
        protocol="gcg/1" + (" protocol=upstream" if upstream else ""),
        files=(*truth, "glamm_data/images/grandf/val_test"),
        published=_by(_PAPER, 23.8, 28.2, 31.0, 33.5) if split == "val" else {},
    )


def _regions(*, upstream: bool = False) -> Benchmark:
    """Captions of RefCOCOg's regions."""
    return Benchmark(
        name="region_caption" + ("_upstream" if upstream else ""),
        dataset="region_caption",
        split="val",
        task="region",
        options={"variant": "refcocog", "prompt": REGION_PROMPT},
        settings=_GREEDY,
        score=region_captions.score_upstream if upstream else region_captions.score,
        reduce=captions.reduce,
        headline=captions.METEOR,
        protocol="region-caption/1" + (" protocol=upstream" if upstream else ""),
        files=(
            "region_caption/refcocog/finetune_refcocog_val_with_mask.json",
            "mdetr_annotations/finetune_refcocog_val_captions.json",
            SHARED_IMAGES,
        ),
    )


_CAPTIONS = (
    *(_described(split, upstream=upstream) for split in ("val", "test") for upstream in (False, True)),
    *(_regions(upstream=upstream) for upstream in (False, True)),
)

PIXELS = (
    *_REFERRING,
    *_FOLLOWING,
    *_CAPTIONS,
)
"""All of them."""
