"""Normal draws against the moments and the distribution function of the normal distribution."""

import math

import numpy as np
import pytest
import torch

from popgraft.optim import draw_noise_


def test_noise_is_normal_and_each_member_has_its_own():
    out = torch.empty(2, 200_001)
    draw_noise_(out, [torch.Generator().manual_seed(seed) for seed in (3, 4)])
    for row in out.double().numpy():
        assert abs(row.mean()) < 0.01
        assert [np.mean(row**k) for k in (2, 3, 4)] == pytest.approx([1, 0, 3], abs=0.05)
        for bound in (-2.0, -1.0, 0.0, 0.5, 3.0):
            assert np.mean(row < bound) == pytest.approx(0.5 * (1 + math.erf(bound / math.sqrt(2))), abs=0.005)
        assert abs(np.corrcoef(row[:-1], row[1:])[0, 1]) < 0.01
    assert abs(np.corrcoef(out)[0, 1]) < 0.01


@pytest.mark.parametrize("n", [1, 3, 4, 1001])
def test_a_row_depends_on_its_generator_alone(n):
    rows = torch.empty(3, n)
    draw_noise_(rows, [torch.Generator().manual_seed(seed) for seed in (3, 4, 3)])
    alone = torch.empty(1, n)
    draw_noise_(alone, [torch.Generator().manual_seed(4)])
    assert torch.equal(rows[1], alone[0])
    assert torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], rows[1])


def test_draws_differ_from_call_to_call_and_continue_with_the_generators_state():
    generator = torch.Generator().manual_seed(1)
    first, second, again = (torch.empty(1, 64).double() for _ in range(3))
    draw_noise_(first, [generator])
    state = generator.get_state()
    draw_noise_(second, [generator])
    generator.set_state(state)
    draw_noise_(again, [generator])
    assert torch.equal(second, again)
    assert not torch.equal(first, second)
