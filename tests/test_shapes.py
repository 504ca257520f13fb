"""Every test checks the shapes of what functions are given and give back; calls alike in all of them are checked once."""

import pytest
import torch
from jaxtyping import TypeCheckError

from popgraft.ops.reduce import mean


def test_a_shape_is_checked_though_another_one_has_passed() -> None:
    for _ in range(2):
        assert mean(torch.ones(2, 3), torch.ones(2, 3)).shape == (2,)
        for wrong in (torch.ones(2, 4), torch.ones(3, 3), torch.ones(2, 3, dtype=torch.long)):
            with pytest.raises(TypeCheckError):
                mean(torch.ones(2, 3), wrong)
            with pytest.raises(TypeCheckError):
                mean(x=torch.ones(2, 3), valid=wrong)
