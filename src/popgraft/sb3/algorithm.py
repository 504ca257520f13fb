"""A Stable-Baselines3 algorithm whose learning is the engine's, with a population of one."""

import io
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Unpack, cast

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from torch import Tensor

from popgraft.errors import ConfigError
from popgraft.execute.memory import keep_freed_memory
from popgraft.ppo import Learner, initial_member
from popgraft.rng import torch_generator
from popgraft.rollout.collector import Collector
from popgraft.sb3 import archive, program
from popgraft.sb3.arguments import Settings, check_scaling, optimizer_constants, policy_arguments, run_config
from popgraft.sb3.environments import VecEnvGrid
from popgraft.sb3.initial import draw_as_torch_
from popgraft.sb3.memory import RecurrentMemory
from popgraft.sb3.optimizer import EngineOptimizer
from popgraft.sb3.parts import KLPart, ReturnUnits, StatePart, VGSPart, collect, take_over
from popgraft.sb3.policy import CnnLstmPolicy, MlpLstmPolicy, MultiInputLstmPolicy
from popgraft.state import Seat
from popgraft.train.scalars import tag_of

LIVE = ("gamma", "gae_lambda", "ent_coef", "vf_coef", "max_grad_norm", "target_kl", "clip_range", "clip_range_vf")
"""Attributes that the next update reads anew; None is infinite, a schedule is called."""

ACTION_SPACES = (gym.spaces.Box, gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)


class _Stopped(Exception):
    """A callback has ended the training in the middle of a rollout."""


