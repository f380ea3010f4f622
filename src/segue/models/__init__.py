"""Model families: one file each, and the table of them."""

from segue.registry import Table

FAMILIES = Table(
    "model family",
    {
        "internvl": "segue.models.internvl:FAMILY",
        "qwen25_vl": "segue.models.qwen25_vl:FAMILY",
        "qwen3_vl": "segue.models.qwen3_vl:FAMILY",
    },
)
