"""Frame plans."""

import pytest

from segue.errors import ConfigError
from segue.media.sampling import choose


@pytest.mark.parametrize(
    ("plan", "count", "frames"),
    [
        ("first:5", 200, (0, 1, 2, 3, 4)),
        ("first:5", 3, (0, 1, 2)),
        ("uniform:5", 200, (0, 49, 99, 149, 199)),
        ("uniform:5", 5, (0, 1, 2, 3, 4)),
        ("uniform:5", 3, (0, 0, 1, 1, 2)),
        ("uniform:3", 1, (0, 0, 0)),
        ("uniform:1", 9, (0,)),
        ("0,4,9", 10, (0, 4, 9)),
        ("9, 0, 0", 10, (9, 0, 0)),
        ("7", 8, (7,)),
    ],
)
def test_a_plan_names_its_frames(plan, count, frames):
    assert choose(plan, count) == frames


@pytest.mark.parametrize(
    ("plan", "count", "message"),
    [
        ("", 5, "unknown frame plan"),
        ("last:3", 5, "unknown frame plan 'last:3'"),
        ("first:", 5, "unknown"),
        ("first:-1", 5, "unknown"),
        ("uniform:2.5", 5, "unknown"),
        ("0,,4", 5, "unknown"),
        ("-1", 5, "unknown"),
        ("uniform:9999999999", 5, "unknown"),
        ("first:0", 5, "takes no frame"),
        ("uniform:0", 5, "takes no frame"),
        ("0,5", 5, "asks for frame 5; the video has frames 0 to 4"),
        ("first:1", 0, "0 frames"),
    ],
)
def test_a_plan_that_cannot_be_followed_is_refused(plan, count, message):
    with pytest.raises(ConfigError, match=message):
        choose(plan, count)


@pytest.mark.parametrize(
    ("plan", "count", "rate", "frames"),
    [
        ("fps:1", 100, 25.0, (0, 25, 50, 75)),
        ("fps:1", 101, 25.0, (0, 25, 50, 75, 100)),
        ("fps:0.5", 100, 25.0, (0, 50)),
        ("fps:2", 30, 29.97, (0, 14, 29)),
        ("fps:60", 4, 25.0, (0, 1, 2, 3)),
        ("fps:1", 1, 25.0, (0,)),
    ],
)
def test_a_plan_by_time_takes_the_frame_shown_then(plan, count, rate, frames):
    assert choose(plan, count, rate) == frames


@pytest.mark.parametrize(("plan", "rate", "message"), [("fps:0", 25.0, "more than 0"), ("fps:1", None, "clock")])
def test_a_plan_by_time_needs_a_time(plan, rate, message):
    with pytest.raises(ConfigError, match=message):
        choose(plan, 10, rate)
