"""What a run would take, found out by training it for a moment."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from popgraft.config import Config
from popgraft.errors import ShardLost
from popgraft.execute import Loss, Part, make_executor
from popgraft.names import searched
from popgraft.nn import Policy
from popgraft.pbt import make_strategy
from popgraft.rollout.make import make_grid
from popgraft.spaces import Spaces
from popgraft.state import Decision
from popgraft.train.interrupt import stop_on_signal
from popgraft.train.observer import Observer
from popgraft.train.out_of_memory import in_words
from popgraft.train.place import Place


@dataclass(frozen=True)
class Probe:
    """A moment of a run.

    Attributes:
        spaces: what an agent sees and does.
        state: numbers of its recurrent state.
        parameters: numbers that one member's networks hold.
        rate: environment steps of training a second, of all members, with evaluations where there were any.
    """

    spaces: Spaces
    state: int
    parameters: int
    rate: float


def probe(config: Config, seconds: float, factory: Callable[..., Any] | None = None) -> Probe:
    """Trains as a run would, without a folder.

    Args:
        config: of the run.
        seconds: for how long, after the first update; at least until there is one more than parts of the population.
        factory: makes the environments, in place of the configured source.

    Raises:
        PopgraftError: what a run would raise.
    """
    pop, update = config.pbt.population_size, config.env.num_envs * config.model.n_steps
    times, steps = list[float](), list[int]()

    def on_update(members: int) -> None:
        times.append(time.monotonic())
        steps.append(members * update)

    def over() -> bool:
        return stop.is_set() or (len(times) > len(executor.parts) and time.monotonic() - times[0] > seconds)

    with (
        Place.of(config.run_dir).held(),
        stop_on_signal(Observer()) as stop,
        searched(config.code_dir),
        in_words(config),
    ):
        with contextlib.closing(make_grid(config.env, 1, 1, factory)) as grid:
            spaces = grid.spaces
        hyperparams = make_strategy(config).initial_hyperparams(config.model.hyperparams())
        rounds = torch.zeros(pop, dtype=torch.long)
        with contextlib.closing(make_executor(config, hyperparams, factory)) as executor:
            executor.begin(rounds)
            while not over():
                news = executor.next(on_update, over)
                if isinstance(news, Loss):
                    raise ShardLost(str(news.error))
                if isinstance(news, Part):
                    rounds[news.members] += 1
                    stays = Decision(torch.arange(pop), hyperparams, {})
                    executor.inherit(news.members.tolist(), stays, rounds)
            parameters = executor.export(torch.arange(1)).params.shape[1]
        if stop.is_set():
            raise KeyboardInterrupt
    rate = sum(steps[1:]) / (times[-1] - times[0])
    return Probe(spaces, Policy(spaces, config.model.network).state_size, parameters, rate)
