"""What state-adversarial PPO adds to an update, beside what its floating-point operations predict; prints a table.

    python benchmarks/speed/attack.py

The reference work with three PGD steps on half of the sequences. Operations are counted where the memory runs in
PyTorch, which counts its own only; time is the processor's, taken in turn.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode
from worker import Work, configured

from popgraft.config import load_config
from popgraft.execute import InlineExecutor, Shard
from popgraft.pbt import Evolution

MEMBERS = (1, 8, 16)
ON = ["model.adversary={enabled: true, warmup_updates: 0, adversarial_ratio: 0.5, perturbation: {attack_steps: 3}}"]


def shard_of(members: int, overrides: Sequence[str]) -> Shard:
    """All members in one shard of this process, after two updates."""
    config = load_config(configured(Work(population=members)), overrides)
    hyperparams = Evolution(config.pbt, config.seed).initial_hyperparams(config.model.hyperparams())
    executor = InlineExecutor(config, hyperparams, None, 1)
    executor.advance(2, lambda: False)
    return executor.shards[0]


def seconds(shard: Shard) -> float:
    """Processor time of learning from one rollout."""
    rollout = shard.collector.collect(shard.member, shard.seat, shard.generators)
    began = time.process_time()
    shard.learner.learn_(shard.member, shard.seat, rollout, shard.generators)
    return time.process_time() - began


def operations(shard: Shard) -> int:
    """Floating-point operations of the same."""
    rollout = shard.collector.collect(shard.member, shard.seat, shard.generators)
    with FlopCounterMode(display=False) as counter:
        shard.learner.learn_(shard.member, shard.seat, rollout, shard.generators)
    return counter.get_total_flops()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="of the measurement")
    parser.add_argument("--count", action="store_true", help="count operations of one member instead of measuring")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.count:
        plain, attacked = (operations(shard_of(1, overrides)) for overrides in ([], ON))
        print(attacked / plain)
        return
    counted = subprocess.run(
        [sys.executable, __file__, "--count"],
        env=os.environ | {"POPGRAFT_NATIVE": "0"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    predicted = float(counted.stdout)
    print("| members | update, × without attacks | predicted | measured / predicted |\n|--:|--:|--:|--:|")
    for members in MEMBERS:
        shards = [shard_of(members, overrides) for overrides in ([], ON)]
        pairs = [[seconds(shard) for shard in shards] for _ in range(options.rounds)]
        ratio = statistics.median(attacked / plain for plain, attacked in pairs)
        print(f"| {members} | {ratio:.2f} | {predicted:.2f} | {ratio / predicted:.2f} |", flush=True)


if __name__ == "__main__":
    main()
