"""The scheduler's selection pressure, against the engine's decision of everybody at once."""

import math

import numpy as np
import pytest
import torch

from popgraft.config import PopulationConfig
from popgraft.foreign import PBTAdversarialConfig, PBTConfig, PBTScheduler, PBTTrainingCoordinator
from popgraft.pbt import Evolution, everybody
from popgraft.state import Scores

from .conftest import parameters


def noise(seed, n, rounds, failures=0.0):
    rng = np.random.default_rng(seed)
    return np.where(rng.random((rounds, n)) < failures, math.nan, rng.normal(size=(rounds, n)))


def settings(n, method="truncation", mode="max"):
    return {"population_size": n, "exploit_method": method, "metric_mode": mode}


class Engine:
    """The ancestors of a population whose members all decide at once."""

    def __init__(self, n, seed, **options):
        self.evolution = Evolution(PopulationConfig(**settings(n, **options)), seed)
        self.ancestors, self.rounds = np.arange(n), 0

    def decide(self, scores):
        """Parents after a round."""
        n, spread = len(scores), torch.full((len(scores),), 0.5, dtype=torch.float64)
        known = Scores(torch.from_numpy(scores), spread, torch.full((n,), 10))
        standing = everybody(self.rounds, known, {}, self.evolution.config, self.evolution.seed)
        parents = self.evolution(standing).parents.numpy()
        self.ancestors, self.rounds = self.ancestors[parents], self.rounds + 1
        return parents

    def round(self, scores):
        """Exploits of a round."""
        return int((self.decide(scores) != np.arange(len(scores))).sum())


class Asked:
    """The same where members are asked one at a time; weights are the ancestor's number."""

    def __init__(self, n, seed, folder, in_turn, through=PBTScheduler, **options):
        config = PBTConfig(**settings(n, **options), perturbation_interval=1, checkpoint_dir=folder)
        self.trainer = through(PBTAdversarialConfig(pbt=config) if through is PBTTrainingCoordinator else config, seed)
        self.members = self.trainer.initialize_population()
        self.ancestors, self.reported, self.rounds, self.in_turn = np.arange(n), np.arange(n), 0, in_turn

    def round(self, scores):
        """Exploits of a round."""
        self.rounds += 1
        before = self.scheduler.exploitation_count
        if isinstance(self.trainer, PBTTrainingCoordinator):
            for member, score in zip(self.members, scores, strict=True):
                own = parameters(self.ancestors[member.member_id], optimizer=False)
                found, *_ = self.trainer.on_member_update_end(member, score, self.rounds, model_parameters=own)
                if found is not None:
                    self.ancestors[member.member_id] = found["policy"]["w"][0]
        elif self.in_turn:
            for member, score in zip(self.members, scores, strict=True):
                self.report(member, score)
                self.ask(member)
        else:
            for member, score in zip(self.members, scores, strict=True):
                self.report(member, score)
            for member in self.members:
                self.ask(member)
        return self.scheduler.exploitation_count - before

    @property
    def scheduler(self):
        return getattr(self.trainer, "scheduler", self.trainer)

    def report(self, member, score):
        self.trainer.update_performance(member, score, self.rounds, stderr=0.5, episodes=10)
        self.reported[member.member_id] = self.ancestors[member.member_id]

    def ask(self, member):
        before = self.trainer.exploitation_count
        assert self.trainer.should_exploit_and_explore(member)
        self.trainer.exploit_and_explore(member)
        if self.trainer.exploitation_count > before:
            donor = self.members[member.exploited_from]
            now = donor.performance is None and donor.changed_at < member.reported_at
            self.ancestors[member.member_id] = (self.ancestors if now else self.reported)[donor.member_id]


def test_one_round_of_ten_members(tmp_path):
    scheduler = PBTScheduler(PBTConfig(truncation_ratio=0.2, checkpoint_dir=tmp_path), seed=0)
    members = scheduler.initialize_population()
    for member in members:
        scheduler.update_performance(member, float(member.member_id), 5, parameters(member.member_id))
    for member in members:
        scheduler.exploit_and_explore(member)
    donors = [member.exploited_from for member in members]
    assert {*donors[:2]} <= {8, 9}
    assert donors[2:] == [None] * 8
    assert [member.performance for member in members] == [None, None, *map(float, range(2, 10))]


