"""Parts of a population that evolve at different intervals, on examples worked out by hand."""

import math

import pytest
import torch

from popgraft import ConfigError
from popgraft.config import PopulationConfig
from popgraft.errors import PopulationLost
from popgraft.hyperparams import HyperparamConfig
from popgraft.pbt import everybody
from popgraft.pbt.mf_pbt import MFPBT
from popgraft.pbt.standing import Past
from popgraft.state import Scores

NAN = math.nan
RATE = HyperparamConfig("learning_rate", min_value=1e-5, max_value=1.0, is_log_scale=True)
EIGHT = [10.0, 20.0, 30.0, 40.0, 15.0, 25.0, 35.0, 45.0]
"""Of two parts of four: 3 2 1 0 and 7 6 5 4, best first."""


def make(population_size=8, frequencies=(1, 10), **settings):
    given = {"strategy": "mf_pbt", "hyperparams": [RATE], "explore_method": "perturb", **settings}
    kwargs = {"frequencies": list(frequencies)}
    config = PopulationConfig(population_size=population_size, strategy_kwargs=kwargs, **given)
    return MFPBT(config, 0, **kwargs)


def chosen(strategy, scores, number, **known):
    mean = torch.tensor(scores)
    scored = Scores(mean, torch.zeros_like(mean), torch.ones(len(scores), dtype=torch.long))
    values = {"learning_rate": torch.tensor([10.0 ** -(1 + i / 2) for i in range(len(scores))])}
    return strategy(everybody(number, scored, values, strategy.config, 0, **known))


def changes(choice):
    """Who became whom, with whose hyperparameters, explored or not."""
    donors = choice.hyperparameter_donors.tolist()
    return {
        member: (parent, donors[member], member in choice.explored, choice.reasons.get(member))
        for member, parent in enumerate(choice.parents.tolist())
        if parent != member or donors[member] != member or member in choice.explored
    }


def test_a_fast_part_evolves_alone_and_takes_all_of_a_slow_migrant():
    # The worst, 0, becomes the best, 3. Before it is 1, and the best of the others is 7: from a slower part.
    assert changes(chosen(make(), EIGHT, number=0)) == {0: (3, 3, True, "exploit"), 1: (7, 7, False, "migration")}


def test_a_slow_part_takes_the_weights_alone_of_a_fast_migrant():
    scores = [40.0, 90.0, 30.0, 20.0, *EIGHT[4:]]  # 1 0 2 3 and 7 6 5 4
    # Of the slow part 4 becomes 7; 5 takes the weights of 1, and the hyperparameters of its own part's best.
    assert changes(chosen(make(), scores, number=9)) == {
        3: (1, 1, True, "exploit"),
        2: (7, 7, False, "migration"),
        4: (7, 7, True, "exploit"),
        5: (1, 7, False, "migration"),
    }


def test_nobody_migrates_who_is_not_better():
    assert changes(chosen(make(), [40.0, 30.0, 20.0, 10.0, 5.0, 4.0, 3.0, 2.0], number=0)) == {
        3: (0, 0, True, "exploit")
    }
    assert changes(chosen(make(), [1.0] * 8, number=9)) == {}


def test_each_migrates_once_and_only_to_those_it_beats():
    # Sixteen in two parts: brackets of two. Best of the fast part first: 0 … 7, of the slow one: 8 … 15.
    fast, slow = [80.0, 70.0, 60.0, 50.0, 40.0, 30.0, 20.0, 10.0], [45.0, 35.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]
    found = changes(chosen(make(16), [*fast, *slow], number=0))
    # 4 and 5 are before the worst two; 8 beats 4, and 9 beats 5.
    assert found == {
        6: (0, 0, True, "exploit"),
        7: (1, 1, True, "exploit"),
        4: (8, 8, False, "migration"),
        5: (9, 9, False, "migration"),
    }
    fast[4] = 46.0  # 8 is not better than 4 now, but than 5
    assert changes(chosen(make(16), [*fast, *slow], number=0))[5] == (8, 8, False, "migration")


