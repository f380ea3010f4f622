"""What the docs say that entries weigh is what the software computes, and what a built entry is."""

import re
from pathlib import Path

import pytest
import torch
from kept import fresh

from segue.features import FeatureCache, Features, Identity, Store
from segue.features.sizes import entry_bytes

DOCS = Path(__file__).parents[2] / "docs" / "cache.md"
TOWER, PROJECTED = (128, 576, 1024), (128, 144, 3584)


def table():
    """Rows of the table of real sizes: point, format and bytes."""
    return re.findall(r"^\| (tower|projected) \| `([\w-]+)` \| ([\d,]+) \|", DOCS.read_text(encoding="utf-8"), re.M)


def test_the_docs_state_every_format_as_the_software_computes_it():
    rows = table()
    assert len(rows) == 8
    for point, form, told in rows:
        shape = TOWER if point == "tower" else PROJECTED
        assert int(told.replace(",", "")) == entry_bytes(shape, torch.float16, form), (point, form)


@pytest.mark.parametrize("form", ["lossless", "int8", "int8-per-tensor", "bf16"])
@pytest.mark.parametrize("shape", [(3, 16, 32), (4, 9, 128)])
def test_a_built_entry_weighs_what_was_computed(root, form, shape):
    identity = Identity({"family": "x", "fingerprint": "0", "compute_dtype": "F16"}, "tower", {})
    cache = FeatureCache(Store(root, reserve=0), identity, form)
    cache.put("s", "u", Features(torch.randn(shape).half(), {"grids": torch.tensor([[shape[0], 2]])}))
    (found,) = cache.store.entries()
    assert found.nbytes == entry_bytes(shape, torch.float16, form)


def test_a_clip_of_real_size_weighs_what_was_computed(root):
    identity = Identity({"family": "x", "fingerprint": "0", "compute_dtype": "F16"}, "tower", {})
    cache = FeatureCache(Store(root, reserve=0), identity, "int8")
    values = torch.ones(TOWER, dtype=torch.float16)
    cache.put("s", "u", Features(values, {"grids": torch.tensor([[128, 2]])}))
    (found,) = cache.store.entries()
    assert found.nbytes == entry_bytes(TOWER, torch.float16, "int8")
    assert fresh(root).store.shortage(0) <= 0
