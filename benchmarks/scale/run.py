"""What a population on many machines costs beside its training: operations measured here, then counted for many shards.

    python benchmarks/scale/run.py --out benchmarks/scale/results.md

First, the operations themselves on this machine: a decision, its record, a message to an actor, a row through Ray's
object store, a snapshot; throughput on two actors against two processes. Then, for 10 to 1,000 shards, real
decisions on random scores, and what their traffic comes to at the measured costs.
"""

import argparse
import contextlib
import dataclasses
import datetime
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from popgraft import tree
from popgraft.config import Config, load_config
from popgraft.execute import LockstepExecutor, make_executor
from popgraft.execute.ray_actor import pack, unpack
from popgraft.inheritance import strategies
from popgraft.nn import Policy
from popgraft.pbt import Evolution, everybody
from popgraft.ppo import initial_member
from popgraft.rng import torch_generator
from popgraft.rollout.make import make_grid
from popgraft.state import Decision, Member, Scores
from popgraft.store import RunDatabase, RunFolder, snapshot

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
POPULATIONS = ((10, 80), (100, 800), (1_000, 8_000), (1_000, 10_000))
"""Shards and members that are counted."""
MEMBERS = 8
"""Members of a shard in the comparison with processes."""
AGENTS: dict[str, list[str]] = {
    "quickstart": [],
    "default": [
        "model.network.critic_recurrent=separate",
        "model.network.hidden_size=128",
        "model.network.encoder_layers=[128]",
        "model.optimizer=adaptive_upgd",
    ],
}
"""Agents whose rows are measured: overrides of the quickstart."""


@dataclasses.dataclass(frozen=True)
class Costs:
    """What one operation costs, in seconds unless it says otherwise.

    Attributes:
        row_bytes: a member with optimizer and statistics.
        params_bytes: its parameters alone.
        wire_bytes: the same row as an object of Ray.
        decision: the strategy's decision, by number of members.
        record: a generation in the database, by number of members.
        message: to an actor and back, of many that are under way.
        put: one row into the object store.
        get: one row out of it, as tensors.
        write: bytes per second of a snapshot, with checksums.
    """

    row_bytes: int
    params_bytes: int
    wire_bytes: int
    decision: dict[int, float]
    record: dict[int, float]
    message: float
    put: float
    get: float
    write: float


