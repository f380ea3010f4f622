"""Model families: one file each, and the table of them."""

from segue.registry import Table

FAMILIES = Table("model family", {"internvl": "segue.models.internvl:FAMILY"})
