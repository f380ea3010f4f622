"""Linear layers in one pass, and the encoders that are made of them."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from transformers.activations import GELUActivation

from segue.bench.limits import flops_of
from segue.models import fused


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return nn.Linear(24, 40, dtype=torch.bfloat16)


@pytest.fixture
def states():
    return torch.randn(2, 5, 7, 24, generator=torch.Generator().manual_seed(1)).bfloat16()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fused_layer_gives_what_a_plain_one_does(layer, states, dtype):
    plain, states = layer.to(dtype), states.to(dtype)
    ours = deepcopy(plain)
    fused.fuse(ours)
    assert type(ours) is fused.FusedLinear
    with torch.no_grad():
        assert ours(states).equal(plain(states))
        assert flops_of(lambda: ours(states)) == flops_of(lambda: plain(states)) == 2 * 70 * 24 * 40


def test_a_product_that_is_not_rounded_before_gelu_is_no_farther_from_it(layer, states):
    activation, exact = GELUActivation(), nn.functional.gelu(states.float() @ layer.weight.T.float() + layer.bias)
    with torch.no_grad():
        twice = activation(layer(states))
        fused.fuse(layer)
        once = fused.activated(layer, activation, states)
    assert (once - exact).abs().mean() <= (twice - exact).abs().mean()


def test_a_layer_that_learns_has_gradients_and_one_that_is_no_plain_layer_is_left_alone(layer, states):
    model = nn.Sequential(layer, nn.Linear(40, 3, bias=False, dtype=torch.bfloat16))
    fused.fuse(model)
    assert [type(part) for part in model] == [fused.FusedLinear, nn.Linear]
    fused.activated(model[0], GELUActivation(), states).sum().backward()
    assert layer.weight.grad.abs().sum() > 0
