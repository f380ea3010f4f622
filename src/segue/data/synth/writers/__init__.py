"""Generated pictures written in the forms that datasets have on disk, one module a form, and the table of them.

Each form is a `Format` (`segue.data.synth.writers.base`), which says what it holds and how it is written.
"""

from segue.registry import Table

FORMATS = Table(
    "format",
    {
        "finetune": "segue.data.synth.writers.finetune:FORMAT",
        "coco": "segue.data.synth.writers.coco:FORMAT",
        "pictures": "segue.data.synth.writers.pictures:FORMAT",
        "refcoco": "segue.data.synth.writers.refcoco:FORMAT",
        "ref_vos": "segue.data.synth.writers.ref_vos:FORMAT",
        "ref_sav": "segue.data.synth.writers.ref_sav:FORMAT",
        "image_chat": "segue.data.synth.writers.image_chat:FORMAT",
        "video_chat": "segue.data.synth.writers.video_chat:FORMAT",
        "gcg": "segue.data.synth.writers.gcg:FORMAT",
        "region_caption": "segue.data.synth.writers.region_caption:FORMAT",
    },
)
