"""Share of an update that the variance gradient scaler takes, in processor time; prints a Markdown table.

python benchmarks/vgs/share_of_update.py
"""

import argparse
import dataclasses
import statistics
import time
from pathlib import Path

import torch

from popgraft.config import load_config
from popgraft.execute import Shard
from popgraft.pbt import Evolution

WORKLOAD = Path(__file__).parents[1] / "speed" / "workload.yaml"


@dataclasses.dataclass(frozen=True)
class Timed:
    """A scaler that adds up what it costs."""

    scaler: object
    spent: list[float]

    def scale_(self, *arguments: object) -> object:
        """Scales, and notes the processor time."""
        began = time.process_time()
        found = self.scaler.scale_(*arguments)  # type: ignore[attr-defined]
        self.spent.append(time.process_time() - began)
        return found


def share(population: int, statistic: str, updates: int) -> tuple[float, float]:
    """Median share of an update (collecting included), and milliseconds per optimizer step."""
    config = load_config(
        WORKLOAD,
        {
            "pbt.population_size": population,
            "engine.sequence_length": 32,
            "model.vgs.enabled": True,
            "model.vgs.statistic": statistic,
        },
    )
    shard = Shard(config, range(population), Evolution(config.pbt, 0).initial_hyperparams(config.model.hyperparams()))
    shard.learner.scaler = Timed(shard.learner.scaler, [])
    shard.advance(1, lambda: False)
    shares, steps = [], []
    for _ in range(updates):
        spent = shard.learner.scaler.spent
        spent.clear()
        began = time.process_time()
        shard.advance(1, lambda: False)
        shares.append(sum(spent) / (time.process_time() - began))
        steps.append(1000 * statistics.fmean(spent))
    shard.close()
    return statistics.median(shares), statistics.median(steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--updates", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| members | statistic | share of an update | ms per optimizer step |\n|--:|---|--:|--:|")
    for population in (1, 16):
        for statistic in ("spatial_mean", "per_element"):
            part, step = share(population, statistic, args.updates)
            print(f"| {population} | {statistic} | {part:.1%} | {step:.2f} |")


if __name__ == "__main__":
    main()
