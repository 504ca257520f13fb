"""What a DistributionalPPO remembers beside its policy and optimizer, each with a state dict."""

import copy
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from popgraft import tree
from popgraft.errors import ConfigError
from popgraft.foreign import function, normalization
from popgraft.foreign.change import carry_out
from popgraft.foreign.live import ADVERSARIAL
from popgraft.foreign.state_adversarial import StateAdversarialPPO
from popgraft.foreign.transplant import UPDATES
from popgraft.foreign.vgs import read_vgs_state, vgs_state_dict
from popgraft.inheritance import STATEFUL
from popgraft.ops import kl_control, return_scale
from popgraft.sb3.given import kind_of
from popgraft.state import Member

logger = logging.getLogger(__name__)

OPTIMIZER_STATE = "optimizer_state"
PARTS = {part.entry: part.attributes[-1] for part in STATEFUL}
"""Entries of a model's parameters beside `policy`, and the attribute that holds the part."""

REQUIRED = ("policy", "kl_penalty_state", "vgs_state", "return_stats_state", "schedule_state")
"""Entries that an exact match needs."""

COLLECTED = (normalization.STATE, UPDATES, function.ENTRY)
"""Further entries of what a coordinator collects of a model."""


class VGSPart:
    """Statistics of the variance gradient scaler.

    Args:
        member: a population of one.
    """

    def __init__(self, member: Member) -> None:
        self._state = member.vgs

    def state_dict(self) -> dict[str, Any]:
        """By the names of `VarianceGradientScaler.state_dict`."""
        return vgs_state_dict(self._state)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over statistics of the same parameters."""
        tree.map(Tensor.copy_, self._state, read_vgs_state(state_dict, self._state))


class KLPart:
    """Coefficient, errors and gains of the KL penalty's controller.

    Args:
        member: a population of one.
    """

    def __init__(self, member: Member) -> None:
        self._state, values = member.kl, member.hyperparams
        self._gains = kl_control.Gains(values["kl_pid_p"], values["kl_pid_i"], values["kl_pid_d"])

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return kl_control.state_dict(self._state, 0, self._gains)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over controller and gains."""
        kl_control.load_(self._state, 0, self._gains, state_dict)


