"""What grafts do to their recipients: followed from the metrics of the updates that come after them."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from popgraft.inheritance.success import HORIZONS, no_worse
from popgraft.state import Decision
from popgraft.store import Aftermath

Metrics = dict[str, Float[Tensor, "part updates"]]
Graft = tuple[int, int]
"""Generation and recipient."""


@dataclasses.dataclass
class _Pending:
    seen: int
    found: Aftermath


class Follower:
    """Notes what is known of every graft, until ten updates after it, or until its recipient is overwritten or ends."""

    def __init__(self) -> None:
        self._pending: dict[Graft, _Pending] = {}
        self._latest: dict[int, float] = {}

    def follow(
        self, members: Int[Tensor, "part"], metrics: Metrics, value_loss_ratios: Mapping[int, float]
    ) -> dict[Graft, Aftermath]:
        """Takes in the updates of a generation.

        Args:
            members: those who took them.
            metrics: of every update, a row for each of them.
            value_loss_ratios: of the members that were overwritten before it, see `Advance`.

        Returns:
            What is new of every graft that is still followed.
        """
        news = {}
        rows = {member: row for row, member in enumerate(members.tolist())}
        returns = metrics["ep_rew_mean"].tolist()
        for graft, pending in [each for each in self._pending.items() if each[0][1] in rows]:
            ratio = value_loss_ratios.get(graft[1], math.nan)
            news[graft] = pending.found = self._advanced(rows[graft[1]], pending, metrics, returns, ratio)
            pending.seen += len(returns[0])
            if pending.seen >= HORIZONS[-1]:
                del self._pending[graft]
        for member, row in zip(rows, returns, strict=True):
            finite = [value for value in row if math.isfinite(value)]
            self._latest[member] = finite[-1] if finite else self._latest.get(member, math.nan)
        return news

    def begin(self, generations: Int[Tensor, "pop"], decision: Decision) -> None:
        """Takes in the grafts of a decision, which came after the recipients' generations of these numbers."""
        gone = {*decision.recipients.tolist(), *decision.ended}
        self._pending = {graft: pending for graft, pending in self._pending.items() if graft[1] not in gone}
        for member in decision.recipients.tolist():
            found = Aftermath(return_before=self._latest.get(member, math.nan))
            self._pending[int(generations[member]), member] = _Pending(0, found)

    def known(self) -> dict[Graft, Aftermath]:
        """What has been noted of every graft that is still followed; nothing before its first update."""
        return {graft: pending.found if pending.seen else Aftermath() for graft, pending in self._pending.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, as JSON values."""
        pending = [[*graft, each.seen, dataclasses.asdict(each.found)] for graft, each in self._pending.items()]
        return {"pending": pending, "latest": list(self._latest.items())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._pending = {
            (generation, member): _Pending(seen, Aftermath(**found))
            for generation, member, seen, found in state["pending"]
        }
        self._latest = dict(state["latest"])

    def _advanced(
        self, row: int, pending: _Pending, metrics: Metrics, returns: list[list[float]], ratio: float
    ) -> Aftermath:
        found: dict[str, float] = {}
        if pending.seen == 0:
            found["value_loss_ratio"] = ratio
            if "momentum_cosine" in metrics:
                found["momentum_cosine"] = float(metrics["momentum_cosine"][row, 0])
        for horizon in HORIZONS:
            update = horizon - 1 - pending.seen
            if 0 <= update < len(returns[row]):
                found[f"return_{horizon}"] = returns[row][update]
        return dataclasses.replace(pending.found, **found)


def summary(seen: Sequence[Aftermath], mode: str = "max") -> dict[str, float]:
    """Averages and shares over grafts, where high ("max") or low ("min") returns are good; see `Run.aftermath`."""

    def average(values: Iterable[float]) -> float:
        finite = [value for value in values if math.isfinite(value)]
        return sum(finite) / len(finite) if finite else math.nan

    def success(horizon: int) -> Iterator[float]:
        for graft in seen:
            after = getattr(graft, f"return_{horizon}")
            if math.isfinite(after) and math.isfinite(graft.return_before):
                yield float(no_worse(graft.return_before, after, mode))

    return {
        "grafts": float(len(seen)),
        "value_loss_ratio": average(graft.value_loss_ratio for graft in seen),
        "momentum_cosine": average(graft.momentum_cosine for graft in seen),
        **{f"success_{horizon}": average(success(horizon)) for horizon in HORIZONS},
    }


def spread(params: Float[Tensor, "pop n"]) -> float:
    """Root mean square distance between the parameters of two members, per parameter.

    √(Σᵢⱼ ‖θᵢ − θⱼ‖²/(P(P − 1) n)) = √(2 Σᵢ ‖θᵢ − θ̄‖²/((P − 1) n))
    """
    pop, n = params.shape
    if pop == 1:
        return 0.0
    return math.sqrt(2 / ((pop - 1) * n)) * float(_size(params - params.mean(0)))


def relative_spread(momenta: Float[Tensor, "pop n"]) -> float:
    """How far apart the optimizers of two members are, whatever the size of their gradients.

    √(Σᵢⱼ ‖mᵢ − mⱼ‖²/(2P(P − 1)) / (Σᵢ ‖mᵢ‖²/P)) = √((Σᵢ ‖mᵢ − m̄‖²/(P − 1)) / (Σᵢ ‖mᵢ‖²/P))

    0 for equal momenta, 1 for those that point in unrelated directions; NaN where all are zero.
    """
    pop = len(momenta)
    if pop == 1:
        return 0.0
    return math.sqrt(pop / (pop - 1)) * float(_size(momenta - momenta.mean(0)) / _size(momenta))


def distances(params: Float[Tensor, "pop n"], momenta: Float[Tensor, "pop n"] | None) -> dict[str, float]:
    """How far apart members are, and their optimizers where these have momenta."""
    found = {"member_distance": spread(params)}
    return found if momenta is None else {**found, "optimizer_distance": relative_spread(momenta)}


def _size(rows: Float[Tensor, "pop n"]) -> Float[Tensor, ""]:
    """Root of the sum of all squares."""
    size: Tensor = torch.linalg.vector_norm(rows, dtype=torch.float64)
    return size
