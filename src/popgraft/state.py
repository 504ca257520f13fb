"""What a member is, what a seat is, and what a decision is.

A leaf of training state is either inherited or bound to its place, and the type it lives in says which. A class
declared with `@heritable` may hold only tensors with the leading axis `pop`, dicts of them, and other heritable
classes; a class declared with `@seated` the same with seated ones. Anything else is refused when the class is defined,
so a graft can never forget a leaf.
"""

import dataclasses
import typing
from typing import Any, Literal, NamedTuple, TypeVar, dataclass_transform

import torch
from jaxtyping import AbstractArray, Bool, Float, Int
from torch import Tensor

from popgraft import tree

C = TypeVar("C", bound=type)
Role = Literal["heritable", "seated"]
ROLE = "__popgraft_role__"


def role_of(cls: Any) -> Role | None:
    """The role that a type was declared with, or None; a subclass must be declared itself."""
    return typing.cast("Role | None", getattr(cls, "__dict__", {}).get(ROLE))


def _check_leaf(owner: type, name: str, hint: Any, role: Role) -> None:
    if typing.get_origin(hint) is dict:
        hint = typing.get_args(hint)[1]
    is_array = isinstance(hint, type) and issubclass(hint, AbstractArray)
    is_row = is_array and hint.array_type is Tensor and hint.dim_str.split()[:1] == ["pop"]
    if not is_row and role_of(hint) != role:
        raise TypeError(
            f"{owner.__name__}.{name} is declared as {hint}, which is not {role}: a {role} class holds tensors "
            f'with the leading axis pop (Float[Tensor, "pop ..."]), dicts of them and {role} classes only'
        )


def _declare(cls: C, role: Role) -> C:
    cls = dataclasses.dataclass(slots=True)(cls)  # type: ignore[assignment]  # no attribute beside the declared ones
    setattr(cls, ROLE, role)
    for name, hint in typing.get_type_hints(cls).items():
        _check_leaf(cls, name, hint, role)
    return cls


@dataclass_transform()
def heritable(cls: C) -> C:
    """Declares a dataclass of state that a graft copies from donor to recipient."""
    return _declare(cls, "heritable")


@dataclass_transform()
def seated(cls: C) -> C:
    """Declares a dataclass of state that stays with its place when another member moves in."""
    return _declare(cls, "seated")


@heritable
class OptimizerState:
    """What an optimizer remembers of the gradients of the flat parameters."""

    averages: dict[str, Float[Tensor, "pop ..."]]
    """Running averages by name: `exp_avg`, `exp_avg_sq`, `utility` [pop, n]; `grad_norm` [pop, tensors]."""
    step: Float[Tensor, "pop"]
    """Steps that entered the averages, for the correction of their bias."""
    skipped: Float[Tensor, "pop"]
    """Steps not taken because the gradient was not finite."""


@heritable
class Moments:
    """Running mean, variance and sample count of a vector quantity (parallel Welford)."""

    mean: Float[Tensor, "pop *shape"]
    var: Float[Tensor, "pop *shape"]
    count: Float[Tensor, "pop"]


@heritable
class Normalizer:
    """Running statistics of every normalised observation key, and of the discounted return (for rewards)."""

    obs: dict[str, Moments]
    returns: Moments


@heritable
class VGSState:
    """Statistics of the variance gradient scaler; every average is biased towards 0 until corrected."""

    step_count: Float[Tensor, "pop"]
    """Gradients measured."""
    param_grad_mean_ema: Float[Tensor, "pop *size"]
    """Average of every tensor's mean gradient [pop, tensors]; with `per_element`, of every element [pop, n]."""
    param_grad_sq_ema: Float[Tensor, "pop *size"]
    """Average of its square."""
    grad_mean_ema: Float[Tensor, "pop"]
    """Average of the mean over all elements of the gradient."""
    grad_var_ema: Float[Tensor, "pop"]
    """Average of the variance over all elements."""
    grad_norm_ema: Float[Tensor, "pop"]
    """Average of the Euclidean norm."""
    grad_max_ema: Float[Tensor, "pop"]
    """Average of the largest magnitude."""


@heritable
class ReturnScale:
    """Running statistics of return targets, and the snapshot in whose units the critic predicts."""

    mean_ema: Float[Tensor, "pop"]
    """Average of E[G]."""
    square_ema: Float[Tensor, "pop"]
    """Average of E[G²]."""
    updates: Float[Tensor, "pop"]
    """Updates that entered the averages."""
    mean: Float[Tensor, "pop"]
    """μ of the active snapshot: a prediction q stands for the return σq + μ."""
    std: Float[Tensor, "pop"]
    """σ of the active snapshot."""


@heritable
class KLControl:
    """Controller of the KL penalty's coefficient."""

    beta: Float[Tensor, "pop"]
    """Coefficient of the penalty, per nat."""
    error: Float[Tensor, "pop"]
    """Latest error KL/target − 1."""
    error_prev: Float[Tensor, "pop"]
    """The error before it."""
    error_sum: Float[Tensor, "pop"]
    """Sum of all errors."""