class StatePart:
    """Any heritable state whose leaves have one row of numbers each.

    Args:
        state: what it shows.
        name: what it is called in errors.
        unbounded: leaves that may be infinite.
    """

    def __init__(self, state: Any, name: str, unbounded: tuple[str, ...] = ()) -> None:
        self._state, self._name, self._unbounded = state, name, unbounded

    def state_dict(self) -> dict[str, Any]:
        """Every leaf: a plain number, or a tensor where it has axes of its own."""
        return {
            name: leaf[0].clone() if leaf.dim() > 1 else float(leaf) if leaf.is_floating_point() else int(leaf)
            for name, leaf in tree.items(self._state)
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over every leaf.

        Raises:
            ConfigError: keys, shapes or numbers that do not fit; nothing is written then.
        """
        leaves = dict(tree.items(self._state))
        if set(state_dict) != set(leaves):
            raise ConfigError(
                f"{self._name} holds {', '.join(sorted(map(str, state_dict))) or 'nothing'}, but needs exactly "
                f"{', '.join(leaves)}; take it from get_parameters() of the same kind of model"
            )
        rows = {}
        for name, leaf in leaves.items():
            try:
                row = torch.as_tensor(state_dict[name], dtype=leaf.dtype, device=leaf.device)
            except (TypeError, ValueError, RuntimeError) as error:
                raise ConfigError(f"{self._name}: {name}={state_dict[name]!r} is not a number or tensor") from error
            if row.shape != leaf.shape[1:] or row.isnan().any() or (name not in self._unbounded and row.isinf().any()):
                raise ConfigError(
                    f"{self._name}: {name}={state_dict[name]!r} must be a finite number or tensor of shape "
                    f"{tuple(leaf.shape[1:])}"
                )
            rows[name] = row
        for name, leaf in leaves.items():
            leaf[0] = rows[name]


class AgePart:
    """Updates that an agent has behind it, from which warm-ups and ramps are counted, and steps that it had to skip.

    Args:
        member: a population of one.
    """

    def __init__(self, member: Member) -> None:
        self._counts = {"updates": member.age, "skipped_steps": member.optimizer.skipped}

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {name: int(count) for name, count in self._counts.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over the numbers.

        Raises:
            ConfigError: they are no counts; nothing is written then.
        """
        given = dict(state_dict)
        if set(given) != set(self._counts) or not all(type(n) is int and n >= 0 for n in given.values()):
            raise ConfigError(f"age={given!r} must hold whole numbers of at least 0 for {', '.join(self._counts)}")
        for name, count in self._counts.items():
            count.fill_(given[name])


class AttackPart:
    """What may be tuned of the attacks in training; the next update reads it anew.

    Args:
        member: a population of one.

    Attributes:
        adversarial_epsilon: radius before its schedule.
        adversarial_ratio: share of sequences that are attacked.
        robust_kl_coef: weight of the robust term, per nat.
    """

    def __init__(self, member: Member) -> None:
        self._tuned = {name: member.hyperparams[name] for name in ADVERSARIAL}
        self.adversarial_epsilon, self.adversarial_ratio, self.robust_kl_coef = map(float, self._tuned.values())
        self._stats = {"sa_ppo/enabled": 0.0, "sa_ppo/update_count": 0.0}

    def __getattr__(self, name: str) -> Any:
        """Says why what other models' training is asked for is not here."""
        if hasattr(StateAdversarialPPO, name):
            raise kind_of(AttributeError)(
                f"{name} is for losses of other models; a DistributionalPPO attacks in its own update: call learn, and "
                "leave it out"
            )
        raise AttributeError(name)

    def pull(self) -> None:
        """Takes the numbers over into the member."""
        for name, tensor in self._tuned.items():
            tensor.fill_(getattr(self, name))

    def observe(self, metrics: Mapping[str, Tensor]) -> None:
        """Notes what an update has measured."""
        self._stats = {name: float(value) for name, value in metrics.items() if name.startswith("sa_ppo/")}

    def get_stats(self) -> dict[str, float]:
        """What the latest update has measured, under `sa_ppo/`."""
        return dict(self._stats)

    def state_dict(self) -> dict[str, float]:
        """The tunable numbers."""
        return {name: getattr(self, name) for name in self._tuned}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over the tunable numbers."""
        for name in self._tuned:
            setattr(self, name, float(state_dict[name]))


class ReturnUnits:
    """The part of an algorithm that shows the statistics of returns, which lie in the engine's member.

    Attributes:
        member: a population of one.
    """

    member: Member

    @property
    def _ret_mean_value(self) -> float:
        """Running mean of returns."""
        return float(return_scale.latest(self.member.returns)[0])

    @property
    def _ret_std_value(self) -> float:
        """Running standard deviation of returns."""
        return float(return_scale.latest(self.member.returns)[1])

    @property
    def _ret_mean_snapshot(self) -> float:
        """Mean in whose units the critic predicts."""
        return float(self.member.returns.mean)

    @property
    def _ret_std_snapshot(self) -> float:
        """Standard deviation in whose units the critic predicts."""
        return float(self.member.returns.std)


def collect(model: Any, include_optimizer: bool) -> dict[str, dict[str, Any]]:
    """Everything that another model inherits when it becomes this one's copy, by name."""
    parts = {name: getattr(model, attribute).state_dict() for name, attribute in PARTS.items()}
    optimizer = {OPTIMIZER_STATE: model.policy.optimizer.state_dict()} if include_optimizer else {}
    return {"policy": model.policy.state_dict(), **parts, **optimizer}


def take_over(model: Any, parameters: Mapping[str, Any], exact_match: bool) -> None:
    """Puts parameters into a model; on any error it is as it was.

    Args:
        model: the recipient.
        parameters: what `collect` returned, or the coordinator's.
        exact_match: whether all `REQUIRED` entries must be there, and the policy's whole.

    Raises:
        ConfigError: something is missing, unknown or of another shape.
        StoreError: the controller's state does not fit.
    """
    given = {OPTIMIZER_STATE if name == "policy.optimizer" else name: part for name, part in parameters.items()}
    unknown = sorted(map(str, set(given) - {"policy", OPTIMIZER_STATE, *PARTS, *COLLECTED}))
    missing = [name for name in REQUIRED if exact_match and name not in given]
    if unknown or missing:
        raise ConfigError(
            f"the parameters are not those of a DistributionalPPO: missing {missing or 'none'}, unknown "
            f"{unknown or 'none'}; pass what get_parameters() returned, or a part of it with exact_match=False"
        )
    function.check(model.policy, given.get(function.ENTRY))
    optimizer = model.policy.optimizer
    before, optimizer_before = tree.map(torch.clone, model.member), copy.deepcopy(optimizer.state_dict())
    try:
        if "policy" in given:
            _load_weights(model.policy, given["policy"], exact_match)
        for name, attribute in PARTS.items():
            if name in given:
                getattr(model, attribute).load_state_dict(given[name])
        if OPTIMIZER_STATE in given:
            optimizer.load_state_dict(given[OPTIMIZER_STATE])
        if normalization.STATE in given:
            _normalize(model, given[normalization.STATE])
    except BaseException:
        tree.put_(model.member, torch.tensor([0]), before)
        optimizer.load_state_dict(optimizer_before)
        raise
    if isinstance(given.get(UPDATES), int):
        model._n_updates = given[UPDATES]


def _normalize(model: Any, statistics: Any) -> None:
    """Takes over the statistics of a coordinator's checkpoint, where the model has a VecNormalize."""
    normalizers = normalization.layers(model)
    if normalizers:
        message = "VecNormalize statistics are those of the parameters"
        carry_out([normalization.synchronize(model, normalizers, statistics, message)])
    else:
        logger.warning(
            "%s is not used, the model has no VecNormalize; set_env to one, and take the parameters over again",
            normalization.STATE,
        )


def _load_weights(policy: Any, weights: Mapping[str, Tensor], strict: bool) -> None:
    try:
        policy.load_state_dict(dict(weights), strict=strict)
    except RuntimeError as error:
        raise ConfigError(f"the weights are of another policy: {error}") from None
