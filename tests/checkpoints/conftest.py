"""Tiny models to convert: the one of the zoo, and one of another size."""

import pytest
import torch
from safetensors.torch import load_file

from segue.checkpoints.convert import Target
from segue.checkpoints.random_weights import random_checkpoint
from segue.models.internvl.known import KNOWN, Language, Tower, known
from segue.models.known import TINY_SAM2

LARGER = known(
    "",
    Tower(96, 4, 4, 160, is_6b_style=True),
    Language("llama", 160, 3, 8, 2, 256, 273),
    "internlm2_chat",
    0.001,
    sam2=TINY_SAM2,
    tile=112,
)


@pytest.fixture(scope="session")
def larger_folder(tmp_path_factory):
    """A model as the 26B is to the 8B: another tower, another language model, wider; the same SAM 2."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(KNOWN, "larger", LARGER)
        return random_checkpoint(tmp_path_factory.mktemp("larger") / "larger", "larger", seed=3)


@pytest.fixture
def target(tmp_path):
    """Where to write, in float32 unless asked otherwise."""
    return lambda name="out", **options: Target(**{"folder": tmp_path / name, "dtype": "fp32", **options})


@pytest.fixture(scope="session")
def tensors_of():
    """All tensors of a folder with one file of weights."""
    return lambda folder: load_file(folder / "model.safetensors")


@pytest.fixture(scope="session")
def same_tensors():
    """Whether two dicts of tensors are the same, names, types and numbers."""

    def judge(one, other):
        return one.keys() == other.keys() and all(
            tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]) for name, tensor in one.items()
        )

    return judge
