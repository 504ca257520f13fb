"""A member at birth."""

import torch

from popgraft.config import ModelConfig
from popgraft.nn import Policy
from popgraft.ops.entropy_schedule import initial_entropy_schedule
from popgraft.ops.kl_control import initial_kl_control
from popgraft.ops.moments import initial_moments
from popgraft.ops.return_scale import initial_return_scale
from popgraft.optim import make_rule, make_scaler
from popgraft.spaces import Spaces
from popgraft.state import Member, Normalizer


def initial_member(
    policy: Policy,
    spaces: Spaces,
    config: ModelConfig,
    hyperparams: dict[str, torch.Tensor],
    generators: list[torch.Generator],
    device: torch.device,
) -> Member:
    """Freshly drawn weights, empty optimizer and statistics, the given hyperparameters.

    Args:
        policy: the network.
        spaces: what the agents see and do.
        config: the agent's settings.
        hyperparams: [pop] values of every tunable number.
        generators: one per member.
        device: where the members live.
    """
    pop = len(generators)
    params = policy.init_population(generators).to(device)
    normalised = {key: spec.shape for key, spec in spaces.obs.items() if config.normalize_obs and not spec.image}
    return Member(
        params=params,
        optimizer=make_rule(config, policy.layout.sizes).initial_state(params),
        vgs=make_scaler(config, policy.layout.sizes).initial_state(params),
        normalizer=Normalizer(
            obs={key: initial_moments(pop, shape, device) for key, shape in normalised.items()},
            returns=initial_moments(pop, (), device),
        ),
        returns=initial_return_scale(pop, device),
        kl=initial_kl_control(torch.full((pop,), config.kl_beta, device=device)),
        entropy=initial_entropy_schedule(pop, config.ent_coef_plateau_window, device),
        hyperparams={name: values.to(device).clone() for name, values in hyperparams.items()},
        age=torch.zeros(pop, dtype=torch.long, device=device),
    )
