"""What a strategy says: who goes on as whom, and what changes; and the decision that it makes."""

import dataclasses
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from popgraft.config.population import EvolutionConfig, check_value
from popgraft.errors import ConfigError
from popgraft.hyperparams import to_single
from popgraft.inheritance import inherited_values, renewal_of
from popgraft.pbt.standing import Hyperparams, Standing
from popgraft.state import Decision, Record, Renewal


@dataclasses.dataclass(frozen=True)
class Choice:
    """Who goes on as whom, and what changes. As a parent, the population's size is the best state there ever was.

    Attributes:
        parents: whose weights, optimizer and statistics everybody goes on with; its own index for a survivor.
        hyperparameter_parents: whose hyperparameters; None: those of `parents`.
        explored: for members whose hyperparameters change, the new values of those that do, by name.
        reasons: for members that become somebody else, why, in a word or two; "exploit" where none is given.
        renewals: what becomes of weights, where it is not what the configuration says of every recipient; a survivor
            may be listed too.
    """

    parents: Int[Tensor, "pop"]
    hyperparameter_parents: Int[Tensor, "pop"] | None = None
    explored: Mapping[int, Hyperparams] = dataclasses.field(default_factory=dict)
    reasons: Mapping[int, str] = dataclasses.field(default_factory=dict)
    renewals: Mapping[int, Renewal] = dataclasses.field(default_factory=dict)

    @property
    def hyperparameter_donors(self) -> Int[Tensor, "pop"]:
        """Whose hyperparameters everybody goes on with."""
        return self.parents if self.hyperparameter_parents is None else self.hyperparameter_parents

    def of_those_who_decide(self, standing: Standing) -> "Choice":
        """The same, but that all others stay as they are, and so does who would return to the state that it is in.

        Raises:
            ConfigError: a parent is nobody.
        """
        everyone = torch.arange(standing.pop)
        last = standing.pop - (standing.best is None)
        for parents in (self.parents, self.hyperparameter_donors):
            if parents.shape != everyone.shape or not 0 <= int(parents.min()) <= int(parents.max()) <= last:
                raise ConfigError(
                    f"the strategy has named the parents {parents.tolist()} for {standing.pop} members; name one of "
                    f"0 to {last} for each of them"
                )
        decides = torch.isin(everyone, standing.deciding)
        if standing.best is not None and (own := standing.best.member) is not None:
            decides[own] &= int(self.parents[own]) != standing.pop
        parents = torch.where(decides, self.parents, everyone)
        return Choice(
            parents,
            torch.where(decides, self.hyperparameter_donors, everyone),
            {member: values for member, values in self.explored.items() if decides[member]},
            {
                member: self.reasons.get(member, "exploit")
                for member in everyone[decides].tolist()
                if parents[member] != member
            },
            {member: renewal for member, renewal in self.renewals.items() if decides[member]},
        )

    def among(self, members: Int[Tensor, "left"], pop: int) -> "Choice":
        """The same as a choice of all places of a population, where it was made of some members as if they were all."""
        everyone, left = torch.arange(pop), members.tolist()
        names = torch.cat([members, torch.tensor([pop])])  # the best state there ever was comes last in either
        parents, donors = (
            everyone.index_put((members,), names[each]) for each in (self.parents, self.hyperparameter_donors)
        )
        return Choice(
            parents,
            donors,
            {left[member]: values for member, values in self.explored.items()},
            {left[member]: reason for member, reason in self.reasons.items()},
            {left[member]: renewal for member, renewal in self.renewals.items()},
        )

    def joined(self, other: "Choice") -> "Choice":
        """Of two choices of different members, both."""
        everyone = torch.arange(len(self.parents))

        def both(own: Tensor, others: Tensor) -> Tensor:
            return torch.where(others == everyone, own, others)

        return Choice(
            both(self.parents, other.parents),
            both(self.hyperparameter_donors, other.hyperparameter_donors),
            {**self.explored, **other.explored},
            {**self.reasons, **other.reasons},
            {**self.renewals, **other.renewals},
        )

    def decision(
        self, hyperparams: Mapping[str, Float[Tensor, "pop"]], record: Record | None, config: EvolutionConfig
    ) -> Decision:
        """What the engine carries out: everybody's values, rounded to single precision within their spaces.

        Args:
            hyperparams: values that everybody has been trained with.
            record: the best state there ever was.
            config: the spaces of the hyperparameters.

        Raises:
            ConfigError: a new value has no meaning.
        """
        donors = self.hyperparameter_donors
        columns = inherited_values(donors, dict(hyperparams), record)
        spaces = {space.name: space for space in config.spaces}
        for member, values in self.explored.items():
            for name, value in values.items():
                try:
                    check_value(name, value, "the strategy's choice")
                except ValueError as error:
                    raise ConfigError(str(error)) from None
                columns[name][member] = to_single(spaces[name], value) if name in spaces else value
        decision = Decision(self.parents, columns, dict(self.reasons), donors)
        usual = renewal_of(config)
        if usual is not None:
            decision.renewals.update(dict.fromkeys(decision.recipients.tolist(), usual))
        decision.renewals.update(self.renewals)
        return decision
