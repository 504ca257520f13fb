"""Small runs on a Ray cluster, and what is done to their actors while they train."""

import contextlib
import os

import pytest

from popgraft.train import Observer, assemble

ray = pytest.importorskip("ray")

SMALL = {
    "env": {"id": "CartPole-v1", "num_envs": 2},
    "model": {
        "n_steps": 16,
        "n_epochs": 2,
        "n_minibatches": 1,
        "network": {"encoder_layers": [8], "hidden_size": 6, "n_quantiles": 5},
    },
    "pbt": {
        "population_size": 4,
        "perturbation_interval": 2,
        "hyperparams": [{"name": "learning_rate", "min_value": 1e-4, "max_value": 1e-2, "is_log_scale": True}],
    },
    "evaluation": {"episodes": 2, "max_steps": 30, "final_episodes": 2},
    "snapshots": {"interval": 2},
    "total_timesteps": 4 * 2 * 16 * 2 * 5,
}
"""Five generations of four members in which somebody is always replaced."""
ASYNC = {
    **SMALL,
    "pbt": {**SMALL["pbt"], "ready_percentage": 0.5},
    "execute": {"kind": "ray", "mode": "async", "shards": 2},
    "total_timesteps": 4 * 2 * 16 * 2 * 6,
    "seed": 3,
}
"""Twelve generations of two shards with two members each, at their own pace."""


def process_of(executor, place):
    call = executor.shards[place]._actor.__ray_call__.options(concurrency_group="inbox")
    return ray.get(call.remote(lambda _: os.getpid()))


def send(number, *places):
    """Sends a signal to actors, whatever they are doing."""

    def what(executor):
        with contextlib.suppress(ray.exceptions.ActorDiedError):  # it is dead already
            for pid in [process_of(executor, place) for place in places]:
                os.kill(pid, number)

    return what


def losses(run):
    return [event.text for event in run.events if event.kind == "lost"]


class Watching(Observer):
    """Has the executor of a run, and counts updates."""

    def __init__(self, monkeypatch):
        self.updates = 0
        original = assemble.make_executor

        def make(*arguments):
            self.executor = original(*arguments)
            return self.executor

        monkeypatch.setattr(assemble, "make_executor", make)

    def on_update(self, steps):
        self.updates += 1


class InUpdate(Watching):
    """Does something to the executor in a certain update, or in all from then on."""

    def __init__(self, monkeypatch, at, what, always=False):
        super().__init__(monkeypatch)
        self.at, self.what, self.always = at, what, always

    def on_update(self, steps):
        super().on_update(steps)
        if self.updates == self.at or (self.always and self.updates > self.at):
            self.what(self.executor)
