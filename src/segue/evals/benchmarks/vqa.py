"""Benchmarks that are answered in words: the suites of Qwen-VL and of LongVA.

A prompt is an option of the data, the medium standing before it. Figures are in percent unless the metric says
otherwise. Where the original ranks options by likelihood there are two records: one that generates an answer and reads
its letter, which any model can be asked and `generated` in its protocol says; and the original's, `..._upstream`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from segue.data import box_text
from segue.data.questions import QUESTION_PROMPT
from segue.evals.base import Benchmark, Reduce, Score, Submit
from segue.evals.metrics import grounding, image_captions, long_video, mmbench, mme, text, vqa
from segue.evals.metrics.choices import first_capital, multiple_choice, stated, tagged
from segue.evals.metrics.figures import counts, shares
from segue.evals.metrics.llm_judge import rated, ratings, to_rate, waiting
from segue.evals.run.submissions import as_json, as_lines, as_table

BASE, CHAT = "Qwen-VL", "Qwen-VL-Chat"

_SHORT, _LONG = {"max_new_tokens": 10}, {"max_new_tokens": 100}


def _vqa(
    name: str,
    files: tuple[str, ...],
    *,
    shots: int = 0,
    settings: Mapping[str, Any] = _SHORT,
    published: Mapping[str, float] | None = None,
    submit: Submit | None = None,
) -> Benchmark:
    """VQA accuracy of a set of the reader `vqa`, or counts where a submission is written; a name is `set_split`."""
    variant, split = name.split("_")[:2]
    is_anls = variant == "docvqa"
    score: Score = text.best_of(text.similarity, figure="correct") if is_anls else vqa.score
    reduce: Reduce = shares("anls") if is_anls else shares("vqa_accuracy", by=("kind",))
    figure, metric = ("anls", "anls") if is_anls else ("vqa_accuracy", "vqa-accuracy")
    return Benchmark(
        name=name,
        dataset="vqa",
        split=split,
        task="chat",
        options={"variant": variant, "prompt": QUESTION_PROMPT, "shots": shots},
        settings=settings,
        score=text.hidden if submit else score,
        reduce=counts if submit else reduce,
        headline="answers" if submit else figure,
        protocol=("submission/1" if submit else f"{metric}/1") + (f" {shots}-shot" if shots else ""),
        files=files,
        published=published or {},
        submit=submit,
    )


_VQA = (
    _vqa(
        "vqav2_val",
        (
            "data/vqav2/v2_OpenEnded_mscoco_val2014_questions.json",
            "data/vqav2/v2_mscoco_val2014_annotations.json",
            "data/coco/val2014",
        ),
    ),
    _vqa(
        "vqav2_testdev",
        ("data/vqav2/v2_OpenEnded_mscoco_test-dev2015_questions.json", "data/coco/test2015"),
        submit=as_json(question_id="question_id", answer="answer"),
    ),
    _vqa(
        "okvqa_val",
        (
            "data/okvqa/OpenEnded_mscoco_val2014_questions.json",
            "data/okvqa/mscoco_val2014_annotations.json",
            "data/coco/val2014",
        ),
        published={BASE: 58.6, CHAT: 56.6},
    ),
    _vqa(
        "okvqa_val_4shot",
        (
            "data/okvqa/OpenEnded_mscoco_*2014_questions.json",
            "data/okvqa/mscoco_*2014_annotations.json",
            "data/coco/val2014",
            "data/coco/train2014",
        ),
        shots=4,
        published={BASE: 63.6, CHAT: 60.6},
    ),
    _vqa(
        "textvqa_val",
        ("data/textvqa/TextVQA_0.5.1_val.json", "data/textvqa/train_images"),
        published={BASE: 63.8, CHAT: 61.5},
    ),
    _vqa("vizwiz_val", ("data/vizwiz/**/val.json", "data/vizwiz/val"), published={BASE: 35.2, CHAT: 38.9}),
    _vqa(
        "vizwiz_val_4shot",
        ("data/vizwiz/**/val.json", "data/vizwiz/val", "data/vizwiz/**/train.json", "data/vizwiz/train"),
        shots=4,
        published={BASE: 39.1, CHAT: 44.45},
    ),
    _vqa(
        "vizwiz_test",
        ("data/vizwiz/**/test.json", "data/vizwiz/test"),
        submit=as_json(image="image", answer="answer"),
    ),
    _vqa("docvqa_val", ("data/docvqa/**/val_v1.0.json", "data/docvqa/val"), settings=_LONG),
    _vqa(
        "docvqa_test",
        ("data/docvqa/**/test_v1.0.json", "data/docvqa/test"),
        settings=_LONG,
        submit=as_json(questionId="question_id", answer="answer"),
    ),
)


def _lines(name: str, of: tuple[str, str], file: str, score: Score, **others: Any) -> Benchmark:
    """A set of the reader `vqa_jsonl`, `of` naming its variant and split; `others` are fields of the record."""
    variant, split = of
    usual = {"settings": _SHORT, "reduce": shares(), "headline": "accuracy", "protocol": "exact-match/1"}
    return Benchmark(
        name=name,
        dataset="vqa_jsonl",
        split=split,
        task="chat",
        options={"variant": variant, "prompt": QUESTION_PROMPT},
        score=score,
        files=(file,),
        **{**usual, **others},
    )


def _chart(split: str, *, upstream: bool = False) -> Benchmark:
    compare = partial(text.relaxed, share_of="answer") if upstream else text.relaxed
    return _lines(
        f"chartqa_{split}" + ("_upstream" if upstream else ""),
        ("chartqa", split),
        f"data/chartqa/**/test_{split}.json*",
        text.best_of(compare),
        reduce=shares("relaxed_accuracy"),
        headline="relaxed_accuracy",
        protocol="relaxed-accuracy/1" + (" protocol=upstream" if upstream else ""),
        settings=_LONG,
    )


_EXACT = (
    *(_chart(split, upstream=upstream) for upstream in (False, True) for split in ("human", "augmented")),
    _lines(
        "gqa_testdev",
        ("gqa", "testdev"),
        "data/gqa/testdev_balanced*.json*",
        text.best_of(text.exact, read=text.gqa_answer),
        protocol="gqa/1",
        published={BASE: 59.3, CHAT: 57.5},
    ),
    _lines("ocrvqa_val", ("ocrvqa", "val"), "data/ocrvqa/*.json*", text.best_of(text.exact), settings=_LONG),
    _lines(
        "ocrvqa_test",
        ("ocrvqa", "test"),
        "data/ocrvqa/*.json*",
        text.best_of(text.exact),
        settings=_LONG,
        published={BASE: 75.7, CHAT: 70.5},
    ),
    _lines(
        "ai2d_test",
        ("ai2d", "test"),
        "data/ai2diagram/test.jsonl",
        text.best_of(text.exact),
        published={BASE: 62.3, CHAT: 57.7},
    ),
)

_CHOICES = (
    Benchmark(
        name="scienceqa_test",
        dataset="choice",
        split="test",
        task="chat",
        options={"variant": "scienceqa"},
        settings=_SHORT,
        score=multiple_choice(stated),
        reduce=shares(),
        headline="accuracy",
        protocol="choice-generated/1",
        files=("data/scienceqa/*.json*",),
    ),
    *(
        Benchmark(
            name=f"mmbench_{split}",
            dataset="choice",
            split=split,
            task="chat",
            options={"variant": "mmbench"},
            settings=_SHORT,
            score=multiple_choice(stated),
            reduce=counts if split == "test" else mmbench.reduce,
            headline="answers" if split == "test" else "circular",
            protocol="submission/1" if split == "test" else "circular-generated/1",
            files=(f"data/mmbench/mmbench_{split}_20230712/mmbench_{split}_20230712.tsv",),
            submit=mmbench.submit,
        )
        for split in ("dev", "test")
    ),
    *(
        Benchmark(
            name=f"seed_bench_{split}",
            dataset="seed_bench",
            split=split,
            task="chat",
            options={"frames": 4},
            settings={**_SHORT, "frames": "first:4"},
            score=multiple_choice(stated),
            reduce=shares(by=("medium", "dimension")),
            headline="accuracy",
            protocol="choice-generated/1",
            files=("data/seed_bench/SEED-Bench.json",),
            submit=as_lines(question_id="question_id", prediction="chosen"),
        )
        for split in ("all", "image", "video")
    ),
    Benchmark(
        name="mme",
        dataset="mme",
        split="test",
        task="chat",
        settings={"max_new_tokens": 512, "temperature": 1.0, "top_p": 0.01},
        score=mme.score,
        reduce=mme.reduce,
        headline="perception",
        protocol="mme/1",
        files=("data/mme/**/*.txt",),
        published={CHAT: 1487.576},
        submit=mme.submit,
    ),
)


def _ranked(record: Benchmark, protocol: str, published: Mapping[str, float]) -> Benchmark:
    """The protocol of the original beside one that reads letters: options ranked by likelihood, without a template."""
    settings = {name: value for name, value in record.settings.items() if name == "frames"} | {"raw": True}
    return replace(
        record,
        name=f"{record.name}_upstream",
        settings=settings,
        protocol=f"{protocol} protocol=upstream",
        published=published,
        ranked=True,
    )


_LETTERED = {record.name: record for record in _CHOICES}
_RANKED = (
    _ranked(_LETTERED["scienceqa_test"], "choice-likelihood/1", {BASE: 67.1, CHAT: 68.2}),
    _ranked(_LETTERED["mmbench_dev"], "circular-likelihood/1", {}),
    _ranked(_LETTERED["mmbench_test"], "submission-likelihood/1", {}),
    _ranked(_LETTERED["seed_bench_all"], "choice-likelihood/1", {BASE: 56.3, CHAT: 58.2}),
    _ranked(_LETTERED["seed_bench_image"], "choice-likelihood/1", {BASE: 62.3, CHAT: 65.4}),
    _ranked(_LETTERED["seed_bench_video"], "choice-likelihood/1", {BASE: 39.1, CHAT: 37.8}),
)

_BOXES = tuple(
    Benchmark(
        name=f"{variant}_box_{split}",
        dataset="box_text",
        split=split,
        task="chat",
        options={"variant": variant, "prompt": box_text.PROMPT},
        settings={"max_new_tokens": 28},
        score=grounding.score,
        reduce=grounding.reduce,
        headline="acc@0.5",
        protocol="box-acc/1",
        files=(f"*/{variant}/*.json*",),
        published={BASE: base, CHAT: chat} if chat else {f"{BASE} (by GRIT's own tool)": base},
    )
    for variant, split, base, chat in (
        ("refcoco", "val", 89.36, 88.55),
        ("refcoco", "testA", 92.26, 92.27),
        ("refcoco", "testB", 85.34, 84.51),
        ("refcoco+", "val", 83.12, 82.82),
        ("refcoco+", "testA", 88.25, 88.59),
        ("refcoco+", "testB", 77.21, 76.79),
        ("refcocog", "val", 85.58, 85.96),
        ("refcocog", "test", 85.48, 86.32),
        ("grit", "refexp", 78.22, None),
    )
)

_TOUCHSTONE = tuple(
    Benchmark(
        name=f"touchstone_{language}",
        dataset="touchstone",
        split=language,
        task="chat",
        settings={"max_new_tokens": 512},
        score=to_rate((1.0, 10.0)),
        reduce=ratings("touchstone", times=100.0, by=("categories",)),
        headline="touchstone",
        protocol="touchstone/1",
        files=(file,),
        published=published,
        submit=as_table(
            index="index",
            question="question",
            human_annotation="human_annotation",
            gpt4_ha_answer="gpt4_ha_answer",
            category="category",
            task_name="task_name",
            response="answer",
        ),
        judge=rated,
    )
    for language, file, published in (
        ("en", "data/touchstone/touchstone_20230831.tsv", {CHAT: 645.2, f"{CHAT}-1.1": 711.6}),
        ("zh", "data/touchstone/touchstone_zh.tsv", {CHAT: 401.2, f"{CHAT}-1.1": 481.7}),
    )
)


def _video(variant: str, files: str, score: Score, reduce: Reduce, **others: Any) -> Benchmark:
    """A set of long videos as LongVA is asked: greedily, 128 frames spread over the video.

    `files` are patterns below `long_video`, the set's folder before a colon; `others` are fields of the record.
    """
    folder, _, inside = files.partition(": ")
    usual = {"name": variant, "split": "test", "headline": "accuracy"}
    options = {"variant": variant, "frames": 128, **others.pop("options", {})}
    return Benchmark(
        dataset="video_questions",
        task="chat",
        options=options,
        settings={"frames": "uniform:128", "max_new_tokens": 1024},
        score=score,
        reduce=reduce,
        files=tuple(f"long_video/{folder}/{file}" for file in inside.split()),
        **{**usual, **others},
    )


_BY_DURATION = shares(by=("duration", "domain", "task_type"))
_LONG_VIDEO = (
    _video(
        "video_mme",
        "Video-MME: Video-MME.tsv video",
        multiple_choice(first_capital),
        _BY_DURATION,
        protocol="first-capital/1",
        published={"LongVA-7B": 52.6},
    ),
    _video(
        "video_mme",
        "Video-MME: Video-MME.tsv video subtitle",
        multiple_choice(first_capital),
        _BY_DURATION,
        name="video_mme_subtitles",
        options={"with_subtitles": True},
        protocol="first-capital/1 subtitles",
    ),
    _video(
        "video_holmes",
        "Video-Holmes: test_Video-Holmes.json video*",
        multiple_choice(tagged),
        shares(by=("kind",)),
        protocol="tagged-letter/1",
    ),
    _video(
        "tempcompass",
        "TempCompass: TempCompass_MCQ.tsv TempCompass_YorN.tsv TempCompass_Captioning.tsv videos",
        long_video.tempcompass_score,
        long_video.tempcompass_reduce,
        protocol="tempcompass/1",
        published={"LongVA-7B": 56.9},
        submit=waiting(as_lines(id="id", question="mc_question", reference="mc_answer", answer="answer")),
        judge=rated,
    ),
    _video(
        "mlvu",
        "MLVU: json/[1-7]_*.json video",
        multiple_choice(stated),
        long_video.mlvu_reduce,
        name="mlvu_choice",
        split="choice",
        headline="m_avg",
        protocol="mlvu-stated-letter/1",
    ),
    _video(
        "mlvu",
        "MLVU: json/[89]_*.json video",
        to_rate(long_video.MLVU_SCALE),
        long_video.mlvu_open_reduce,
        name="mlvu_open",
        split="open",
        headline="g_avg",
        protocol="mlvu-rated/1",
        submit=waiting(
            as_lines(
                id="id",
                kind="kind",
                question="question",
                reference="answers",
                scoring_points="scoring_points",
                answer="answer",
            )
        ),
        judge=rated,
    ),
    _video(
        "video_mmmu",
        "VideoMMMU: VideoMMMU.tsv",
        long_video.video_mmmu_score,
        shares(by=("kind",)),
        protocol="video-mmmu/1",
    ),
    _video(
        "mmbench_video",
        "MMBench-Video: MMBench-Video.tsv video",
        to_rate(long_video.MMBENCH_VIDEO_SCALE),
        long_video.mmbench_video_reduce,
        headline="rating",
        protocol="mmbench-video-rated/1",
        submit=waiting(as_lines(id="id", question="question", reference="answers", answer="answer")),
        judge=rated,
    ),
    _video(
        "longvideobench",
        "LongVideoBench: lvb_val.json videos",
        multiple_choice(first_capital),
        shares(by=("duration_group", "question_category")),
        split="val",
        protocol="first-capital/1",
    ),
)

_CAPTIONS = tuple(
    Benchmark(
        name=f"{variant}_{split}",
        dataset="captions",
        split=split,
        task="caption",
        options={"variant": variant, "prompt": "Describe the image in English:"},
        settings={"max_new_tokens": 30},
        score=image_captions.score,
        reduce=image_captions.reduce,
        headline="cider",
        protocol="cider-d/1",
        files=(file,),
        published={BASE: base, CHAT: chat},
        submit=as_json(image_id="image_id", caption="caption"),
    )
    for variant, split, file, base, chat in (
        ("nocaps", "val", "data/nocaps/nocaps_val*.json", 121.4, 120.2),
        ("flickr30k", "test", "data/flickr30k/flickr30k_karpathy_test.json", 85.8, 81.0),
    )
)

WORDS: tuple[Benchmark, ...] = (*_CAPTIONS, *_VQA, *_EXACT, *_CHOICES, *_RANKED, *_BOXES, *_TOUCHSTONE, *_LONG_VIDEO)
