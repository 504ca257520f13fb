"""Speed of this project and of its peers, in one run; prints tables, and writes them with a picture and a JSON file.

    python benchmarks/speed/run.py

Every measurement is a process of its own. Other work on the machine disturbs measurements, so they are taken in turn,
over and over, and what counts is the ratio of two from the same round: its median and its range.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import report  # noqa: E402
from venvs import PEERS, python_of  # noqa: E402

PACKAGES = ("popgraft", "torch", "numpy", "gymnasium", "stable-baselines3", "sb3-contrib")
PATIENCE = 240
"""Seconds after which a peer is given up."""
IMPORTS = {
    "popgraft": "import popgraft",
    "sb3_by_hand": "import sb3_contrib",
    "agilerl_evo": "import agilerl.algorithms",
    "sample_factory_pbt": "import sample_factory.train",
    "ray_tune_sb3": "import ray.tune, sb3_contrib",
    "ray_tune_rllib": "import ray.tune, ray.rllib.algorithms.ppo",
}
"""What a user of each imports; the keys are those of the rows."""
ROWS: dict[str, tuple[str, dict[str, int], tuple[int, ...]]] = {
    "sb3-contrib": ("sb3_by_hand", {"processes": 1}, (1,)),
    "sb3-contrib, two processes": ("sb3_by_hand", {"processes": 2}, (8,)),
    "AgileRL": ("agilerl_evo", {"processes": 1}, (1, 8)),
    "AgileRL, two processes": ("agilerl_evo", {"processes": 2}, (8,)),
    "Sample Factory": ("sample_factory_pbt", {}, (1, 8)),
    "Ray Tune + sb3-contrib": ("ray_tune_sb3", {}, (8,)),
    "Ray Tune + RLlib": ("ray_tune_rllib", {}, (1, 8)),
}
"""Peers by the name in the table: script, what it is asked, and for how many agents."""

Measurement = dict[str, Any]


def ask(python: Path | str, script: Path, work: dict[str, Any], patience: float | None = None) -> Measurement:
    """One measurement in a fresh process; `error` holds the reason where it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [str(python), str(script), json.dumps(work)]
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        # Files, not pipes, and a process group of its own: a peer may leave processes behind.
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
        try:
            failed = process.wait(patience) != 0
            result: Measurement = {"error": last_line(err)} if failed else json.loads(last_line(out))
        except subprocess.TimeoutExpired:
            result = {"error": f"no result after {patience:g} s"}
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    label = " ".join(f"{key}={value}" for key, value in work.items())
    shown = {key: round(value, 3) for key, value in result.items() if isinstance(value, float)} or result
    print(f"{script.stem} {label}: {shown} ({time.perf_counter() - started:.0f} s)", file=sys.stderr, flush=True)
    return result


def last_line(file: IO[str]) -> str:
    """The last line of what a process has said: its result, or for Python the error's name."""
    file.seek(0)
    return (file.read().strip().splitlines() or ["ended without a word"])[-1]


def own(**work: Any) -> Measurement:
    """A measurement of worker.py."""
    return ask(sys.executable, HERE / "worker.py", work)


def rounds(repetitions: int, measures: dict[str, Callable[[], Measurement]]) -> dict[str, list[Measurement]]:
    """All measurements in turn, so many times; what has failed once is not tried again."""
    results: dict[str, list[Measurement]] = {name: [] for name in measures}
    for _ in range(repetitions):
        for name, measure in measures.items():
            if not any("error" in result for result in results[name]):
                results[name].append(measure())
    return results


def peers(args: argparse.Namespace) -> Any:
    """The reference work: one agent, and a population of eight, for everybody; larger ones here."""
    measures: dict[str, Callable[[], Measurement]] = {}

    def add(name: str, agents: int, peer: str, extra: dict[str, Any], seconds: float) -> None:
        def measure() -> Measurement:
            try:
                python = python_of(peer)
            except (RuntimeError, subprocess.CalledProcessError) as error:
                return {"error": str(error)}
            work = {"agents": agents, **extra, "seconds": seconds}
            return ask(python, PEERS / f"{peer}.py", work, PATIENCE)

        measures[f"{name}|{agents}"] = measure

    for agents in (1,) if args.quick else (1, 8, 32):
        measures[f"popgraft|{agents}"] = lambda agents=agents: own(population=agents, seconds=args.seconds)
    if not args.quick:
        measures["popgraft, bfloat16|32"] = lambda: own(population=32, agent="bfloat16", seconds=args.seconds)
    for name, (peer, extra, sizes) in ROWS.items():
        if peer in (["sb3_by_hand"] if args.quick else args.peers):
            for agents in (1,) if args.quick else sizes:
                together = "processes" not in extra and agents > 1  # all at once: an update takes long
                add(name, agents, peer, extra, args.seconds * (4 if together else 2))
    return rounds(args.repetitions, measures)


def imports(args: argparse.Namespace) -> Any:
    """Seconds that an import takes, in fresh processes."""
    found = {}
    for name, statement in IMPORTS.items():
        peer = name != "popgraft"
        if peer and not (PEERS.parents[1] / ".venvs" / name / "installed.txt").exists():
            continue
        python = python_of(name) if peer else sys.executable
        times = []
        for _ in range(2 if args.quick else 5):
            start = time.perf_counter()
            subprocess.run([python, "-W", "ignore", "-c", statement], check=True, capture_output=True)
            times.append(time.perf_counter() - start)
        found[name] = times[1:]  # the first fills the file cache
    return found


