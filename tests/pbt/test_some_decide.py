"""Every strategy where members decide one after the other, with failed members and a history that has gaps."""

import math

import numpy as np
import pytest
import torch

from popgraft.config import PopulationConfig
from popgraft.config.population import STRATEGY
from popgraft.hyperparams import HyperparamConfig
from popgraft.pbt import everybody
from popgraft.pbt.standing import Past
from popgraft.state import Scores

SPACES = [
    HyperparamConfig("learning_rate", min_value=1e-5, max_value=1e-1, is_log_scale=True),
    HyperparamConfig("gamma", values=(0.9, 0.95, 0.99)),
    HyperparamConfig("clip_range", min_value=0.2, max_value=0.2),
]
DEFAULTS = {"learning_rate": 1e-3, "gamma": 0.9, "clip_range": 0.2}


def drawn_past(rng, values, pop):
    """A few generations of every member, some of them without a score, with parents that may not be on record."""
    rows = []
    for member in range(pop):
        own = {name: float(column[member]) for name, column in values.items()}
        for generation in range(int(rng.integers(4))):
            score, parent, when = (
                float(rng.choice([rng.normal(), math.nan])),
                int(rng.integers(pop)),
                int(rng.integers(4)),
            )
            rows.append(Past(generation, member, score, math.nan, 0, generation, own, parent, when, parent))
    return rows


@pytest.mark.parametrize("name", STRATEGY.table)
def test_only_those_who_decide_change_and_into_somebody_healthy_that_is_compared(name):
    rng, changed = np.random.default_rng(0), 0
    for number in range(20):
        pop, mode = int(rng.integers(6, 10)), str(rng.choice(["max", "min"]))
        config = PopulationConfig(population_size=pop, hyperparams=SPACES, strategy=name, metric_mode=mode)
        strategy = STRATEGY.make(name, config, 3)
        values = strategy.initial_hyperparams(DEFAULTS)
        mean = torch.from_numpy(np.where(rng.random(pop) < 0.3, math.nan, rng.normal(size=pop)))
        scores = Scores(mean, torch.zeros_like(mean), torch.ones(pop, dtype=torch.long))
        compared = torch.from_numpy(np.sort(rng.choice(pop, int(rng.integers(2, pop + 1)), replace=False)))
        deciding, rows = compared[: int(rng.integers(1, len(compared) + 1))], drawn_past(rng, values, pop)
        if strategy.together:  # it is refused where not all decide at once
            compared = deciding = torch.arange(pop)
        if not mean[compared].isfinite().any():
            continue
        known = {
            "compared": compared,
            "deciding": deciding,
            "together": strategy.together,
            "recall": lambda rows=rows: rows,
        }
        decision = strategy.decide(everybody(number, scores, values, config, 3, **known), values)
        donors = torch.stack([decision.parents, decision.hyperparameter_donors])
        others = torch.tensor([member for member in range(pop) if member not in deciding], dtype=torch.long)
        assert (donors[:, others] == others).all()
        assert torch.isin(donors[:, deciding], compared).all()
        assert mean[donors[0, deciding]].isfinite().all()
        for space in SPACES:
            assert all(space.contains(value) for value in decision.hyperparams[space.name].tolist())
        changed += len(decision.recipients)
    assert changed >= 10
