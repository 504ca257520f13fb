from typing import Any

import pytest
import torch

from popgraft.config import Config, load_config
from popgraft.errors import ConfigError, PopulationLost
from popgraft.pbt import Evolution, Prescribed, everybody, make_strategy
from popgraft.state import Decision, Scores


def settings(schedule: list[dict[str, Any]], **pbt: Any) -> Config:
    """Three members that take 2 environments x 8 steps x 2 updates = 32 steps in a generation."""
    return load_config(
        {
            "env": {"id": "CartPole-v1", "num_envs": 2},
            "model": {"n_steps": 8, "n_minibatches": 1},
            "pbt": {
                "population_size": 3,
                "perturbation_interval": 2,
                "exploit_method": "none",
                "schedule": schedule,
                **pbt,
            },
        }
    )


def entry(steps: int, rate: float, graft: bool = False, **more: float) -> dict[str, Any]:
    return {"steps": steps, "hyperparams": {"learning_rate": rate, **more}, "graft": graft}


def scores(*means: float) -> Scores:
    return Scores(torch.tensor(means), torch.zeros(3), torch.ones(3, dtype=torch.long))


def decided(follow: Prescribed, generation: int, known: Scores, values: dict[str, torch.Tensor]) -> Decision:
    """What is carried out after a generation of 32 steps."""
    spent = torch.full((3,), 32)
    standing = everybody(generation, known, values, follow.config, 0, steps=spent * (generation + 1), spent=spent)
    return follow.decide(standing, values)


def following(entries: list[dict[str, Any]]) -> Prescribed:
    """The strategy of a configuration."""
    found = make_strategy(settings(entries))
    assert isinstance(found, Prescribed)
    return found


def test_values_set_in_with_the_generation_that_begins_at_their_step_or_after_it() -> None:
    follow = following([entry(0, 0.1), entry(32, 0.2), entry(65, 0.3), entry(70, 0.4)])
    values = follow.initial_hyperparams({"learning_rate": 1.0, "gamma": 0.9})
    rates = [values["learning_rate"].tolist()]
    for generation in range(4):
        decision = decided(follow, generation, scores(1.0, 2.0, 3.0), values)
        assert decision.parents.tolist() == [0, 1, 2]
        assert decision.reasons == {}
        values = decision.hyperparams
        rates.append(values["learning_rate"].tolist())
    assert rates == [pytest.approx([rate] * 3) for rate in (0.1, 0.2, 0.2, 0.4, 0.4)]
    assert values["gamma"].tolist() == pytest.approx([0.9] * 3)


def test_at_a_graft_everybody_moves_one_place_on_whatever_the_scores() -> None:
    follow = following([entry(0, 0.1), entry(32, 0.1, graft=True)])
    values = follow.initial_hyperparams({"learning_rate": 1.0})
    decision = decided(follow, 0, scores(1.0, float("nan"), 3.0), values)
    assert decision.parents.tolist() == [2, 0, 1]
    assert decision.recipients.tolist() == [0, 1, 2]
    assert decision.reasons == {0: "schedule", 1: "schedule", 2: "schedule"}
    assert decided(follow, 1, scores(1.0, 1.0, 1.0), values).reasons == {}


def test_a_population_without_any_finite_score_is_lost() -> None:
    follow = following([entry(0, 0.1)])
    with pytest.raises(PopulationLost, match="no member has a finite score after generation 4"):
        decided(follow, 4, scores(*[float("nan")] * 3), follow.initial_hyperparams({"learning_rate": 1.0}))


def test_the_configuration_says_who_decides() -> None:
    assert isinstance(make_strategy(settings([entry(0, 0.1)])), Prescribed)
    assert isinstance(make_strategy(settings([])), Evolution)


@pytest.mark.parametrize(
    ("schedule", "pbt", "message"),
    [
        ([entry(0, 0.1)], {"exploit_method": "truncation"}, "schedule takes the place of exploit and explore"),
        ([entry(0, 0.1)], {"explore_always": True}, "set exploit_method: none and explore_always: false"),
        ([entry(1, 0.1)], {}, r"its steps must begin at 0 and rise, but they are \[1\]"),
        ([entry(0, 0.1), entry(9, 0.1), entry(9, 0.2)], {}, r"they are \[0, 9, 9\]"),
        ([entry(0, 0.1), entry(5, 0.1, gamma=0.9)], {}, "every entry must set learning_rate, as the first one does"),
        ([entry(0, 11.0)], {}, r"schedule: learning_rate: 11.0 must be a number in \[0, 10\]"),
        ([{"steps": 0, "hyperparams": {"rate": 1.0}}], {}, "schedule: unknown hyperparameter 'rate'"),
        ([{"steps": 0}], {}, r"pbt.schedule.0.hyperparams"),
        ([entry(0, 0.1, graft=True)], {}, "there is nobody to graft at step 0"),
        ([entry(0, 0.1), entry(5, 0.1, graft=True)], {"population_size": 1}, "but population_size is 1; raise it to 2"),
        ([entry(0, 0.1, sigma=0.1)], {}, "pbt.schedule lists 'sigma', which nothing reads"),
        ([entry(0, 0.1, robust_kl_coef=1.0)], {}, "pbt.schedule lists robust_kl_coef, which only state-adversarial"),
        (
            [entry(0, 0.1)],
            {"hyperparams": [{"name": "gamma", "min_value": 0.9, "max_value": 0.99}]},
            "schedule does not set gamma, which hyperparams lists",
        ),
    ],
)
def test_a_schedule_that_cannot_be_followed_is_refused(
    schedule: list[dict[str, Any]], pbt: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(schedule, **pbt)


def test_what_a_schedule_moves_is_in_use() -> None:
    assert settings([entry(0, 0.1, cvar_weight=0.0), entry(40, 0.1, cvar_weight=0.5)]).uses("cvar_weight")
