"""What decides over a population."""

import abc
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from popgraft.config.population import STRATEGY, EvolutionConfig
from popgraft.errors import ConfigError
from popgraft.hyperparams import to_single
from popgraft.messages import told
from popgraft.pbt.choice import Choice
from popgraft.pbt.standing import Hyperparams, Standing
from popgraft.rng import numpy_generator
from popgraft.state import Decision, Record


class Strategy(abc.ABC):
    """Decides who goes on as whom, and with which hyperparameters.

    Args:
        config: the population and its evolution.
        seed: root of all draws.

    Attributes:
        together: whether it can decide over everybody at once only.
        of_any_size: whether the population may become smaller than it was, see `pbt.population_schedule`.
    """

    together: ClassVar[bool] = False
    of_any_size: ClassVar[bool] = True

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
        self,
        standing: Standing,
        hyperparams: Mapping[str, Float[Tensor, "pop"]],
        record: Record | None = None,
        members: Int[Tensor, "left"] | None = None,
    ) -> Decision:
        """What the engine carries out of its choice; see `Choice.decision`.

        Args:
            standing: what it sees.
            hyperparams: values that everybody has been trained with.
            record: the best state there ever was.
            members: whose standing it is, in their order, where not everybody's.
        """
        choice = self(standing).of_those_who_decide(standing)
        if members is not None:
            choice = choice.among(members, len(next(iter(hyperparams.values()))))
        return choice.decision(hyperparams, record, self.config)

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
        """All that a resumed run needs besides the configuration and the seed, as JSON gives it back."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027  # nothing, where there is no state
        """Restores what `state_dict` returned."""

    def saved(self) -> dict[str, Any]:
        """Its state, and whose it is.

        Raises:
            ConfigError: it holds what JSON would not give back as it was.
        """
        state = self.state_dict()
        for wrong in _foreign_to_json(state):
            raise ConfigError(
                f"the state of strategy={self.config.strategy!r} holds {wrong!r}, which a file would not give back; "
                "use numbers, strings, lists, and mappings whose keys are strings"
            )
        return {"of": self.config.strategy, "state": state}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Goes on from what `saved` returned; begins anew where another strategy did.

        Raises:
            ConfigError: an own strategy does not take back its state.
        """
        name, first = self.config.strategy, next(iter(STRATEGY.table))
        if saved.get("of", first) != name:
            return
        try:
            self.load_state_dict(saved["state"] if "of" in saved else saved)  # earlier versions saved the first's alone
        except Exception as error:
            if name in STRATEGY.table:
                raise
            raise ConfigError(
                f"strategy={name!r} does not take back what its state_dict has returned ({told(error)}); "
                "correct its load_state_dict"
            ) from error


def _foreign_to_json(value: Any) -> Iterator[Any]:
    """What of a value JSON would not give back as it was."""
    if type(value) is dict:
        yield from (key for key in value if type(key) is not str)
        value = list(value.values())
    if type(value) is list:
        for part in value:
            yield from _foreign_to_json(part)
    elif value is not None and type(value) not in (bool, int, float, str):
        yield value
