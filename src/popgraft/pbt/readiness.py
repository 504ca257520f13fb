"""Readiness: whether enough members have a score for anyone to copy."""

import logging
import math

from popgraft.config.population import EvolutionConfig

logger = logging.getLogger(__name__)


class Readiness:
    """Counts the members with a finite score, and in the end goes on with few of them rather than never.

    Args:
        config: `ready_percentage`, `min_ready_members` and `ready_check_max_wait`.

    Attributes:
        failed: checks in a row that have failed; the only state.
    """

    def __init__(self, config: EvolutionConfig) -> None:
        self.config = config
        self.failed = 0

    def check(self, ready: int, pop: int, occasion: str) -> bool:
        """Whether the population may exploit: ⌈pop · ready_percentage⌉ are ready, or fewer once that failed too often.

        Args:
            ready: members with a finite score.
            pop: members.
            occasion: what the check is for, as the first words of the warning that it goes on with few.
        """
        config = self.config
        required = math.ceil(pop * config.ready_percentage - 1e-9)  # 100 · 0.07 is 7.000…1 in binary
        if ready >= required:
            self.failed = 0
            return True
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
