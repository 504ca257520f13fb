"""The coordinator of models that are trained elsewhere: what a scheduler decides, it carries out on the models.

coordinator = PBTTrainingCoordinator(config, seed=0)
for member in coordinator.initialize_population():
    model, _ = coordinator.create_member_model(member, PPO, policy="MlpPolicy", env=env)
    ...
    coordinator.on_member_update_start(member)
    model.learn(2048, reset_num_timesteps=False)
    parameters = coordinator.collect_parameters(model)
    new, _, _ = coordinator.on_member_update_end(member, performance, step, model_parameters=parameters)
    coordinator.apply_exploited_parameters(model, new, member)
"""

import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat, SupportsIndex

from popgraft.errors import ConfigError
from popgraft.foreign import checkpoint, files, normalization, resume
from popgraft.foreign.change import Change, carry_out
from popgraft.foreign.given import check_builder, check_state, check_strategy, paired, place, values_of
from popgraft.foreign.live import is_number, keywords, make_live
from popgraft.foreign.member import PopulationMember
from popgraft.foreign.population_config import PBTAdversarialConfig, check_name
from popgraft.foreign.robust_loss import ADVERSARY, accepted, attach, engine_settings, inherit
from popgraft.foreign.scheduler import Inherited, PBTScheduler
from popgraft.foreign.state_adversarial import StateAdversarialPPO
from popgraft.foreign.transplant import Rules, collect, plan
from popgraft.hyperparams import Value
from popgraft.inheritance import renewal_of
from popgraft.rng import derive

logger = logging.getLogger(__name__)


