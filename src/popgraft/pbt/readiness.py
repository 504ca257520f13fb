"""Readiness: whether enough members have a score for anyone to copy."""

import logging
import math
from collections.abc import Mapping
from typing import Any

from popgraft.config.population import EvolutionConfig

logger = logging.getLogger(__name__)

KINDS = (bool, type(None))
"""Types of a verdict."""


class Readiness:
    """Counts the members with a finite score, and in the end goes on with few of them rather than never.

    Args:
        config: `ready_percentage`, `min_ready_members` and `ready_check_max_wait`.

    Attributes:
        failed: rounds in a row whose checks have failed.
    """

    def __init__(self, config: EvolutionConfig) -> None:
        self.config = config
        self.failed = 0
        self._asked: list[int] = []
        self._verdict: bool | None = None

    def check(self, ready: int, pop: int, occasion: str, who: int | None = None) -> bool:
        """Whether the population may exploit: ⌈pop · ready_percentage⌉ are ready, or fewer once that failed too often.

        Checks of members that ask one after the other are one round, until one of them asks again: they fail once, and
        where they go on with few they all do.

        Args:
            ready: members with a finite score.
            pop: members.
            occasion: what the check is for, as the first words of the warning that it goes on with few.
            who: the member that asks; None: everybody at once.
        """
        config = self.config
        if who is None or who in self._asked:
            self._asked, self._verdict = [], None
        self._asked += [] if who is None else [who]
        required = math.ceil(pop * config.ready_percentage - 1e-9)  # 100 · 0.07 is 7.000…1 in binary
        if ready >= required:
            self.failed = 0
            return True
        if self._verdict is None:
            self._verdict = self._few(ready, pop, required, occasion)
        return self._verdict

    def _few(self, ready: int, pop: int, required: int, occasion: str) -> bool:
        """Counts a round that fails; whether it goes on all the same."""
        config = self.config
        self.failed += 1
        if self.failed < config.ready_check_max_wait or ready < config.min_ready_members:
            return False
        logger.warning(
            "%s: %d of %d members have a finite score, but ready_percentage=%g asks for %d; "
            "going on, after %d failed checks in a row",
            occasion, ready, pop, config.ready_percentage, required, self.failed,
        )  # fmt: skip
        self.failed = 0
        return True

    def state_dict(self) -> dict[str, Any]:
        """The count, and the round that is going on."""
        return {"failed_ready_checks": self.failed, "ready_asked": list(self._asked), "ready_verdict": self._verdict}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned; earlier versions had the count alone, and other strategies nothing.

        Raises:
            ValueError: it returned nothing like it.
        """
        failed, asked = state.get("failed_ready_checks", 0), list(state.get("ready_asked", []))
        verdict = state.get("ready_verdict")
        if any(type(count) is not int or count < 0 for count in (failed, *asked)) or type(verdict) not in KINDS:
            raise ValueError(f"{failed}, {asked} and {verdict} are not a state of readiness checks")
        self.failed, self._asked, self._verdict = failed, asked, verdict
