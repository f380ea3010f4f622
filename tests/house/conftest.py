"""The house as its tests see it: where it stands, and the syntax tree of every module."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def sources() -> dict[str, Path]:
    """Dotted module name -> file, for all of src; a package goes by its own name."""
    files = sorted((ROOT / "src" / "segue").rglob("*.py"))
    assert len(files) > 10
    return {
        ".".join(file.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__"): file for file in files
    }


@pytest.fixture(scope="session")
def trees(sources) -> dict[str, ast.Module]:
    return {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in sources.items()}
