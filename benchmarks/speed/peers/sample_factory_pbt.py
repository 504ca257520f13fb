"""Sample Factory's population-based training: a process that learns and one that acts for each agent.

python sample_factory_pbt.py '{"agents": 8, "seconds": 15}'
"""

import contextlib
import json
import os
import sys
import tempfile
import time
from typing import Any

import gymnasium as gym
from measuring import N_ENVS, N_EPOCHS, N_MINIBATCHES, N_STEPS, WIDTH, cartpole, memory, tell
from sample_factory.algo.runners.runner import AlgoObserver, Runner
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
from sample_factory.envs.env_utils import register_env
from sample_factory.train import make_runner


class Watch(AlgoObserver):
    """Tells the result after the measured seconds, which begin when every agent has made its first update."""

    def __init__(self, agents: int, seconds: float) -> None:
        self.agents, self.seconds = agents, seconds
        self.began: tuple[float, int] | None = None

    def on_training_step(self, runner: Runner, _: int) -> None:
        """Reads the steps that have been learnt from."""
        now, steps = time.perf_counter(), sum(runner.env_steps.values())
        if self.began is None:
            learnt = [count for count in runner.env_steps.values() if count >= N_ENVS * N_STEPS]
            if len(learnt) == self.agents:
                self.began = now, steps
        elif now - self.began[0] >= self.seconds:
            seconds, done = now - self.began[0], steps - self.began[1]
            result = {"steps": done, "seconds": seconds, "steps_per_second": done / seconds, **memory()}
            tell(result, ["sample-factory", "torch", "gymnasium", "numpy"])


def make_env(name: str, *_: Any, **__: Any) -> gym.Env[Any, Any]:
    """An environment as Sample Factory asks for it."""
    return cartpole()


def run(agents: int, seconds: float) -> None:
    """Trains until the watch ends it."""
    register_env("cartpole", make_env)
    workers = min(agents, len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "env": "cartpole",
            "train_dir": folder,
            "device": "cpu",
            "num_policies": agents,
            "with_pbt": agents > 1,
            "async_rl": False,  # otherwise environments choose agents at random, and it can wait for itself for ever
            "pbt_start_mutation": 10**12,
            "num_workers": workers,
            "num_envs_per_worker": agents * N_ENVS // workers,
            "decorrelate_envs_on_one_worker": False,
            "rollout": N_STEPS,
            "recurrence": N_STEPS,
            "batch_size": N_ENVS * N_STEPS // N_MINIBATCHES,
            "num_batches_per_epoch": N_MINIBATCHES,
            "num_epochs": N_EPOCHS,
            "use_rnn": True,
            "rnn_type": "lstm",
            "rnn_size": WIDTH,
            "encoder_mlp_layers": [WIDTH],
            "nonlinearity": "tanh",
            "with_vtrace": False,
            "train_for_env_steps": 10**12,
        }
        pairs = [(f"--{key}", value if isinstance(value, list) else [value]) for key, value in settings.items()]
        arguments = [str(word) for name, values in pairs for word in (name, *values)]
        parser, _ = parse_sf_args(arguments)
        _, runner = make_runner(parse_full_cfg(parser, arguments))
        runner.register_observer(Watch(agents, seconds))
        runner.init()
        runner.run()


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        run(**json.loads(sys.argv[1]))
