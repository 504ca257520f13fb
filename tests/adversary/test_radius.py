"""The course of the radius against hand arithmetic."""

import pytest
import torch

from popgraft.adversary import scheduled_radius

AGES = torch.tensor([0, 10, 15, 20, 30, 99])
START, FINAL = 0.2, 0.1


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.2, 0.2, 0.2, 0.2, 0.2, 0.2]),
        # From 0.2 at update 10 to 0.1 at update 30.
        ("linear", [0.2, 0.2, 0.175, 0.15, 0.1, 0.1]),
        # 0.1 + 0.05 · (1 + cos πp); cos(π/4) = 0.7071068.
        ("cosine", [0.2, 0.2, 0.1853553, 0.15, 0.1, 0.1]),
    ],
)
def test_closed_form(schedule, expected):
    found = scheduled_radius(torch.full((6,), START), FINAL, AGES, (10, 30), schedule)
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_every_member_by_itself_and_from_its_own_radius(schedule):
    start, age = torch.tensor([0.0, 0.3, 0.05]), torch.tensor([12, 25, 40])
    whole = scheduled_radius(start, FINAL, age, (10, 30), schedule)
    for m in range(3):
        assert torch.equal(scheduled_radius(start[m : m + 1], FINAL, age[m : m + 1], (10, 30), schedule)[0], whole[m])
    if schedule == "constant":
        assert torch.equal(whole, start)
    else:
        assert float(whole[2]) == pytest.approx(FINAL)
