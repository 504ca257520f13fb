"""Whether exploits pay, counted from reports."""

import math

import pytest

from popgraft.inheritance.success import Success


@pytest.mark.parametrize("mode", ["max", "min"])
def test_success_is_counted_by_horizon_and_strategy(mode):
    sign = 1 if mode == "max" else -1
    success = Success(mode)
    success.report(0, 99.0)  # nobody has exploited yet
    success.begin(0, "copy", sign * 10.0)
    success.begin(1, "reset", sign * 10.0)
    for member, first in ((0, 11.0), (1, 9.0)):
        success.report(member, sign * first)
    assert success.stats() == {"success_1_copy": 1.0, "success_1_reset": 0.0}
    for value in (1.0, 1.0, 1.0, 10.0):
        success.report(1, sign * value)
    assert success.stats()["success_5_reset"] == 1.0
    success.begin(0, "copy", sign * 20.0)
    success.report(0, sign * 12.0)  # belongs to the second exploit alone
    assert success.stats()["success_1_copy"] == 0.5
    again = Success(mode)
    again.load_state_dict(success.state_dict())
    assert again.stats() == success.stats()


def test_a_member_without_a_score_before_or_after_counts_right():
    success = Success("max")
    success.begin(0, "copy", None)
    success.begin(1, "copy", 1.0)
    success.report(0, 5.0)
    success.report(1, math.nan)
    assert success.stats() == {"success_1_copy": 0.0}
    for _ in range(30):
        success.report(1, 2.0)
    assert len(success.exploits[1].after) == 10
