"""One trained agent, ready to act."""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from popgraft import tree
from popgraft.adversary import OnlineAttack
from popgraft.config import AttackConfig, Config
from popgraft.errors import ConfigError, EnvironmentFault
from popgraft.execute.shard import resolve_device
from popgraft.names import searched
from popgraft.nn import Policy
from popgraft.ppo import initial_member
from popgraft.rng import derive
from popgraft.rollout.acting import Actor, action_noise
from popgraft.rollout.answers import delivered, starts_of
from popgraft.rollout.evaluation import evaluate
from popgraft.rollout.film import FilmedGrid
from popgraft.rollout.make import evaluation_source, make_evaluation_grid
from popgraft.rollout.spaces_of import action_encoder, fields_of, gym_action_space
from popgraft.spaces import Spaces
from popgraft.state import Member, Scores


class Agent:
    """A policy with its weights and observation statistics.

    Args:
        config: the run that it comes from.
        spaces: what it sees and does.
        member: a population of one.
        factory: makes environments for `evaluate`, in place of the configured source.
        policy: the network that the member's parameters are of, in place of the configured one.
    """

    def __init__(
        self,
        config: Config,
        spaces: Spaces,
        member: Member,
        factory: Callable[..., Any] | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.config, self.spaces, self._factory = config, spaces, factory
        device = resolve_device(config.engine.device)
        self.policy = policy or Policy(spaces, config.model.network)
        self.member = tree.map(lambda leaf: leaf.to(device), member)
        self._actor = Actor.of(self.policy, self.member)
        self._fields, self._encode = fields_of(spaces.raw_space), action_encoder(gym_action_space(spaces.action))
        self._generator = torch.Generator().manual_seed(derive(config.seed, "agent"))

    @torch.no_grad()
    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: Tensor | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
    ) -> tuple[np.ndarray, Tensor]:
        """Chooses actions for a batch of environments.

        Args:
            observation: [env, *shape] as the environment gives it, or a dict of such arrays. Of a key from which the
                built-in wrapper `hide` drops components, those that are left. What the network is given (indicators of
                choices, images with their channels first) is taken too.
            state: what the previous call returned; None before the first step.
            episode_start: [env] whether an observation is the first of an episode; None: only where `state` is None.
            deterministic: whether the most likely action is taken instead of a sampled one.

        Returns:
            Actions as the environment takes them, [env, *action shape], and the recurrent state for the next call.

        Raises:
            ConfigError: keys, shapes or types that the agent does not know, or that do not belong together.
            UnusableNumber: a number that is not finite, or far too large, or a choice that the space does not have.
        """
        device = self._actor.device
        arrays = delivered(self._fields, observation)
        obs = {key: torch.from_numpy(x).unsqueeze(0).to(device) for key, x in arrays.items()}
        envs = next(iter(obs.values())).shape[1]
        start = np.full(envs, state is None) if episode_start is None else starts_of(episode_start, envs)
        if state is None:
            state = torch.zeros(1, envs, self.policy.state_size, device=device)
        if tuple(state.shape) != (expected := (1, envs, self.policy.state_size)):
            raise ConfigError(
                f"state has the shape {tuple(state.shape)}, not {expected}; give what the previous call returned"
            )
        step = self._actor.step(self._actor.normalized(obs), state, torch.from_numpy(start[None]).to(device))
        head, params = self.policy.head, self._actor.params["head"]
        if deterministic:
            action = head.mode(params, step.outputs[:, 0])
        else:
            noise = action_noise(self.policy, [self._generator], 1, envs, device)
            action = head.sample(params, step.outputs[:, 0], noise[:, 0])
        return self._encode(action[0].cpu().numpy()), step.state

    def evaluate(
        self,
        episodes: int | None = None,
        seed: int | None = None,
        deterministic: bool | None = None,
        attack: AttackConfig | None = None,
    ) -> Scores:
        """Plays whole episodes on fresh seeds and returns mean, standard error and count.

        Args:
            episodes: how many, each in an environment of its own; None: as many as after training.
            seed: names the episodes; the seeds of training and of a run's own evaluations are never among them. None:
                the run's, whose episodes are those of the evaluation after training.
            deterministic: whether the most likely action is taken; None: as after training.
            attack: moves what the agent sees, if given; the episodes begin as they do without it.

        Raises:
            EnvironmentFault: the environment cannot be made, or fails.
            ConfigError: it is of another kind than the agent knows, or shows nothing that can be attacked.
        """
        settings = self.config.evaluation
        episodes = settings.final_episodes if episodes is None else episodes
        deterministic = settings.deterministic if deterministic is None else deterministic
        made = (self.config, self.spaces, 1, episodes, self._factory, self._actor.device)
        with searched(self.config.code_dir), contextlib.closing(make_evaluation_grid(*made)) as grid:
            seeds = [derive(self.config.seed if seed is None else seed, "agent evaluation")]
            disturb = None if attack is None else OnlineAttack(self.policy, attack, seeds)
            scores = evaluate(self.policy, self.member, grid, seeds, deterministic, settings.max_steps, disturb)
        for fault in scores.faults.values():
            raise EnvironmentFault(f"the environment failed during evaluation: {fault}")
        return scores

    def film(
        self, show: Callable[[np.ndarray, int], None], episodes: int, seed: int, deterministic: bool = True
    ) -> list[float]:
        """Plays whole episodes in an environment that is rendered, one after the other.

        Args:
            show: gets every frame, [height, width, 3] in 0…255, and how many of them the environment has in a second.
            episodes: how many.
            seed: names the episodes.
            deterministic: whether the most likely action is taken.

        Returns:
            The return of every episode.

        Raises:
            EnvironmentFault: the environment cannot be rendered, or fails.
        """
        env, factory = evaluation_source(self.config, self._factory)
        if env.source == "tensor" and factory is None:
            raise EnvironmentFault(f"the tensor environment {env.id} cannot be rendered: it has no image")
        with searched(self.config.code_dir), contextlib.ExitStack() as stack:
            grid = FilmedGrid(env, factory, self._actor.device, lambda frame: show(frame, grid.fps))
            stack.callback(grid.close)
            return [
                float(
                    evaluate(
                        self.policy, self.member, grid, [one], deterministic, self.config.evaluation.max_steps
                    ).mean
                )
                for one in (derive(seed, "film", episode) for episode in range(episodes))
            ]


def empty_member(config: Config, spaces: Spaces) -> Member:
    """A population of one with the shapes that the configuration gives it, to read a snapshot into."""
    hyperparams = {name: torch.full((1,), value) for name, value in config.model.hyperparams().items()}
    policy = Policy(spaces, config.model.network)
    return initial_member(policy, spaces, config.model, hyperparams, [torch.Generator()], torch.device("cpu"))