def test_three_parts_evolve_in_the_rounds_of_their_own():
    strategy = make(9, frequencies=(1, 2, 4))
    scores = [float(9 - i) for i in range(9)]
    changed = [sorted(changes(chosen(strategy, scores, number))) for number in range(4)]
    # Parts 0 1 2, 3 4 5, 6 7 8: the last of each copies, and the middle one takes a migrant where it beats it.
    assert changed == [[2], [2, 4, 5], [2], [2, 4, 5, 7, 8]]


def test_hyperparameters_of_a_slow_part_never_come_from_a_faster_one():
    """However scores fall, as long as somebody of the part is healthy."""
    strategy, source = make(12, frequencies=(1, 2, 3)), torch.Generator().manual_seed(0)
    seen = set()
    for number in range(200):
        scores = torch.rand(12, generator=source)
        scores[torch.rand(12, generator=source) < 0.2] = NAN
        if not all(scores[4 * part : 4 * part + 4].isfinite().any() for part in range(3)):
            continue
        choice = chosen(strategy, scores.tolist(), number)
        assert scores[choice.parents].isfinite().all()
        for member, donor in enumerate(choice.hyperparameter_donors.tolist()):
            assert donor // 4 >= member // 4
            seen.add((member // 4, int(choice.parents[member]) // 4))
    assert len(seen) == 9  # while weights go from everywhere to everywhere


def test_failed_members_are_rescued_at_once_by_their_own_part():
    scores = [NAN, 20.0, 30.0, 40.0, NAN, NAN, NAN, 45.0]
    found = changes(chosen(make(), scores, number=1))
    assert found[0] == (3, 3, True, "exploit")
    assert {member: found[member] for member in (4, 5, 6)} == dict.fromkeys((4, 5, 6), (7, 7, True, "rescue"))
    found = changes(chosen(make(), [*scores[:4], NAN, NAN, NAN, NAN], number=9))
    assert {found[member][3] for member in (4, 5, 6, 7)} == {"rescue"}
    with pytest.raises(PopulationLost, match="no member"):
        chosen(make(), [NAN] * 8, number=0)


def test_low_scores_are_good_where_the_configuration_says_so():
    low = [-score for score in EIGHT]
    assert changes(chosen(make(metric_mode="min"), low, number=9)) == changes(chosen(make(), EIGHT, number=9))


def test_members_that_ask_one_after_the_other_evolve_by_their_own_count():
    strategy = make(6, frequencies=(1, 3))
    scores = [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]

    def asked(member, reports):
        rows = [(i, member) for i in range(reports - 1)]
        past = [Past(i, who, 0.0, NAN, 0, i, {}, who, i, who) for i, who in rows]
        deciding = torch.tensor([member])
        choice = chosen(strategy, scores, 17, deciding=deciding, together=False, recall=lambda: past)
        return sorted(changes(choice))

    assert [asked(2, 1), asked(2, 2), asked(5, 1), asked(5, 2), asked(5, 3)] == [[2], [2], [], [], [5]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"population_size": 5},
            "2 parts of a population of 5 have less than 3 members; raise pbt.population_size to 6",
        ),
        ({"frequencies": (2, 1)}, r"pbt.strategy_kwargs has a wrong setting:\n  frequencies: must rise"),
        ({"frequencies": (1, 1)}, "must rise"),
        ({"frequencies": (0, 2)}, "frequencies.0 = 0: must be greater than 0"),
        ({"frequencies": ()}, "frequencies: "),
        ({"exploit_method": "ttest"}, "pbt.exploit_method='ttest' is not read by strategy: mf_pbt; remove it"),
        ({"ready_percentage": 0.5}, "pbt.ready_percentage=0.5 is not read"),
    ],
)
def test_what_cannot_work_is_refused_in_words(settings, message):
    with pytest.raises(ConfigError, match=message):
        make(**settings)
    with pytest.raises(ConfigError, match=r"unknown key 'frequency'.*did you mean frequencies"):
        MFPBT(PopulationConfig(population_size=8, strategy="mf_pbt"), 0, frequency=[1])
