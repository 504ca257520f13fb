"""Iterations of growing intervals, and what is left of one in the next: worked out by hand."""

import json
import math

import numpy as np
import pytest
import torch

from popgraft import ConfigError, PBTConfig, PBTScheduler
from popgraft.config import PopulationConfig
from popgraft.hyperparams import HyperparamConfig
from popgraft.pbt import everybody
from popgraft.pbt.ipbt import IPBT
from popgraft.pbt.standing import Past
from popgraft.state import Renewal, Scores

NAN = math.nan
RATE = HyperparamConfig("learning_rate", min_value=1e-4, max_value=1.0, is_log_scale=True)
POP = 8


def make(kwargs=None, **settings):
    given = {"hyperparams": [RATE], "truncation_ratio": 0.25, **settings}
    config = PopulationConfig(population_size=POP, strategy="ipbt", strategy_kwargs=kwargs or {}, **given)
    return IPBT(config, 0, **(kwargs or {}))


class Played:
    """A population whose scores are told, generation by generation."""

    def __init__(self, strategy=None, left=1000):
        self.strategy, self.past, self.number, self.end = strategy or make(), [], 0, left
        self.rates = [10.0 ** -(1 + i / 4) for i in range(POP)]

    def decide(self, scores):
        mean = torch.tensor(scores)
        scored = Scores(mean, torch.zeros_like(mean), torch.ones(POP, dtype=torch.long))
        values, past = {"learning_rate": torch.tensor(self.rates)}, list(self.past)
        known = {"recall": lambda: past, "left": self.end - self.number - 1}
        self.standing = everybody(self.number, scored, values, self.strategy.config, 0, **known)
        self.choice = self.strategy(self.standing).of_those_who_decide(self.standing)
        parents = self.choice.parents.tolist()
        for member, parent in enumerate(parents):
            own = {"learning_rate": self.rates[member]}
            self.past.append(
                Past(self.number, member, scores[member], 0.0, 1, self.number, own, parent, self.number, parent)
            )
        self.rates = [
            self.choice.explored.get(i, {"learning_rate": self.rates[parent]})["learning_rate"]
            for i, parent in enumerate(parents)
        ]
        self.number += 1
        return {member: self.choice.reasons[member] for member, parent in enumerate(parents) if parent != member}


def rising(best):
    return [best - i for i in range(POP)]


def stalled(played, generations):
    """A best score that stays where it is."""
    return [played.decide(rising(10.0)) for _ in range(generations)]


def test_a_run_begins_anew_when_the_best_has_not_risen_patience_times_in_a_row():
    played = Played()
    early = stalled(played, 3)
    for choice in early:
        assert set(choice.values()) == {"truncation"}
    assert set(stalled(played, 1)[0].values()) == {"restart"}
    assert played.strategy.statistics() == {"restarts": 1.0, "interval": 2.0}


def test_a_rise_counts_anew():
    played = Played(make(exploit_method="none"))
    for best in (1.0, 1.0, 1.0, 2.0, 2.0, 2.0):
        assert "restart" not in played.decide(rising(best)).values()


def test_a_slow_rise_is_none():
    # The best of 15 scores that rise by 1 is 14 above the first, and their standard deviation 4.5; after a rise by 100
    # the last five rise by next to nothing.
    played = Played(make({"slow": 15, "patience": 1000}, exploit_method="none"))
    for i in range(30):
        assert "restart" not in played.decide(rising(100.0 + i)).values()
    played = Played(make({"slow": 5, "patience": 1000}, exploit_method="none"))
    decided = [played.decide(rising(best)) for best in (0.0, 50.0, 100.0, 100.1, 100.2, 100.3)]
    assert ["restart" in one.values() for one in decided] == [False] * 6
    bests = np.array([0.0, 50.0, 100.0, 100.1, 100.2, 100.3, 100.4])
    assert bests.max() - bests[:3].max() < bests.std(ddof=1)
    assert set(played.decide(rising(100.4)).values()) == {"restart"}


def test_nobody_begins_anew_where_two_longer_intervals_are_not_left():
    played = Played(make(exploit_method="none"), left=7)
    assert "restart" not in [why for one in stalled(played, 4) for why in one.values()]
    played = Played(
        make(exploit_method="none"), left=8
    )  # after the fourth there are four, twice the next interval of two
    assert set(stalled(played, 4)[-1].values()) == {"restart"}


