import pytest
import torch

from segue.errors import CheckpointError
from segue.train import optim


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 1e-5), (25, 0.500005), (50, 1.0), (525, 0.5), (999, 0.0)],
)
def test_the_rate_rises_over_a_twentieth_and_falls_along_a_cosine(step, factor):
    assert optim.rate_factor(step, 1000, warmup=0.05, schedule="cosine") == pytest.approx(factor, abs=1e-5)


def test_a_constant_rate_stays_once_it_has_risen():
    assert [optim.rate_factor(step, 4, warmup=0.5, schedule="constant") for step in range(4)] == [
        1e-5,
        pytest.approx(0.500005),
        1.0,
        1.0,
    ]


def test_the_cosine_ends_where_it_is_told_to():
    factors = [optim.rate_factor(step, 100, warmup=0.0, schedule="cosine", least=0.2) for step in (0, 50, 99)]
    assert factors == pytest.approx([1.0, 0.6, 0.2], abs=1e-3)


def test_the_first_layers_of_a_tower_learn_slowest():
    names = ["tower.patches.weight", "tower.layers.0.w", "tower.layers.47.w", "tower.norm.w"]
    groups = {
        "vision": {name: torch.nn.Parameter(torch.ones(1)) for name in names},
        "rest": {"a.layers.3.w": torch.nn.Parameter(torch.ones(1))},
    }
    parts, peaks = optim.layer_groups(groups, {"vision": 2e-4, "rest": 1e-3}, {"vision": 0.95, "rest": 1.0})
    assert peaks == pytest.approx(
        {"vision.0": 2e-4 * 0.95**49, "vision.1": 2e-4 * 0.95**48, "vision.48": 2e-4 * 0.95, "rest": 1e-3}
    )
    assert {name: len(part) for name, part in parts.items()} == {
        "vision.0": 2,
        "vision.1": 1,
        "vision.48": 1,
        "rest": 1,
    }


def test_each_group_has_its_own_peak():
    first, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    made = optim.optimizer({"a": [first], "b": [second]}, {"a": 1.0, "b": 0.1}, betas=(0.9, 0.999), weight_decay=0.0)
    assert optim.set_rates(made, 0.5) == {"a": 0.5, "b": 0.05}


def stepped():
    parameter = torch.nn.Parameter(torch.ones(3))
    made = optim.optimizer({"a": [parameter]}, {"a": 0.1}, betas=(0.9, 0.999), weight_decay=0.0)
    parameter.grad = torch.tensor([1.0, -2.0, 3.0])
    made.step()
    return parameter, made


def test_an_optimizer_goes_on_from_its_saved_memory():
    parameter, made = stepped()
    saved = optim.optimizer_tensors(made, {parameter: "w"})
    assert sorted(saved) == ["w|exp_avg", "w|exp_avg_sq", "w|step"]
    fresh = torch.nn.Parameter(parameter.detach().clone())
    other = optim.optimizer({"a": [fresh]}, {"a": 0.1}, betas=(0.9, 0.999), weight_decay=0.0)
    optim.restore_optimizer(other, {fresh: "w"}, saved)
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
    saved = change(optim.optimizer_tensors(made, {parameter: "w"}))
    with pytest.raises(CheckpointError, match=text):
        optim.restore_optimizer(made, {parameter: "w"}, saved)


def orthogonal(values=None):
    torch.manual_seed(0)
    matrix = torch.nn.Parameter(torch.randn(6, 4) if values is None else values[0].clone())
    line = torch.nn.Parameter(torch.ones(4) if values is None else values[1].clone())
    made = optim.optimizer(
        {"a": [matrix, line]}, {"a": 0.1}, betas=(0.9, 0.999), weight_decay=0.0, matrices=frozenset([matrix])
    )
    return matrix, line, made


def learn(matrix, line, made, seed):
    draws = torch.Generator().manual_seed(seed)
    for one in (matrix, line):
        one.grad = torch.randn(one.shape, generator=draws)
    made.step()
    made.zero_grad()


def test_muon_moves_a_matrix_in_all_directions_alike_and_the_rest_as_adamw_does():
    matrix, line, made = orthogonal()
    before, adam = matrix.detach().clone(), torch.nn.Parameter(torch.ones(4))
    draws = torch.Generator().manual_seed(1)
    matrix.grad = torch.randn(6, 4, generator=draws) @ torch.diag(torch.tensor([1.0, 1e-1, 1e-1, 1e-2]))
    line.grad = adam.grad = torch.randn(4, generator=draws)
    made.step()
    moved = matrix.detach() - before
    strengths = torch.linalg.svdvals(moved)
    assert strengths.max() < 2 * strengths.min()
    assert moved.square().mean().sqrt() == pytest.approx(0.2 * 0.1, rel=0.5)
    torch.optim.AdamW([adam], lr=0.1, betas=(0.9, 0.999), weight_decay=0.0).step()
    assert torch.equal(line, adam)


@pytest.mark.parametrize("shape", [(24, 12), (12, 24)])
def test_muon_is_pytorchs(shape):
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
    mine = optim.optimizer({"x": [ours]}, {"x": 1e-2}, betas=(0.9, 0.98), weight_decay=0.1, matrices={ours})
    other = torch.optim.Muon([theirs], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        mine.step(), other.step()
    assert torch.allclose(ours, theirs, atol=1e-3)  # PyTorch's computes in bfloat16
    assert (1 - ours).abs().max() > 5e-3


def test_muon_goes_on_from_its_saved_memory():
    matrix, line, made = orthogonal()
    learn(matrix, line, made, 1)
    saved = optim.optimizer_tensors(made, {matrix: "m", line: "w"})
    assert sorted(saved) == ["m|momentum_buffer", "w|exp_avg", "w|exp_avg_sq", "w|step"]
    other, its, fresh = orthogonal((matrix.detach(), line.detach()))
    optim.restore_optimizer(fresh, {other: "m", its: "w"}, saved)
    for one in ((matrix, line, made), (other, its, fresh)):
        learn(*one, 2)
    assert torch.equal(matrix, other) and torch.equal(line, its)


def test_a_memory_of_adamw_is_no_memory_of_muon():
    matrix, line, made = orthogonal()
    learn(matrix, line, made, 1)
    plain = optim.optimizer({"a": [matrix, line]}, {"a": 0.1}, betas=(0.9, 0.999), weight_decay=0.0)
    learn(matrix, line, plain, 1)
    with pytest.raises(CheckpointError, match="of other parameters"):
        optim.restore_optimizer(
            made, {matrix: "m", line: "w"}, optim.optimizer_tensors(plain, {matrix: "m", line: "w"})
        )