@pytest.mark.parametrize("mode", ["max", "min"])
def test_who_is_replaced_is_who_the_engine_replaces(tmp_path, mode):
    # Truncation leaves the donor alone to chance; a member that has failed is rescued by both.
    for n in range(4, 21):
        scores = noise(n, n, 2)
        scores[1, n // 2] = math.nan
        engine, asked = Engine(n, 0, mode=mode), Asked(n, 0, tmp_path, in_turn=False, mode=mode)
        for row in scores:
            replaced = np.flatnonzero(engine.decide(row) != np.arange(n)).tolist()
            assert asked.round(row) == len(replaced) >= max(1, n // 5)
            assert [member.member_id for member in asked.members if member.performance is None] == replaced
            best = sorted(row[np.isfinite(row)], reverse=mode == "max")[: max(1, n // 5)]
            assert all(row[asked.members[member].exploited_from] in best for member in replaced)


def figures(population, scores, skipped=0):
    """Exploits a round, and the first round after which all have one ancestor."""
    exploits, alone = [], None
    for number, row in enumerate(scores, 1):
        exploits.append(population.round(row))
        if alone is None and len({*population.ancestors}) == 1:
            alone = number
    return np.mean(exploits[skipped:]), len(scores) if alone is None else alone


@pytest.mark.parametrize("in_turn", [True, False])
@pytest.mark.parametrize(("method", "expected"), [("truncation", 2.0), ("binary_tournament", 5.0)])
def test_exploits_of_a_round_are_those_of_independent_reports(tmp_path, in_turn, method, expected):
    # Scores are independent and equally distributed: 2 of 10 are the worst two, and half of all draws are lost.
    rounds = 50
    found, _ = figures(Asked(10, 1, tmp_path, in_turn, method=method), noise(2, 10, rounds), skipped=1)
    assert found == pytest.approx(expected, abs=4 * math.sqrt(10 * 0.25 / rounds))


def test_the_coordinator_has_the_schedulers_pressure(tmp_path):
    found, alone = (
        [population.round(scores) for scores in noise(2, 10, 8)]
        for population in (Asked(10, 1, tmp_path, True, PBTTrainingCoordinator), Asked(10, 1, tmp_path, True))
    )
    assert found == alone
    assert sum(found) > 8


@pytest.mark.slow
@pytest.mark.parametrize("failures", [0.0, 0.1])
@pytest.mark.parametrize(("n", "mode"), [(4, "max"), (10, "max"), (10, "min"), (20, "max")])
@pytest.mark.parametrize("method", ["truncation", "binary_tournament", "ttest", "none"])
def test_the_engines_pressure_over_forty_seeds(tmp_path, method, n, mode, failures):
    rows = []
    for seed in range(40):
        scores, options = noise(seed, n, 30, failures), {"method": method, "mode": mode}
        populations = [
            Engine(n, seed, **options),
            *(Asked(n, seed, tmp_path, in_turn, **options) for in_turn in (False, True)),
        ]
        rows.append([figures(population, scores, skipped=1) for population in populations])
    engine, at_once, in_turn = np.array(rows).transpose(1, 2, 0)  # [figure, seed] each
    for found in (at_once, in_turn):
        error = 4 * np.std(found[0] - engine[0]) / math.sqrt(len(rows))
        assert found[0].mean() == pytest.approx(engine[0].mean(), abs=max(error, 0.02 * engine[0].mean()))
    error = 4 * np.std(at_once[1] - engine[1]) / math.sqrt(len(rows))
    assert at_once[1].mean() == pytest.approx(engine[1].mean(), abs=error + 1e-9)
    # Reports of two rounds are compared in turn, and of the first round there is nothing to compare with.
    assert in_turn[1].mean() - 1 == pytest.approx(engine[1].mean(), rel=0.2)
