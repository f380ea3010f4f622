"""Mask losses against recorded values of the original, and what they mean at their ends."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from segue.grounding.losses import at_points, dice_loss, mask_loss, uncertain_points

RECORDING = Path(__file__).parents[2].parent / "shared" / "golden" / "sa2va_train"


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    if not RECORDING.is_dir():
        pytest.skip("the recording sa2va_train is not beside this checkout")
    return {**load_file(RECORDING / "inputs.safetensors"), **load_file(RECORDING / "outputs.safetensors")}


def test_two_small_masks_cost_what_the_original_says() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5, -3.0], [0.0, 0.0, 4.0, -4.0]])
    targets = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert 0.5 * dice_loss(logits, targets).item() == pytest.approx(0.2088333, abs=1e-6)
    assert 2.0 * mask_loss(logits, targets).item() == pytest.approx(1.5963420, abs=1e-6)


def test_an_empty_target_is_met_by_an_empty_mask() -> None:
    nothing = torch.zeros(1, 4)
    assert 0.5 * dice_loss(torch.zeros(1, 4), nothing).item() == pytest.approx(0.3333, abs=1e-4)
    assert dice_loss(torch.full((1, 4), -20.0), nothing).item() == pytest.approx(0.0, abs=1e-4)


def test_no_masks_cost_nothing() -> None:
    assert dice_loss(torch.zeros(0, 4), torch.zeros(0, 4)).item() == 0.0
    assert mask_loss(torch.zeros(0, 4), torch.zeros(0, 4)).item() == 0.0


def test_dense_losses_equal_the_recorded_ones(recorded: dict[str, torch.Tensor]) -> None:
    logits, targets = recorded["loss_alone.pred"].flatten(1), recorded["loss_alone.gt"].float().flatten(1)
    # this one was recorded as a plain mean; in training the original adds 1e-4 to the number of masks
    dice = 0.5 * dice_loss(logits, targets).item() * (6 + 1e-4) / 6
    assert dice == pytest.approx(recorded["loss_alone.dice_x0.5"].item(), rel=1e-6)
    assert 2 * mask_loss(logits, targets).item() == pytest.approx(recorded["loss_alone.mask_bce_x2"].item(), rel=1e-5)


def test_uncertain_points_and_what_is_read_there_equal_the_recorded_ones(recorded: dict[str, torch.Tensor]) -> None:
    torch.manual_seed(7)
    logits, targets = recorded["loss_alone.pred"], recorded["loss_alone.gt"].float()
    points = uncertain_points(logits, None, count=600)
    torch.testing.assert_close(points, recorded["loss_points.coords"], rtol=0, atol=0)
    predicted, wanted = at_points(logits, points), at_points(targets, points)
    torch.testing.assert_close(predicted, recorded["loss_points.sampled_pred"])
    torch.testing.assert_close(wanted, recorded["loss_points.sampled_gt"])
    assert 2 * mask_loss(predicted, wanted).item() == pytest.approx(recorded["loss_points.mask"].item(), rel=1e-5)
    assert 0.5 * dice_loss(predicted, wanted).item() == pytest.approx(recorded["loss_points.dice"].item(), rel=1e-5)


def test_a_generator_decides_the_points() -> None:
    logits = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0))
    first, second = (uncertain_points(logits, torch.Generator().manual_seed(3), count=40) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (2, 40, 2)
    assert ((first >= 0) & (first <= 1)).all()


def test_points_are_where_the_mask_is_least_decided() -> None:
    logits = torch.full((1, 32, 32), 9.0)
    logits[:, :, 8:24] = 0.0
    points = uncertain_points(logits, torch.Generator().manual_seed(0), count=100)
    assert (at_points(logits, points)[0, :75] == 0).all()
