"""The pages of benchmarks tell what the records say. To renew: python tests/evals/test_benchmark_pages.py."""

from pathlib import Path

import pytest

from segue.evals.benchmarks.segmentation import PIXELS
from segue.evals.benchmarks.vqa import WORDS

DOCS = Path(__file__).parents[3] / "docs"
PAGES = {"benchmarks_segmentation.md": PIXELS, "benchmarks_vqa.md": WORDS}
HEAD = "| name | files | figure | protocol | asked with | published |\n|---|---|---|---|---|---|\n"


def table(records) -> str:
    return HEAD + "".join(line(one) for one in records)


def line(one) -> str:
    files = "<br>".join(f"`{file}`".replace(" | ", "` or `") for file in one.files)
    asked = ", ".join(f"{name} {value}" for name, value in one.settings.items())
    published = "; ".join(f"{model} {value:g}" for model, value in one.published.items())
    return f"| `{one.name}` | {files} | {one.headline} | `{one.protocol}` | {asked} | {published} |\n"


def split(page: str) -> tuple[str, str, str]:
    """What stands before the table, the table, and what stands after it."""
    text = (DOCS / page).read_text(encoding="utf-8")
    start = text.index(HEAD)
    stop = text.index("\n\n", start) + 1
    return text[:start], text[start:stop], text[stop:]


@pytest.mark.parametrize("page", PAGES)
def test_the_table_of_a_page_is_that_of_its_records(page):
    assert split(page)[1] == table(PAGES[page]), "if meant: python tests/evals/test_benchmark_pages.py"


@pytest.mark.parametrize("page", PAGES)
def test_every_figure_that_is_quoted_is_explained(page):
    before, _, after = split(page)
    quoted = {one.headline.split(" (")[0].replace("_", " ") for one in PAGES[page] if one.submit is None}
    assert [name for name in quoted if name.lower() not in (before + after).lower().replace("_", " ")] == []


if __name__ == "__main__":
    for name, records in PAGES.items():
        before, _, after = split(name)
        (DOCS / name).write_text(before + table(records) + after, encoding="utf-8")
