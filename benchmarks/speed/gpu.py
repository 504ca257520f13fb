"""What a population costs on one device, with tensor environments; prints a Markdown table.

    python benchmarks/speed/gpu.py --members 1 4 16 64 256 1024 --out benchmarks/speed/gpu.md

The work is that of workload.yaml with a scalar critic. An iteration collects and learns once; between the two clocks it
is repeated without waiting for the device. Useful operations are those of matrix products, counted on PyTorch's meta
device; the ceiling is the fastest batched product of single-precision matrices that is found.
"""

import argparse
import dataclasses
import platform
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from popgraft.config import Config, load_config
from popgraft.execute.shard import Shard
from popgraft.pbt import Evolution

WORKLOAD = Path(__file__).with_name("workload.yaml")
TENSORS = {
    "env.source": "tensor",
    "env.id": "CartPole",
    "env.kwargs": {"hide_velocities": True},
    "env.wrappers": [],
    "model.network.critic": "scalar",
}
MATRICES = ((1024, 64), (256, 256), (64, 1024))
"""Batched products whose speed is the ceiling: matrices, and their size."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A measurement.

    Attributes:
        members: of the population.
        seconds: of an iteration.
        steps: environment steps of an iteration, all members together.
        mib: largest memory so far: of the device, on a CPU of the process.
    """

    members: int
    seconds: float
    steps: int
    mib: float


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--members", type=int, nargs="+", default=[1, 4, 16, 64, 256, 1024])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--iterations", type=int, default=5, help="between two clocks")
    parser.add_argument("--repetitions", type=int, default=3, help="of which the median counts")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the workload")
    parser.add_argument("--out", type=Path, help="Markdown file")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)  # as a shard does on a CPU

    def configured(members: int, device: str) -> Config:
        fixed = {"pbt.population_size": members, "engine.device": device}
        return load_config(load_config(WORKLOAD, TENSORS | fixed), args.set)

    per_step = operations(configured(1, "meta"))
    top = ceiling(torch.device(args.device), args.iterations, args.repetitions)
    rows = [measure(configured(members, args.device), args.iterations, args.repetitions) for members in args.members]
    text = report(args.device, rows, per_step, top)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


def shard_of(config: Config) -> Shard:
    """The whole population in one shard."""
    initial = Evolution(config.pbt, config.seed).initial_hyperparams(config.model.hyperparams())
    return Shard(config, range(config.pbt.population_size), initial)


def measure(config: Config, iterations: int, repetitions: int) -> Row:
    """Seconds of an iteration, after two that warm up."""
    shard = shard_of(config)
    if shard.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        steps = shard.iterate().ended.numel()
    seconds = timed(shard.iterate, shard.device, iterations, repetitions)
    return Row(len(shard.members), seconds, steps, peak_mib(shard.device))


def operations(config: Config) -> float:
    """Floating-point operations of matrix products per environment step."""
    shard = shard_of(config)
    with FlopCounterMode(display=False) as counter:
        steps = shard.iterate().ended.numel()
    return counter.get_total_flops() / steps


def ceiling(device: torch.device, iterations: int, repetitions: int) -> float:
    """Floating-point operations per second of the fastest batched product."""
    found = []
    for count, size in MATRICES if device.type == "cuda" else [(max(1, n // 16), size) for n, size in MATRICES]:
        a, b = (torch.ones(count, size, size, device=device) for _ in range(2))
        out = torch.empty_like(a)
        seconds = timed(lambda a=a, b=b, out=out: torch.bmm(a, b, out=out), device, iterations, repetitions)
        found.append(2 * count * size**3 / seconds)
    return max(found)


def timed(work: Callable[[], object], device: torch.device, iterations: int, repetitions: int) -> float:
    """Median seconds of one call, where `iterations` of them are queued at a time."""
    seconds = []
    for _ in range(repetitions):
        wait_for(device)
        start = time.perf_counter()
        for _ in range(iterations):
            work()
        wait_for(device)
        seconds.append((time.perf_counter() - start) / iterations)
    return statistics.median(seconds)


def wait_for(device: torch.device) -> None:
    """Waits for what is queued on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_mib(device: torch.device) -> float:
    """Largest memory in use so far, MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def report(device: str, rows: Sequence[Row], per_step: float, top: float) -> str:
    """The Markdown text."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    lines = [
        f"- **device**: {name}, PyTorch {torch.__version__}",
        f"- **useful operations**: {per_step / 1e6:.2f} MFLOP per environment step",
        f"- **ceiling**: {top / 1e9:,.0f} GFLOP/s in batched products",
        "",
        f"| members | steps/s | cost, {rows[0].members} = 1 | peak MiB | of the ceiling |",
        "|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        speed = row.steps / row.seconds
        lines.append(
            f"| {row.members} | {speed:,.0f} | {row.seconds / rows[0].seconds:.2f} | {row.mib:,.0f} "
            f"| {speed * per_step / top:.1%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
