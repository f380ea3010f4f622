"""A store in a temporary folder."""

import pytest
from kept import fresh


@pytest.fixture
def root(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def cache(root):
    return fresh(root)
