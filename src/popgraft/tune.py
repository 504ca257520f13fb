"""For those who use Ray Tune: its schedulers decide, and what they exploit is carried over completely.

    class Agent(MemberTrainable):
        def make(self, config):
            return PPO("MlpPolicy", "CartPole-v1", learning_rate=config["learning_rate"])

        def learn(self, model):
            model.learn(2048, reset_num_timesteps=False)
            return {"score": ...}

    scheduler = PopulationBasedTraining("training_iteration", "score", "max", hyperparam_mutations=...)
    tune.Tuner(Agent, tune_config=tune.TuneConfig(scheduler=scheduler, reuse_actors=True), ...).fit()

Tune's own exploit hands a checkpoint of one trial to another, and leaves it to the trainable what that holds and where
the new hyperparameters go. Here it is a graft as `PBTTrainingCoordinator` makes it: weights, optimizer, statistics of
observations and returns, whatever else the model has; then the explored hyperparameters, live in the next update.
"""

import abc
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from popgraft.config.population import OptimizerStrategy
from popgraft.disk import write_atomic
from popgraft.errors import ConfigError, MissingExtra
from popgraft.foreign import PBTConfig, PopulationMember
from popgraft.foreign.change import carry_out
from popgraft.foreign.checkpoint import V2, encode, read, write
from popgraft.foreign.given import check_strategy
from popgraft.foreign.live import NAMES, make_live
from popgraft.foreign.optimizer import by_strategy
from popgraft.foreign.transplant import Rules, collect, plan
from popgraft.hyperparams import Value
from popgraft.inheritance import renewal_of
from popgraft.rng import derive

try:
    from ray import tune
except ImportError:
    raise MissingExtra("ray", "tune", "popgraft.tune") from None

FILE = "member.pt"
"""Name of the model in a checkpoint."""
PARENT = "parent"
"""Entry of a result: the trial that this one is a copy of since its latest result; absent where it is nobody's."""


class MemberTrainable(tune.Trainable, abc.ABC):  # type: ignore[misc]  # Ray has no types that mypy could follow
    """One member of a population as a trial of Ray Tune; a subclass says what is trained, and how.

    `config` holds the hyperparameters by the names that `PBTTrainingCoordinator` knows (`learning_rate`, `ent_coef`,
    `clip_range`, `gamma`, …), and whatever else `make` reads. Works with and without `reuse_actors`.

    Attributes:
        optimizer_strategy: what becomes of the optimizer in an exploit.
        optimizer_settings: more of that by the names of `PBTConfig`, such as {"optimizer_partial": "scale"}; "adaptive"
            needs `hyperparams`, the spaces in which it measures, which Ray Tune does not tell.
        model: what is trained.
    """

    optimizer_strategy: ClassVar[OptimizerStrategy] = "copy"
    optimizer_settings: ClassVar[Mapping[str, Any]] = {}
    model: Any

    @abc.abstractmethod
    def make(self, config: dict[str, Any]) -> Any:
        """Builds the model; what it may be is said at `PBTTrainingCoordinator`."""

    @abc.abstractmethod
    def learn(self, model: Any) -> dict[str, Any]:
        """Trains the model for one iteration, and returns at least the metric that the scheduler compares."""

    def setup(self, config: dict[str, Any]) -> None:
        """Builds the model, with the hyperparameters of the trial."""
        self._parent: str | None = None
        evolution = self._evolution()  # refuses what is wrong before anything is trained
        self.model = self.make(config)
        check_strategy(evolution, self.model)
        carry_out(make_live(self.model, self.hyperparams, member_id=0))

    def _evolution(self) -> PBTConfig:
        """What an exploit does to the optimizer, and to weights."""
        config = PBTConfig(optimizer_exploit_strategy=self.optimizer_strategy, **self.optimizer_settings)
        unknown = [space.name for space in config.hyperparams if space.name not in self.hyperparams]
        if unknown or (self.optimizer_strategy == "adaptive" and not config.hyperparams):
            raise ConfigError(
                f"optimizer_settings['hyperparams'] must list spaces of the trial's hyperparameters, which are "
                f"{', '.join(self.hyperparams) or 'none'}, for adaptive to measure in, but it lists "
                f"{', '.join(unknown) or 'none'}"
            )
        return config

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begins anew in the same actor, as another trial or with other hyperparameters."""
        self.cleanup()
        self.config = new_config
        self.setup(new_config)
        return True

    @property
    def hyperparams(self) -> dict[str, Value]:
        """Those of the trial's configuration that a model reads."""
        return {name: value for name, value in self.config.items() if name in NAMES}

    def step(self) -> dict[str, Any]:
        """One iteration."""
        result = self.learn(self.model)
        parent, self._parent = self._parent, None
        return result if parent is None else {**result, PARENT: parent}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes everything that a recipient inherits, in a file that is read without executing any of it."""
        about = {"member_id": self.trial_id, "step": self.iteration, "hyperparams": self.hyperparams}
        write(Path(checkpoint_dir) / FILE, encode(V2, collect(self.model), **about))

    def load_checkpoint(self, checkpoint: str) -> None:
        """Goes on from a checkpoint: its own, or another trial's, which makes it that one's copy.

        Raises:
            ConfigError: the checkpoint does not fit the model, which is as it was.
            StoreError: the file cannot be read; the model is as it was.
        """
        found = read(Path(checkpoint) / FILE)
        own = found.member_id == self.trial_id
        rules, data, member = Rules("copy"), found.data, PopulationMember(0, self.hyperparams)
        if not own:
            config = self._evolution()
            seed = derive(0, "renewal", self.trial_id, self.iteration)
            rules = Rules(config.optimizer_exploit_strategy, renewal=renewal_of(config), seed=seed)
            data = by_strategy(config, found, found.member_id, found.hyperparams, self.hyperparams)
        carry_out(plan(self.model, data, member, None, rules))
        self._parent = None if own else str(found.member_id)

    def cleanup(self) -> None:
        """Closes the model's environments."""
        env = getattr(self.model, "env", None)
        if env is not None:
            env.close()


class Lineage(tune.Callback):  # type: ignore[misc]
    """Writes who became whose copy to `lineage.json` in the experiment's folder, whenever somebody has.

    Entries: `trial`, `parent`, `iteration` of the first result afterwards, and the `hyperparams` of that time.
    """

    def __init__(self) -> None:
        self.grafts: list[dict[str, Any]] = []

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """Notes an exploit."""
        if PARENT not in result:
            return
        hyperparams = {name: value for name, value in trial.config.items() if name in NAMES}
        about = {"trial": trial.trial_id, PARENT: result[PARENT], "iteration": result["training_iteration"]}
        self.grafts.append({**about, "hyperparams": hyperparams})
        folder = Path(trial.local_experiment_path)
        write_atomic(folder / "lineage.json", json.dumps(self.grafts, indent=1).encode())
