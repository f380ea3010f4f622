"""What several tests of the grounder begin with."""

import pytest
import torch


@pytest.fixture
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def grounder(engine):
    return engine.model.grounder
