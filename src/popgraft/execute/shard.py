"""A shard: some members of the population, stacked into one program, and their seats."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from popgraft import tree
from popgraft.adversary import OnlineAttack, Vectors
from popgraft.config import Config
from popgraft.errors import ConfigError
from popgraft.execute.allocator import keep_freed_memory
from popgraft.execute.base import Advance
from popgraft.execute.heirs import Heirs
from popgraft.inheritance import Units, overwrite_, renewed
from popgraft.messages import logger_of
from popgraft.nn import Policy
from popgraft.ops.returns import discounted_sums
from popgraft.ppo import Learner, initial_member
from popgraft.ppo.plasticity import NAMES, plasticity
from popgraft.rng import derive, torch_generator
from popgraft.rollout.base import SeededGrid
from popgraft.rollout.batch import Rollout
from popgraft.rollout.collector import Collector, Excerpt
from popgraft.rollout.evaluation import evaluate
from popgraft.rollout.make import make_evaluation_grid, make_grid
from popgraft.state import Decision, Member, Renewal, Scores, Seat

logger = logger_of(__name__)

T = TypeVar("T")
SEEN, UNSEEN = 128, 64
"""Steps of every member by which its plasticity is measured: for its features, for churn."""


@dataclasses.dataclass(frozen=True)
class Iteration:
    """What one rollout and the update from it brought, on the shard's device.

    Attributes:
        metrics: to log.
        returns: sum of rewards of every episode so far, at every step.
        ended: whether the episode ended with this step, so that `returns` holds its return.
        value_loss_ratios: of places whose member is somebody else since the iteration before.
    """

    metrics: dict[str, Float[Tensor, "pop"]]
    returns: Float[Tensor, "pop time env"]
    ended: Bool[Tensor, "pop time env"]
    value_loss_ratios: dict[int, float]


class Shard:
    """A stacked sub-population: all that happens between two decisions happens here.

    Everything a shard holds is its members (inherited) and their seats (bound to the place: recurrent state,
    generators, environments). Members of different shards never touch but in a graft.

    Args:
        config: the run.
        members: index in the population of every member of this shard.
        hyperparams: initial values of the whole population.
        factory: makes the environments, in place of the configured source.
    """

    def __init__(
        self,
        config: Config,
        members: Sequence[int],
        hyperparams: dict[str, Float[Tensor, "population"]],
        factory: Callable[..., Any] | None = None,
    ) -> None:
        self.config, self.members, self._factory = config, list(members), factory
        self.device = resolve_device(config.engine.device)
        keep_freed_memory()
        pop, envs = len(self.members), config.env.num_envs
        self.grid = make_grid(config.env, pop, factory=factory, device=self.device)
        self._evaluation_grid: SeededGrid | None = None
        try:
            self.policy = Policy(self.grid.spaces, config.model.network)
            self.learner = Learner(self.policy, config)
            if config.evaluation_env != config.env:  # what cannot work is refused before anything is trained
                make_evaluation_grid(config, self.grid.spaces, 1, 1, factory, self.device).close()
            if config.evaluation.attack_weight:
                Vectors(self.policy.specs)  # refuses what cannot be attacked before anything is trained
        except BaseException:
            self.grid.close()  # what cannot be built leaves no environment process behind
            raise
        self.member = initial_member(
            self.policy,
            self.grid.spaces,
            config.model,
            {name: values[torch.tensor(self.members)] for name, values in hyperparams.items()},
            [torch_generator(config.seed, "weights", member) for member in self.members],
            self.device,
        )
        self.seat = Seat.empty(pop, envs, self.policy.state_size, self.device)
        self.generators = [torch.Generator() for _ in self.members]
        self._warned = False
        self._heirs: Heirs | None = None
        self.collector = Collector(self.policy, self.grid, config.model.n_steps, config.sequence_length, self.device)
        self.restart(generation=0)

    @property
    def grids(self) -> list[SeededGrid]:
        """The environments: those of training, and those of evaluation once there are some."""
        return [self.grid, *([self._evaluation_grid] if self._evaluation_grid else [])]

    def restart(self, generation: int) -> None:
        """Gives every place of the shard a fresh seat."""
        self._heirs = None
        self.reset_seats(range(len(self.members)), generation)

    def reset_seats(self, places: Sequence[int], generation: int) -> None:
        """Gives some places of the shard zero recurrent state, new episodes, and generators named by the generation."""
        if not places:
            return
        ids = [self.members[place] for place in places]
        seed = self.config.seed
        for place, member in zip(places, ids, strict=True):
            self.generators[place] = torch_generator(seed, "action", generation, member)
        self.grid.reset(list(places), [derive(seed, "environment", generation, member) for member in ids])
        fresh = Seat.empty(len(ids), self.config.env.num_envs, self.policy.state_size, self.device)
        tree.put_(self.seat, torch.tensor(list(places)), fresh)

    def advance(self, updates: int, stop: Callable[[], bool]) -> Advance:
        """Collects and learns `updates` times, or until `stop()`."""
        done: list[Iteration] = []
        unseen: Excerpt | None = None
        unknown = torch.full((len(self.members),), math.nan, device=self.device)
        with self._threads():
            for number in range(updates):
                last, before = number == updates - 1, self.member.params
                if last:
                    before = before.clone()
                done.append(self.iterate())
                found = dict.fromkeys(NAMES, unknown)
                if last:
                    found = plasticity(self.policy, self.member, before, self.collector.excerpt(SEEN), unseen)
                elif number == updates - 2:
                    unseen = self.collector.excerpt(UNSEEN)
                done[-1].metrics.update(found)
                if stop():
                    break
        failed = self.grid.failures
        inherited = ("params", "optimizer", "vgs", "normalizer", "returns", "kl")
        sound = tree.finite({"seat": self.seat, **{name: getattr(self.member, name) for name in inherited}}).cpu()
        sound[list(failed)] = False
        self._warn_of_skipped_steps()
        metrics = tree.stack([iteration.metrics for iteration in done])
        returns, ended = (
            torch.cat([getattr(iteration, name) for iteration in done], dim=1) for name in ("returns", "ended")
        )
        return Advance(
            metrics={name: values.mT.cpu() for name, values in metrics.items()},
            scores=_training_scores(returns.cpu(), ended.cpu()),
            steps=ended.numel(),
            healthy=sound,
            faults=self._by_member(failed),
            hyperparams=self._numbers(),
            age=self.member.age.to("cpu", copy=True),
            value_loss_ratios=self._by_member(done[0].value_loss_ratios),
        )

    def iterate(self) -> Iteration:
        """Collects and learns once; waits for the device only where there are heirs."""
        rollout = self.collector.collect(self.member, self.seat, self.generators)
        returns, lengths = self._finished_episodes(rollout)
        heirs, self._heirs = self._heirs, None
        expected = heirs.donor_values(self.collector) if heirs else None
        metrics, target = self.learner.learn_(self.member, self.seat, rollout, self.generators)
        ratios = {}
        if heirs and expected is not None:
            ratios = heirs.value_loss_ratios(rollout, expected, target)
        episodes = {"ep_rew_mean": _mean(returns, rollout.end), "ep_len_mean": _mean(lengths, rollout.end)}
        return Iteration({**metrics, **episodes}, returns, rollout.end, ratios)

    def evaluate(self, seed: int) -> Scores:
        """Plays one episode in each of `evaluation.episodes` environments per member, the same for all members; with
        `evaluation.attack_weight` once more under attack.
        """
        settings, pop = self.config.evaluation, len(self.members)
        if self._evaluation_grid is None:
            self._evaluation_grid = make_evaluation_grid(
                self.config, self.grid.spaces, pop, settings.episodes, self._factory, self.device
            )
        seeds, attack = [seed] * pop, None
        if settings.attack_weight:
            attack = OnlineAttack(self.policy, settings.attack, seeds)
        with self._threads():
            scores = evaluate(
                self.policy,
                self.member,
                self._evaluation_grid,
                seeds,
                settings.deterministic,
                settings.max_steps,
                attack,
                settings.attack_weight,
            )
        return dataclasses.replace(scores, faults=self._by_member(scores.faults))

    def graft(self, decision: Decision, donors: Member, generation: int) -> None:
        """Overwrites this shard's recipients with their donors, whole, and gives them fresh seats.

        Args:
            decision: who inherits from whom, over the whole population.
            donors: the donor of every heir of this shard, in their order.
            generation: names the fresh seats of the heirs.
        """
        heirs, units = overwrite_(self.member, self.members, decision, donors, self.config)
        self.reseat(heirs, units, generation, decision.renewals)

    @torch.no_grad()
    def reseat(self, places: list[int], units: Units | None, generation: int, renewals: Mapping[int, Renewal]) -> None:
        """Gives some places of the shard to other members: renewed weights where there are to be some, and fresh seats,
        or with `reset_envs_on_exploit: false`, where nothing is broken, the same episodes and a recurrent state as
        `lstm_reset_mode` says.

        Args:
            places: whose member is somebody else now.
            units: of the donor of each, where they are not the member's own.
            generation: names the fresh seats, and the draws of weights.
            renewals: by member of the population.
        """
        if not places:
            return
        settings, rows = self.config.pbt, torch.tensor(places)
        donors = tree.gather(self.member, rows)
        self._renew([place for place in places if self.members[place] in renewals], generation, renewals)
        heirs = tree.gather(self.member, rows) if renewals else donors
        donors = dataclasses.replace(donors, normalizer=units[0], returns=units[1]) if units else donors
        anew = set(places) if settings.reset_envs_on_exploit else self._broken().intersection(places)
        going_on = torch.tensor([row for row, place in enumerate(places) if place not in anew]).long()
        self.reset_seats(sorted(anew), generation)
        state = torch.zeros_like(self.seat.carry[rows])
        if len(going_on):
            rows, nothing = rows[going_on], state[going_on]
            for place in rows.tolist():
                self.generators[place] = torch_generator(self.config.seed, "action", generation, self.members[place])
            if settings.lstm_reset_mode == "zero":
                self.seat.carry[rows] = 0
            elif settings.lstm_reset_mode == "burn_in":
                self.seat.carry[rows] = self.collector.replay(tree.gather(heirs, going_on), rows, nothing)[1]
            state[going_on] = self.collector.replay(tree.gather(donors, going_on), rows, nothing)[1]
        self._heirs = Heirs(places, donors, state)

    def _numbers(self) -> dict[str, Float[Tensor, "pop"]]:
        """Everybody's hyperparameters on the CPU, fetched from the device once."""
        values = self.member.hyperparams
        return dict(zip(values, torch.stack([*values.values()]).cpu(), strict=True))

    def _renew(self, places: list[int], generation: int, renewals: Mapping[int, Renewal]) -> None:
        members, rows = [self.members[place] for place in places], torch.tensor(places)
        if places:
            drawn = self.policy.init_population(
                [torch_generator(self.config.seed, "renewal", generation, member) for member in members]
            )
            fates = [renewals[member] for member in members]
            self.member.params[rows] = renewed(self.member.params[rows], drawn, fates)

    def _broken(self) -> set[int]:
        """Places whose environment has failed, or whose episodes have brought numbers that are not finite."""
        return {*self.grid.failures, *tree.finite(self.seat).logical_not().nonzero().flatten().tolist()}

    def close(self) -> None:
        """Closes the environments."""
        for grid in self.grids:
            grid.close()

    def _warn_of_skipped_steps(self) -> None:
        """Says once that gradients were not finite; the member is rescued where its parameters are not either."""
        for place in self.member.optimizer.skipped.nonzero().flatten().tolist() if not self._warned else []:
            self._warned = True
            logger.warning(
                "member %d: a gradient was not finite; %d optimizer steps have been skipped. Lower learning_rate or "
                "max_grad_norm, and check the rewards. This is said once",
                self.members[place],
                int(self.member.optimizer.skipped[place]),
            )

    def _by_member(self, found: dict[int, T]) -> dict[int, T]:
        return {self.members[place]: value for place, value in found.items()}

    def _finished_episodes(
        self, rollout: Rollout
    ) -> tuple[Float[Tensor, "pop time env"], Float[Tensor, "pop time env"]]:
        """Return and length of every episode so far, at every step; the seat keeps what is still running."""
        one = torch.ones(len(self.members), device=self.device)
        sums, self.seat.episode_return = discounted_sums(rollout.reward, rollout.end, one, self.seat.episode_return)
        lengths, running = discounted_sums(rollout.valid, rollout.end, one, self.seat.episode_length.to(one.dtype))
        self.seat.episode_length = running.long()
        return sums, lengths

    @contextlib.contextmanager
    def _threads(self) -> Iterator[None]:
        """Threads inside operators, for as long as the shard computes."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.config.engine.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def resolve_device(name: str) -> torch.device:
    """The device that `engine.device` names.

    Raises:
        ConfigError: there is no such device here.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"engine.device={name!r} cannot be used: {reason}; set engine.device: auto or cpu") from None
    return device


def _mean(x: Float[Tensor, "pop time env"], ended: Bool[Tensor, "pop time env"]) -> Float[Tensor, "pop"]:
    """Mean over the episodes that ended; NaN for a member without any."""
    return x.masked_fill(ended.logical_not(), 0).sum((1, 2)) / ended.sum((1, 2))


def _training_scores(returns: Float[Tensor, "pop time env"], ended: Bool[Tensor, "pop time env"]) -> Scores:
    """Mean and standard error over the episodes that ended in training."""
    mean, count = _mean(returns, ended), ended.sum((1, 2))
    variance = _mean((returns - mean.view(-1, 1, 1)).square(), ended) * count / (count - 1)
    return Scores(mean=mean, stderr=(variance / count).sqrt().masked_fill(count < 2, 0), episodes=count)
