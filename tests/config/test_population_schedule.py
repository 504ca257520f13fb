from typing import Any

import pytest
import yaml

from popgraft.config import Config, dump_config, load_config
from popgraft.errors import ConfigError


def settings(sizes: Any, total: int = 960, **pbt: Any) -> dict[str, Any]:
    """A generation of a member is 2 x 5 x 2 = 20 steps."""
    own = {"population_size": 8, "perturbation_interval": 2, "population_schedule": sizes, **pbt}
    return {
        "env": {"id": "CartPole-v1", "num_envs": 2},
        "model": {"n_steps": 5, "n_minibatches": 1},
        "pbt": own,
        "total_timesteps": total,
    }


def loaded(*arguments: Any, **pbt: Any) -> Config:
    return load_config(settings(*arguments, **pbt))


def test_sizes_alone_are_stages_of_as_many_steps() -> None:
    config = loaded([8, 4, 1])
    assert config.pbt.stages(960) == [(0, 8), (320, 4), (640, 1)]
    # 320 = 2 generations of 8 x 20 = 4 of 4 x 20 = 16 of 20
    assert config.course() == [(2, 8), (4, 4), (16, 1)]
    assert config.generations == 22
    assert config.planned_steps(0) == 960
    assert [config.size_at(done) for done in (0, 319, 320, 639, 640, 5000)] == [8, 8, 4, 4, 1, 1]
    assert load_config(yaml.safe_load(dump_config(config))).pbt == config.pbt
    assert loaded([]).generations == loaded([8]).generations == 6


def test_a_third_is_a_third() -> None:
    assert loaded([8, 4, 1], 900_003).pbt.stages(900_003) == [(0, 8), (300_001, 4), (600_002, 1)]


def test_what_is_over_the_end_of_a_stage_is_taken_from_the_next() -> None:
    config = loaded([{"share": 0.3, "size": 4}, {"share": 0.5, "size": 2}], 1000)
    # 160 and 320 pass 300; from 320 on 400, 480 and 560 pass 500; then 40 at a time, and 1,000 is passed at the eleventh
    assert config.course() == [(2, 8), (3, 4), (11, 2)]
    assert config.planned_steps(0) == 1000
    assert config.planned_steps(400) == 1000
    assert config.planned_generations(3, 400) == 16
    assert config.course(1000) == [(0, 8), (0, 4), (0, 2)]


def test_whoever_has_ended_does_not_come_back() -> None:
    config = loaded([8, 4, 1])
    assert config.course(600, left=1) == [(0, 1), (2, 1), (16, 1)]
    assert config.planned_generations(30, 600, left=1) == 48


@pytest.mark.parametrize(
    ("schedule", "changes", "sentence"),
    [
        ([16, 8], {}, r"population_schedule=\[16, 8\] begins with 16 members, but population_size is 8"),
        ([8, 4, 4], {}, r"sizes must fall from population_size on, but they are \[8, 4, 4\]"),
        ([8, 4, 0], {}, r"population_schedule.1.size = 0: must be greater than 0"),
        ([{"share": 0.5, "size": 8}], {}, r"sizes must fall from population_size on, but they are \[8, 8\]"),
        ([{"share": 0.5, "size": 4}, {"share": 0.5, "size": 2}], {}, r"shares must rise, but they are \[0.5, 0.5\]"),
        ([{"share": 1.0, "size": 4}], {}, r"population_schedule.0.share = 1.0: must be less than 1"),
        ([{"share": 0.5}], {}, r"population_schedule.0.size is missing"),
        ([8, 4.0], {}, r"population_schedule.1 = 4.0: must hold settings as `key: value`"),
        ([8, 4, 1], {"explore_always": True}, "explore_always would move the hyperparameters of the last member"),
        ([8, 4], {"schedule": [{"steps": 0, "hyperparams": {"gamma": 0.9}}]}, "nobody is selected; remove one of them"),
    ],
)
def test_what_cannot_be_is_refused(schedule: Any, changes: dict[str, Any], sentence: str) -> None:
    if "schedule" in changes:
        changes |= {"exploit_method": "none", "hyperparams": []}
    with pytest.raises(ConfigError, match=sentence):
        loaded(schedule, **changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"total_timesteps": 160}, r"4 members never train, because a generation of the 8 before them takes 160 of"),
        ({"execute": {"kind": "ray", "mode": "async"}}, "population_schedule compares everybody at once"),
        ({"execute": {"sizes": [4, 4]}}, "execute.sizes divides a population of one size"),
    ],
)
def test_what_does_not_go_with_the_rest_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_config(settings([8, 4, 2]) | changes)