@heritable
class EntropySchedule:
    """What the entropy coefficient's decay waits for."""

    recent: Float[Tensor, "pop window"]
    """Rollout entropies of the latest updates, oldest first, nats."""
    seen: Float[Tensor, "pop"]
    """Updates so far."""
    decay_start: Float[Tensor, "pop"]
    """Update at which the decay began; infinite before."""


@heritable
class Member:
    """All that is inherited: one indexing operation moves it whole."""

    params: Float[Tensor, "pop n"]
    optimizer: OptimizerState
    vgs: VGSState
    normalizer: Normalizer
    returns: ReturnScale
    kl: KLControl
    entropy: EntropySchedule
    hyperparams: dict[str, Float[Tensor, "pop"]]
    age: Int[Tensor, "pop"]
    """Updates in the member's ancestry."""


@seated
class Seat:
    """All that stays with the place, beside its environments and its random generator."""

    carry: Float[Tensor, "pop env state"]
    """Recurrent state before the next step."""
    episode_start: Bool[Tensor, "pop env"]
    """Whether the next step is the first of an episode."""
    discounted_return: Float[Tensor, "pop env"]
    """Running discounted return, whose spread scales rewards."""
    episode_return: Float[Tensor, "pop env"]
    """Undiscounted return of the episode in progress, in raw reward units."""
    episode_length: Int[Tensor, "pop env"]
    """Environment steps of the episode in progress."""

    @classmethod
    def empty(cls, pop: int, envs: int, state: int, device: torch.device) -> "Seat":
        """Seats at which every episode is about to begin."""
        return cls(
            carry=torch.zeros(pop, envs, state, device=device),
            episode_start=torch.ones(pop, envs, dtype=torch.bool, device=device),
            discounted_return=torch.zeros(pop, envs, device=device),
            episode_return=torch.zeros(pop, envs, device=device),
            episode_length=torch.zeros(pop, envs, dtype=torch.long, device=device),
        )


class Renewal(NamedTuple):
    """What of weights is left, and how much is new: θ ← λθ + σθ₀, where θ₀ is drawn as at birth.

    Attributes:
        shrink: λ.
        perturb: σ.
    """

    shrink: float
    perturb: float


@dataclasses.dataclass(frozen=True)
class Decision:
    """Who inherits from whom, and with which hyperparameters: the whole outcome of exploit and explore.

    Attributes:
        parents: donor of every member; a member's own index where it survives; the population's size stands for the
            best state there ever was.
        hyperparams: the values that every member trains with from now on.
        reasons: for every member whose parent is someone else, why: the exploit method, or "rescue".
        hyperparameter_parents: whose values those were before some were explored; None: those of `parents`.
        renewals: of members whose weights are not all their parent's, or that keep no more than a part of their own.
        ended: members that train no more.
    """

    parents: Int[Tensor, "pop"]
    hyperparams: dict[str, Float[Tensor, "pop"]]
    reasons: dict[int, str]
    hyperparameter_parents: Int[Tensor, "pop"] | None = None
    renewals: dict[int, Renewal] = dataclasses.field(default_factory=dict)
    ended: tuple[int, ...] = ()

    @property
    def recipients(self) -> Int[Tensor, "recipients"]:
        """Indices of the members that are overwritten with another one."""
        return (self.parents != torch.arange(len(self.parents))).nonzero().squeeze(1)

    @property
    def heirs(self) -> Int[Tensor, "heirs"]:
        """Indices of the members whose weights change: recipients, and whose own are renewed."""
        return torch.tensor(sorted({*self.recipients.tolist(), *self.renewals}), dtype=torch.long)

    @property
    def hyperparameter_donors(self) -> Int[Tensor, "pop"]:
        """Whose hyperparameters everybody took before some were explored."""
        return self.parents if self.hyperparameter_parents is None else self.hyperparameter_parents


@dataclasses.dataclass(frozen=True)
class Scores:
    """Fitness of every member: mean, standard error of that mean, and episodes it was taken over.

    A member that could not be scored (its environment failed, its weights are not finite) has mean NaN; `faults` holds
    what a failed environment said, by member; `steps` counts the environment steps of an evaluation.
    """

    mean: Float[Tensor, "pop"]
    stderr: Float[Tensor, "pop"]
    episodes: Int[Tensor, "pop"]
    faults: dict[int, str] = dataclasses.field(default_factory=dict)
    steps: int = 0


@dataclasses.dataclass(frozen=True)
class Record:
    """The best state there ever was.

    Attributes:
        state: a population of one, on the CPU.
        scores: its fitness when it was found, one row.
        generation: when that was.
        place: which member it was.
    """

    state: Member
    scores: Scores
    generation: int
    place: int


def rows(tree_: Any) -> int:
    """Length of the `pop` axis of a tree, checked to be the same in every leaf."""
    lengths = {path: leaf.shape[0] for path, leaf in tree.items(tree_)}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"leaves disagree on the population's size: {lengths}")
    return next(iter(lengths.values()))
