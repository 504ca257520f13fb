"""The scheduler for models that are trained anywhere: members report, and ask one at a time what to do next.

    scheduler = PBTScheduler(PBTConfig(population_size=4, hyperparams=[...]), seed=0)
    for member in scheduler.initialize_population():
        ...                                                     # train with member.hyperparams
        scheduler.update_performance(member, performance, step, {"policy": model.state_dict()})
        if scheduler.should_exploit_and_explore(member):
            parameters, hyperparams, _ = scheduler.exploit_and_explore(member)

It decides by the same strategies as the engine, where a whole population decides at once.
"""

import contextlib
import dataclasses
import logging
import math
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat, SupportsIndex

import numpy as np
import torch

from popgraft.config.population import STRATEGY
from popgraft.errors import ConfigError, PopulationLost
from popgraft.foreign import checkpoint
from popgraft.foreign.checkpoint import V1, V2, Format
from popgraft.foreign.config import PBTConfig
from popgraft.foreign.given import check_state, root, values_of
from popgraft.foreign.member import PopulationMember, number, scores_of
from popgraft.foreign.optimizer import by_strategy
from popgraft.foreign.shelf import Shelf, judge, restored
from popgraft.foreign.standing import parents_of, standing_of
from popgraft.hyperparams import Value
from popgraft.inheritance.success import Success
from popgraft.pbt import Choice, Strategy
from popgraft.pbt.ranking import is_better

logger = logging.getLogger(__name__)

Hyperparams = dict[str, Value]
Inherited = tuple[dict[Any, Any] | None, Hyperparams, Format | None]


