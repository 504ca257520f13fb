"""One measurement of this project, in a process of its own.

    python benchmarks/speed/worker.py '{"kind": "population", "population": 16, "seconds": 2}'

prints one line of JSON.
"""

import dataclasses
import json
import os
import statistics
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from measuring import N_ENVS, N_MINIBATCHES, N_STEPS, Update, cpu_seconds, memory, timed

from popgraft.config import Config, load_config
from popgraft.execute import LockstepExecutor, make_executor
from popgraft.nn.policy import Policy
from popgraft.pbt import Evolution
from popgraft.rollout.grid import EnvGrid
from popgraft.state import Decision

WORKLOAD = Path(__file__).with_name("workload.yaml")

AGENTS: dict[str, dict[str, Any]] = {
    "reference": {"model.network.critic": "scalar"},
    "quantile": {},
    "bfloat16": {"model.network.critic": "scalar", "model.network.precision": "bfloat16"},
    "default": {
        "model.network.critic_recurrent": "separate",
        "model.network.twin_critics": True,
        "model.optimizer": "adaptive_upgd",
        "model.vgs.enabled": True,
    },
}
"""What is set beside the workload: nothing but a scalar critic; 21 quantiles; bfloat16 factors;
memories of actor and critic apart, twin critics of 21 quantiles, AdaptiveUPGD and the variance gradient scaler."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What to measure.

    Attributes:
        kind: "population" collects and learns; "graft" replaces a quarter of a population; "ceiling" multiplies batches
            of matrices; "DistributionalPPO" and "RecurrentPPO" make the same call of either.
        population: members.
        agent: key of `AGENTS`.
        sequence_length: steps of backpropagation through time.
        n_steps: steps of a rollout.
        n_envs: environments of a member.
        hidden: width of the dense layer and of the memory.
        seconds: time to measure for, after one update that warms up.
    """

    kind: str = "population"
    population: int = 1
    agent: str = "reference"
    sequence_length: int = N_STEPS
    n_steps: int = N_STEPS
    n_envs: int = N_ENVS
    hidden: int = 64
    seconds: float = 2.0


def configured(work: Work) -> Config:
    """The workload with the settings that vary."""
    overrides = {
        "env.num_envs": work.n_envs,
        "model.n_steps": work.n_steps,
        "model.network.hidden_size": work.hidden,
        "model.network.encoder_layers": [work.hidden],
        "pbt.population_size": work.population,
        "engine.sequence_length": min(work.sequence_length, work.n_steps),
    }
    return load_config(WORKLOAD, AGENTS[work.agent] | overrides)


def executor_of(config: Config) -> LockstepExecutor:
    """The executor that `train` would make."""
    initial = Evolution(config.pbt, config.seed).initial_hyperparams(config.model.hyperparams())
    executor = make_executor(config, initial)
    assert isinstance(executor, LockstepExecutor)
    return executor


def population(work: Work) -> dict[str, float]:
    """Speed of collecting and learning, parameters, useful operations of a step, and memory."""
    config = configured(work)
    executor = executor_of(config)
    result = speed(lambda: executor.advance(1, lambda: False).steps, work.seconds)
    parameters = executor.export(torch.arange(1)).params.shape[1]
    executor.close()
    return result | {"parameters": parameters, "operations": operations(config)}


def operations(config: Config) -> int:
    """Floating-point operations of an environment step in products with weights: one pass to act, three an epoch."""
    grid = EnvGrid(config.env, 1, 1)
    shapes = Policy(grid.spaces, config.model.network).layout.shapes.values()
    grid.close()
    weights = sum(shape.numel() for shape in shapes if len(shape) > 1)
    return 2 * weights * (1 + 3 * config.model.n_epochs)


def same_call(work: Work) -> dict[str, float]:
    """Speed of a model of `MlpLstmPolicy` with Stable-Baselines3's own environments and networks."""
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.env_util import make_vec_env

    from popgraft import DistributionalPPO

    torch.set_num_threads(1)
    kind = DistributionalPPO if work.kind == "DistributionalPPO" else RecurrentPPO
    steps = work.n_envs * work.n_steps
    model = kind(
        "MlpLstmPolicy",
        make_vec_env("CartPole-v1", n_envs=work.n_envs, seed=0),
        n_steps=work.n_steps,
        batch_size=steps // N_MINIBATCHES,
        n_epochs=4,
        seed=0,
        device="cpu",
        policy_kwargs={"lstm_hidden_size": work.hidden},
    )

    def update() -> int:
        model.learn(steps, reset_num_timesteps=False)
        return steps

    return speed(update, work.seconds) | {"parameters": sum(p.numel() for p in model.policy.parameters())}


def speed(update: Update, seconds: float) -> dict[str, float]:
    """Steps per second of whole updates, by the clock and by processor time, and the memory."""
    update()
    before = cpu_seconds()
    steps, elapsed = timed([update], seconds)
    busy = cpu_seconds() - before
    return {"steps_per_second": steps / elapsed, "steps_per_cpu_second": steps / busy, **memory()}


def graft(work: Work) -> dict[str, float]:
    """Milliseconds of replacing the last quarter of the members by copies of the first: median of 20."""
    config = configured(work)
    executor = executor_of(config)
    executor.advance(1, lambda: False)
    hyperparams = Evolution(config.pbt, config.seed).initial_hyperparams(config.model.hyperparams())
    parents, quarter = torch.arange(work.population), work.population // 4
    parents[-quarter:] = torch.arange(quarter)
    reasons = dict.fromkeys(range(work.population - quarter, work.population), "truncation")
    times = []
    for generation in range(1, 21):
        start = time.perf_counter()
        executor.graft(Decision(parents, hyperparams, reasons), generation)
        times.append(1000 * (time.perf_counter() - start))
    executor.close()
    return {"milliseconds": statistics.median(times), "recipients": quarter}


SHAPES = {
    "minibatch": ((8, 512, 64), (8, 64, 256)),
    "step": ((8, 4, 64), (8, 64, 256)),
    "large": ((8, 1024, 1024), (8, 1024, 1024)),
}
"""Products of a process with eight members: gates of a minibatch, gates of one step of it, and large matrices."""


def ceiling(work: Work) -> dict[str, float]:
    """Batched float32 products, GFLOP/s of one process per core together, by `SHAPES`."""
    cores = len(os.sched_getaffinity(0))
    with get_context("spawn").Pool(cores) as pool:
        rates = pool.map(_products, [work.seconds / len(SHAPES)] * cores, chunksize=1)
    return {name: sum(rate[name] for rate in rates) for name in SHAPES}


def _products(seconds: float) -> dict[str, float]:
    torch.set_num_threads(1)
    rates = {}
    for name, (left, right) in SHAPES.items():
        a, b = (torch.ones(shape) for shape in (left, right))
        out = torch.bmm(a, b)
        repeats = max(1, round(1e8 / (2 * out.numel() * left[-1])))

        def update(a: torch.Tensor = a, b: torch.Tensor = b, out: torch.Tensor = out, repeats: int = repeats) -> int:
            for _ in range(repeats):
                torch.bmm(a, b, out=out)
            return repeats

        done, elapsed = timed([update], seconds)
        rates[name] = done * 2 * out.numel() * left[-1] / elapsed / 1e9
    return rates


MEASURES = {
    "population": population,
    "graft": graft,
    "ceiling": ceiling,
    "DistributionalPPO": same_call,
    "RecurrentPPO": same_call,
}

if __name__ == "__main__":
    asked = Work(**json.loads(sys.argv[1]))
    print(json.dumps(MEASURES[asked.kind](asked)))
