"""A part that evolves by score, a part that evolves by rate of improvement, and evaluators: worked out by hand."""

import json
import math

import pytest
import torch

from popgraft import ConfigError, PBTConfig, PBTScheduler, load_config
from popgraft.config import PopulationConfig
from popgraft.errors import PopulationLost
from popgraft.hyperparams import HyperparamConfig
from popgraft.pbt import everybody, make_strategy
from popgraft.pbt.fire import Fire, Task
from popgraft.pbt.standing import Past
from popgraft.state import Scores

NAN = math.nan
RATE = HyperparamConfig("learning_rate", min_value=1e-5, max_value=1.0, is_log_scale=True)
FLAT = [10.0, 9.0, 8.0, 3.0, 2.0, 1.0, 0.0, 0.0]
"""Of three who care for their scores, three who are evaluated, and the evaluators 6 and 7."""


def make(population_size=8, mode="max", kwargs=None, **settings):
    given = {"hyperparams": [RATE], "explore_method": "perturb", "metric_mode": mode, **settings}
    config = PopulationConfig(population_size=population_size, strategy="fire", strategy_kwargs=kwargs or {}, **given)
    return Fire(config, 0, **(kwargs or {}))


class Played:
    """A population whose scores are told, generation by generation."""

    def __init__(self, strategy=None, pop=8):
        self.strategy, self.past, self.number, self.pop = strategy or make(), [], 0, pop
        self.rates = [10.0 ** -(1 + i / 2) for i in range(pop)]

    def decide(self, scores):
        mean = torch.tensor(scores)
        scored = Scores(mean, torch.zeros_like(mean), torch.ones(self.pop, dtype=torch.long))
        values, past = {"learning_rate": torch.tensor(self.rates)}, list(self.past)
        standing = everybody(self.number, scored, values, self.strategy.config, 0, recall=lambda: past)
        choice = self.strategy(standing).of_those_who_decide(standing)
        donors = choice.hyperparameter_donors.tolist()
        for member, parent in enumerate(choice.parents.tolist()):
            known = {"learning_rate": self.rates[member]}
            self.past.append(
                Past(self.number, member, scores[member], 0.0, 1, 0, known, parent, self.number, donors[member])
            )
        self.rates = [
            choice.explored.get(i, {"learning_rate": self.rates[donors[i]]})["learning_rate"] for i in range(8)
        ]
        self.number += 1
        return {
            member: (parent, donors[member], member in choice.explored, choice.reasons[member])
            for member, parent in enumerate(choice.parents.tolist())
            if parent != member
        }


def test_first_evaluators_take_the_weights_of_who_waits_and_the_hyperparameters_of_the_best():
    assert Played().decide(FLAT) == {
        2: (0, 0, True, "exploit"),
        6: (3, 0, False, "evaluation"),
        7: (4, 0, False, "evaluation"),
    }


def equal(scores):
    """The same with nobody who is better than another in the first part, so that no child is lost."""
    return [10.0, 10.0, 10.0, *scores]


def test_an_evaluator_that_is_above_its_child_beyond_chance_hands_over_its_weights():
    # Its score rises from 11 by 1, the child's stays at 10: after seven generations the sign test says 1/128 < 0.01. The
    # other one is below from the beginning: that is 1 > 0.01 + 1 - 1/10, so it begins with the next who waits.
    played = Played()
    found = [played.decide(equal([3.0, 2.0, 1.0, 10.0 + time, 5.0])) for time in range(8)]
    assert found[0] == {6: (3, 0, False, "evaluation"), 7: (4, 0, False, "evaluation")}
    assert found[1] == {7: (5, 0, False, "evaluation")}
    assert found[2] == {7: (4, 0, False, "evaluation")}
    for later in found[3:7]:
        assert set(later) == {7}
    assert found[7][0] == (6, 0, False, "faster")
    assert found[7][6][3] == "evaluation"
    assert played.strategy.statistics() == {"evaluations": 2.0, "faster": 1.0}