def population(args: argparse.Namespace) -> Any:
    """The cost of more members, over whole rollouts and in chunks of 32; with a quantile critic, with bfloat16."""
    sizes = [1, 2] if args.quick else [1, 2, 4, 8, 16, 32]
    works = [{"population": n, "sequence_length": 128} for n in sizes]
    works += [{"population": n, "sequence_length": 32} for n in sizes if n in (1, 16, 32)]
    if not args.quick:
        works += [{"population": 16, "sequence_length": 128, "agent": "quantile"}]
        works += [{"population": n, "sequence_length": 128, "agent": "bfloat16"} for n in (1, 16, 32)]
        works += [{"population": n, "sequence_length": 32, "agent": "bfloat16"} for n in (16, 32)]
    return rounds(args.repetitions, {json.dumps(w): lambda w=w: own(**w, seconds=args.seconds) for w in works})


def width(args: argparse.Namespace) -> Any:
    """Eight members with layers of more units."""
    sizes = [32] if args.quick else [32, 64, 128, 256, 512]
    return rounds(
        args.repetitions, {str(n): lambda n=n: own(population=8, hidden=n, seconds=args.seconds) for n in sizes}
    )


def environments(args: argparse.Namespace) -> Any:
    """Eight members with more environments each."""
    sizes = [4] if args.quick else [4, 8, 16, 32, 64]
    return rounds(
        args.repetitions, {str(n): lambda n=n: own(population=8, n_envs=n, seconds=args.seconds) for n in sizes}
    )


def models(args: argparse.Namespace) -> Any:
    """The same call of DistributionalPPO and RecurrentPPO."""
    works = [(k, h) for h in ([16] if args.quick else [64, 256]) for k in ("RecurrentPPO", "DistributionalPPO")]
    return rounds(
        args.repetitions,
        {
            f"{kind}|{hidden}": lambda k=kind, h=hidden: own(kind=k, hidden=h, seconds=args.seconds)
            for kind, hidden in works
        },
    )


def score(args: argparse.Namespace) -> Any:
    """Time to a score, for every seed."""
    few = {"steps": 5000} if args.quick else {}
    kinds, seeds = ("quickstart", "DistributionalPPO", "RecurrentPPO"), range(1 if args.quick else args.seeds)
    results: dict[str, list[Measurement]] = {kind: [] for kind in kinds}
    for seed in seeds:
        for kind in kinds:
            results[kind].append(ask(sys.executable, HERE / "score.py", {"kind": kind, "seed": seed, **few}))
    return results


def agent(args: argparse.Namespace) -> Any:
    """What the default agent costs beside the reference work."""
    kinds = ("reference", "default")
    return rounds(
        args.repetitions,
        {kind: lambda k=kind: own(population=8, agent=k, seconds=args.seconds) for kind in kinds},
    )


def overhead(args: argparse.Namespace) -> Any:
    """Grafts; what a whole run spends beside training."""
    few = {"steps": 10_240} if args.quick else {}
    size = 4 if args.quick else 32
    return rounds(
        1 if args.quick else args.repetitions,
        {
            "graft": lambda: own(kind="graft", population=size),
            **{
                kind: lambda k=kind: ask(sys.executable, HERE / "score.py", {"kind": k, **few})
                for kind in ("shares", "shares of reference")
            },
        },
    )


def ceiling(args: argparse.Namespace) -> Any:
    """The machine's batched products, and how much of them members reach."""
    works: dict[str, dict[str, Any]] = {
        "16 members": {"population": 2 if args.quick else 16},
        "32 members": {"population": 2 if args.quick else 32, "sequence_length": 32},
        "32 members, bfloat16": {"population": 2 if args.quick else 32, "sequence_length": 32, "agent": "bfloat16"},
    }
    measures = {name: lambda w=work: own(**w, seconds=args.seconds) for name, work in works.items()}
    return rounds(args.repetitions, {"products": lambda: own(kind="ceiling", seconds=args.seconds), **measures})


SECTIONS: dict[str, Callable[[argparse.Namespace], Any]] = {
    section.__name__: section
    for section in (peers, imports, population, width, environments, models, score, agent, overhead, ceiling)
}


def machine() -> dict[str, str]:
    """What the numbers depend on beside the code."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "machine": f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in PACKAGES),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SECTIONS, nargs="+", default=list(SECTIONS), help="sections to measure")
    scripts = list(dict.fromkeys(peer for peer, *_ in ROWS.values()))
    parser.add_argument("--peers", choices=scripts, nargs="+", default=scripts, help="scripts of peers to run")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5, help="of the time to score")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a measurement; peers get more")
    parser.add_argument("--quick", action="store_true", help="little of everything, once: only to see that it works")
    parser.add_argument(
        "--out",
        type=Path,
        default=HERE / "RESULTS.md",
        help="Markdown; JSON and picture go beside it; other sections stay",
    )
    args = parser.parse_args(arguments)
    if args.quick:
        args.repetitions, args.seconds = 1, 0.0
    data_file = args.out.with_suffix(".json")
    data = (json.loads(data_file.read_text()) if data_file.exists() else {}) | {"machine": machine()}
    for name in args.only:
        began, load, start = datetime.datetime.now(datetime.UTC), os.getloadavg()[0], time.perf_counter()
        results = SECTIONS[name](args)
        seconds = time.perf_counter() - start
        facts = {"date": f"{began:%Y-%m-%d %H:%M} UTC", "load before": f"{load:.1f}", "seconds": f"{seconds:.0f}"}
        data[name] = {"facts": facts, "results": results}
        data_file.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    text = report.markdown(data, args.out.with_suffix(".png").name)
    args.out.write_text(text, encoding="utf-8")
    report.picture(data, args.out.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
