"""The command line with an engine that needs no model."""

import json
import sys

import fake_engine
import pytest
from typer.testing import CliRunner

import segue


@pytest.fixture
def fake(monkeypatch):
    """The fake engine in the place of segue.engine and segue.loading."""
    monkeypatch.setitem(sys.modules, "segue.engine", fake_engine)
    monkeypatch.setitem(sys.modules, "segue.loading", fake_engine)
    monkeypatch.setattr(segue, "engine", fake_engine, raising=False)
    monkeypatch.setattr(segue, "loading", fake_engine, raising=False)
    monkeypatch.setattr(fake_engine.Engine, "loads", 0)
    return fake_engine


@pytest.fixture
def run_segue(fake):
    """Runs `segue ...` in this process; the result has exit_code, stdout and stderr. A bug of ours is raised."""
    from segue.cli.main import application

    def run(*arguments: object, typed: str | None = None):
        return CliRunner().invoke(application(), list(map(str, arguments)), input=typed, catch_exceptions=False)

    return run


@pytest.fixture
def json_lines():
    """Reads JSON lines."""
    return lambda text: [json.loads(line) for line in text.splitlines()]
