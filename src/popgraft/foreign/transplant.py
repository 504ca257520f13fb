"""The graft of a model that is trained elsewhere: everything is validated first, then everything moves, or nothing.

Order: weights, return statistics, KL controller, VGS, optimizer, hyperparameters, VecNormalize, recurrent state.
"""

import copy
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from popgraft.config.population import OptimizerStrategy
from popgraft.errors import ConfigError
from popgraft.foreign import function, normalization
from popgraft.foreign import optimizer as optimizers
from popgraft.foreign.change import Change, attributes
from popgraft.foreign.checkpoint import FREE, OPTIMIZER, not_finite, optimizer_parts, weights_of
from popgraft.foreign.live import make_live
from popgraft.foreign.member import PopulationMember
from popgraft.foreign.renewal import renew
from popgraft.foreign.trained import free_parameters
from popgraft.foreign.trained import optimizers as optimizers_of
from popgraft.inheritance import PARTS, STATEFUL, AgentPart, kept
from popgraft.state import Renewal

logger = logging.getLogger(__name__)

GraftFault = Literal[
    "forget_return_scale",
    "forget_kl_penalty",
    "forget_vgs",
    "forget_normalizer",
    "keep_optimizer",
    "overwrite_learning_rate",
    "keep_recurrent_state",
]
"""Mistakes that a graft can be told to make, for experiments on what each of them costs."""

STABLE_BASELINES3 = {"policy.optimizer": OPTIMIZER, "pytorch_variables": FREE}
"""Its names for entries of a checkpoint."""
UPDATES, COUNT = "n_updates", "_n_updates"
"""Entry and attribute for Stable-Baselines3's count of updates, from which TD3 delays those of its actor."""
KNOWN = {"policy_state", *(part.entry for part in PARTS), FREE, UPDATES, *STABLE_BASELINES3, function.ENTRY}
"""Entries of a checkpoint that a graft reads, beside further optimizers."""

ABSENT = {
    "vgs": "the recipient keeps its own gradient statistics",
    "returns": "the donor's critic predicts in units of its own return statistics, and the recipient keeps others, so "
    "that its values are wrong until it has learned them anew; report what collect_parameters returns",
}
"""What it means that a part is absent from parameters, where that is worth a warning."""

RECURRENT = "_last_lstm_states"


@dataclasses.dataclass(frozen=True)
class Rules:
    """How a graft is made.

    Attributes:
        strategy: what becomes of the optimizer.
        faults: mistakes to make.
        any_weights: whether weights that are not finite are taken, as a member has them that has failed.
        renewal: what becomes of the weights; None: nothing.
        seed: of the weights that are drawn for it.
    """

    strategy: OptimizerStrategy
    faults: Sequence[GraftFault] = ()
    any_weights: bool = False
    renewal: Renewal | None = None
    seed: int = 0


def collect(model: Any, env: Any = None) -> dict[str, Any]:
    """Everything of a model that a recipient inherits, as `apply_exploited_parameters` takes it.

    Args:
        model: the donor.
        env: where its VecNormalize is searched; by default `model.env`.

    Raises:
        ConfigError: what cannot be inherited.
    """
    network = _network(model)
    weights = network.state_dict()
    data: dict[str, Any] = {"policy": weights}
    for part in STATEFUL:
        own = _held(model, part)
        data[part.entry] = {} if own is None else own.state_dict()
    data |= {name: optimizer.state_dict() for name, optimizer in optimizers_of(model).items()}
    free = _free_of(model, weights)
    if free:
        data[FREE] = free
    if isinstance(getattr(model, COUNT, None), int):
        data[UPDATES] = getattr(model, COUNT)
    normalization.refuse_inner(model, env)
    normalizers = normalization.layers(model, env)
    if normalizers:
        data[normalization.STATE] = normalization.statistics(normalizers)
    return {**data, function.ENTRY: function.describe(network)}


def plan(
    model: Any,
    parameters: Mapping[Any, Any],
    member: PopulationMember,
    source: PopulationMember | None,
    rules: Rules,
    adversary: Any = None,
) -> list[Change]:
    """The changes of a graft, in order; nothing is changed yet.

    Args:
        model: the recipient.
        parameters: what `PBTScheduler.exploit_and_explore` returned.
        member: the recipient's record, with the explored hyperparameters.
        source: the donor's record; its `vecnormalize_stats_path` is read if `parameters` hold no such statistics.
        rules: how.
        adversary: state-adversarial training of the recipient, if there is any.

    Raises:
        ConfigError: something does not fit the model.
        StoreError: the file of statistics cannot be read.
    """
    if weights_of(parameters) is not parameters:
        unknown = sorted({str(name) for name in parameters} - {*KNOWN, *map(str, optimizer_parts(dict(parameters)))})
        if unknown:
            logger.warning("Member %s: %s not used, nothing takes it over", member.member_id, ", ".join(unknown))
    live = {
        name: value
        for name, value in member.hyperparams.items()
        if not (name == "learning_rate" and "overwrite_learning_rate" in rules.faults)
    }
    own = kept(rules.faults)
    candidates = [
        _weights(model, parameters, rules),
        _free(model, parameters, member),
        *(_state(model, parameters, part) for part in STATEFUL if part.name not in own),
        _updates(model, parameters),
        *([] if "optimizer" in own else _optimizers(model, parameters, rules.strategy)),
        *make_live(model, live, member.member_id, adversary),
        None if "normalizer" in own else _normalizer(model, parameters, member, source),
        None if "keep_recurrent_state" in rules.faults else _recurrent(model),
    ]
    return [change for change in candidates if change is not None]


