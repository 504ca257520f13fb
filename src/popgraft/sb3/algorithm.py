"""A Stable-Baselines3 algorithm whose learning is the engine's, with a population of one."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Unpack, cast

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from popgraft.errors import ArgumentError, ConfigError
from popgraft.execute.allocator import keep_freed_memory
from popgraft.rollout.collector import Collector
from popgraft.sb3.arguments import Settings, check_scaling, default_rate, policy_arguments, run_config
from popgraft.sb3.birth import settle
from popgraft.sb3.buffer import RolloutBuffer
from popgraft.sb3.environments import VecEnvGrid, scales_rewards
from popgraft.sb3.files import Files
from popgraft.sb3.given import argument, environment, kind_of
from popgraft.sb3.kinds import named
from popgraft.sb3.parts import AgePart, AttackPart, KLPart, ReturnUnits, StatePart, VGSPart
from popgraft.sb3.policy import CnnLstmPolicy, MlpLstmPolicy, MultiInputLstmPolicy
from popgraft.sb3.rollback import Rollback, kept
from popgraft.state import Seat
from popgraft.train.scalars import tag_of

LIVE = ("gamma", "gae_lambda", "ent_coef", "vf_coef", "max_grad_norm", "target_kl", "clip_range", "clip_range_vf")
"""Attributes that the next update reads anew; None is infinite, a schedule is called."""

FEW = 16
"""Steps of backpropagation through time below which a warning is due."""

ACTION_SPACES = (gym.spaces.Box, gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)


class _Stopped(Exception):
    """A callback has ended the training in the middle of a rollout."""


class DistributionalPPO(Files, ReturnUnits, OnPolicyAlgorithm):
    """Recurrent PPO with a distributional critic.

    The arguments up to `device` are those of sb3-contrib's RecurrentPPO and mean the same; docs/sb3.md lists the
    differences and all others.

    Args:
        policy: "MlpLstmPolicy", "CnnLstmPolicy", "MultiInputLstmPolicy", or a subclass of one of these.
        env: what to learn from: an environment, a VecEnv, or a registered id.
        learning_rate: step size, or a function of the remaining progress (1 to 0); None: 3e-4, and 0.3 for UPGD.
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
        adversary: what may be tuned of the attacks in training; None where there are none.
        caution: what the next `learn` warns of.
        raw_space: what the given environments show, before Stable-Baselines3 transposes images.

    Raises:
        ArgumentError: an argument that cannot work.
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
        learning_rate: Any = None,
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
        tensorboard_log: str | Path | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
        **settings: Unpack[Settings],
    ) -> None:
        env = environment(env, argument("verbose", verbose))
        rate = argument("learning_rate", learning_rate)
        if env is None and _init_setup_model:
            raise kind_of(AttributeError)("env=None: give a new model an environment, whose spaces its network fits")
        try:
            super().__init__(
                policy,  # type: ignore[arg-type]
                env,
                default_rate(settings, policy_kwargs) if rate is None else rate,
                n_steps,
                gamma,
                gae_lambda,
                ent_coef,
                vf_coef,
                max_grad_norm,
                use_sde,
                sde_sample_freq,
                stats_window_size=argument("stats_window_size", stats_window_size),
                tensorboard_log=argument("tensorboard_log", tensorboard_log),
                policy_kwargs=policy_kwargs,
                verbose=verbose,
                seed=argument("seed", seed),
                device=argument("device", device),
                _init_setup_model=False,
                supported_action_spaces=ACTION_SPACES,
            )
        except ArgumentError:
            raise
        except (ValueError, AssertionError) as error:
            raise ArgumentError(str(error)) from error
        if not isinstance(self.policy_kwargs, Mapping):
            raise ArgumentError(f"policy_kwargs={policy_kwargs!r} must be a dict of arguments of the policy")
        if not (isinstance(self.policy_class, type) and issubclass(self.policy_class, MlpLstmPolicy)):
            raise ArgumentError(
                f"policy={getattr(self.policy_class, '__name__', policy)} is no policy of popgraft.sb3; name one of "
                f"{', '.join(self.policy_aliases)}, or pass a subclass of popgraft.sb3.MlpLstmPolicy"
            )
        self.batch_size, self.n_epochs = batch_size, n_epochs
        self.clip_range = argument("clip_range", clip_range)
        self.clip_range_vf = argument("clip_range_vf", clip_range_vf)
        self.normalize_advantage, self.target_kl = normalize_advantage, target_kl
        self.settings = named(settings)
        self.raw_space = None if env is None else env.observation_space
        self.caution: str | None = None
        if _init_setup_model:
            try:
                self._setup_model()
            except ConfigError as error:
                raise ArgumentError(str(error)) from error
            length = self.collector.sequence_length
            if length < min(FEW, n_steps) and self.policy.network.state_size and "sequence_length" not in settings:
                warnings.warn(
                    f"n_steps={n_steps} and batch_size={batch_size} have the greatest common divisor {length}, so that "
                    f"gradients reach back {length} steps; take a batch_size that is a multiple of n_steps, or set "
                    "sequence_length",
                    stacklevel=2,
                )

    def _setup_model(self) -> None:
        keep_freed_memory()
        self._setup_lr_schedule()
        self.clip_range = FloatSchedule(self.clip_range)
        self.clip_range_vf = None if self.clip_range_vf is None else FloatSchedule(self.clip_range_vf)
        self.set_random_seed(self.seed)
        root = int(np.random.SeedSequence().generate_state(1)[0]) if self.seed is None else self.seed
        scaled = scales_rewards(self.env)
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
        self.member, self.learner, self.generators = settle(self.policy, config, root, self.device)
        self.seat = Seat.empty(1, self.n_envs, self.policy.network.state_size, self.device)
        self.grid = grid
        self.collector = Collector(self.policy.network, grid, self.n_steps, config.sequence_length, self.device)
        self.rollout_buffer: Any = None
        self._remembered = True
        self._variance_gradient_scaler, self._kl_penalty = VGSPart(self.member), KLPart(self.member)
        self._age = AgePart(self.member)
        self.adversary = AttackPart(self.member) if config.model.adversary.enabled else None
        self._return_stats = StatePart(self.member.returns, "return_stats_state")
        self._schedule = StatePart(self.member.entropy, "schedule_state", unbounded=("decay_start",))

    def _current(self, name: str, progress: float) -> float | None:
        value: Any = getattr(self, name)
        return float(value(progress)) if callable(value) else value

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seeds environments and action space, and no global generator.

        Raises:
            ArgumentError: a seed that is no whole number from 0.
        """
        seed = argument("seed", seed)
        if seed is not None:
            self.action_space.seed(seed)
            if self.env is not None:
                self.env.seed(seed)

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """Takes other environments of the same spaces and number.

        Raises:
            ConfigError: they scale rewards, and so does the model; it keeps its environments.
        """
        check_scaling(self.settings, scales_rewards(env))
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
        """Trains for `total_timesteps` environment steps, rounded up to whole rollouts.

        Raises:
            ConfigError: the environments have come to scale rewards, and so does the model.
            UnusableNumber: an environment gave such a number; the model is as it was after its latest update.
        """
        check_scaling(self.settings, scales_rewards(self.env))
        if self.caution:
            warnings.warn(self.caution, stacklevel=2)
            self.caution = None
        with kept(self):
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
            rollout = self.collector.collect(self.member, self.seat, self.generators)
        except _Stopped:
            self._last_obs = None  # the next learn begins with new episodes
            return False
        scaled = self.learner.config.normalize_reward
        self.rollout_buffer = RolloutBuffer(
            **vars(rollout), fields=self.policy.fields, member=self.member, scales_rewards=scaled
        )
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
        if self.adversary:
            self.adversary.pull()
        metrics, self._targets = self.learner.improve_(self.member, self.seat, self.rollout_buffer, self.generators)
        self.policy.optimizer.push()
        self._n_updates += self.n_epochs
        self._finalize_return_stats()
        self._activate_return_scale_snapshot()
        self._rollback = Rollback.of(self)
        if self.adversary:
            self.adversary.observe(metrics)
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
