"""Every setting of a run: one field each, with one sentence under it."""

import itertools
import math
from pathlib import Path
from typing import Annotated

from pydantic import Field, StrictBool, model_validator

from popgraft.config.adversary import AttackConfig
from popgraft.config.environments import TRAINING_ONLY, EnvConfig, EvaluationEnvConfig
from popgraft.config.execution import EngineConfig, ExecuteConfig
from popgraft.config.fields import Integer, Number, Positive, Section
from popgraft.config.model import BY_RULE, ModelConfig, path_of
from popgraft.config.network import CRITICS
from popgraft.config.optimizer import OPTIMIZERS, made_for_adam
from popgraft.config.population import PopulationConfig
from popgraft.config.trackers import OBSERVERS, ReportConfig, TrackingConfig
from popgraft.config.usual import usual_spaces
from popgraft.errors import ConfigError
from popgraft.hyperparams import same_single, shortest


class EvaluationConfig(Section):
    """Separate evaluation episodes, on seeds that training never sees."""

    episodes: Positive = 10
    """Episodes per member and evaluation."""
    deterministic: StrictBool = True
    """Whether the most likely action is taken instead of a sampled one."""
    max_steps: Positive = 10_000
    """Steps after which an unfinished evaluation episode counts as it stands."""
    final_episodes: Positive = 20
    """Episodes of the best member's last evaluation, on fresh seeds."""
    attack_weight: Annotated[Number, Field(ge=0, le=1)] = 0.0
    """Weight w of the return under attack in the score: (1 − w) · return + w · return under `attack`, of the same
    episodes."""
    attack: AttackConfig = AttackConfig()
    """The attack of `attack_weight`, and the defaults of `popgraft evaluate --attack`."""
    env: EvaluationEnvConfig = EvaluationEnvConfig()
    """What is different about its environments."""


class SnapshotConfig(Section):
    """Points from which a run can be resumed."""

    interval: Positive = 10
    """Generations between two such points. All environments begin new episodes there, in every run, so that a resumed
    one is the same to the bit."""
    keep: Positive = 3
    """How many are kept, the newest ones."""


