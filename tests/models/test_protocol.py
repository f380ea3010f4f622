import pytest
import torch

from segue.models.protocol import positions, seg_states


@pytest.mark.parametrize(
    ("attention", "expected"),
    [([1, 1, 1], [0, 1, 2]), ([0, 0, 1, 1], [0, 0, 0, 1]), ([0], [0])],
)
def test_positions_count_real_tokens_only(attention, expected):
    assert positions(torch.tensor([attention])).tolist() == [expected]


def test_states_on_segmentation_tokens_come_row_by_row_in_reading_order():
    hidden = torch.arange(6.0).view(2, 3, 1)
    found = seg_states(hidden, torch.tensor([[7, 0, 7], [0, 7, 0]]), 7)
    assert found.flatten().tolist() == [0.0, 2.0, 4.0]
    assert seg_states(hidden, torch.zeros(2, 3, dtype=torch.long), 7).shape == (0, 1)
    assert seg_states(hidden, torch.zeros(2, 3, dtype=torch.long), None).shape == (0, 1)