def median_time(work: Callable[[], Any], times: int = 5) -> float:
    """Median of the seconds that a piece of work takes."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def configured(members: int, overrides: Iterable[str] = ()) -> Config:
    """The quickstart with another number of members."""
    return load_config(QUICKSTART, [f"pbt.population_size={members}", *overrides])


def member_of(config: Config, rows: int) -> Member:
    """Members as they are born."""
    grid = make_grid(config.env, 1, device=torch.device("cpu"))
    with contextlib.closing(grid):
        policy = Policy(grid.spaces, config.model.network)
        values = Evolution(config.pbt, 0).initial_hyperparams(config.model.hyperparams())
        one = {name: column[:1] for name, column in values.items()}
        generators = [torch_generator(0, "weights", 0)]
        member = initial_member(policy, grid.spaces, config.model, one, generators, torch.device("cpu"))
    return tree.gather(member, torch.zeros(rows, dtype=torch.long))


def scores_of(members: int, seed: int) -> Scores:
    """Random scores of ten episodes each."""
    rng = np.random.default_rng(seed)
    mean = torch.from_numpy(rng.normal(200, 50, members).astype(np.float32))
    return Scores(mean, torch.full_like(mean, 10.0), torch.full((members,), 10))


def decide(config: Config, seed: int = 0) -> Callable[[], Decision]:
    """A decision on random scores, ready to be made."""
    evolution = Evolution(config.pbt, 0)
    values = evolution.initial_hyperparams(config.model.hyperparams())
    scores = scores_of(config.pbt.population_size, seed)
    return lambda: evolution.decide(everybody(0, scores, values, config.pbt, 0), values)


class Echo:
    """An actor that answers."""

    def answer(self, message: Any) -> Any:
        """What it was told."""
        return message


def measure(overrides: list[str]) -> Costs:
    """All costs for one kind of agent; needs a cluster."""
    row = member_of(configured(2, overrides), 1)
    packed = pack(row)
    reference = ray.put(packed)
    actor = ray.remote(Echo).options(num_cpus=0).remote()
    ray.get(actor.answer.remote(0))
    sizes = sorted({members for _, members in POPULATIONS})
    decision, record = {}, {}
    for members in sizes:
        config = configured(members, overrides)
        decision[members] = median_time(decide(config))
        record[members] = record_time(config)
    return Costs(
        row_bytes=sum(leaf.nbytes for _, leaf in tree.items(row)),
        params_bytes=row.params.nbytes,
        wire_bytes=ray.experimental.get_object_locations([reference])[reference]["object_size"],
        decision=decision,
        record=record,
        message=median_time(lambda: ray.get([actor.answer.remote(0) for _ in range(500)])) / 500,
        put=median_time(lambda: ray.put(packed), 50),
        get=median_time(lambda: unpack(ray.get(reference), row), 50),
        write=write_speed(tree.gather(row, torch.zeros(64, dtype=torch.long))),
    )


def record_time(config: Config) -> float:
    """Seconds for a generation in the database."""
    decision, values = decide(config)(), Evolution(config.pbt, 0).initial_hyperparams(config.model.hyperparams())
    fate = strategies(decision, values, config.pbt)
    scores = scores_of(config.pbt.population_size, 0)
    with tempfile.TemporaryDirectory() as folder:
        RunDatabase.create(Path(folder) / "run.sqlite")
        with RunDatabase(Path(folder) / "run.sqlite") as database:
            numbers = iter(range(100))
            return median_time(
                lambda: database.record_generation(next(numbers), scores, values, 0, decision, fate), times=3
            )


def write_speed(population: Member) -> float:
    """Bytes per second of a snapshot."""
    size = sum(leaf.nbytes for _, leaf in tree.items(population))
    with tempfile.TemporaryDirectory() as path:
        folder = RunFolder.create(Path(path) / "run", "", {})
        return size / median_time(lambda: snapshot.save(folder, "population", population, {}), times=3)


def throughput(pairs: int, seconds: float) -> list[float]:
    """Steps per second on two actors, divided by those of two processes just before."""
    settings = ["execute.shards=2", "pbt.fitness=training"]
    ratios = []
    for _ in range(pairs):
        local, actors = (
            speed(configured(2 * MEMBERS, [*settings, f"execute.kind={kind}"]), seconds) for kind in ("local", "ray")
        )
        ratios.append(actors / local)
    return ratios


def speed(config: Config, seconds: float) -> float:
    """Environment steps per second of whole generations: advance, decide, graft."""
    evolution = Evolution(config.pbt, 0)
    values = evolution.initial_hyperparams(config.model.hyperparams())
    with contextlib.closing(make_executor(config, values)) as executor:
        assert isinstance(executor, LockstepExecutor)
        generation(executor, evolution, config, 0)
        began, number, steps = time.perf_counter(), 1, 0
        while time.perf_counter() < began + seconds:
            steps += generation(executor, evolution, config, number)
            number += 1
        return steps / (time.perf_counter() - began)


def generation(executor: LockstepExecutor, evolution: Evolution, config: Config, number: int) -> int:
    """One generation; returns its steps."""
    advance = executor.advance(config.pbt.perturbation_interval, lambda: False)
    values = evolution.initial_hyperparams(config.model.hyperparams())
    standing = everybody(number, scores_of(config.pbt.population_size, number), values, config.pbt, 0)
    executor.graft(evolution.decide(standing, values), number + 1)
    return advance.steps


def traffic(shards: int, members: int) -> tuple[int, int]:
    """Recipients of a decision on random scores, and rows that cross from shard to shard."""
    decision = decide(configured(members))()
    home = torch.empty(members, dtype=torch.long)
    for place, part in enumerate(torch.arange(members).tensor_split(shards)):
        home[part] = place
    recipients = decision.recipients
    pairs = {(int(home[i]), int(decision.parents[i])) for i in recipients.tolist()}
    return len(recipients), sum(int(home[donor]) != place for place, donor in pairs)


def counted(costs: Costs, shards: int, members: int) -> list[str]:
    """A row of the second table."""
    recipients, crossing = traffic(shards, members)
    messages = shards * messages_of_a_shard()
    exchange = 2 * shards * costs.message + crossing / shards * (costs.put + costs.get)  # shards work at once
    return [
        f"{shards:,}",
        f"{members:,}",
        f"{1e3 * costs.decision[members]:,.0f} ms",
        f"{1e3 * costs.record[members]:,.0f} ms",
        f"{messages:,} ({messages * costs.message:,.2f} s)",
        f"{recipients:,}",
        f"{crossing:,} ({mib(crossing * costs.wire_bytes)})",
        f"{exchange:,.2f} s",
        mib(2 * members * costs.params_bytes),
        f"{mib(members * costs.row_bytes)} ({members * costs.row_bytes / costs.write:,.1f} s)",
    ]


def messages_of_a_shard() -> int:
    """Messages to and from a shard in a generation: one for every update, and every command with its answer."""
    commands = ("advance", "evaluate", "give", "take", "vectors")
    return configured(2).pbt.perturbation_interval + 2 * len(commands)


def mib(size: float) -> str:
    """Bytes in words."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))


OPERATIONS = ["agent", "row", "as an object", "message and answer", "put a row", "get a row", "write a snapshot"]
COUNTS = [
    "shards", "members", "decide", "record", "messages (time)", "recipients", "rows that cross", "graft",
    "parameters for statistics", "snapshot (time)",
]  # fmt: skip


def main() -> None:
    """Measures, counts and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the tables")
    parser.add_argument("--pairs", type=int, default=5, help="comparisons of actors with processes; 0 leaves them out")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement in a comparison")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=200 * 2**20, log_to_driver=False)
    found = {name: measure(overrides) for name, overrides in AGENTS.items()}
    packages = ", ".join(f"{name} {version(name)}" for name in ("popgraft", "ray", "torch"))
    text = f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, {packages}.\n\n"
    text += table(
        OPERATIONS,
        [
            [
                name, mib(cost.row_bytes), f"+{cost.wire_bytes / cost.row_bytes - 1:.1%}",
                f"{1e3 * cost.message:.2f} ms", f"{1e3 * cost.put:.2f} ms", f"{1e3 * cost.get:.2f} ms",
                f"{mib(cost.write)}/s",
            ]
            for name, cost in found.items()
        ],
    )  # fmt: skip
    for name, cost in found.items():
        rows = [counted(cost, shards, members) for shards, members in POPULATIONS]
        text += f"\n\nA generation of the {name} agent:\n\n{table(COUNTS, rows)}"
    if arguments.pairs:
        ratios = throughput(arguments.pairs, arguments.seconds)
        text += (
            f"\n\nTwo actors of {MEMBERS} members against two processes, steps/s, {arguments.pairs} pairs: "
            f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})."
        )
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
