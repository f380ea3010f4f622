"""Layers that pass through another device one after the other; here both devices are the CPU."""

import pytest
import torch

from segue.errors import ConfigError
from segue.models import offloading

pytest.importorskip("accelerate", reason="needs the extra `quant`")


def test_offloaded_layers_compute_what_they_did_and_lie_nowhere_in_between(make_engine):
    language = make_engine().model.mllm.language_model
    ids = torch.tensor([[1, 5, 9, 2]])
    before = language(ids).logits
    assert offloading.offload(language, "cpu") == 2
    assert torch.equal(language(ids).logits, before)
    assert all(parameter.is_meta for parameter in language.model.layers.parameters())
    assert not language.lm_head.weight.is_meta


def test_a_model_whose_layers_are_elsewhere_is_not_saved(make_engine, tmp_path):
    engine = make_engine()
    offloading.offload(engine.model.mllm.language_model, "cpu")
    with pytest.raises(ConfigError, match="--quantize or --offload cannot be saved"):
        engine.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_without_a_card_there_is_nothing_to_make_way_for(device):
    with pytest.raises(ConfigError, match=f"on {device} they lie there anyway"):
        offloading.check(device)
