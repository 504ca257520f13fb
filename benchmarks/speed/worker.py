"""One measurement of collecting and learning, in a process of its own.

    python benchmarks/speed/worker.py '{"engine": "popgraft", "population": 16, "seconds": 2}'

prints one line of JSON: environment steps per second over all members, and the largest resident set (MiB) of this
process and the shards' processes together. Needs /proc.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from popgraft.config import Config, load_config

WORKLOAD = Path(__file__).with_name("workload.yaml")


@dataclasses.dataclass(frozen=True)
class Work:
    """What to measure.

    Attributes:
        engine: "popgraft" or "sb3-contrib" for the workload; "DistributionalPPO" or "RecurrentPPO" for the same call of
            either.
        population: members; all but popgraft train one.
        sequence_length: steps of backpropagation through time; sb3-contrib always cuts at episodes instead.
        quantiles: outputs of the critic; sb3-contrib's has one.
        shards: processes; as many as a user gets where it is not given.
        threads: threads inside operators.
        seconds: time to measure for, after one update that warms up.
        updates: updates to measure at least.
        n_steps: environment steps per environment and update.
        hidden: width of the LSTMs of DistributionalPPO and RecurrentPPO.
    """

    engine: str
    population: int = 1
    sequence_length: int = 128
    quantiles: int = 21
    shards: int | None = None
    threads: int = 1
    seconds: float = 2.0
    updates: int = 2
    n_steps: int = 128
    hidden: int = 64


def measure(work: Work) -> dict[str, float]:
    """Steps per second of whole updates, by the clock and by processor time; parameters; and the peak memory so far."""
    parameters, update = {"popgraft": population, "sb3-contrib": recurrent_ppo}.get(work.engine, same_call)(work)
    update()
    steps = updates = 0
    start, start_cpu = time.perf_counter(), cpu_seconds()
    while updates < work.updates or time.perf_counter() - start < work.seconds:
        steps += update()
        updates += 1
    elapsed, busy = time.perf_counter() - start, cpu_seconds() - start_cpu
    return {
        "steps_per_second": steps / elapsed,
        "steps_per_cpu_second": steps / busy,
        "updates": updates,
        "parameters": parameters,
        "peak_mib": peak_mib(),
    }


def configured(work: Work) -> Config:
    """The workload with the settings that vary."""
    overrides = {
        "model.n_steps": work.n_steps,
        "model.network.n_quantiles": work.quantiles,
        "pbt.population_size": work.population,
        "engine.sequence_length": work.sequence_length,
        "engine.threads": work.threads,
        "execute.shards": work.shards,
    }
    return load_config(WORKLOAD, overrides)


def population(work: Work) -> tuple[int, Callable[[], int]]:
    """A member's parameters, and a function that makes one update of all members and returns its environment steps."""
    from popgraft.execute import make_executor
    from popgraft.pbt import Schedule

    config = configured(work)
    initial = Schedule(config.pbt, config.seed).initial_hyperparams(config.model.hyperparams())
    executor = make_executor(config, initial)
    parameters = executor.export(torch.arange(1)).params.shape[1]
    return parameters, lambda: executor.advance(1, lambda: False).steps


def recurrent_ppo(work: Work) -> tuple[int, Callable[[], int]]:
    """The same for sb3-contrib's RecurrentPPO with the same sizes."""
    import gymnasium as gym
    import numpy as np
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
    from stable_baselines3.common.vec_env import DummyVecEnv

    config = configured(work)
    hidden, size = config.env.wrappers[0].kwargs["indices"], config.model.network.hidden_size

    class Encoder(BaseFeaturesExtractor):
        """The dense layers before the memory."""

        def __init__(self, observation_space: gym.spaces.Box) -> None:
            widths = config.model.network.encoder_layers
            super().__init__(observation_space, widths[-1])
            sizes = zip([observation_space.shape[0], *widths], widths, strict=False)
            layers = [layer for n_in, n_out in sizes for layer in (torch.nn.Linear(n_in, n_out), torch.nn.Tanh())]
            self.layers = torch.nn.Sequential(*layers)

        def forward(self, observations: torch.Tensor) -> torch.Tensor:
            return self.layers(observations)

    def make_env() -> gym.Env:
        env = gym.make(config.env.id)
        box = env.observation_space
        low, high = np.delete(box.low, hidden), np.delete(box.high, hidden)
        space = gym.spaces.Box(low, high, dtype=np.float32)
        return gym.wrappers.TransformObservation(env, lambda obs: np.delete(obs, hidden), space)

    torch.set_num_threads(work.threads)
    n_envs, n_steps = config.env.num_envs, config.model.n_steps
    model = RecurrentPPO(
        "MlpLstmPolicy",
        DummyVecEnv([make_env] * n_envs),
        n_steps=n_steps,
        batch_size=n_envs * n_steps // config.model.n_minibatches,
        n_epochs=config.model.n_epochs,
        seed=config.seed,
        device="cpu",
        policy_kwargs={
            "features_extractor_class": Encoder,
            "net_arch": [],
            "lstm_hidden_size": size,
            "shared_lstm": True,
            "enable_critic_lstm": False,
        },
    )

    return learning(model)


def same_call(work: Work) -> tuple[int, Callable[[], int]]:
    """The same for a model of `MlpLstmPolicy` with Stable-Baselines3's own environments and networks."""
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.env_util import make_vec_env

    from popgraft import DistributionalPPO

    torch.set_num_threads(work.threads)
    kind = DistributionalPPO if work.engine == "DistributionalPPO" else RecurrentPPO
    model = kind(
        "MlpLstmPolicy",
        make_vec_env("CartPole-v1", n_envs=16, seed=0),
        n_steps=work.n_steps,
        batch_size=4 * work.n_steps,
        n_epochs=4,
        seed=0,
        device="cpu",
        policy_kwargs={"lstm_hidden_size": work.hidden},
    )
    return learning(model)


def learning(model: Any) -> tuple[int, Callable[[], int]]:
    """Parameters of a model of Stable-Baselines3, and its update."""
    steps = model.n_envs * model.n_steps

    def update() -> int:
        model.learn(steps, reset_num_timesteps=False)
        return steps

    return sum(parameter.numel() for parameter in model.policy.parameters()), update


def processes() -> list[psutil.Process]:
    """This process and those of the shards."""
    own = psutil.Process()
    return [own, *own.children(recursive=True)]


def cpu_seconds() -> float:
    """Processor time of all processes so far."""
    return sum(sum(process.cpu_times()[:2]) for process in processes())


def peak_mib() -> float:
    """Sum of the largest resident sets of all processes so far, MiB."""
    texts = [Path(f"/proc/{process.pid}/status").read_text() for process in processes()]
    return sum(int(text.split("VmHWM:")[1].split()[0]) for text in texts) / 2**10


if __name__ == "__main__":
    print(json.dumps(measure(Work(**json.loads(sys.argv[1])))))
