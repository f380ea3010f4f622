"""Model families: one file each, and the table of them."""

from segue.registry import Table

FAMILIES = Table(
    "model family",
    {
        "internvl": "segue.models.internvl.family:FAMILY",
        "qwen25_vl": "segue.models.native_resolution.qwen25_vl:FAMILY",
        "qwen3_vl": "segue.models.native_resolution.qwen3_vl:FAMILY",
        "qwen_vl": "segue.models.qwen_vl.family:FAMILY",
        "longva": "segue.models.longva.family:FAMILY",
    },
)
