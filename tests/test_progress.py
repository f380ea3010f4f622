"""Sizes in words, and back."""

import pytest

from segue.errors import ConfigError
from segue.progress import parse_size, size


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_900, "1 MB"),
        (7_534_740, "7.53 MB"),
        (51_556_280_560, "51.6 GB"),
        (999_960_000_000, "1.0 TB"),
        (2e12, "2.0 TB"),
    ],
)
def test_sizes_are_written_for_people(nbytes, text):
    assert size(nbytes) == text


@pytest.mark.parametrize(
    ("text", "nbytes"), [("200GB", 200 * 10**9), ("1.5 TiB", 3 * 2**39), ("1000", 1000), ("2k", 2000), ("7b", 7)]
)
def test_sizes_in_words_are_read(text, nbytes):
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["-1GB", "much", "", "1e9"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match="is no size"):
        parse_size(text)
