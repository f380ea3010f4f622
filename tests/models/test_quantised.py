"""Linear layers in 8 and 4 bits, each against the layer that it stands for."""

import pytest
import torch
from torch import nn

from segue.errors import ConfigError
from segue.models import quantised


@pytest.fixture
def linear():
    """A layer whose outputs have one weight far larger than the rest now and then."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 96)
    with torch.no_grad():
        layer.weight[::7, 3] *= 20
    return layer.requires_grad_(False)


def lost(layer, exact, inputs):
    """How far outputs are off, as a share of their size."""
    right = exact(inputs).float()
    return float((layer(inputs).float() - right).norm() / right.norm())


@pytest.mark.parametrize("shape", [(1, 64), (5, 64), (2, 3, 64)])
def test_eight_bits_give_the_layers_output_to_a_fiftieth(linear, shape):
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    layer = quantised.Int8Linear(linear)
    assert layer(inputs).shape == (*shape[:-1], 96) and lost(layer, linear, inputs) < 0.02


def test_no_rows_give_no_rows(linear):
    assert quantised.Int8Linear(linear)(torch.zeros(0, 64)).shape == (0, 96)


def test_a_loud_row_leaves_the_others_as_exact_as_they_are_alone(linear):
    rows = torch.randn(4, 64, generator=torch.Generator().manual_seed(2))
    loud = torch.cat([rows, 1000 * rows[:1]])
    layer = quantised.Int8Linear(linear)
    assert torch.equal(layer(loud)[:4], layer(rows)) and lost(layer, linear, rows) < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_outputs_have_the_type_of_inputs(linear, dtype):
    exact = linear.to(dtype)
    inputs = torch.randn(3, 64, generator=torch.Generator().manual_seed(3)).to(dtype)
    layer = quantised.Int8Linear(exact)
    assert layer(inputs).dtype == dtype and lost(layer, exact, inputs) < 0.02


def test_rows_of_zeros_and_a_layer_of_zeros_give_the_bias(linear):
    silent = torch.zeros(2, 64)
    assert torch.equal(quantised.Int8Linear(linear)(silent), linear.bias.expand(2, -1))
    linear.weight.zero_()
    assert torch.equal(quantised.Int8Linear(linear)(torch.ones(1, 64)), linear.bias[None])


def test_a_layer_takes_a_byte_per_weight(linear):
    layer = quantised.Int8Linear(linear)
    assert layer.weight.nbytes == 64 * 96 and layer.scale.nbytes == 4 * 96


def test_named_layers_are_replaced_in_place_and_no_others(linear):
    model = nn.Sequential(linear, nn.ModuleDict({"inner": nn.Linear(96, 8)}), nn.Linear(8, 8))
    quantised.quantise(model, ["0", "1.inner"], "int8", "cpu")
    kinds = [type(model[0]), type(model[1]["inner"]), type(model[2])]
    assert kinds == [quantised.Int8Linear, quantised.Int8Linear, nn.Linear]


def test_four_bits_are_coarser_and_half_as_large(linear):
    pytest.importorskip("bitsandbytes", reason="needs the extra `quant`")
    inputs = torch.randn(3, 64, generator=torch.Generator().manual_seed(4))
    layer = quantised.four_bits(linear, "cpu")
    assert lost(quantised.Int8Linear(linear), linear, inputs) < lost(layer, linear, inputs) < 0.3
    assert layer.weight.numel() * layer.weight.element_size() == 64 * 96 // 2


@pytest.mark.parametrize(
    ("bits", "device", "message"),
    [
        ("int3", "cpu", "unknown quantisation 'int3'; expected int8 or int4"),
        ("int8", "mps", "int8 weights cannot be used on mps"),
    ],
)
def test_what_cannot_be_had_is_refused(bits, device, message):
    with pytest.raises(ConfigError, match=message):
        quantised.check(bits, device)


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"int4 weights on cpu need bitsandbytes; .*segue\[quant\]"):
        quantised.check("int4", "cpu")
