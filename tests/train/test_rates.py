import pytest
import torch

from segue.errors import CheckpointError
from segue.train import rates


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 1e-5), (25, 0.500005), (50, 1.0), (525, 0.5), (999, 0.0)],
)
def test_the_rate_rises_over_a_twentieth_and_falls_along_a_cosine(step, factor):
    assert rates.rate_factor(step, 1000, warmup=0.05, schedule="cosine") == pytest.approx(factor, abs=1e-5)


def test_a_constant_rate_stays_once_it_has_risen():
    assert [rates.rate_factor(step, 4, warmup=0.5, schedule="constant") for step in range(4)] == [
        1e-5,
        pytest.approx(0.500005),
        1.0,
        1.0,
    ]


def test_each_group_has_its_own_peak():
    first, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    made = rates.optimizer({"a": [first], "b": [second]}, {"a": 1.0, "b": 0.1}, betas=(0.9, 0.999), weight_decay=0.0)
    assert rates.set_rates(made, 0.5) == {"a": 0.5, "b": 0.05}


def stepped():
    parameter = torch.nn.Parameter(torch.ones(3))
    made = rates.optimizer({"a": [parameter]}, {"a": 0.1}, betas=(0.9, 0.999), weight_decay=0.0)
    parameter.grad = torch.tensor([1.0, -2.0, 3.0])
    made.step()
    return parameter, made


def test_an_optimizer_goes_on_from_its_saved_memory():
    parameter, made = stepped()
    saved = rates.optimizer_tensors(made, {parameter: "w"})
    assert sorted(saved) == ["w|exp_avg", "w|exp_avg_sq", "w|step"]
    fresh = torch.nn.Parameter(parameter.detach().clone())
    other = rates.optimizer({"a": [fresh]}, {"a": 0.1}, betas=(0.9, 0.999), weight_decay=0.0)
    rates.restore_optimizer(other, {fresh: "w"}, saved)
    for one, its in ((parameter, made), (fresh, other)):
        one.grad = torch.tensor([0.5, 0.5, 0.5])
        its.step()
    assert torch.equal(parameter, fresh)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda saved: {"v" + name[1:]: tensor for name, tensor in saved.items()}, "of other parameters .3 of them"),
        (lambda saved: {"w|step": saved["w|step"]}, "w is incomplete"),
    ],
)
def test_a_memory_of_something_else_is_refused(change, text):
    parameter, made = stepped()
    saved = change(rates.optimizer_tensors(made, {parameter: "w"}))
    with pytest.raises(CheckpointError, match=text):
        rates.restore_optimizer(made, {parameter: "w"}, saved)
