"""The member that a policy shows, as it is at birth."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from popgraft import tree
from popgraft.config import Config
from popgraft.ppo import Learner, initial_member
from popgraft.rng import torch_generator
from popgraft.sb3.initial import draw_as_torch_
from popgraft.sb3.optimizer import EngineOptimizer
from popgraft.sb3.views import places
from popgraft.state import Member


def initial_parameters(policy: Any, seed: int) -> dict[str, Tensor]:
    """Weights as a policy of these settings is born with, by the names of its parameters."""
    flat = policy.network.init_population([torch_generator(seed, "weights", 0)])
    source = torch_generator(seed, "torch weights")
    draw_as_torch_(policy.network, policy.network_config, flat, source, not policy.ortho_init)
    params = policy.network.views(flat)
    names = dict(places(params))
    return {names[path]: leaf[0] for path, leaf in tree.items(params)}


def settle(
    policy: Any, config: Config, root: int, device: torch.device
) -> tuple[Member, Learner, list[torch.Generator]]:
    """Draws a member, which becomes the policy's own.

    Args:
        policy: of `popgraft.sb3`, just made.
        config: a population of one.
        root: seed of all randomness.
        device: where it lives.

    Returns:
        The member, what updates it, and the source of its actions' noise.
    """
    values = {name: torch.tensor([value]) for name, value in config.model.hyperparams().items()}
    weights, generators = [torch_generator(root, "weights", 0)], [torch_generator(root, "action", 0, 0)]
    member = initial_member(policy.network, policy.spaces, config.model, values, weights, device)
    source = torch_generator(root, "torch weights")
    draw_as_torch_(policy.network, policy.network_config, member.params, source, not policy.ortho_init)
    learner = Learner(policy.network, config)
    optimizer = partial(EngineOptimizer, member=member, rule=learner.rule, generators=generators)
    policy.occupy(member, optimizer, torch_generator(root, "prediction"), config.model.normalize_reward)
    return member, learner, generators