def _network(model: Any) -> Any:
    for network in (getattr(model, "policy", None), model):
        if callable(getattr(network, "load_state_dict", None)):
            return network
    message = (
        f"a {type(model).__name__} has neither policy.load_state_dict nor load_state_dict, so it cannot take over "
        "weights; give the model one of them"
    )
    logger.error(message)
    raise ConfigError(message)


def _weights(model: Any, parameters: Mapping[Any, Any], rules: Rules) -> Change:
    network, new = _network(model), weights_of(parameters)
    bad = None if rules.any_weights else not_finite(parameters)
    if bad is not None:
        raise ConfigError(f"the donor's weights are not finite ({bad}); exploit a healthy member")
    own = _state_dict(network)
    if own is not None:
        _check_weights(own, new)
    function.check(network, None if new is parameters else parameters.get(function.ENTRY))
    if rules.renewal is not None:
        new = renew(model, new, rules.renewal, rules.seed)
    return Change(lambda: _remember(network), lambda: network.load_state_dict(new))


def _check_weights(own: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    missing, extra = [name for name in own if name not in new], [name for name in new if name not in own]
    if missing or extra:
        raise ConfigError(
            f"the donor's weights are of another network: missing {missing[:3] or 'none'}, "
            f"left over {extra[:3] or 'none'}; give all members the same network"
        )
    for name, tensor in own.items():
        if not isinstance(tensor, Tensor):
            continue
        value = new[name]
        theirs = (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else (type(value).__name__, None)
        if theirs != (tuple(tensor.shape), tensor.dtype):
            raise ConfigError(
                f"the donor's weight {name} is {theirs[0]} {theirs[1]}, but the recipient's is "
                f"{tuple(tensor.shape)} {tensor.dtype}; give all members the same network"
            )


def _free_of(model: Any, weights: Any) -> dict[str, Tensor]:
    apart = (_held(model, part) for part in STATEFUL)
    covered = weights if isinstance(weights, Mapping) else {}
    return free_parameters(model, covered, tuple(part for part in apart if part is not None))


def _free(model: Any, parameters: Mapping[Any, Any], member: PopulationMember) -> Change | None:
    """Parameters outside of the policy's state dict."""
    own = _free_of(model, _state_dict(_network(model)))
    alias = parameters.get("pytorch_variables")
    given = parameters.get(FREE)
    if given is None and isinstance(alias, Mapping):
        given = {name: alias[name] for name in own if name in alias}
    if not own or given is None:
        if own:
            logger.warning(
                "Member %s: %s are absent, so it keeps its own %s; report what collect_parameters returns",
                member.member_id, FREE, ", ".join(own),
            )  # fmt: skip
        elif given:
            raise ConfigError(
                f"the donor has parameters beside its policy ({', '.join(map(str, given))}), but the recipient has "
                "none; give all members the same model"
            )
        return None
    if not isinstance(given, Mapping):
        raise ConfigError(f"{FREE} must be a dict of tensors, not a {type(given).__name__}")
    _check_weights(own, given)

    def remember() -> Callable[[], None]:
        before = {name: tensor.detach().clone() for name, tensor in own.items()}
        return lambda: _write(own, before)

    return Change(remember, lambda: _write(own, given))


@torch.no_grad()
def _write(own: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> None:
    for name, tensor in own.items():
        tensor.copy_(new[name])


def _held(model: Any, part: AgentPart) -> Any:
    """The object that holds a part of a model; None where it has none."""
    for attribute in part.attributes:
        own = getattr(model, attribute, None)
        if callable(getattr(own, "load_state_dict", None)):
            return own
    return None


def _state(model: Any, parameters: Mapping[Any, Any], part: AgentPart) -> Change | None:
    state, own = parameters.get(part.entry), _held(model, part)
    if state is None:
        if part.name in ABSENT and (own is not None or part.name == "vgs"):
            logger.warning("%s is absent: %s", part.entry, ABSENT[part.name])
        return None
    if own is None:
        if state:
            logger.warning("%s is not used, the model has no %s with load_state_dict", part.entry, part.attributes[0])
        return None
    return Change(lambda: _remember(own), lambda: own.load_state_dict(copy.deepcopy(state)))


def _updates(model: Any, parameters: Mapping[Any, Any]) -> Change | None:
    count = parameters.get(UPDATES)
    fits = isinstance(count, int) and isinstance(getattr(model, COUNT, None), int)
    return attributes([(model, COUNT, count)]) if fits else None


def _optimizers(model: Any, parameters: Mapping[Any, Any], strategy: OptimizerStrategy) -> list[Change]:
    own = optimizers_of(model)
    bare = weights_of(parameters) is parameters
    names = [] if bare else optimizer_parts(dict(parameters))
    given = {STABLE_BASELINES3.get(name, name): parameters[name] for name in names}
    if not own:
        if given and strategy != "reset":
            logger.warning("Optimizer state is not used (strategy=%s), the model has no optimizer", strategy)
        return []
    if strategy == "reset" or (strategy == "adaptive" and not given):
        return [optimizers.reset(optimizer) for optimizer in own.values()]
    if not given:
        logger.warning("Optimizer state is absent (strategy=%s): the recipient keeps its own", strategy)
        return []
    if set(given) != set(own):
        raise ConfigError(
            f"the donor's parameters have the state of {', '.join(sorted(map(str, given)))}, but the recipient's "
            f"optimizers are {', '.join(sorted(own))}; give all members the same model, and report what "
            "collect_parameters returns"
        )
    return [optimizers.inherit(optimizer, given[name]) for name, optimizer in own.items()]


def _normalizer(
    model: Any, parameters: Mapping[Any, Any], member: PopulationMember, source: PopulationMember | None
) -> Change | None:
    normalization.refuse_inner(model)
    normalizers = normalization.layers(model)
    bare = weights_of(parameters) is parameters
    state = None if bare else parameters.get(normalization.STATE)
    path = source.vecnormalize_stats_path if source is not None else None
    if path is None and member.exploited_from is not None:
        path = member.vecnormalize_stats_path  # the scheduler set it to the donor's
    absent = state is None and path is None
    if not normalizers:
        env = getattr(model, "env", None)
        if not absent and isinstance(getattr(env, "num_envs", 1), int):  # no stand-in
            remedy = "give it one with set_env" if env is None else "wrap its environments in one"
            raise ConfigError(
                "the donor's weights expect observations that a VecNormalize has normalised, but the recipient's "
                f"env={'None' if env is None else type(env).__name__} has none; {remedy} before the graft"
            )
        return None
    if absent and not bare and function.ENTRY in parameters:  # collected, so that nothing is left out
        raise ConfigError(
            "the donor's weights expect observations as they are, but the recipient's go through VecNormalize; "
            "give all members the same wrappers, or a file of statistics as vecnormalize_stats_path"
        )
    if absent:
        logger.warning("Member %s: the donor's VecNormalize statistics are absent; it keeps its own", member.member_id)
        return None
    message = (
        f"Member {member.member_id}: VecNormalize stats synchronized from source agent "
        "(prevents LSTM-normalization mismatch)"
    )
    found = normalization.read_statistics(Path(str(path))) if state is None else state
    return normalization.synchronize(model, normalizers, found, message)


def _recurrent(model: Any) -> Change | None:
    reset = getattr(model, "reset_lstm_states_to_initial", None)
    states = getattr(model, RECURRENT, None)
    if not callable(reset) and states is None:
        logger.debug("Model does not have LSTM states (reset_lstm_states_to_initial not found)")
        return None
    own = attributes([(model, RECURRENT, _zeros(states))])

    def apply() -> None:
        if callable(reset):
            reset()
        else:
            own.apply()
        logger.info("LSTM states reset to initial after PBT exploit")

    return Change(own.remember if hasattr(model, RECURRENT) else lambda: lambda: None, apply)


def _zeros(states: Any) -> Any:
    """Fresh zeros in the structure of tuples of tensors."""
    if isinstance(states, Tensor):
        return torch.zeros_like(states)
    if isinstance(states, tuple):
        parts = [_zeros(part) for part in states]
        return type(states)(*parts) if hasattr(states, "_fields") else tuple(parts)
    return states


def _state_dict(part: Any) -> Mapping[str, Any] | None:
    found = part.state_dict() if callable(getattr(part, "state_dict", None)) else None
    return found if isinstance(found, Mapping) else None


def _remember(part: Any) -> Callable[[], None]:
    before = copy.deepcopy(_state_dict(part))
    return lambda: None if before is None else part.load_state_dict(before)
