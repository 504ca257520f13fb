"""Whether exploits pay: a recipient's score before, and one, five and ten updates or reports after."""

import dataclasses
import math
from typing import Any

HORIZONS = (1, 5, 10)
"""Updates or reports after an exploit at which its success is judged."""


def no_worse(before: Any, after: Any, mode: str) -> Any:
    """Whether an exploit has paid: the recipient scores at least as well as before. NaN after it has not.

    Args:
        before: its score before, or an array of them.
        after: the same after it.
        mode: "max" or "min": whether high or low scores are good.
    """
    return after <= before if mode == "min" else after >= before


@dataclasses.dataclass
class Recipient:
    """One member that became another one's copy.

    Attributes:
        member: the recipient.
        strategy: what became of its optimizer.
        before: its score before.
        after: its scores since, until ten reports later or its next exploit.
    """

    member: int
    strategy: str
    before: float
    after: list[float] = dataclasses.field(default_factory=list)


class Success:
    """Follows the reports of recipients.

    Args:
        mode: "max" or "min": whether high or low scores are good.
    """

    def __init__(self, mode: str) -> None:
        self._mode = mode
        self.exploits: list[Recipient] = []

    def begin(self, member: int, strategy: str, before: float | int | None) -> None:
        """An exploit has happened."""
        self.exploits.append(Recipient(member, strategy, math.nan if before is None else before))

    def forget(self, member: int) -> None:
        """A member's latest exploit has not happened after all."""
        places = [place for place, exploit in enumerate(self.exploits) if exploit.member == member]
        del self.exploits[places[-1]]

    def report(self, member: int, performance: float | int | None) -> None:
        """A member has reported a score."""
        latest = next((exploit for exploit in reversed(self.exploits) if exploit.member == member), None)
        if latest is not None and len(latest.after) < HORIZONS[-1]:
            latest.after.append(math.nan if performance is None else performance)

    def stats(self) -> dict[str, float]:
        """Share of exploits whose recipient scored at least as well as before, by horizon and strategy."""
        found = {}
        for strategy in sorted({exploit.strategy for exploit in self.exploits}):
            for horizon in HORIZONS:
                pairs = [
                    (exploit.after[horizon - 1], exploit.before)
                    for exploit in self.exploits
                    if exploit.strategy == strategy and len(exploit.after) >= horizon
                ]
                verdicts = [no_worse(before, after, self._mode) for after, before in pairs if math.isfinite(before)]
                if verdicts:
                    found[f"success_{horizon}_{strategy}"] = sum(verdicts) / len(verdicts)
        return found

    def state_dict(self) -> list[dict[str, Any]]:
        """All exploits in plain values."""
        return [dataclasses.asdict(exploit) for exploit in self.exploits]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Restores what `state_dict` returned."""
        self.exploits = [Recipient(**record) for record in state]
