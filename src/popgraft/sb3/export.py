"""Agents of a run as files for other programs."""

import math
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import torch
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import VecTransposeImage

from popgraft import tree
from popgraft.config import Config
from popgraft.config.model import path_of
from popgraft.errors import ConfigError
from popgraft.rollout.spaces_of import gym_action_space, spaces_of
from popgraft.sb3.algorithm import DistributionalPPO
from popgraft.sb3.arguments import network_arguments
from popgraft.spaces import Spaces
from popgraft.state import Member
from popgraft.train import Run
from popgraft.train.run import BEST


def export(run: Run | str | Path, path: str | Path, member: int | str = BEST) -> None:
    """Writes an agent of a run to a file, over an earlier one.

    Args:
        run: the run, or its folder.
        path: `.zip` for `DistributionalPPO.load`, to go on with; `.pt2` or `.onnx`: the acting policy as a graph.
        member: "best", or the number of a member of the population as the run left it.

    Raises:
        ConfigError: another suffix, no such member, or an environment whose spaces a model cannot have.
        MissingExtra: the exporter of ONNX is not installed.
        StoreError: there is no such run or snapshot, or the file cannot be written.
    """
    model_of(run if isinstance(run, Run) else Run(run), member).export(path)


def model_of(run: Run, member: int | str = BEST) -> DistributionalPPO:
    """An agent of a run as a model that acts as it does and goes on learning from where it stands, on the CPU.

    Raises:
        ConfigError: no such member, or an environment whose spaces a model cannot have.
        StoreError: there is no such snapshot.
    """
    agent, config = run.agent(member), run.config
    observation_space, action_space = _gym_spaces(agent.spaces)
    kind = "MultiInputLstmPolicy" if isinstance(observation_space, gym.spaces.Dict) else "MlpLstmPolicy"
    if is_image_space(observation_space):
        kind = "CnnLstmPolicy"
    arguments = arguments_of(config, agent.member)
    model = DistributionalPPO(kind, None, device="cpu", seed=config.seed, _init_setup_model=False, **arguments)
    model.observation_space, model.action_space, model.n_envs = observation_space, action_space, config.env.num_envs
    model.raw_space = agent.spaces.raw_space
    model._setup_model()
    tree.map(torch.Tensor.copy_, model.member, agent.member)
    model.policy.optimizer.push()
    updates = int(agent.member.age)
    model.num_timesteps = updates * config.model.n_steps * config.env.num_envs
    model._n_updates = updates * config.model.n_epochs
    return model


def arguments_of(config: Config, member: Member) -> dict[str, Any]:
    """A run's settings as arguments of `DistributionalPPO`, with the member's hyperparameters in their places."""
    model = config.model.model_dump(exclude={"network", "n_minibatches"})
    for name, tuned in member.hyperparams.items():
        *sections, field = path_of(name)
        value, initial = config.exact(name, float(tuned)), config.model.hyperparam(name)
        if value != (math.inf if initial is None else initial):
            reduce(getitem, sections, model)[field] = None if math.isinf(value) else value
    network, policy_kwargs, settings = config.model.network, *network_arguments(config.model.network)
    adversary = model["adversary"]
    if adversary["enabled"] and adversary["max_updates"] is None:  # the run's end, which a model does not know
        updates = config.generations * config.pbt.perturbation_interval
        adversary["max_updates"] = max(updates, adversary["warmup_updates"] + 1)
    return {
        **model,
        **settings,
        "policy_kwargs": policy_kwargs,
        "use_sde": network.use_sde,
        "sde_sample_freq": network.sde_sample_freq or -1,
        "batch_size": config.sequence_length * config.sequences // config.model.n_minibatches,
        "sequence_length": config.sequence_length,
    }


def _gym_spaces(known: Spaces) -> tuple[gym.Space[Any], gym.Space[Any]]:
    """What the agent sees and does, behind all wrappers, as Stable-Baselines3 shows it."""
    shown, action_space = _channels_first(known.raw_space), gym_action_space(known.action)
    if spaces_of(shown, action_space).obs != known.obs:
        raise ConfigError(
            f"Stable-Baselines3 and the run take different axes of an image in {known.raw_space} for its channels; "
            "wrap the environment so that they are the first and shortest axis"
        )
    return shown, action_space


def _channels_first(space: Any) -> gym.Space[Any]:
    """With images as Stable-Baselines3 transposes them."""
    if isinstance(space, gym.spaces.Dict):
        return gym.spaces.Dict({key: _channels_first(child) for key, child in space.spaces.items()})
    if is_image_space(space) and not is_image_space_channels_first(space):
        space = VecTransposeImage.transpose_space(space)
    return cast(gym.Space[Any], space)