class Config(Section):
    """A whole run."""

    env: EnvConfig
    """The environments."""
    model: ModelConfig = Field(default_factory=ModelConfig)
    """The agent."""
    pbt: PopulationConfig = PopulationConfig()
    """The population."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Evaluation episodes."""
    engine: EngineConfig = EngineConfig()
    """The arithmetic."""
    execute: ExecuteConfig = ExecuteConfig()
    """The executor."""
    snapshots: SnapshotConfig = SnapshotConfig()
    """Points from which it can be resumed."""
    tracking: TrackingConfig = TrackingConfig()
    """Experiment trackers."""
    report: ReportConfig = ReportConfig()
    """The report."""
    observers: list[Annotated[str, OBSERVERS]] = []
    """Subclasses of `popgraft.Observer`, made as Class(), that are told of everything while the run goes on."""
    seed: Annotated[Integer, Field(ge=0, lt=2**32)] = 0
    """The root of all randomness."""
    total_timesteps: Positive = 1_000_000
    """Environment steps of the whole population, rounded up to full generations."""
    stop_at_score: Number | None = None
    """Training ends early once the best member's score reaches this; null: never."""
    run_dir: Path = Path("runs/popgraft")
    """Folder of the run; a folder that holds a run is refused."""
    code_dir: Path | None = None
    """Folder in which modules that settings name are looked for, after the places where Python looks and before the
    current folder; null: that of the configuration's file, or the current one where there is none."""

    @property
    def evaluation_env(self) -> EnvConfig:
        """The environments that agents are scored in: those of training, but for what `evaluation.env` says.

        EnvPool's games are played to their end and for their own points, unless it says otherwise.

        Raises:
            ConfigError: the two do not go together.
        """
        own, trained = self.evaluation.env, self.env
        settings = trained.model_dump() | own.model_dump(exclude_none=True, exclude={"kwargs"})
        if own.names_source:
            source = own.source or ("gymnasium" if trained.source == "python" else trained.source)
            settings |= {"source": source, "id": own.id, "factory": own.factory}
        whole = {name: False for name in TRAINING_ONLY if trained.kwargs.get(name)}
        changed = (whole if settings["vectorization"] == "envpool" else {}) | own.kwargs
        kwargs = trained.kwargs | changed
        settings["kwargs"] = {name: value for name, value in kwargs.items() if name not in changed or value is not None}
        return EnvConfig(**settings)

    @property
    def steps_per_generation(self) -> int:
        """Environment steps of the whole population between two decisions, before any of its members has ended."""
        return self.pbt.population_size * self.steps_of_a_member

    @property
    def steps_of_a_member(self) -> int:
        """Environment steps of one member between two decisions."""
        return self.env.num_envs * self.model.n_steps * self.pbt.perturbation_interval

    @property
    def generations(self) -> int:
        """Number of decisions in a run of these settings from its beginning."""
        return sum(count for count, _ in self.course())

    def size_at(self, done: int) -> int:
        """Members of the population once it has taken so many environment steps."""
        return [size for first, size in self.pbt.stages(self.total_timesteps) if first <= done][-1]

    def course(self, done: int = 0, left: int | None = None) -> list[tuple[int, int]]:
        """What is to come of a run in lockstep: for every size of the population, how many generations, and the size.

        Args:
            done: environment steps of the whole population that are done, in full generations of whatever size.
            left: members that there are; None: as many as `pbt.population_schedule` says.
        """
        stages, found = self.pbt.stages(self.total_timesteps), []
        ends = [*(first for first, _ in stages[1:]), self.total_timesteps]
        for (_, size), end in zip(stages, ends, strict=True):
            members = min(size, size if left is None else left)
            count = max(0, math.ceil((end - done) / (members * self.steps_of_a_member)))
            done += count * members * self.steps_of_a_member
            found.append((count, members))
        return found

    def planned_steps(self, done: int, left: int | None = None) -> int:
        """Environment steps of the whole population in the whole run, of which so many are done: full generations.

        What is done may have been done in generations of another size. In lockstep it is generations that everybody
        has ended; else members are in the middle of one, and the run ends after full generations of this size.
        """
        if self.execute.mode == "async":
            return max(done, self.generations * self.steps_per_generation)
        return done + sum(count * members for count, members in self.course(done, left)) * self.steps_of_a_member

    def planned_generations(self, begun: int, done: int, left: int | None = None) -> int:
        """Number of decisions in the whole run, of which so many are behind the steps that are done, or begun."""
        if self.execute.mode == "async":
            return begun + (self.planned_steps(done) - done) // self.steps_per_generation
        return begun + sum(count for count, _ in self.course(done, left))

    @property
    def sequence_length(self) -> int:
        """Steps of backpropagation through time."""
        return self.engine.sequence_length or self.model.n_steps

    @property
    def sequences(self) -> int:
        """Training sequences per member and rollout."""
        return self.env.num_envs * (self.model.n_steps // self.sequence_length)

    @model_validator(mode="after")
    def _something_to_tune(self) -> "Config":
        """Where it is not said what varies, the usual numbers do; the setting counts as one that is not given."""
        pbt = self.pbt
        if "hyperparams" not in pbt.model_fields_set and pbt.population_size > 1 and not pbt.schedule:
            pbt = pbt.model_copy(update={"hyperparams": usual_spaces(self.model)})
            pbt.model_fields_set.remove("hyperparams")
            self.__dict__["pbt"] = pbt  # past what keeps settings from being set
        return self

    @model_validator(mode="after")
    def _evaluation_can_work(self) -> "Config":
        try:
            _ = self.evaluation_env
        except ConfigError as error:
            raise ValueError(
                f"evaluation.env, in place of what env says: {str(error).splitlines()[-1].strip()}"
            ) from None
        return self

    @model_validator(mode="after")
    def _divides(self) -> "Config":
        length, steps = self.sequence_length, self.model.n_steps
        if steps % length:
            raise ValueError(
                f"engine.sequence_length={length} must divide model.n_steps={steps}; "
                f"nearest: {_nearest_divisors(steps, length)}"
            )
        if self.sequences % self.model.n_minibatches:
            raise ValueError(
                f"model.n_minibatches={self.model.n_minibatches} must divide the {self.sequences} sequences of a "
                f"rollout (env.num_envs={self.env.num_envs} x n_steps/sequence_length={steps // length}); "
                f"nearest: {_nearest_divisors(self.sequences, self.model.n_minibatches)}"
            )
        execute, members = self.execute, self.pbt.population_size
        if execute.shards is not None and execute.shards > members:
            raise ValueError(
                f"execute.shards={execute.shards} exceeds pbt.population_size={members}; "
                "a shard holds at least one member"
            )
        if execute.sizes is not None and (
            sum(execute.sizes) != members or execute.shards not in (None, len(execute.sizes))
        ):
            raise ValueError(
                f"execute.sizes={execute.sizes} must add up to pbt.population_size={members}, "
                f"in execute.shards={execute.shards} numbers; leave execute.shards out"
            )
        if execute.mode == "async" and self.pbt.schedule:
            raise ValueError("pbt.schedule moves everybody at once; remove execute.mode: async")
        if execute.mode == "async" and self.pbt.renews:
            raise ValueError(
                "pbt.graft_shrink and pbt.graft_perturb renew weights where they are trained, but with execute.mode: "
                "async members lie ready for others elsewhere; set execute.mode: lockstep, or leave both out"
            )
        if execute.mode == "async" and self.pbt.population_schedule:
            raise ValueError("pbt.population_schedule compares everybody at once; remove execute.mode: async")
        if execute.sizes is not None and self.pbt.population_schedule:
            raise ValueError(
                "execute.sizes divides a population of one size, but with pbt.population_schedule it has several; "
                "set execute.shards instead"
            )
        if execute.kind == "ray" and not execute.gpus_per_shard and self.engine.device.startswith("cuda"):
            raise ValueError(
                f"engine.device={self.engine.device!r} needs GPUs, but execute.gpus_per_shard is 0; "
                "raise it, or set engine.device: auto"
            )
        return self

    @model_validator(mode="after")
    def _every_size_lasts(self) -> "Config":
        for (_, before), (count, members) in itertools.pairwise(self.course()):
            if not count:
                raise ValueError(
                    f"pbt.population_schedule: {members} members never train, because a generation of the {before} "
                    f"before them takes {before * self.steps_of_a_member:,} of total_timesteps="
                    f"{self.total_timesteps:,}; raise total_timesteps, lower pbt.perturbation_interval, or leave the "
                    f"size {members} out"
                )
        return self

    @model_validator(mode="after")
    def _initial_values_lie_in_their_spaces(self) -> "Config":
        for space in self.pbt.hyperparams:
            value = self.model.said(space.name)
            given = self.model.sets(space.name) and not (value is None and space.name in BY_RULE)
            if given and not space.contains(value):
                allowed = f"values {list(space.values)}" if space.values is not None else f"bounds {list(space.bounds)}"
                path = ".".join(["model", *path_of(space.name)])
                raise ValueError(f"{path}={value} is outside the {allowed} that pbt.hyperparams gives it")
        return self

    @model_validator(mode="after")
    def _what_is_used_can_work(self) -> "Config":
        if self.model.kl_penalty and not self.uses("target_kl"):
            raise ValueError("model.kl_penalty needs a divergence to aim at; set model.target_kl, for example to 0.01")
        for name, place in self.pbt.varied.items():
            if reason := self._unread(name):
                raise ValueError(f"{place} lists {name!r}, which nothing reads: {reason}")
        if self.model.network.critic in CRITICS.table:  # another one is loaded where a run begins, and asked there
            self.check_critic()
        return self

    @model_validator(mode="after")
    def _the_adversary_is_used(self) -> "Config":
        adversary, network = self.model.adversary, self.model.network
        if self.evaluation.attack_weight and self.pbt.fitness == "training":
            raise ValueError(
                f"evaluation.attack_weight={self.evaluation.attack_weight} needs separate evaluation, but pbt.fitness "
                "is 'training', whose episodes are not attacked; set pbt.fitness: evaluation, or attack_weight: 0"
            )
        for name, place in self.pbt.varied.items():
            if path_of(name)[0] == "adversary" and not adversary.enabled:
                raise ValueError(
                    f"{place} lists {name}, which only state-adversarial training reads; "
                    "set model.adversary.enabled: true or remove it"
                )
        if adversary.enabled and adversary.attack_objective == "value" and network.critic_recurrent == "detached":
            raise ValueError(
                "model.adversary.attack_objective='value' needs a critic that can be differentiated with respect to "
                "observations, but model.network.critic_recurrent is 'detached'; set attack_objective: kl"
            )
        return self

    def check_critic(self) -> None:
        """Refuses settings that the critic cannot serve.

        Raises:
            ConfigError: one of them is used.
        """
        critic = self.model.network.critic
        for name, ability, why in (
            ("cvar_weight", "quantiles", "needs the quantiles of the return"),
            ("clip_range_vf", "rescale_", "bounds predicted returns"),
        ):
            if self.uses(name) and getattr(CRITICS.load(critic), ability) is None:
                raise ConfigError(
                    f"model.{name} {why}, but model.network.critic is {critic!r}, which predicts none; remove it, or "
                    "set model.network.critic: quantile"
                )

    def check_rule(self) -> None:
        """Refuses settings that the update rule has no use for, where a run begins.

        Raises:
            ConfigError: one of them is used.
        """
        optimizer = self.model.optimizer
        rule = OPTIMIZERS.load(optimizer)
        for name, place in self.pbt.varied.items():
            if name in ("sigma", "weight_decay") and name not in rule.tuned:
                raise ConfigError(
                    f"{place} lists {name!r}, which nothing reads: choose model.optimizer: adaptive_upgd, "
                    f"or name it in tuned of {rule.__name__}"
                )
        if self.pbt.optimizer_exploit_strategy == "partial" and not rule.momenta:
            raise ConfigError(
                f"pbt.optimizer_exploit_strategy='partial' keeps or drops the average gradient, but model.optimizer="
                f"{optimizer!r} has none; set it to copy or reset"
            )
        adams = rule.momenta and not rule.others and self.model.update_rule([1]).corrections is not None
        if self.pbt.optimizer_exploit_strategy == "relative" and not adams:
            raise ConfigError(
                f"pbt.optimizer_exploit_strategy='relative' starts Adam's count of steps again, but model.optimizer="
                f"{optimizer!r} is no Adam; set it to copy or reset, or choose model.optimizer: adam or adamw"
            )

    def _unread(self, name: str) -> str | None:
        """Why a tunable number would have no effect whatever its value."""
        model = self.model
        own = model.optimizer not in OPTIMIZERS.table  # which is loaded where a run begins, and asked there
        needs = {
            "sigma": (
                own or "sigma" in OPTIMIZERS.load(model.optimizer).tuned,
                "choose model.optimizer: adaptive_upgd",
            ),
            "vgs_alpha": (model.vgs.enabled, "set model.vgs.enabled: true"),
            "cvar_alpha": (self.uses("cvar_weight"), "set model.cvar_weight, or list it too"),
            **dict.fromkeys(("kl_pid_p", "kl_pid_i", "kl_pid_d"), (model.kl_penalty, "set model.kl_penalty: true")),
        }
        read, fix = needs.get(name, (True, ""))
        return None if read else fix

    def uses(self, name: str) -> bool:
        """Whether a tunable number has any effect: some member may have another value than 0 or null."""
        return name in self.pbt.varied or bool(self.model.hyperparam(name))

    def exact(self, name: str, single: float) -> float:
        """What a tunable number that a member holds in single precision stands for.

        It is what the configuration says, if that is the same (a listed choice, a bound, a value that is set), else the
        number of fewest digits.
        """
        for space in self.pbt.hyperparams:
            if space.name == name and space.contains(single):
                return float(space.exact(single))
        said = [self.model.said(name), *(entry.hyperparams.get(name) for entry in self.pbt.schedule)]
        return next((value for value in said if value is not None and same_single(value, single)), shortest(single))

    @property
    def cautions(self) -> list[str]:
        """What works, but hardly as intended."""
        cautions = []
        least = min(
            [min(space.values or space.bounds) for space in self.pbt.hyperparams if space.name == "cvar_alpha"]
            or [self.model.cvar_alpha]
        )
        atoms = self.model.network.n_quantiles
        if self.uses("cvar_weight") and self.model.network.critic in CRITICS.table and least * atoms < 1:
            cautions.append(
                f"model.cvar_alpha={least:g} is less than one of {atoms} quantiles: the worst outcomes are the lowest "
                f"quantile alone; raise model.network.n_quantiles to {math.ceil(1 / least)}"
            )
        rates = [max(space.values or space.bounds) for space in self.pbt.hyperparams if space.name == "learning_rate"]
        fastest = max(rates or [self.model.hyperparam("learning_rate") or 0.0])
        if caution := made_for_adam(self.model.optimizer, fastest):
            cautions.append(caution)
        if self.pbt.faults:
            cautions.append(f"every graft commits faults on purpose, for ablation: {', '.join(self.pbt.faults)}")
        return cautions


def _nearest_divisors(n: int, value: int) -> str:
    """The divisors of `n` on either side of `value`."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    divisors = sorted({*small, *(n // d for d in small)})
    below = [d for d in divisors if d < value][-1:]
    above = [d for d in divisors if d > value][:1]
    return " or ".join(str(d) for d in below + above)
