"""Statistics of the recurrent state against NumPy, and the population laws."""

import numpy as np
import pytest
import torch

from popgraft.ops.diagnostics import recurrent_statistics

POP, ENV, STATE = 3, 5, 14
PARTS = {"actor_layer0": slice(0, 3), "actor_layer1": slice(6, 9), "critic_layer0": slice(10, 14)}


def test_equals_numpy_part_by_part(normal):
    carry = normal(POP, ENV, STATE) * 3 + 1
    found = recurrent_statistics(carry, PARTS)
    assert list(found) == [f"lstm/{part}_{name}" for part in PARTS for name in ("norm", "mean", "std")]
    for part, where in PARTS.items():
        hidden = carry[..., where].numpy()
        for m in range(POP):
            norm = np.mean([np.linalg.norm(row) for row in hidden[m]])
            assert float(found[f"lstm/{part}_norm"][m]) == pytest.approx(norm, abs=1e-12)
            assert float(found[f"lstm/{part}_mean"][m]) == pytest.approx(np.mean(hidden[m]), abs=1e-12)
            assert float(found[f"lstm/{part}_std"][m]) == pytest.approx(np.std(hidden[m]), abs=1e-12)


def test_arithmetic_by_hand():
    """Two environments, h = (3, 4) and (0, 0): norm (5 + 0)/2, mean 7/4, variance 25/4 − 49/16 = 51/16."""
    carry = torch.tensor([[[3.0, 4.0, 9.0], [0.0, 0.0, 9.0]]])
    found = recurrent_statistics(carry, {"actor_layer0": slice(0, 2)})
    expected = {"norm": 2.5, "mean": 1.75, "std": (51 / 16) ** 0.5}
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {f"lstm/actor_layer0_{name}": value for name, value in expected.items()}
    )


def test_a_single_number_has_no_spread():
    found = recurrent_statistics(torch.ones(2, 1, 1), {"actor_layer0": slice(0, 1)})
    assert found["lstm/actor_layer0_std"].tolist() == [0, 0]


def test_an_agent_without_memory_has_no_statistics():
    assert recurrent_statistics(torch.zeros(POP, ENV, 0), {}) == {}


def test_population_laws(normal, check_laws):
    check_laws(lambda carry: torch.stack(list(recurrent_statistics(carry, PARTS).values()), 1), normal(POP, ENV, STATE))
