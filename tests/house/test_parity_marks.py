"""docs/parity.md, the marks in src and the tests speak of the same names.

A row is `| name | what | keep or fix | since |`; a mark is a comment `# PARITY(name): ...`.
"""

import re
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def rows(root: Path) -> dict[str, str]:
    """Name -> keep or fix, for every row of the table."""
    text = (root / "docs" / "parity.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| `(\w+)` \|.*\| (\w+) \|[^|]*\|$", text, re.MULTILINE)
    assert len(found) == len(dict(found)) > 5
    return dict(found)


@pytest.fixture(scope="module")
def marks(sources) -> set[str]:
    return {name for file in sources.values() for name in re.findall(r"# PARITY\((\w+)\)", file.read_text("utf-8"))}


def test_a_row_says_keep_or_fix(rows):
    assert set(rows.values()) <= {"keep", "fix"}


def test_every_mark_has_a_row(rows, marks):
    assert sorted(marks - set(rows)) == []


def test_every_kept_row_has_a_mark(rows, marks):
    assert sorted({name for name, verdict in rows.items() if verdict == "keep"} - marks) == []


def test_every_mark_has_a_test_of_its_name(root, marks):
    tests = " ".join(
        name
        for file in (root / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)", file.read_text("utf-8"))
    )
    assert sorted(mark for mark in marks if mark not in tests) == []
