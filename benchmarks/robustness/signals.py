"""Signals at random moments to hundreds of small runs, each compared leaf by leaf with an undisturbed one.

    python benchmarks/robustness/signals.py --runs 300

Writes a line for every run into `results/signals.jsonl`, where an interrupted series goes on, and their counts into
`results/signals.md`. Exit status 1 if a run was stuck, left a process behind, or is not the undisturbed one.
"""

import argparse
import collections
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "train"))

import signals  # noqa: E402
from configurations import CONFIGURATIONS  # noqa: E402

SPAWNED = 10
"""Of so many runs one has shards in fresh interpreters, as they are for users."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    lines = given.out / "signals.jsonl"
    done = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    names = list(CONFIGURATIONS)
    with tempfile.TemporaryDirectory() as scratch:
        straight = signals.Straight(Path(scratch))
        for seed in range(len(done), given.runs):
            found = one(names[seed % len(names)], seed, straight, Path(scratch))
            done.append(found)
            with lines.open("a") as file:
                print(json.dumps(found), file=file)
            print(f"{seed + 1}/{given.runs} {found['configuration']}: {found['fault'] or found['signals']}", flush=True)
    (given.out / "signals.md").write_text(summary(done))
    return int(any(found["fault"] for found in done))


def one(name: str, seed: int, straight: signals.Straight, folder: Path) -> dict[str, Any]:
    """One run under the signals of a seed, as the table has it."""
    began, sent, fault = time.monotonic(), [], ""
    spawned = seed % SPAWNED == SPAWNED - 1
    try:
        sent = signals.check(name, seed, straight, folder, spawned)
    except (AssertionError, signals.Stuck) as error:
        fault = f"{type(error).__name__}: {error}"
    return {
        "configuration": name,
        "seed": seed,
        "shards": signals.settings_of(name, "")["execute"]["shards"],
        "spawned": spawned,
        "signals": [[disturbance.name, struck, outcome] for disturbance, struck, outcome in sent],
        "fault": fault,
        "seconds": round(time.monotonic() - began, 1),
    }


def summary(done: list[dict[str, Any]]) -> str:
    """All runs as two tables."""
    sent = [(found["configuration"], *each) for found in done for each in found["signals"]]
    workers = sum(target in ("shard", "environment") for _, _, target, _ in sent)
    faults = [found for found in done if found["fault"]]
    text = [
        "# Signals at random moments",
        "",
        f"{len(done)} runs of {len(CONFIGURATIONS)} configurations got {len(sent)} signals, {workers} of them sent to "
        "workers alone. Whatever ended a run, it was resumed, and disturbed again, until it was finished; then "
        "snapshots, database and curves were compared with those of an undisturbed run, leaf by leaf. "
        f"{len(faults)} runs were stuck, left a process behind for more than {signals.ORPHANS:g} s, or were not the "
        "same. Where a signal ended an environment's process, its member was rescued, as in no undisturbed run: such a "
        "run had to be finished and to name the member. SIGSTOP was followed by SIGCONT.",
        "",
        "| signal | target | finished | stopped | killed | ended with an error | member rescued |",
        "|---|---|---|---|---|---|---|",
    ]
    counts = collections.Counter((name, target, outcome) for _, name, target, outcome in sent)
    outcomes = ("finished", "stopped", "killed", "ended with an error", "member rescued")
    for name in signals.SIGNALS:
        for target in signals.TARGETS:
            row = [counts[name, target, outcome] for outcome in outcomes]
            if any(row):
                text.append(f"| {name} | {target} | {' | '.join(str(count or '') for count in row)} |")
    text += ["", "| configuration | shards | runs | signals | to workers | faults |", "|---|---|---|---|---|---|"]
    for name in CONFIGURATIONS:
        runs = [found for found in done if found["configuration"] == name]
        each = [(signal, target) for found in runs for signal, target, _ in found["signals"]]
        of_workers = sum(target in ("shard", "environment") for _, target in each)
        faulty = sum(bool(found["fault"]) for found in runs)
        shards = signals.settings_of(name, "")["execute"]["shards"]
        text.append(f"| {name} | {shards} | {len(runs)} | {len(each)} | {of_workers} | {faulty} |")
    text += [f"\n{found['configuration']}, seed {found['seed']}: {found['fault']}" for found in faults]
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    sys.exit(main())
