"""What tests of the language side share."""

import pytest


class BareLanguageModel:
    """As much of a model that sees as decoding needs."""

    def __init__(self, language_model):
        self.language_model, self.head = language_model, language_model.lm_head
        self.width = language_model.model.config.hidden_size

    def tower(self, pixels, grids=None):
        raise NotImplementedError

    project = below = prompt = forward = tower


@pytest.fixture(scope="session")
def bare_mllm():
    """Wraps a language model so that it can be decoded without a tower."""
    return BareLanguageModel
