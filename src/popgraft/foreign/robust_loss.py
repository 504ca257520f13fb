"""State-adversarial training of a member's model, by whoever computes its loss.

A model with an `adversary` that has the tunable numbers as attributes, such as `DistributionalPPO`, brings the robust
term itself. Stable-Baselines3's PPO and its like get it here: minibatches carry the term into the loss that is computed
from them. Any other model's trainer adds `StateAdversarialPPO.robust_kl_penalty` by itself.
"""

import inspect
import math
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from popgraft.config.adversary import AdversaryConfig
from popgraft.errors import ConfigError
from popgraft.foreign.change import Change, attributes
from popgraft.foreign.config import SAPPOConfig
from popgraft.foreign.live import ADVERSARIAL, is_number
from popgraft.foreign.state_adversarial import HERITABLE, StateAdversarialPPO, create_sappo_wrapper

ADVERSARY = "sa_ppo_state"
"""Entry of a checkpoint with what a copy inherits of `StateAdversarialPPO`."""
LIBRARIES = ("stable_baselines3", "sb3_contrib")
CARRIES = ("PPO", "RecurrentPPO", "MaskablePPO", "A2C")
"""Algorithms of these libraries that go down the gradient of one loss, which weighs log-probabilities by advantages."""


def accepted(factory: Callable[..., Any], arguments: Mapping[str, Any], by_name: bool = False) -> dict[str, Any]:
    """The arguments that a function or class takes.

    Args:
        factory: the function or class.
        arguments: what it may be given.
        by_name: whether `**anything` does not count.
    """
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # a built-in one does not tell
        return {}
    names = {parameter.name for parameter in parameters if parameter.kind is not parameter.POSITIONAL_ONLY}
    anything = False
    for parameter in parameters:
        if parameter.kind is parameter.VAR_KEYWORD:
            typed = typing.get_args(parameter.annotation)  # Unpack[a TypedDict]
            names |= set(getattr(typed[0], "__annotations__", ())) if typed else set()
            anything = not typed and not by_name
    return {name: value for name, value in arguments.items() if anything or name in names}


def engine_settings(config: SAPPOConfig) -> dict[str, Any]:
    """The section as settings of the engine's adversary.

    Raises:
        ConfigError: the section has something that the engine does not.
    """
    _check(config, "DistributionalPPO")
    given = config.model_dump(exclude_unset=True)
    known = {name: value for name, value in given.items() if name in AdversaryConfig.model_fields}
    return {**known, "epsilon_schedule": config.course}


def attach(model: Any, config: SAPPOConfig, seed: int) -> Any:
    """Sees to it that a model is trained with the robust term.

    Args:
        model: the model, just built.
        config: the section, enabled.
        seed: of the attacks, where the model does not draw them itself.

    Returns:
        What has the tunable numbers of the attacks as attributes, and `get_stats`.

    Raises:
        ConfigError: the term cannot be right for the model.
    """
    kind = type(model).__name__
    own = getattr(model, "adversary", None)
    if all(hasattr(own, name) for name in ADVERSARIAL):
        return own
    if hasattr(type(model), "adversary") or "adversary" in vars(model):
        raise ConfigError(
            f"{kind} was built without its adversary; let the factory take `adversary` by name, and pass it on"
        )
    part = create_sappo_wrapper(model, config, seed)
    bases = {base.__name__ for base in type(model).__mro__ if base.__module__.split(".")[0] in LIBRARIES}
    if bases:
        if not bases & set(CARRIES):
            raise ConfigError(f"adversarial.enabled: {kind} cannot be given the robust term; {', '.join(CARRIES)} can")
        _check(config, kind)
        if config.attack_objective != "kl":
            raise ConfigError(
                f"adversarial.attack_objective={config.attack_objective!r} is not available for {kind}; set it to 'kl'"
            )
        _check_observations(model, kind)
        if "RecurrentPPO" in bases:
            part.distribution = _unknown
        model.rollout_buffer.get = RobustMinibatches(model, part)
    return part