def test_who_was_taken_over_has_its_evaluators_curve():
    played = Played()
    for time in range(8):
        played.decide(equal([3.0, 2.0, 1.0, 10.0 + time, 5.0]))
    # The child has become its evaluator, which came to 17; one that rises from 11 again meets it there, and is not above.
    for time in range(7):
        found = played.decide([17.0, 10.0, 10.0, 3.0, 2.0, 1.0, 11.0 + time, 5.0])
        assert found.get(0) is None


def test_the_faster_of_two_that_are_evaluated_is_copied_within_the_part():
    # Evaluators of 3 and 4 come to 10 together, then one gains 2 a generation and the other 1.
    played, found = Played(), {}
    for time in range(5):
        found = played.decide(equal([3.0, 2.0, 1.0, 10.0 + 2 * time, 10.0 + time]))
        if time == 0:
            assert played.strategy._at_work == {6: Task(3, 0, 0), 7: Task(4, 0, 0)}
        elif 4 in found:
            break
    assert found[4] == (3, 3, True, "exploit")
    assert 7 in found  # its parent is somebody else now, so that it begins anew


def test_an_evaluation_ends_with_a_child_that_is_somebody_else():
    played = Played()
    assert played.decide(FLAT)[6] == (3, 0, False, "evaluation")
    found = played.decide([1.0, 9.0, 8.0, 3.0, 2.0, 1.0, 12.0, 13.0])
    assert found[0] == (1, 1, True, "exploit")
    assert found[6][1:] == (1, False, "evaluation")
    assert found[7][1:] == (1, False, "evaluation")
    assert {found[6][0], found[7][0]} == {5, 3}


def test_low_scores_are_good_in_the_other_mode():
    high, low = Played(), Played(make(mode="min"))
    for time in range(9):
        scores = equal([3.0, 2.0, 1.0, 10.0 + time, 5.0])
        assert low.decide([-score for score in scores]) == high.decide(scores)


def test_failed_members_are_rescued_by_their_part_and_evaluators_begin_anew():
    played = Played()
    played.decide(FLAT)
    found = played.decide([NAN, 9.0, 8.0, 3.0, NAN, NAN, NAN, 5.0])
    assert found[0][0] in (1, 2)
    assert found[4] == (3, 3, True, "rescue")
    assert found[5] == (3, 3, True, "rescue")
    assert found[6][2:] == (False, "evaluation")
    with pytest.raises(PopulationLost):
        played.decide([NAN] * 8)


def test_its_state_outlives_a_file():
    one, other = Played(), Played()
    for time in range(3):
        scores = equal([3.0, 2.0, 1.0, 10.0 + time, 5.0])
        one.decide(scores)
        other.decide(scores)
    other.strategy = make()
    other.strategy.restore(json.loads(json.dumps(one.strategy.saved())))
    for time in range(3, 10):
        scores = equal([3.0, 2.0, 1.0, 10.0 + time, 5.0])
        assert other.decide(scores) == one.decide(scores)


def test_what_cannot_work_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"leave less than 2 members for each; raise pbt.population_size to 6"):
        make(population_size=4)
    with pytest.raises(ConfigError, match=r"pbt.exploit_method='ttest' is not read by strategy: fire"):
        make(exploit_method="ttest")
    with pytest.raises(ConfigError, match="evaluators"):
        make(kwargs={"evaluators": 1})
    with pytest.raises(ConfigError, match="significance"):
        make(kwargs={"significance": 1.0})
    with pytest.raises(ConfigError, match="decides over everybody at once, but here members ask one after the other"):
        PBTScheduler(PBTConfig(population_size=8, strategy="fire", checkpoint_dir=tmp_path))
    shards = {"execute": {"kind": "ray", "mode": "async", "shards": 2}}
    with pytest.raises(ConfigError, match=r"with execute.mode: async every shard decides for itself"):
        make_strategy(load_config({"env": {"id": "CartPole-v1"}, "pbt": {"strategy": "fire"}, **shards}))
