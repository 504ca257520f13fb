"""Steps per second of the reference work with each kind of memory, beside those with an LSTM; prints a table.

    python benchmarks/speed/cells.py

Populations with every kind are made first and then take updates in turn, so that a machine that others use slows all of
them. Ratios are medians of those of one round, by the clock and by processor time.
"""

import argparse
import contextlib
import statistics
import time

import torch
from measuring import cpu_seconds
from worker import Work, configured, executor_of

from popgraft.config import load_config
from popgraft.config.network import MEMORIES
from popgraft.execute import LockstepExecutor

CELLS = [name for name, path in MEMORIES.table.items() if path]


def advance(executor: LockstepExecutor) -> tuple[float, float]:
    """Environment steps per second and per processor second of an update."""
    busy, start = cpu_seconds(), time.perf_counter()
    steps = executor.advance(1, lambda: False).steps
    return steps / (time.perf_counter() - start), steps / (cpu_seconds() - busy)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="of the measurement")
    parser.add_argument("--members", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--cells", nargs="+", default=CELLS, help="lstm comes first")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| members | memory | steps/s | × LSTM's | by processor time |\n|--:|---|--:|--:|--:|")
    for members in options.members:
        with contextlib.ExitStack() as stack:
            executors = {}
            for cell in options.cells:
                config = load_config(configured(Work(population=members)), [f"model.network.recurrent={cell}"])
                executors[cell] = stack.enter_context(contextlib.closing(executor_of(config)))
                advance(executors[cell])
            rounds = [{cell: advance(executor) for cell, executor in executors.items()} for _ in range(options.rounds)]
        for cell in options.cells:
            speed = statistics.median(found[cell][0] for found in rounds)
            pairs = [(found[cell], found[options.cells[0]]) for found in rounds]
            ratios = [statistics.median(own[i] / first[i] for own, first in pairs) for i in (0, 1)]
            print(f"| {members} | {cell} | {speed:,.0f} | {ratios[0]:.2f} | {ratios[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
