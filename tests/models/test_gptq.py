"""Packed layers against the layout written out number by number."""

import pytest
import torch

from segue.errors import ConfigError
from segue.models import gptq


def written_out(layer):
    """The weights by the formula of the layout, one at a time."""
    rows, outputs = layer.qweight.shape
    weight = torch.zeros(outputs, rows * 8)
    for output in range(outputs):
        for number in range(rows * 8):
            group = int(layer.g_idx[number])
            value = (int(layer.qweight[number // 8, output]) >> 4 * (number % 8)) & 15
            zero = (int(layer.qzeros[group, output // 8]) >> 4 * (output % 8)) & 15
            weight[output, number] = float(layer.scales[group, output]) * (value - zero - 1)
    return weight


@pytest.fixture
def layer():
    """Random bits in every number, groups in no order, and a bias."""
    draws = torch.Generator().manual_seed(0)
    layer = gptq.GptqLinear(24, 16, 8)
    for packed in (layer.qweight, layer.qzeros):
        packed.copy_(torch.randint(-(2**31), 2**31 - 1, packed.shape, generator=draws, dtype=torch.int64).int())
    layer.scales.copy_(torch.rand(layer.scales.shape, generator=draws))
    layer.g_idx.copy_(torch.randint(0, 3, (24,), generator=draws))
    layer.bias.copy_(torch.randn(16, generator=draws))
    return layer


def test_a_packed_layer_is_unpacked_as_the_layout_says(layer):
    weight = written_out(layer)
    assert torch.allclose(layer.unpacked(torch.float32), weight, atol=1e-6)
    inputs = torch.randn(2, 3, 24)
    assert torch.allclose(layer(inputs), inputs @ weight.T + layer.bias, atol=1e-5)


def test_columns_split_in_three_are_three_packed_layers(layer):
    parts = [gptq.GptqLinear(24, 8, 8) for _ in range(2)]
    for number, part in enumerate(parts):
        for name in ("qweight", "qzeros", "scales"):
            getattr(part, name).copy_(getattr(layer, name).chunk(2, -1)[number])
        part.g_idx.copy_(layer.g_idx)
    whole = torch.cat([part.unpacked(torch.float32) for part in parts])
    assert torch.equal(whole, layer.unpacked(torch.float32))


def test_packing_keeps_each_weight_within_half_a_step():
    weight = torch.randn(16, 32)
    layer = gptq.pack(weight, None, 16)
    step = layer.scales.float()[layer.g_idx.long()].T
    assert ((layer.unpacked(torch.float32) - weight).abs() <= step / 2 + 1e-3).all()
    again = gptq.pack(layer.unpacked(torch.float32), None, 16)
    assert torch.allclose(again.unpacked(torch.float32), layer.unpacked(torch.float32), atol=1e-3)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_torchs_own_product_gives_what_the_unpacked_weights_give(dtype, near):
    layer = gptq.pack(torch.randn(32, 128), torch.randn(32), 32)
    layer.qzeros.copy_(torch.randint(0, 2**31 - 1, layer.qzeros.shape))
    inputs = torch.randn(2, 5, 128, dtype=dtype)
    wanted = torch.nn.functional.linear(inputs, layer.unpacked(dtype), layer.bias.to(dtype)).float()
    assert torch.allclose(layer(inputs).float(), wanted, rtol=0, atol=near * float(wanted.abs().max()))
    # the packed weights were given up for another form of the same size
    assert layer.qweight.numel() == 0 and torch.equal(layer(inputs), layer(inputs))


def test_groups_in_no_order_and_gradients_are_computed_from_unpacked_weights(layer):
    inputs = torch.randn(3, 24, requires_grad=True)
    layer(inputs).sum().backward()
    assert torch.allclose(inputs.grad, layer.unpacked(torch.float32).sum(0).expand(3, -1), atol=1e-4)
    assert layer.qweight.numel() > 0


def test_a_layer_takes_about_an_eighth_of_its_memory():
    layer = gptq.GptqLinear(1024, 1024, 128)
    taken = sum(value.numel() * value.element_size() for value in layer.state_dict().values())
    assert taken < 1024 * 1024 * 4 / 7


@pytest.mark.parametrize(
    ("said", "group"), [(None, None), ({"quant_method": "gptq", "bits": 4, "group_size": 64}, 64), ({"bits": 4}, 128)]
)
def test_the_group_size_is_read_from_the_configuration(said, group):
    assert gptq.group_size(said) == group


@pytest.mark.parametrize("said", [{"quant_method": "awq", "bits": 4}, {"quant_method": "gptq", "bits": 8}])
def test_another_quantisation_is_refused(said):
    with pytest.raises(ConfigError, match="expected gptq in 4 bits"):
        gptq.group_size(said)