class PBTScheduler:
    """Population-based training of models that somebody else trains (Jaderberg et al. 2017, arXiv:1711.09846).

    Every draw comes from a stream named by (seed, purpose, number of the decision, …): same seed and same reports, same
    history. No global generator is seeded or read.

    Args:
        config: the population and its evolution.
        seed: root of all draws; None takes one from the operating system.
        renews: whether whoever carries out its decisions renews weights (`graft_shrink`, `graft_perturb`).

    Attributes:
        population: the members, as `initialize_population` made them.
        best: the best report ever that came with parameters or a file of them; a copy of its files is kept.
        exploitation_count: members that have become another one's copy.
        exploration_count: members whose hyperparameters were explored.
    """

    def __init__(self, config: PBTConfig, seed: int | None = None, *, renews: bool = False) -> None:
        if not isinstance(config, PBTConfig):
            raise ConfigError(f"config={config!r} is a {type(config).__name__}; pass a PBTConfig")
        if config.renews and not renews:
            raise ConfigError(
                f"graft_shrink={config.graft_shrink} and graft_perturb={config.graft_perturb} renew weights of models, "
                "which a scheduler does not see; use PBTTrainingCoordinator, or leave both out"
            )
        self.config = config
        self.seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else root(seed)
        self.population: list[PopulationMember] = []
        self.best: PopulationMember | None = None
        self.exploitation_count = 0
        self.exploration_count = 0
        self._decisions = 0
        self._strategy: Strategy = STRATEGY.make(config.strategy, config, self.seed, **config.strategy_kwargs)
        if self._strategy.together:
            raise ConfigError(
                f"strategy={config.strategy!r} decides over everybody at once, but here members ask one after the "
                "other; choose strategy: evolution, mf_pbt or pb2"
            )
        self._explorers: set[int] = set()
        self._shelf = Shelf(Path(config.checkpoint_dir))
        self._success = Success(config.metric_mode)

    def initialize_population(
        self, initial_hyperparams: Mapping[str, Value] | Sequence[Mapping[str, Value]] | None = None
    ) -> list[PopulationMember]:
        """Makes the members; what is not given is drawn from its space.

        Args:
            initial_hyperparams: values for everybody, or one mapping for each of the first members; names that the
                configuration does not list stay with the member and are inherited as they are.

        Raises:
            ConfigError: no values by name, more mappings than members, or a value outside its space.
        """
        given = values_of(initial_hyperparams, self.config.population_size)
        self.population = [PopulationMember(i, self._initial(i, values)) for i, values in enumerate(given)]
        return self.population

    def update_performance(
        self,
        member: PopulationMember,
        performance: SupportsFloat,
        step: SupportsIndex,
        model_parameters: dict[Any, Any] | None = None,
        model_state_dict: dict[Any, Any] | None = None,
        *,
        stderr: SupportsFloat = math.nan,
        episodes: SupportsIndex = 0,
    ) -> None:
        """Records how well a member does, and the parameters with which it does so.

        Args:
            member: whose report it is.
            performance: its score; one that is not finite makes the member unhealthy, and so do such weights.
            step: the trainer's own count, which `perturbation_interval` is measured in.
            model_parameters: parts of the model by name, `policy` first of all, as its `get_parameters` gives them;
                without them the file at `member.checkpoint_path`, if there is one, is what did so.
            model_state_dict: deprecated: weights alone; optimizer and statistics are lost.
            stderr: standard error of the score over its episodes; the t-test needs it.
            episodes: episodes that the score was taken over; the t-test needs at least 2.

        Raises:
            ConfigError: the member is not in the population, no score or step, parameters that cannot be kept, or a
                t-test without `stderr` and `episodes`.
            StoreError: a file cannot be written, or read if it is a record; the member is as it was.
        """
        self.check_known(member)
        report = PopulationMember(
            member.member_id,
            dict(member.hyperparams),
            performance=number("performance", float, performance),
            step=number("step", operator.index, step),
            vecnormalize_stats_path=member.vecnormalize_stats_path,
            stderr=number("stderr", float, stderr),
            episodes=number("episodes", operator.index, episodes),
        )
        self._check(report)
        if model_parameters is not None and model_state_dict is not None:
            raise ConfigError("both model_parameters and model_state_dict are given; pass model_parameters alone")
        if model_state_dict is not None:
            logger.warning("model_state_dict is deprecated: it transfers weights only; pass model_parameters instead")
            self._shelf.keep(report, V1, model_state_dict)
        elif model_parameters is not None:
            self._shelf.keep(report, V2, model_parameters)
        elif member.checkpoint_path is not None and self._is_record(report):
            report.checkpoint_path = member.checkpoint_path
            judge(report, checkpoint.read(Path(member.checkpoint_path)).data)
        if report.checkpoint_path is not None:
            member.checkpoint_path = report.checkpoint_path
            self.best = self._shelf.copied(report, "best") if self._is_record(report) else self.best
        member.record_step(report.step, report.performance, report.hyperparams)
        member.stderr, member.episodes, member.reported_at = report.stderr, report.episodes, self._decisions
        interval = self.config.perturbation_interval
        if member.step < member.reference_step:  # the trainer went back; it is due where it would have been
            member.reference_step = max(member.step - 1, 0) // interval * interval
        self._success.report(member.member_id, report.performance)

    def should_exploit_and_explore(self, member: PopulationMember) -> bool:
        """Whether `perturbation_interval` steps have passed since the member was last due; for unit steps, step mod n.

        Asked again at the same step it says the same.

        Raises:
            ConfigError: the member is not in the population.
        """
        self.check_known(member)
        due = member.step > 0 and member.step - member.reference_step >= self.config.perturbation_interval
        if due:
            member.reference_step = member.step
        return due or 0 < member.step == member.reference_step

    def exploit_and_explore(self, member: PopulationMember) -> Inherited:
        """Decides whether a member goes on as a copy of another, and with which hyperparameters.

        Everybody is ranked by its own latest report, also who has become another one's copy since: members that ask one
        after the other are decided on as if at once. A donor is copied as it was when the asking member reported. A
        recipient has no score until it reports again.

        Args:
            member: one of `population`.

        Returns:
            The donor's parameters (None: keep your own), the hyperparameters to go on with, and the format that the
            parameters had. Without a checkpoint of the donor the decision alone is made: `member.exploited_from` says
            whom to copy.

        Raises:
            ConfigError: the member is not in the population.
            StoreError: the donor's checkpoint cannot be read, or the member's not written; the member is as it was.
        """
        self.check_known(member)
        number, self._decisions = self._decisions, self._decisions + 1
        standing = standing_of(self.config, self.population, member, self.best, number, self.seed)
        choice = Choice(torch.arange(standing.pop))
        with contextlib.suppress(PopulationLost):  # nobody has a finite score; whoever asks keeps what it has
            choice = self._strategy(standing)
        if member.performance is None or not self._ready:
            return None, member.hyperparams, None
        choice, place = choice.of_those_who_decide(standing), int(standing.deciding)
        parent, adopted = int(choice.parents[place]), int(choice.hyperparameter_donors[place])
        explored = choice.explored.get(place, {})
        hyperparams = {**standing.hyperparams_of(adopted), **explored}
        if parent != place:
            parents = parents_of(self.population, self.best, parent, adopted)
            outcome = self._copy(member, self._donor(parent, member), hyperparams, bool(explored), number)
            member.history[-1:] = [{**report, "parents": parents} for report in member.history[-1:]]
            return outcome
        if adopted != place or explored:
            member.reported = member.as_reported()
            member.hyperparams = hyperparams
            self.exploration_count += bool(explored)
        return None, member.hyperparams, None

    def check_known(self, member: Any) -> None:
        """Raises a ConfigError for who is not in the population."""
        if not any(other is member for other in self.population):
            raise ConfigError(
                f"member {getattr(member, 'member_id', member)!r} is not of this population; "
                "pass one of those that initialize_population returned"
            )

    def take_back(self, member: PopulationMember) -> None:
        """Undoes a member's latest exploit, which its model has refused: its record is as it was when it reported."""
        if member.performance is None and member.reported is not None:
            member.take_back()
            self._success.forget(member.member_id)
            self.exploitation_count -= 1
            self.exploration_count -= member.member_id in self._explorers

    def get_stats(self) -> dict[str, float]:
        """The population in numbers, by the names under which TensorBoard shows them.

        Means and extremes are over members with a finite score, and absent while there is none. A recipient has none
        until it reports, but is ready if its own last report was one. `success_k_strategy` is the share of exploits
        after whose k-th report the recipient scored at least what it had before.
        """
        stats = {
            "population_size": len(self.population),
            "ready_members": self._ready,
            "exploitation_count": self.exploitation_count,
            "exploration_count": self.exploration_count,
            **self._strategy.statistics(),
        }
        mean = scores_of(self.population).mean
        scores = mean[mean.isfinite()]
        spread = (scores.mean(), scores.std(correction=0), scores.min(), scores.max()) if len(scores) else ()
        performance = dict(zip(("mean", "std", "min", "max"), map(float, spread), strict=False))
        return {
            **{f"pbt/{name}": float(count) for name, count in stats.items()},
            **{f"pbt/{name}_performance": value for name, value in performance.items()},
            **{f"pbt/{name}": share for name, share in self._success.stats().items()},
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed scheduler needs besides its configuration, in plain values.

        It suits `json.dump` as well as `torch.save`. The checkpoints stay where they are.
        """
        state = {
            "seed": self.seed,
            "decisions": self._decisions,
            "strategy": self._strategy.saved(),
            "exploitation_count": self.exploitation_count,
            "exploration_count": self.exploration_count,
            "exploits": self._success.state_dict(),
            "population": [dataclasses.asdict(member) for member in self.population],
            "best": self.best and dataclasses.asdict(self.best),
        }
        plain: dict[str, Any] = checkpoint.plain(state)
        return plain

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned; members that exist already are updated where they are.

        Raises:
            ConfigError: no state, or one of a population of another size.
        """
        check_state(state)
        records = [restored(record, self.config.spaces) for record in state["population"]]
        if len(records) not in (0, self.config.population_size):
            raise ConfigError(
                f"the state is of a population of {len(records)}, but population_size={self.config.population_size}; "
                "use the configuration that the scheduler was saved with"
            )
        known = {member.member_id: member for member in self.population}
        self.population = [known.get(record.member_id) or record for record in records]
        for member, record in zip(self.population, records, strict=True):
            vars(member).update(vars(record))
        self.best = state["best"] and restored(state["best"], self.config.spaces)
        self.seed = self._strategy.seed = state["seed"]
        self._decisions = state["decisions"]
        self._strategy.restore(state.get("strategy", state))  # earlier versions had the readiness checks alone
        self._success.load_state_dict(checkpoint.plain(state["exploits"]))
        self.exploitation_count, self.exploration_count = state["exploitation_count"], state["exploration_count"]

    def _initial(self, member: int, given: Mapping[str, Value]) -> Hyperparams:
        values = {
            **given,
            **{name: value for name, value in self._strategy.initial(member).items() if name not in given},
        }
        for space in self.config.hyperparams:
            if not space.contains(values[space.name]):
                allowed = f"values {list(space.values)}" if space.values is not None else f"bounds {list(space.bounds)}"
                raise ConfigError(
                    f"initial_hyperparams: {space.name}={values[space.name]!r} is outside its {allowed}; change either"
                )
        return values

    def _donor(self, parent: int, recipient: PopulationMember) -> PopulationMember:
        """What a recipient copies: of a member, or of the best report ever."""
        if parent < len(self.population):
            return self.population[parent].seen_by(recipient)
        assert self.best is not None, "there is no best report to return to yet"
        return self.best

    def _copy(
        self, member: PopulationMember, donor: PopulationMember, hyperparams: Hyperparams, explored: bool, number: int
    ) -> Inherited:
        """Makes `member` a copy of `donor` with other hyperparameters; what can fail comes before the first change."""
        found, parameters, path, name = None, None, None, f"member_{member.member_id}"
        if donor.checkpoint_path is not None:
            found = checkpoint.read(Path(donor.checkpoint_path))
            parameters = by_strategy(self.config, found, donor.member_id, donor.hyperparams, hyperparams)
        reported = self._shelf.copied(member.as_reported(), f"{name}_reported")
        statistics = self._shelf.copied_file(donor.vecnormalize_stats_path, f"{name}_inherited_vecnormalize.pt")
        if found is not None:
            path = self._shelf.write(f"{name}.pt", found.blob)
        logger.info(
            "Member %s (%s %s) exploits member %s (%s)",
            member.member_id, self.config.metric_name, member.performance, donor.member_id, donor.ranked.performance,
        )  # fmt: skip
        if found is None:
            logger.warning(
                "Member %s has reported no parameters, so member %s gets its hyperparameters alone; copy the weights "
                "yourself, or pass model_parameters to update_performance", donor.member_id, member.member_id,
            )  # fmt: skip
        self._success.begin(member.member_id, self.config.optimizer_exploit_strategy, member.performance)
        member.reported, member.changed_at, member.hyperparams = reported, number, hyperparams
        member.performance = None
        member.reference_step = max(member.reference_step, donor.step)
        member.step = donor.step
        member.checkpoint_path, member.vecnormalize_stats_path = path, statistics
        member.exploited_from = donor.member_id
        self.exploitation_count += 1
        self.exploration_count += explored
        (self._explorers.add if explored else self._explorers.discard)(member.member_id)
        return parameters, member.hyperparams, None if found is None else found.format

    @property
    def _ready(self) -> int:
        """Members whose latest report is a finite score, whatever has become of them since."""
        return sum(member.ranked.is_healthy for member in self.population)

    def _check(self, report: PopulationMember) -> None:
        if report.step < 0:
            raise ConfigError(f"step={report.step} is below 0; count a member's steps from 0")
        if report.episodes < 0 or report.stderr < 0:
            raise ConfigError(
                f"stderr={report.stderr} and episodes={report.episodes}: neither is ever below 0; leave them out where "
                "they are not known"
            )
        known = report.episodes >= 2 and math.isfinite(report.stderr)
        if self._strategy.compares_episodes and report.is_healthy and not known:
            raise ConfigError(
                f"exploit_method {self.config.exploit_method!r} compares episodes, but stderr={report.stderr} and "
                f"episodes={report.episodes}; pass both for at least 2 episodes, or set exploit_method: truncation"
            )

    def _is_record(self, report: PopulationMember) -> bool:
        if not report.is_healthy or self.best is None:
            return report.is_healthy
        new, old = scores_of([report, self.best]).mean.tolist()
        return is_better(new, old, self.config.metric_mode)
