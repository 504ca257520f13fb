"""What decides over a population."""

import abc
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.config.population import EvolutionConfig
from popgraft.hyperparams import to_single
from popgraft.pbt.choice import Choice
from popgraft.pbt.standing import Hyperparams, Standing
from popgraft.rng import numpy_generator
from popgraft.state import Decision, Record


class Strategy(abc.ABC):
    """Decides who goes on as whom, and with which hyperparameters.

    Args:
        config: the population and its evolution.
        seed: root of all draws.
    """

    def __init__(self, config: EvolutionConfig, seed: int) -> None:
        self.config = config
        self.seed = seed

    @abc.abstractmethod
    def __call__(self, standing: Standing) -> Choice:
        """Decides over `standing.deciding`.

        Raises:
            PopulationLost: there is nobody to go on from.
        """

    def decide(
        self, standing: Standing, hyperparams: Mapping[str, Float[Tensor, "pop"]], record: Record | None = None
    ) -> Decision:
        """What the engine carries out of its choice; see `Choice.decision`."""
        return self(standing).of_those_who_decide(standing).decision(hyperparams, record, self.config)

    @property
    def compares_episodes(self) -> bool:
        """Whether it needs the standard error of every score, and the number of episodes behind it."""
        return False

    def initial(self, member: int) -> Hyperparams:
        """Values that a member begins with, where they are not those of the configuration: drawn from their spaces.

        A member's draw does not depend on the population's size.
        """
        return {
            space.name: space.sample(numpy_generator(self.seed, "initial", space.name, member))
            for space in self.config.spaces
        }

    def initial_hyperparams(self, defaults: Mapping[str, float]) -> dict[str, Float[Tensor, "pop"]]:
        """What the population begins with: values of the configuration, and in place of some `initial` ones."""
        rows = [self.initial(member) for member in range(self.config.population_size)]
        spaces = {space.name: space for space in self.config.spaces}
        columns = {name: torch.full((len(rows),), value, dtype=torch.float32) for name, value in defaults.items()}
        for name in rows[0]:
            values = [row[name] for row in rows]
            columns[name] = torch.tensor([to_single(spaces[name], v) if name in spaces else v for v in values])
        return columns

    def statistics(self) -> dict[str, float]:
        """What it says of itself after a decision, by the name under which TensorBoard shows it."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs besides the configuration and the seed, as JSON values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027  # nothing, where there is no state
        """Restores what `state_dict` returned."""