class DistributionalPPO(RecurrentMemory, ReturnUnits, OnPolicyAlgorithm):
    """Recurrent PPO with a distributional critic.

    The arguments up to `device` are those of sb3-contrib's RecurrentPPO and mean the same; docs/sb3.md lists the
    differences and all others.

    Args:
        policy: "MlpLstmPolicy", "CnnLstmPolicy", "MultiInputLstmPolicy", or a subclass of one of these.
        env: what to learn from: an environment, a VecEnv, or a registered id.
        learning_rate: step size, or a function of the remaining progress (1 to 0).
        n_steps: environment steps per environment and update.
        batch_size: samples in a minibatch, which holds whole sequences, see `arguments.batches`.
        n_epochs: passes over a rollout.
        gamma: discount per step.
        gae_lambda: decay of generalised advantage estimation.
        clip_range: clipping of the probability ratio, or a function of the remaining progress.
        clip_range_vf: largest change of a predicted value, in the critic's units; None: unbounded.
        normalize_advantage: whether advantages are standardised within a minibatch.
        ent_coef: weight of the entropy bonus, per nat.
        vf_coef: weight of the value loss.
        max_grad_norm: largest norm of the gradient.
        use_sde: whether a continuous action's noise is a function of the state (gSDE).
        sde_sample_freq: steps for which that function stays the same; −1: a whole rollout.
        target_kl: an update stops before the step at which the KL divergence exceeds 1.5 times this (nats).
        stats_window_size: episodes over which returns and lengths are averaged in the log.
        tensorboard_log: folder of the TensorBoard log.
        policy_kwargs: arguments of the policy.
        verbose: 0: silent, 1: information, 2: debugging.
        seed: root of all randomness; None: from the operating system. No global generator is seeded.
        device: a torch device.
        _init_setup_model: whether to build the network now.
        settings: what RecurrentPPO does not have, see `arguments.Settings`.

    Attributes:
        raw_space: what the given environments show, before Stable-Baselines3 transposes images.

    Raises:
        ConfigError: an argument that cannot work.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpLstmPolicy": MlpLstmPolicy,
        "CnnLstmPolicy": CnnLstmPolicy,
        "MultiInputLstmPolicy": MultiInputLstmPolicy,
    }
    policy: MlpLstmPolicy  # type: ignore[assignment]

    def __init__(
        self,
        policy: str | type[MlpLstmPolicy],
        env: Any,
        learning_rate: Any = 3e-4,
        n_steps: int = 128,
        batch_size: int | None = 128,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: Any = 0.2,
        clip_range_vf: Any = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
        **settings: Unpack[Settings],
    ) -> None:
        env = None if env is None else maybe_make_env(env, verbose)
        super().__init__(
            policy,  # type: ignore[arg-type]
            env,
            learning_rate,
            n_steps,
            gamma,
            gae_lambda,
            ent_coef,
            vf_coef,
            max_grad_norm,
            use_sde,
            sde_sample_freq,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
            supported_action_spaces=ACTION_SPACES,
        )
        if not issubclass(self.policy_class, MlpLstmPolicy):
            raise ConfigError(
                f"policy={self.policy_class.__name__} is no policy of popgraft.sb3; name one of "
                f"{', '.join(self.policy_aliases)}, or pass a subclass of popgraft.sb3.MlpLstmPolicy"
            )
        self.batch_size, self.n_epochs = batch_size, n_epochs
        self.clip_range, self.clip_range_vf = clip_range, clip_range_vf
        self.normalize_advantage, self.target_kl = normalize_advantage, target_kl
        self.settings: dict[str, Any] = dict(settings)
        self.raw_space = None if env is None else env.observation_space
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        keep_freed_memory()
        self._setup_lr_schedule()
        self.clip_range = FloatSchedule(self.clip_range)
        self.clip_range_vf = None if self.clip_range_vf is None else FloatSchedule(self.clip_range_vf)
        self.set_random_seed(self.seed)
        root = int(np.random.SeedSequence().generate_state(1)[0]) if self.seed is None else self.seed
        scaled = self._vec_normalize_env is not None and self._vec_normalize_env.norm_reward
        self.settings.setdefault("normalize_returns", not (scaled or self.settings.get("normalize_reward")))
        arguments = policy_arguments(self.settings, self.policy_kwargs)
        policy_class = cast(type[MlpLstmPolicy], self.policy_class)
        spaces = self.observation_space, self.action_space
        hold = None if self.sde_sample_freq == -1 else self.sde_sample_freq
        exploration = {"use_sde": self.use_sde, "sde_sample_freq": hold}
        self.policy = policy_class(*spaces, self.lr_schedule, **{**exploration, **arguments})
        values = {name: getattr(self, name) for name in ("n_steps", "n_epochs", "normalize_advantage")}
        values |= {name: self._current(name, 1.0) for name in LIVE} | {"learning_rate": self.lr_schedule(1.0)}
        config = run_config(values, self.policy, self.n_envs, self.batch_size, self.settings, scaled)
        grid = VecEnvGrid(*spaces, self.n_envs, self.device)
        self.generators = [torch_generator(root, "action", 0, 0)]
        self.member = initial_member(
            self.policy.network,
            grid.spaces,
            config.model,
            {name: torch.tensor([value]) for name, value in config.model.hyperparams().items()},
            [torch_generator(root, "weights", 0)],
            self.device,
        )
        generator, dense = torch_generator(root, "torch weights"), not self.policy.ortho_init
        draw_as_torch_(self.policy.network, self.member.params, generator, dense)
        self.learner = Learner(self.policy.network, config)
        self.policy.occupy(
            self.member,
            partial(
                EngineOptimizer,
                member=self.member,
                rule=self.learner.rule,
                constants=optimizer_constants(config.model),
                generators=self.generators,
            ),
            torch_generator(root, "prediction"),
            config.model.normalize_reward,
        )
        self.seat = Seat.empty(1, self.n_envs, self.policy.network.state_size, self.device)
        self.grid = grid
        self.collector = Collector(self.policy.network, grid, self.n_steps, config.sequence_length, self.device)
        self.rollout_buffer: Any = None
        self._remembered = True
        self._variance_gradient_scaler, self._kl_penalty = VGSPart(self.member), KLPart(self.member)
        self._return_stats = StatePart(self.member.returns, "return_stats_state")
        self._schedule = StatePart(self.member.entropy, "schedule_state", unbounded=("decay_start",))

    def _current(self, name: str, progress: float) -> float | None:
        value: Any = getattr(self, name)
        return float(value(progress)) if callable(value) else value

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seeds environments and action space, and no global generator."""
        if seed is not None:
            self.action_space.seed(seed)
            if self.env is not None:
                self.env.seed(seed)

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """Takes other environments of the same spaces and number.

        Raises:
            ConfigError: they scale rewards, and so does the model; it keeps its environments.
        """
        normalizer = unwrap_vec_normalize(env)
        check_scaling(self.settings, normalizer is not None and normalizer.norm_reward)
        super().set_env(env, force_reset)
        self.raw_space = env.observation_space

    def learn(
        self,
        total_timesteps: int,
        callback: Any = None,
        log_interval: int = 1,
        tb_log_name: str = "DistributionalPPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> "DistributionalPPO":
        """Trains for `total_timesteps` environment steps, rounded up to whole rollouts."""
        super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
        return self

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, rollout_buffer: Any, n_rollout_steps: int) -> bool:
        """Collects a rollout; False if a callback has ended the training, which throws the rollout away."""
        callback.on_rollout_start()
        self.policy.set_training_mode(False)
        steps = 0

        def listen(seen: dict[str, Any]) -> None:
            nonlocal steps
            steps += 1
            self.num_timesteps += env.num_envs
            callback.update_locals({**seen, "self": self, "env": env, "callback": callback, "n_steps": steps})
            if not callback.on_step():
                raise _Stopped
            self._update_info_buffer(seen["infos"], seen["dones"])
            self._last_obs, self._last_episode_starts = seen["new_obs"], seen["dones"]

        assert self._last_episode_starts is not None
        self.seat.episode_start = torch.from_numpy(self._last_episode_starts[None].astype(bool)).to(self.device)
        self._remembered = True
        self.grid.begin(env, self._last_obs, listen)
        try:
            self.rollout_buffer = self.collector.collect(self.member, self.seat, self.generators)
        except _Stopped:
            self._last_obs = None  # the next learn begins with new episodes
            return False
        if self._vec_normalize_env is not None:
            self._last_original_obs = self._vec_normalize_env.get_original_obs()
        self._reset_lstm_states_for_done_envs(self._last_episode_starts)
        callback.update_locals({"self": self, "env": env, "rollout_buffer": self.rollout_buffer})
        callback.on_rollout_end()
        return True

    def train(self) -> None:
        """One update from the latest rollout."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        self.policy.optimizer.pull()
        for name in LIVE:
            value = self._current(name, self._current_progress_remaining)
            self.member.hyperparams[name].fill_(torch.inf if value is None else value)
        metrics, self._targets = self.learner.improve_(self.member, self.seat, self.rollout_buffer, self.generators)
        self.policy.optimizer.push()
        self._n_updates += self.n_epochs
        self._finalize_return_stats()
        self._activate_return_scale_snapshot()
        self._record(metrics)

    def _finalize_return_stats(self) -> None:
        """Enters the latest update's targets into the return statistics."""
        if self.settings["normalize_returns"]:
            self.learner.finalize_returns_(self.member, self._targets, self.rollout_buffer.valid)

    def _activate_return_scale_snapshot(self) -> None:
        """Makes the return statistics the critic's units, without moving its predictions in raw units."""
        self.learner.activate_returns_(self.member)

    def _record(self, metrics: Mapping[str, Tensor]) -> None:
        hidden = set(self.member.hyperparams) - {"learning_rate", "clip_range", "clip_range_vf", "ent_coef"}
        for name, value in metrics.items():
            if name not in hidden and torch.isfinite(value).all():
                self.logger.record(tag_of(name), float(value))
        self.logger.record("train/policy_gradient_loss", float(metrics["policy_loss"]))  # RecurrentPPO's name
        log_std = self.policy.network.views(self.member.params)["head"].get("log_std")
        if log_std is not None:
            self.logger.record("train/std", float(log_std.exp().mean()))
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def get_parameters(self, include_optimizer: bool = False) -> dict[str, dict[str, Any]]:
        """Everything that another model inherits when it becomes this one's copy, by name.

        Args:
            include_optimizer: whether `optimizer_state` is among it.
        """
        return collect(self, include_optimizer)

    def set_parameters(
        self,
        load_path_or_dict: str | Path | io.BufferedIOBase | Mapping[str, Any],
        exact_match: bool = True,
        device: torch.device | str = "auto",
    ) -> None:
        """Takes over parameters, and resets the recurrent state; on any error the model is as it was.

        Args:
            load_path_or_dict: what `get_parameters` returned, or a file that `save` wrote.
            exact_match: whether everything but the optimizer must be given, and nothing unknown.
            device: where a file's tensors are read to.

        Raises:
            ConfigError: something is missing, unknown or of another shape.
            StoreError: the file cannot be read.
        """
        given = load_path_or_dict
        if not isinstance(given, Mapping):
            given = archive.read(given, device).parameters
        take_over(self, given, exact_match)
        self.reset_lstm_states_to_initial()

    def save(
        self,
        path: str | Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Writes Stable-Baselines3's zip, without pickled objects; `exclude` names arguments and counters to leave out.

        Raises:
            ConfigError: `include` names something that a file does not hold.
        """
        archive.write(path, self, set(exclude or ()), set(include or ()))

    def export(self, path: str | Path) -> None:
        """Writes the file that the suffix asks for, over an earlier one: what `save` does, or the acting policy alone.

        Args:
            path: `.zip`, or `.pt2` and `.onnx` for a graph that chooses the most likely action, see `program`.

        Raises:
            ConfigError: another suffix.
            MissingExtra: the exporter of ONNX is not installed.
            StoreError: the file cannot be written.
        """
        program.write(Path(path), self)

    @classmethod
    def load(
        cls,
        path: str | Path | io.BufferedIOBase,
        env: Any = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> "DistributionalPPO":
        """Reads a model that `save` wrote; nothing in the file is executed.

        Args:
            path: the file.
            env: what it learns from now; None: it can only act until `set_env`.
            device: a torch device.
            custom_objects: values in place of the file's, such as a `policy_class` of the user's.
            print_system_info: whether to print what the file was written with.
            force_reset: of no effect: a file has no environments, so that training begins with new episodes.
            kwargs: arguments in place of the file's.

        Raises:
            StoreError: the file is missing, damaged, foreign, or holds pickled objects.
            ConfigError: it needs an object that a file cannot hold, or the environment has other spaces.
        """
        return archive.load(cls, path, env, device, {**(custom_objects or {}), **kwargs}, print_system_info)
