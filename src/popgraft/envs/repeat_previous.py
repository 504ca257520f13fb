"""A memory task that nothing but memory solves, as popgraft/RepeatPrevious-v0."""

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor

from popgraft.envs.base import Stepped, TensorEnv
from popgraft.errors import ConfigError
from popgraft.spaces import ActionSpec, ObsSpec


@dataclasses.dataclass
class Cards:
    """The state: cards in view and before, the oldest first, and how many have been answered."""

    suits: Int[Tensor, "pop env cards"]
    answered: Int[Tensor, "pop env"]


class RepeatPrevious(TensorEnv):
    """At every step a card is shown; the agent names the suit of the card shown `delay` steps ago.

    With suits s₀ … s_{T−1}, drawn independently and uniformly, and k = delay, the answer aₜ given on seeing sₜ earns

        rₜ = ±1 / (T − k) for t ≥ k, positive where aₜ = s_{t−k};  rₜ = 0 before,

    so a perfect episode scores 1, and an agent without memory 2/suits − 1 on average. After T answers the episode
    terminates. (Cf. RepeatPrevious in POPGym, Morad et al. 2023, ICLR, arXiv:2303.01859.)

    Args:
        delay: k ≥ 1, steps between a card and its answer.
        suits: number of suits, at least 2.
        length: T > k, answers in an episode.

    Raises:
        ConfigError: an argument outside its range.
    """

    noise_dims = 1

    def __init__(self, delay: int = 4, suits: int = 4, length: int = 52) -> None:
        if delay < 1 or suits < 2 or length <= delay:
            raise ConfigError(
                f"RepeatPrevious cannot be played with delay={delay}, suits={suits}, length={length}; "
                "choose delay >= 1, suits >= 2 and length > delay"
            )
        self._delay, self._suits, self._length = delay, suits, length
        self.observation = ObsSpec((suits,))
        self.action = ActionSpec("discrete", sizes=(suits,))

    def reset(self, noise: Float[Tensor, "pop env 1"]) -> Cards:
        """The first card."""
        card = self._drawn(noise)
        return Cards(card.expand(*card.shape[:2], self._delay + 1).contiguous(), torch.zeros_like(card.squeeze(-1)))

    def step(self, state: Cards, action: Int[Tensor, "pop env"], noise: Float[Tensor, "pop env 1"]) -> Stepped:
        """Takes the answers to the cards in view and shows the next ones."""
        unit = 1 / (self._length - self._delay)
        right = (action == state.suits[..., 0]).to(noise.dtype)
        reward = (right * (2 * unit) - unit).masked_fill(state.answered < self._delay, 0)
        suits = torch.cat([state.suits[..., 1:], self._drawn(noise)], dim=-1)
        answered = state.answered + 1
        return Cards(suits, answered), reward, answered == self._length

    def observe(self, state: Cards) -> Float[Tensor, "pop env suits"]:
        """One indicator per suit, for the card in view."""
        choices = torch.arange(self._suits, device=state.suits.device)
        return (state.suits[..., -1:] == choices).to(torch.float32)

    def _drawn(self, noise: Float[Tensor, "pop env 1"]) -> Int[Tensor, "pop env 1"]:
        return (noise * self._suits).long()
