"""Which of several choices to play where their rewards drift: EXP3 with shared weights, several plays a round.

The bandit for categorical hyperparameters of Parker-Holder et al. 2021 (arXiv:2106.15883), TV.EXP3.M, without its
dependent rounding: the plays of a round are independent draws, so that choices may be played twice. Auer et al. 2002
(SIAM J. Comput. 32, §3 and §8) give the estimate and the shared weights.
"""

import numpy as np

EXPLORATION = 0.2
"""γ, share of plays that are uniform."""
SHARE = 0.01
"""α, share of all weight that every round is spread over all choices, so that none is lost for good."""


class Exp3:
    """Weights of C choices, drawn with p = (1 − γ) w/Σw + γ/C.

    Args:
        choices: their number, C.
    """

    def __init__(self, choices: int) -> None:
        self.weights = np.full(choices, 1 / choices)

    @property
    def probabilities(self) -> np.ndarray:
        """Of every choice."""
        return (1 - EXPLORATION) * self.weights + EXPLORATION / len(self.weights)

    def draw(self, rng: np.random.Generator) -> int:
        """Plays one."""
        return int(rng.choice(len(self.weights), p=self.probabilities))

    def learn(self, plays: list[tuple[int, float]]) -> None:
        """Learns from a round: w ← w exp(γ Σ r/p / C) + e α/C Σw, where the sum is over the plays of a choice.

        Args:
            plays: choices that were drawn since the last round, each with its reward within [0, 1].
        """
        estimates = np.zeros(len(self.weights))
        for choice, reward in plays:
            estimates[choice] += reward / self.probabilities[choice]
        growth = np.exp(EXPLORATION * estimates / len(self.weights))
        grown = self.weights * growth + np.e * SHARE / len(self.weights)
        self.weights = grown / grown.sum()
