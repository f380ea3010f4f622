"""The table of datasets: public ones, one's own data, and generated scenes.

`DATASETS[name](root, split, **options)` gives a `segue.data.base.Dataset`; `segue.data.mixture` draws from several.
"""

from segue.registry import Table

DATASETS = Table(
    "dataset",
    {
        "refcoco": "segue.data.refcoco:load",
        "image_chat": "segue.data.image_chat:load",
        "qwen_chat": "segue.data.qwen_chat:load",
        "pretraining": "segue.data.pretraining:load",
        "ref_vos": "segue.data.ref_vos:load",
        "ref_sav": "segue.data.ref_sav:load",
        "video_chat": "segue.data.video_chat:load",
        "gcg": "segue.data.gcg:load",
        "reason_seg": "segue.data.reason_seg:load",
        "region_caption": "segue.data.region_caption:load",
        "folder": "segue.own_data.folder:load",
        "folder_questions": "segue.own_data.folder:questions",
        "scenes": "segue.synth.dataset:load",
        "scene_questions": "segue.synth.questions:load",
        "pages": "segue.synth.pages:load",
        "vqa": "segue.data.vqa:load",
        "vqa_jsonl": "segue.data.vqa_jsonl:load",
        "choice": "segue.data.choice:load",
        "seed_bench": "segue.data.seed_bench:load",
        "mme": "segue.data.mme:load",
        "box_text": "segue.data.box_text:load",
        "captions": "segue.data.captions:load",
        "touchstone": "segue.data.touchstone:load",
        "video_questions": "segue.data.video_questions:load",
    },
)
