import sys

import pytest

from segue.errors import ConfigError
from segue.registry import Table

TABLE = Table("notation", {"boxes": "wave:Wave_read", "fractions": "fractions:Fraction"})


def test_an_entry_is_imported_only_when_asked_for():
    sys.modules.pop("wave", None)
    assert list(TABLE) == ["boxes", "fractions"] and len(TABLE) == 2 and "boxes" in TABLE
    assert "wave" not in sys.modules
    assert TABLE["boxes"] is sys.modules["wave"].Wave_read


@pytest.mark.parametrize(("name", "near"), [("fraction", "did you mean 'fractions'?"), ("zzz", "")])
def test_an_unknown_name_is_answered_with_the_nearest_and_all(name, near):
    with pytest.raises(ConfigError) as caught:
        TABLE[name]
    message = str(caught.value)
    assert message.startswith(f"unknown notation '{name}'") and message.endswith("Known: boxes, fractions")
    assert ("did you mean" in message) is bool(near) and near in message


def test_a_table_does_not_change_with_the_mapping_it_was_made_of():
    entries = {"a": "fractions:Fraction"}
    table = Table("thing", entries)
    entries["b"] = "fractions:Fraction"
    assert list(table) == ["a"]
