"""Kinds from outside are tried before anything is trained: on two members, who must not change each other."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from popgraft import tree
from popgraft.config.kinds import Kinds
from popgraft.errors import ConfigError
from popgraft.messages import told
from popgraft.nn.blocks import Params
from popgraft.nn.critics import Critic
from popgraft.nn.encoders import Encoder
from popgraft.nn.heads import ActionHead
from popgraft.nn.recurrent import Memory
from popgraft.spaces import ActionSpec, ObsSpec

POP, TIME, BATCH = 2, 3, 4
Shapes = Mapping[str, tuple[int, ...]]


def try_encoder(kinds: Kinds, name: str, encoder: Encoder, specs: dict[str, ObsSpec]) -> None:
    """Raises ConfigError: it fails, returns other shapes, or mixes members; as do all of these."""
    obs = {key: _rand(POP, TIME, BATCH, *spec.shape) for key, spec in specs.items()}
    seen = {key: (255 * x).to(torch.uint8) if specs[key].image else x for key, x in obs.items()}
    shapes = {"features": (TIME, BATCH, encoder.n_out)}
    _try(kinds, name, lambda params, obs: {"features": encoder(params, obs)}, encoder.init, [seen], shapes)


def try_memory(kinds: Kinds, name: str, memory: Memory) -> None:
    """A memory, over time."""
    x, state = _rand(POP, TIME, BATCH, memory.n_in), _rand(POP, BATCH, memory.state_size)
    start = _rand(POP, TIME, BATCH) < 0.3
    shapes = {"outputs": (TIME, BATCH, memory.n_out), "state": (BATCH, memory.state_size)}

    def call(params: Params, x: Tensor, state: Tensor, start: Tensor) -> dict[str, Tensor]:
        return dict(zip(shapes, memory(params, x, state, start), strict=True))

    _try(kinds, name, call, memory.init, [x, state, start], shapes)


def try_head(kinds: Kinds, name: str, head: ActionHead, n_in: int, action: ActionSpec) -> None:
    """An action head, and all that is asked of its distribution."""
    latent, noise = _rand(POP, TIME, BATCH, n_in), _rand(POP, TIME, BATCH, head.noise_dims)
    each, whole = (TIME, BATCH, action.dims), (TIME, BATCH)
    shapes: dict[str, tuple[int, ...]] = {"outputs": (*whole, head.n_outputs), "sample": each, "mode": each}
    shapes |= dict.fromkeys(("log_prob", "entropy", "kl"), whole)

    def call(params: Params, latent: Tensor, noise: Tensor) -> dict[str, Tensor]:
        outputs = head(params, latent)
        chosen = head.sample(params, outputs, noise)
        return {
            "outputs": outputs,
            "sample": chosen,
            "mode": head.mode(params, outputs),
            "log_prob": head.log_prob(params, outputs, chosen),
            "entropy": head.entropy(params, outputs),
            "kl": head.kl(params, outputs, outputs.flip(2)),
        }

    _try(kinds, name, call, head.init, [latent, noise], shapes)


def try_critic(kinds: Kinds, name: str, critic: Critic) -> None:
    """A critic's means and losses."""
    inputs = [_rand(POP, TIME, BATCH, critic.atoms), _rand(POP, TIME, BATCH)]
    shapes = {"means": (TIME, BATCH), "loss": (TIME, BATCH)}

    def call(params: Params, predictions: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"means": critic.means(predictions), "loss": critic.loss(predictions, target)}

    _try(kinds, name, call, lambda generator: {}, inputs, shapes)


def _rand(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(shape)))


def _try(
    kinds: Kinds,
    name: str,
    call: Callable[..., dict[str, Tensor]],
    init: Callable[[torch.Generator], Params],
    inputs: list[Any],
    shapes: Shapes,
) -> None:
    what = f"{kinds.setting}={name!r}"
    try:
        with torch.no_grad():
            params = tree.stack([init(torch.Generator().manual_seed(member)) for member in range(POP)])
            found = call(params, *inputs)
            alone = call(*(tree.slice(part, 1, 2) for part in (params, *inputs)))
    except Exception as error:
        raise ConfigError(f"{what} fails on {POP} members: {told(error)}; correct its code") from error
    for part, shape in shapes.items():
        got = tuple(found[part].shape)
        if got != (POP, *shape):
            raise ConfigError(f"{what} gives {part} of shape {got} in place of {(POP, *shape)}; correct its code")
        if not torch.allclose(found[part][1:].float(), alone[part].float(), rtol=1e-3, atol=1e-5, equal_nan=True):
            raise ConfigError(
                f"{what} gives a member other {part} beside another one than alone; nothing may reduce over the first "
                "axis, that of members"
            )