def inherit(adversary: StateAdversarialPPO, state: Any) -> Change:
    """Takes over what a donor's `heritable` gave; explored values come after it.

    Raises:
        ConfigError: it is something else.
    """
    fits = isinstance(state, Mapping) and set(state) == set(HERITABLE)
    if not fits or not all(is_number(value) and 0 <= value < math.inf for value in state.values()):
        raise ConfigError(
            f"{ADVERSARY}={state!r} must hold numbers of at least 0 for {', '.join(HERITABLE)}; report what "
            "collect_parameters returns"
        )
    return attributes([(adversary, name, state[name]) for name in HERITABLE])


def _check(config: SAPPOConfig, kind: str) -> None:
    """Refuses what only a trainer of the user's own can do."""
    if not config.attack_policy:
        raise ConfigError(
            f"adversarial.attack_policy=False leaves nothing of the robust term of {kind}; "
            "set adversarial.enabled: false"
        )
    if config.attack_value and "attack_value" in config.model_fields_set:
        raise ConfigError(
            f"adversarial.attack_value=True is not available for {kind}, whose value loss is taken at what it saw; "
            "remove it, or set it to false"
        )


def _unknown(observations: Tensor) -> Any:
    raise ConfigError(
        "what a recurrent policy does at observations alone is not known; its minibatches carry the robust term already"
    )


def _check_observations(model: Any, kind: str) -> None:
    space = model.observation_space
    dtype, shape = getattr(space, "dtype", None), getattr(space, "shape", None)
    if dtype is None or shape is None or dtype.kind != "f" or len(shape) != 1:
        raise ConfigError(
            f"adversarial.enabled: an attack moves vectors of real numbers, but {kind} sees {space}; "
            "set adversarial.enabled: false, or train DistributionalPPO, which leaves images as they are"
        )


class RobustMinibatches:
    """A rollout buffer's `get`, whose minibatches carry the robust term into the loss that is computed from them.

    The gradient of a loss that depends on the advantages becomes that of loss + term, in the one backward pass in which
    it is taken: it is clipped as a whole, and not taken where an update stops before the step.

    Args:
        model: has `rollout_buffer` and `policy.get_distribution`.
        adversary: computes the term.
    """

    def __init__(self, model: Any, adversary: StateAdversarialPPO) -> None:
        self._buffer, self._policy, self.adversary = model.rollout_buffer, model.policy, adversary
        self._get = self._buffer.get

    def __call__(self, batch_size: int | None = None) -> Iterator[Any]:
        """The minibatches of one pass over the rollout."""
        if not self._buffer.generator_ready:  # its first pass
            self.adversary.on_train_start()
        for samples in self._get(batch_size):
            term = self._term(samples)
            if term is not None:
                samples = samples._replace(advantages=_Carry.apply(samples.advantages, term))  # type: ignore[no-untyped-call]
            yield samples

    def _term(self, samples: Any) -> Tensor | None:
        """None where it is 0, so that nothing is computed."""
        states = getattr(samples, "lstm_states", None)
        mask = getattr(samples, "mask", samples.advantages.new_ones(len(samples.advantages)))
        valid = mask.view(len(mask) if states is None else states.pi[0].shape[1], -1)
        if not self.adversary.robust_kl_coef:
            self.adversary.is_used = True  # the term is there, and 0
            return None
        rows = self.adversary.choose_sequences(valid)
        if not len(rows):
            return None

        def chosen(x: Tensor) -> Tensor:
            return x.view(len(valid), -1, *x.shape[1:])[rows.to(x.device)]

        def distribution(observations: Tensor) -> Any:
            if states is not None:
                start = chosen(samples.episode_starts).flatten()
                before = tuple(part[:, rows.to(part.device)] for part in states.pi)
                return self._policy.get_distribution(observations, before, start)[0]
            if hasattr(samples, "action_masks"):
                return self._policy.get_distribution(observations, chosen(samples.action_masks).flatten(0, 1))
            return self._policy.get_distribution(observations)

        return self.adversary.sequence_penalty(chosen(samples.observations), distribution, chosen(mask))


class _Carry(torch.autograd.Function):
    """The first argument, whose gradient brings that of the second along: ∂/∂term = 1 in whatever is computed."""

    @staticmethod
    def forward(ctx: Any, carrier: Tensor, term: Tensor) -> Tensor:
        ctx.save_for_backward(term)
        return carrier.view_as(carrier)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        (term,) = ctx.saved_tensors
        return None, torch.ones_like(term)
