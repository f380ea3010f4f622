"""SAM 2's image encoder our way beside the library's."""

import pytest
import torch
from transformers import Sam2HieraDetConfig
from transformers.models.sam2.modeling_sam2 import Sam2HieraDetModel

from segue.grounding import hiera


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 0.0), (torch.bfloat16, 0.05)])
def test_every_kind_of_block_gives_what_the_librarys_does(dtype, most):
    """Windows with and without padding, smaller queries, and attention to everything."""
    torch.manual_seed(0)
    sizes = {
        "embed_dim_per_stage": [16, 32, 64, 128],
        "num_attention_heads_per_stage": [1, 2, 4, 8],
        "blocks_per_stage": [1, 1, 3, 1],
        "global_attention_blocks": [4],
        "window_size_per_stage": [8, 4, 6, 2],
        "window_positional_embedding_background_size": [7, 7],
        "image_size": [128, 128],
    }
    model = Sam2HieraDetModel(Sam2HieraDetConfig(hidden_size=16, num_attention_heads=1, **sizes)).to(dtype).eval()
    pixels = torch.randn(1, 3, 128, 128).to(dtype)
    with torch.no_grad():
        expected = model(pixels).intermediate_hidden_states
        hiera.take_over(model)
        found = model(pixels).intermediate_hidden_states
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= most * other.abs().max()