class PBTTrainingCoordinator:
    """Population-based training of models of any library that look like Stable-Baselines3's.

    A model has `policy.load_state_dict`, or `load_state_dict` itself. All else is used where it is there:
    `policy.optimizer` or `optimizer`; hyperparameters as attributes; `return_stats`, `kl_penalty`, `vgs` and `schedule`
    with `state_dict` and `load_state_dict`; a `VecNormalize` somewhere in `env`; `reset_lstm_states_to_initial`, or
    sb3-contrib's `_last_lstm_states`.

    Args:
        config: the population, and what its models have in common.
        seed: root of all draws; None takes one from the operating system.

    Attributes:
        scheduler: who copies whom.
        sa_ppo: state-adversarial training by member, where it is on.
    """

    def __init__(self, config: PBTAdversarialConfig, seed: int | None = None) -> None:
        if not isinstance(config, PBTAdversarialConfig):
            raise ConfigError(
                f"config={config!r} is a {type(config).__name__}; pass PBTAdversarialConfig(pbt=PBTConfig(...))"
            )
        self.config = config
        self.scheduler = PBTScheduler(config.pbt, seed, renews=True)
        self.sa_ppo: dict[int, Any] = {}
        self._failed: dict[int, str] = {}
        self._models: dict[int, Any] = {}
        self._resumed: dict[str, Mapping[str, Any]] = {}
        if config.graft_faults:
            logger.warning("GRAFT FAULTS ARE ON: every exploit will %s", ", ".join(config.graft_faults))

    def initialize_population(
        self, initial_hyperparams: Mapping[str, Value] | Sequence[Mapping[str, Value]] | None = None
    ) -> list[PopulationMember]:
        """Makes the members, as `PBTScheduler.initialize_population` does.

        Raises:
            ConfigError: a name that no model reads, or a value outside its space.
        """
        given = values_of(initial_hyperparams, self.config.pbt.population_size)
        for name in (name for values in given for name in values):
            try:
                check_name(name, self.config.adversarial.enabled)
            except ValueError as error:
                raise ConfigError(f"initial_hyperparams: {error}") from None
        return self.scheduler.initialize_population(initial_hyperparams)

    def create_member_model(
        self, member: PopulationMember, base_model_factory: Callable[..., Any], **model_kwargs: Any
    ) -> tuple[Any, Any | None]:
        """Builds a member's model with the member's hyperparameters.

        Args:
            member: whose model it is.
            base_model_factory: builds the model; gets the hyperparameters too, by the model's names for them, where
                it has such arguments.
            model_kwargs: further arguments of the factory; the member's values win over them.

        Returns:
            The model, and its state-adversarial training, which is None where that is off.

        Raises:
            ConfigError: nothing that builds a model; an optimizer without what `partial` or `relative` inherits; no
                `initial_parameters` where weights are renewed; or state-adversarial training is on, and cannot be right
                for the model (see `attach`).
        """
        _check_member(member)
        check_builder(base_model_factory)
        taken = accepted(base_model_factory, keywords(member.hyperparams))
        adversarial = self.config.adversarial
        if adversarial.enabled and accepted(base_model_factory, {"adversary": None}, by_name=True):
            taken["adversary"] = {**model_kwargs.get("adversary", {}), **engine_settings(adversarial)}
        model = base_model_factory(**{**model_kwargs, **taken})
        check_strategy(self.config.pbt, model)
        if adversarial.enabled:
            seed = derive(self.scheduler.seed, "adversary", member.member_id)
            adversary = self.sa_ppo[member.member_id] = attach(model, adversarial, seed)
            self._models[member.member_id] = model
            resumed = self._resumed.pop(str(member.member_id), None)
            if resumed is not None and isinstance(adversary, StateAdversarialPPO):
                adversary.load_state_dict(resumed)
        self.apply_hyperparameters(model, member)
        return model, self.sa_ppo.get(member.member_id)

    def on_member_update_start(self, member: PopulationMember) -> None:
        """Tells that a member's update begins.

        Raises:
            ConfigError: the member is not in the population.
        """
        _check_member(member)
        self.scheduler.check_known(member)
        self._failed.pop(member.member_id, None)
        adversary = self.sa_ppo.get(member.member_id)
        if isinstance(adversary, StateAdversarialPPO):
            adversary.on_update_start()
        logger.debug("Member %s updates with %s", member.member_id, member.hyperparams)

    def on_member_update_end(
        self,
        member: PopulationMember,
        performance: SupportsFloat,
        step: SupportsIndex,
        model_state_dict: dict[Any, Any] | None = None,
        model_parameters: dict[Any, Any] | None = None,
        *,
        stderr: SupportsFloat = math.nan,
        episodes: SupportsIndex = 0,
    ) -> Inherited:
        """Reports a member's score, and decides whether it goes on as another one's copy.

        Args:
            member: whose update it was.
            performance: its score.
            step: the trainer's own count, which `perturbation_interval` is measured in.
            model_state_dict: deprecated: weights alone.
            model_parameters: what `collect_parameters` returned; left out after `save_member_checkpoint`.
            stderr: standard error of the score over its episodes; the t-test needs it.
            episodes: episodes that the score was taken over; the t-test needs at least 2.

        Returns:
            What to pass to `apply_exploited_parameters` (None: nothing to copy), the hyperparameters to go on with,
            and the format of the donor's checkpoint.

        Raises:
            ConfigError: the member is not in the population, parameters have no weights, or it is what
                `PBTScheduler.update_performance` refuses, such as a t-test without `stderr`.
            StoreError: a checkpoint cannot be read or written.
        """
        _check_member(member)
        self.scheduler.check_known(member)
        for parameters in (model_parameters, model_state_dict):
            if parameters is not None:
                checkpoint.weights_of(parameters)
        adversary = self.sa_ppo.get(member.member_id)
        if isinstance(adversary, StateAdversarialPPO) and adversary.is_adversarial_enabled and not adversary.is_used:
            logger.warning(
                "Member %s: adversarial.enabled, but its update asked for no attack; add sa_ppo.robust_kl_penalty to "
                "the loss, or learn between on_member_update_start and this", member.member_id,
            )  # fmt: skip
        failed = self._failed.pop(member.member_id, None)
        if failed is not None:
            logger.warning(checkpoint.NOT_FINITE, member.member_id, failed)
        score = performance if failed is None else math.nan
        self.scheduler.update_performance(
            member, score, step, model_parameters, model_state_dict, stderr=stderr, episodes=episodes
        )
        if not self.scheduler.should_exploit_and_explore(member):
            return None, member.hyperparams, None
        return self.scheduler.exploit_and_explore(member)

    def apply_exploited_parameters(
        self,
        model: Any,
        new_parameters: Mapping[Any, Any] | None,
        member: PopulationMember,
        source_member: PopulationMember | None = None,
    ) -> None:
        """Makes a model its donor's copy with the member's explored hyperparameters: completely, or not at all.

        Args:
            model: the recipient.
            new_parameters: what `on_member_update_end` returned; None changes nothing.
            member: the recipient's record.
            source_member: the donor's record; needed only where its VecNormalize statistics are a file of their own.

        Raises:
            ConfigError: something does not fit the model, which is as it was; so is the member's record.
            StoreError: the file of statistics cannot be read; model and record are as they were.
        """
        _check_member(member)
        if source_member is not None:
            _check_member(source_member)
        if new_parameters is None:
            return
        faults = self.config.graft_faults
        if faults:
            logger.warning("Member %s: GRAFT FAULTS %s", member.member_id, ", ".join(faults))
        seed = derive(self.scheduler.seed, "renewal", member.changed_at + 1, member.member_id)
        rules = Rules(
            self.config.pbt.optimizer_exploit_strategy, faults, renewal=renewal_of(self.config.pbt), seed=seed
        )
        adversary = self.sa_ppo.get(member.member_id)
        try:
            inherited: list[Change] = []
            if isinstance(adversary, StateAdversarialPPO) and ADVERSARY in new_parameters:
                inherited = [inherit(adversary, new_parameters[ADVERSARY])]
                new_parameters = {name: part for name, part in new_parameters.items() if name != ADVERSARY}
            carry_out([*inherited, *plan(model, new_parameters, member, source_member, rules, adversary)])
        except BaseException:
            self.scheduler.take_back(member)
            raise

    def apply_hyperparameters(self, model: Any, member: PopulationMember) -> None:
        """Makes the member's hyperparameters live in its model, whose parameters stay; for `explore_always`."""
        _check_member(member)
        carry_out(make_live(model, member.hyperparams, member.member_id, self.sa_ppo.get(member.member_id)))

    def collect_parameters(self, model: Any, env: Any = None) -> dict[str, Any]:
        """Everything of a model that another one inherits when it becomes its copy.

        Args:
            model: the model.
            env: where its VecNormalize is searched; by default `model.env`.
        """
        parameters = collect(model, env)
        for member, adversary in self.sa_ppo.items():
            if self._models.get(member) is model and isinstance(adversary, StateAdversarialPPO):
                parameters[ADVERSARY] = adversary.heritable()
        return parameters

    def save_member_checkpoint(self, member: PopulationMember, model: Any, env: Any = None) -> None:
        """Writes a model and its VecNormalize statistics, and notes the files in the member's record.

        Args:
            member: whose model it is.
            model: the model.
            env: where its VecNormalize is searched; by default `model.env`.

        Raises:
            StoreError: a file cannot be written.
        """
        _check_member(member)
        parameters = self.collect_parameters(model, env)
        wrong = checkpoint.not_finite(parameters)
        if wrong is not None:
            self._failed[member.member_id] = wrong
        about = {name: getattr(member, name) for name in ("member_id", "step", "performance", "hyperparams")}
        folder = Path(self.config.pbt.checkpoint_dir)
        path, statistics = (folder / f"member_{member.member_id}{end}.pt" for end in ("", "_vecnormalize"))
        normalizers = normalization.layers(model, env)
        if normalizers:
            normalization.write_statistics(statistics, normalizers)
        checkpoint.write(path, checkpoint.encode(checkpoint.V2, parameters, **about))
        member.checkpoint_path = str(path)
        member.vecnormalize_stats_path = str(statistics) if normalizers else None

    def get_stats(self) -> dict[str, float]:
        """The scheduler's statistics, and those of state-adversarial training averaged over members as `avg_…`."""
        found: dict[str, list[float]] = {}
        for part in self.sa_ppo.values():
            for name, value in part.get_stats().items():
                if is_number(value):
                    found.setdefault(f"avg_{name}", []).append(float(value))
        return {**self.scheduler.get_stats(), **{name: sum(values) / len(values) for name, values in found.items()}}

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed coordinator needs besides its configuration and its models, in plain values.

        The scheduler's state, with the checksums of its files, and that of state-adversarial training.
        """
        parts = {
            str(member): part.state_dict()
            for member, part in self.sa_ppo.items()
            if isinstance(part, StateAdversarialPPO)
        }
        failed = {str(member): wrong for member, wrong in self._failed.items()}
        return {
            **self.scheduler.state_dict(),
            "sa_ppo": {**self._resumed, **parts},
            "failed": failed,
            "files": files.digests([*self.scheduler.population, self.scheduler.best]),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned; what is of models that are not made yet waits for them.

        Raises:
            ConfigError: no state, or one of a population of another size.
            StoreError: a checkpoint is not the one that the state was saved with; nothing has changed.
        """
        check_state(state)
        files.check(state.get("files", {}))
        self.scheduler.load_state_dict(state)
        self._failed = {int(member): wrong for member, wrong in state.get("failed", {}).items()}
        self._resumed = dict(state.get("sa_ppo", {}))
        for member, part in self.sa_ppo.items():
            if isinstance(part, StateAdversarialPPO) and str(member) in self._resumed:
                part.load_state_dict(self._resumed.pop(str(member)))

    def save(self, folder: str | Path, models: Sequence[Any]) -> None:
        """Writes the whole run, models and files included, between two rounds; the folder appears whole or not at all.

        Not in it: environments, which begin new episodes, and the global generators that Stable-Baselines3 draws from.

        Args:
            folder: where; an earlier save in it is replaced.
            models: the members' models, in the order of the population.

        Raises:
            ConfigError: not one model for each member, or one that cannot be kept.
            StoreError: the folder cannot be written, or holds something else.
        """
        kept = {member.member_id: resume.snapshot(model) for member, model in paired(self.scheduler.population, models)}
        resume.write(place(folder), self.state_dict(), kept)

    def load(self, folder: str | Path, models: Sequence[Any] | Callable[[PopulationMember], Any]) -> list[Any]:
        """Goes on from what `save` wrote; the scheduler's files are put into `checkpoint_dir`, over others there.

        Args:
            folder: the folder.
            models: the members' models, or what makes one for a member, as `create_member_model` does; built as then.

        Returns:
            The models, as they were, about to begin new episodes.

        Raises:
            ConfigError: the run is of another population, or of other models; everything is as it was.
            StoreError: the folder cannot be read, is damaged or something else; nothing of it is executed.
        """
        state, kept, found = resume.read(place(folder))
        size = self.config.pbt.population_size
        if set(kept) != set(range(size)):
            raise ConfigError(
                f"{folder} has models of {len(kept)} members, but population_size={size}; use the configuration that "
                "the run was saved with"
            )
        places = {path: str(Path(self.config.pbt.checkpoint_dir) / name) for path, (name, _) in found.items()}
        before, own = copy.deepcopy(self.state_dict()), files.contents(places.values())
        try:
            for path, (_, blob) in found.items():
                checkpoint.write(Path(places[path]), blob)
            self.load_state_dict(files.moved(state, places))
            made = [models(member) for member in self.scheduler.population] if callable(models) else models
            pairs = list(paired(self.scheduler.population, made))
            changes = [
                change
                for member, model in pairs
                for change in resume.restoring(model, kept[member.member_id], member, self.sa_ppo.get(member.member_id))
            ]
            carry_out(changes)
        except BaseException:
            files.put_back(own)
            self.load_state_dict({**before, "files": {}})
            raise
        return [model for _, model in pairs]


def _check_member(member: Any) -> None:
    if not isinstance(member, PopulationMember):
        raise ConfigError(
            f"member={member!r} is a {type(member).__name__}, not a PopulationMember; pass one of those that "
            "initialize_population returned"
        )
