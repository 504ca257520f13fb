"""How a population of models that are trained elsewhere stands, in the terms of those who decide over it."""

import functools
import math
from collections.abc import Sequence

import torch

from popgraft.foreign.config import PBTConfig
from popgraft.foreign.member import PopulationMember, scores_of
from popgraft.pbt import Best, Past, Standing


def standing_of(
    config: PBTConfig,
    population: Sequence[PopulationMember],
    member: PopulationMember,
    best: PopulationMember | None,
    number: int,
    seed: int,
) -> Standing:
    """What a strategy sees when a member asks; everybody is ranked by its latest report, and ages are its steps.

    Args:
        config: how the population evolves.
        population: the members.
        member: who asks.
        best: the best report ever.
        number: number of the decision.
        seed: root of all draws.
    """
    reports = [other.ranked for other in population]
    steps = torch.tensor([report.step for report in reports])
    before = torch.tensor([other.history[-2]["step"] if len(other.history) > 1 else 0 for other in population])
    return Standing(
        number=number,
        scores=scores_of(reports),
        hyperparams=[(other if other is member else other.seen_by(member)).hyperparams for other in population],
        ages=steps,
        steps=steps,
        spent=steps - before,
        training=torch.full((len(population),), math.nan),
        seconds=torch.full((len(population),), math.nan),
        best=None if best is None else Best(scores_of([best]), best.hyperparams, best.step),
        compared=torch.tensor([i for i, report in enumerate(reports) if report.performance is not None]).long(),
        deciding=torch.tensor([next(i for i, other in enumerate(population) if other is member)]),
        together=False,
        heirs=0,
        mode=config.metric_mode,
        seed=seed,
        occasion=f"Member {member.member_id}",
        recall=functools.partial(history, population),
    )


def history(population: Sequence[PopulationMember]) -> Sequence[Past]:
    """Everybody's reports but the latest, by member; what they say of errors and episodes is not kept."""
    found = []
    for place, member in enumerate(population):
        for generation, report in enumerate(member.history[:-1]):
            score = math.nan if report["performance"] is None else float(report["performance"])
            parents = report.get("parents", {"weights": place, "hyperparams": place, "generation": generation})
            found.append(
                Past(
                    generation=generation,
                    member=place,
                    score=score,
                    stderr=math.nan,
                    episodes=0,
                    steps=report["step"],
                    hyperparams=report["hyperparams"],
                    parent=parents["weights"],
                    parent_generation=parents["generation"],
                    hyperparameter_parent=parents["hyperparams"],
                )
            )
    return found


def parents_of(
    population: Sequence[PopulationMember], best: PopulationMember | None, parent: int, adopted: int
) -> dict[str, int]:
    """What the history says of a recipient: whose weights and hyperparameters it has, and of which report.

    Args:
        population: the members.
        best: the best report ever.
        parent: the weights' donor; the population's size stands for the best report ever.
        adopted: the hyperparameters', likewise.
    """
    size = len(population)
    donor, tuned = (best.member_id if best and each == size else each for each in (parent, adopted))
    reports = population[donor].history
    found = (best.step, best.performance) if best and parent == size else None
    generation = next(
        (i for i, each in enumerate(reports) if (each["step"], each["performance"]) == found), len(reports) - 1
    )
    return {"weights": donor, "hyperparams": tuned, "generation": generation}
