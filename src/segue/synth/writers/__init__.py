"""Generated pictures written in the forms that datasets have on disk, one module a form, and the table of them.

Each form is a `Format` (`segue.synth.writers.base`), which says what it holds and how it is written.
"""

from segue.registry import Table

FORMATS = Table(
    "format",
    {
        "finetune": "segue.synth.writers.finetune:FORMAT",
        "coco": "segue.synth.writers.coco:FORMAT",
        "pictures": "segue.synth.writers.pictures:FORMAT",
        "refcoco": "segue.synth.writers.refcoco:FORMAT",
        "ref_vos": "segue.synth.writers.ref_vos:FORMAT",
        "ref_sav": "segue.synth.writers.ref_sav:FORMAT",
        "image_chat": "segue.synth.writers.image_chat:FORMAT",
        "video_chat": "segue.synth.writers.video_chat:FORMAT",
        "gcg": "segue.synth.writers.gcg:FORMAT",
        "region_caption": "segue.synth.writers.region_caption:FORMAT",
    },
)
