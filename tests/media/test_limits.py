"""The ceilings themselves; their use is tested with what they limit."""

import pytest

from segue.errors import ConfigError
from segue.media import Limits


@pytest.mark.parametrize("field", ["pixels", "frames", "file_bytes"])
def test_a_ceiling_below_one_is_refused(field):
    with pytest.raises(ConfigError, match=f"Limits.{field} is 0"):
        Limits(**{field: 0})