def test_the_best_stay_and_all_weights_are_renewed():
    played = Played()
    stalled(played, 4)
    choice = played.choice
    assert choice.parents[:2].tolist() == [0, 1]
    assert set(choice.parents[2:].tolist()) <= {0, 1}
    assert sorted(choice.renewals.values()) == [Renewal(0.0, 1.0)] * 4 + [Renewal(0.2, 0.1)] * 4
    assert len(choice.explored) == POP
    decision = choice.decision({"learning_rate": torch.tensor(played.rates)}, None, played.strategy.config)
    assert decision.heirs.tolist() == list(range(POP))
    assert 0 not in decision.recipients


def test_between_evolutions_of_a_longer_interval_only_failed_members_change():
    played = Played()
    stalled(played, 4)
    scores = rising(20.0)
    scores[6] = NAN
    assert played.decide(scores) == {6: "rescue"}
    assert played.choice.explored == {}
    assert set(played.decide(rising(21.0)).values()) == {"truncation"}
    assert played.decide(rising(22.0)) == {}
    assert set(played.decide(rising(23.0)).values()) == {"truncation"}


def test_what_the_model_sees_is_evolutions_of_this_iteration():
    played = Played()
    stalled(played, 4)
    for best in (20.0, 21.0, 23.0):
        played.decide(rising(best))
    failed = [*rising(25.0)[:5], NAN, *rising(25.0)[6:]]
    played.decide(failed)  # an evolution
    played.decide([*rising(26.0)[:4], NAN, *rising(26.0)[5:]])
    thinned = played.strategy._by_evolutions(played.standing).history
    assert sorted({past.generation for past in thinned}) == [0, 1]
    assert {past.score for past in thinned if past.member == 0} == {21.0, 25.0}
    assert all(past.parent_generation in (0, 1) for past in thinned)


def test_hyperparameters_that_have_led_far_are_proposed_again():
    # In four iterations low rates came to about 100, and high ones to about 0; the nearer to 0.001 the better.
    strategy = make({"fresh_hyperparams": 0.25})
    rng = np.random.default_rng(0)
    for number in range(4):
        for rate in 10.0 ** rng.uniform(-4, 0, POP):
            strategy.tried.append((number, {"learning_rate": rate}, 100 - 60 * abs(math.log10(rate) + 3)))
    strategy.iteration.number = 3
    played = Played(strategy)
    stalled(played, 4)
    assert played.strategy.iteration.number == 4
    assert len(strategy.tried) == 5 * POP
    near = sum(abs(math.log10(rate) + 3) < 0.7 for rate in played.rates)
    assert near >= 4  # of six that are not drawn


def test_how_far_a_beginning_has_led_is_the_best_score_of_its_descendants():
    played = Played()
    scores = [[float(POP - i) for i in range(POP)] for _ in range(4)]
    for each in scores[:3]:
        played.decide(each)
    descendants = played.strategy.iteration.origins
    scores[3][7] = 50.0
    began = [10.0 ** -(1 + i / 4) for i in range(POP)]
    played.decide(scores[3])
    assert played.strategy.iteration.heights[descendants[7]] == 50.0
    for _ in range(3):
        played.decide(scores[0])
    led = {round(values["learning_rate"], 6): height for number, values, height in played.strategy.tried}
    assert led[round(began[descendants[7]], 6)] == 50.0
    assert set(led) == {round(rate, 6) for rate in began}


def test_its_state_outlives_a_file():
    one, other = Played(), Played()
    scores = [rising(best) for best in (1.0, 1.0, 1.0, 1.0, 5.0, 6.0, 7.0, 8.0, 9.0)]
    for each in scores[:6]:
        one.decide(each)
        other.decide(each)
    other.strategy = make()
    other.strategy.restore(json.loads(json.dumps(one.strategy.saved())))
    for each in scores[6:]:
        assert other.decide(each) == one.decide(each)
        assert other.choice.explored == one.choice.explored
    assert one.strategy.iteration.number == 1


def test_low_scores_are_good_in_the_other_mode():
    high, low = Played(), Played(make(metric_mode="min"))
    for best in (1.0, 2.0, 2.0, 2.0, 2.0, 5.0):
        assert low.decide([-score for score in rising(best)]) == high.decide(rising(best))
        assert low.choice.parents.tolist() == high.choice.parents.tolist()


def test_what_cannot_work_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"pbt.ready_percentage=0.5 is not read by strategy: ipbt"):
        make(ready_percentage=0.5)
    with pytest.raises(ConfigError, match="growth"):
        make({"growth": 0.5})
    with pytest.raises(ConfigError, match="decides over everybody at once"):
        PBTScheduler(PBTConfig(population_size=8, strategy="ipbt", checkpoint_dir=tmp_path))
