"""Mutates what lies in a run's folder, and the file of an agent, and has every command read it.

    python runs.py FOLDER CASES SEED

Beside the mutated run lies a sound one. A command may do its work or refuse in words; it may not raise, exit with
another code, take long or much memory, and the sound run is listed and shown whatever the other one holds. Prints what is
not as it should be, and at the end what came of it by kind of mutation.
"""

import collections
import contextlib
import faulthandler
import hashlib
import json
import os
import random
import resource
import shutil
import sqlite3
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import corpus
import mutations
import torch
from typer.testing import CliRunner

from popgraft import train
from popgraft.cli.app import app
from popgraft.dashboard.watcher import Watcher
from popgraft.sb3.export import export
from popgraft.train.replay import described

SECONDS, MEGABYTES = 30, 500
"""What one command may take at most, and what all may take beyond what they take of a sound run."""
ALLOWANCE = 6 * 2**30
"""Bytes of address space beyond those in use: what asks for more gets an error, and spoils nothing else."""
CODES = (0, 2)
SETTINGS: dict[str, Any] = {
    "env": {"id": "popgraft/RepeatPrevious-v0", "num_envs": 2, "kwargs": {"delay": 1, "length": 6}},
    "model": {
        "n_steps": 8, "n_epochs": 1, "n_minibatches": 1,
        "network": {"encoder_layers": [4], "hidden_size": 4},
    },
    "pbt": {
        "population_size": 2, "perturbation_interval": 1,
        "hyperparams": [{"name": "learning_rate", "min_value": 1e-4, "max_value": 1e-2, "is_log_scale": True}],
    },
    "evaluation": {"episodes": 2, "max_steps": 8, "final_episodes": 2},
    "total_timesteps": 96,
    "snapshots": {"interval": 1, "keep": 1},
    "execute": {"shards": 1},
}  # fmt: skip
CELLS = [
    "'abc'",
    "NULL",
    "-1",
    "9223372036854775807",
    "1e308",
    "9e999",
    "x'ff00'",
    "''",
    "'{'",
    "'[]'",
    "'{\"a\": []}'",
]
CELLS += ['\'{"learning_rate": "x"}\'', "'{\"learning_rate\": 1e999}'", "zeroblob(3000000)", "'\x1b[2J\n'", "0.5", "3"]
ENDLESS = "CREATE VIEW {} AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT {} FROM n"
REPLAY = {
    "verdict": "v",
    "gain": 0.5,
    "arms": {name: described([1.0, 2.0]) for name in ("schedule", "fixed")},
    "population": described([1.0, 3.0]),
}


class Runs:
    """Damages a run as a generator decides.

    Args:
        sentinel: a file that exists once something has been executed.
    """

    def __init__(self, sentinel: Path) -> None:
        self._mutations = mutations.Mutations(sentinel)
        self.kinds: dict[str, Callable[[random.Random, Path], None]] = {
            "bytes of the database": self.database,
            "cells of the database": self.cells,
            "tables of the database": self.tables,
            "manifests": self.manifest,
            "metadata": self.metadata,
            "tensors": self.tensors,
            "settings": self.settings,
            "kinds of file": self.nodes,
            "archives": self.archive,
        }

    def database(self, draw: random.Random, case: Path) -> None:
        path = case / "bad" / "run.sqlite"
        path.write_bytes(self._mutations(draw, path.read_bytes(), "bytes"))

    def cells(self, draw: random.Random, case: Path) -> None:
        with contextlib.closing(sqlite3.connect(case / "bad" / "run.sqlite")) as connection, connection:
            table = draw.choice(["members", "metrics", "grafts", "events", "sessions"])
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            where = draw.choice(["TRUE", "rowid = 1", "rowid = (SELECT MAX(rowid) FROM events)"])
            with contextlib.suppress(sqlite3.IntegrityError):
                connection.execute(f"UPDATE {table} SET {draw.choice(columns)} = {draw.choice(CELLS)} WHERE {where}")
            if draw.random() < 0.7:  # so that it is read beyond them
                connection.execute("DROP TABLE checksums")

    def tables(self, draw: random.Random, case: Path) -> None:
        with contextlib.closing(sqlite3.connect(case / "bad" / "run.sqlite")) as connection:
            table = draw.choice(["members", "metrics", "grafts", "events", "sessions", "checksums"])
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            values = ", ".join(f"i AS {name}" for name in columns)
            scripts = [
                f"DROP TABLE {table}; {ENDLESS.format(table, values)}",
                f"DROP TABLE {table}",
                f"DELETE FROM {table}",
                f"ALTER TABLE {table} ADD COLUMN more TEXT",
                f"ALTER TABLE {table} RENAME TO other; CREATE VIEW {table} AS SELECT * FROM other, other AS o, other AS p",
                f"CREATE TRIGGER t AFTER INSERT ON events BEGIN DELETE FROM {table}; END",
                "PRAGMA user_version = 4",
                "PRAGMA journal_mode = DELETE",
                f"DROP TABLE {table}; CREATE VIRTUAL TABLE {table} USING fts5({', '.join(columns)})",
                f"INSERT INTO events WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 30000) "
                f"SELECT i, i, 'rescue', '{'x' * 20}' FROM n",
            ]
            with contextlib.suppress(sqlite3.Error):
                connection.executescript(draw.choice(scripts))

    def manifest(self, draw: random.Random, case: Path) -> None:
        path = draw.choice(sorted((case / "bad" / "snapshots").glob("*/manifest.json")))
        content = self._mutations(draw, path.read_bytes(), "json")
        path.write_bytes(corpus.sealed(content) if draw.random() < 0.7 else content)

    def metadata(self, draw: random.Random, case: Path) -> None:
        """One value of what a snapshot says, with the right checksum."""
        path = draw.choice(sorted((case / "bad" / "snapshots").glob("*/manifest.json")))
        body = json.loads(path.read_bytes())
        node = body["metadata"]
        while True:
            key = draw.choice(sorted(node))
            if not isinstance(node[key], dict) or not node[key] or draw.random() < 0.3:
                break
            node = node[key]
        if draw.random() < 0.15:
            body["metadata"] = draw.choice([{}, {"generation": -1}])
        elif draw.random() < 0.2:
            del node[key]
        else:
            node[key] = draw.choice(mutations.VALUES)
        path.write_bytes(corpus.sealed(json.dumps(body).encode()))

    def tensors(self, draw: random.Random, case: Path) -> None:
        """With the checksum that it has then."""
        path = draw.choice(sorted((case / "bad" / "snapshots").glob("*/tensors-*.safetensors")))
        content = self._mutations(draw, path.read_bytes(), "safetensors")
        manifest = path.with_name("manifest.json")
        body = json.loads(manifest.read_bytes())
        body["sha256"] = hashlib.sha256(content).hexdigest()
        path.unlink()
        path.with_name(f"tensors-{body['sha256'][:16]}.safetensors").write_bytes(content)
        manifest.write_bytes(corpus.sealed(json.dumps(body).encode()))

    def settings(self, draw: random.Random, case: Path) -> None:
        path = case / "bad" / draw.choice(["config.yaml", "config.yaml", "replay/replay.json"])
        form = "json" if path.suffix == ".json" else "text"
        path.write_bytes(self._mutations(draw, path.read_bytes(), form))

    def nodes(self, draw: random.Random, case: Path) -> None:
        """Something else in place of a file or a folder."""
        there = sorted(path for path in (case / "bad").rglob("*") if "tensorboard" not in path.parts)
        path = draw.choice([*there, case / "bad" / "run.sqlite-wal", case / "bad" / "run.sqlite-shm"])
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        match draw.randrange(6):
            case 0:
                os.mkfifo(path)
            case 1:
                path.mkdir()
            case 2:
                path.symlink_to("/dev/zero")
            case 3:
                path.symlink_to(path)
            case 4:
                with path.open("wb") as file:  # all of it a hole
                    file.truncate(20 * 2**30)
            case _:
                path.write_bytes(draw.randbytes(draw.choice([0, 10, 5000])))

    def archive(self, draw: random.Random, case: Path) -> None:
        path = case / "agent.zip"
        path.write_bytes(self._mutations(draw, path.read_bytes(), "zip"))


COMMANDS = {
    "runs": ["runs", "{case}"],
    "report --text": ["report", "{case}/bad", "--text"],
    "report": ["report", "{case}/bad", "--out", "{case}/report.html"],
    "compare": ["compare", "{case}/good", "{case}/bad"],
    "evaluate": ["evaluate", "{case}/bad", "--episodes", "1"],
    "export": ["export", "{case}/bad", "{case}/exported.zip"],
    "replay": ["replay", "{case}/bad", "--export", "{case}/schedule.yaml"],
    "resume": ["resume", "{case}/bad", "--set", "total_timesteps=128"],
}
OF_ARCHIVES = {
    "evaluate": ["evaluate", "{case}/agent.zip", "--episodes", "1", "--env", "{case}/good/config.yaml"],
}


def main(folder: str, cases: str, seed: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    place = Path(folder)
    originals, case = place / "originals", place / "case"
    run = train({**SETTINGS, "run_dir": str(originals / "good")})
    (run.path / "replay").mkdir()
    (run.path / "replay" / "replay.json").write_text(json.dumps(REPLAY))
    export(run.path, originals / "agent.zip")
    shutil.copytree(originals / "good", originals / "bad")
    mutated = Runs(place / "executed")
    outcomes: dict[str, collections.Counter[str]] = {kind: collections.Counter() for kind in mutated.kinds}
    for warm in (True, False):
        before = peak()
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        if not warm:
            resource.setrlimit(resource.RLIMIT_AS, (used + ALLOWANCE, resource.RLIM_INFINITY))
        for number in range(1 if warm else int(cases)):
            kind = list(mutated.kinds)[number % len(mutated.kinds)]
            shutil.rmtree(case, ignore_errors=True)
            shutil.copytree(originals, case)
            if not warm:
                mutated.kinds[kind](random.Random(f"{seed} {number}"), case)
            outcome = outcomes[kind] if not warm else collections.Counter()
            problems = tried(case, kind if not warm else "")
            grown = peak() - before
            if grown > MEGABYTES and not warm:
                problems.append(f"{grown:.0f} MB")
                before = peak()
            if (place / "executed").exists():
                problems.append("code was executed")
                (place / "executed").unlink()
            outcome["cases"] += 1
            for name in [each for each in problems if each in ("done", "refused")]:
                outcome[name] += 1
                problems.remove(name)
            outcome["problems"] += bool(problems)
            for problem in problems:
                print(f"case {number} ({kind}): {problem}", flush=True)
    print(json.dumps({"megabytes": round(peak() - before), "outcomes": outcomes}))


def tried(case: Path, kind: str) -> list[str]:
    """What every command makes of a case: "done" or "refused", or what is not as it should be."""
    found = []
    if not kind:
        commands = {**COMMANDS, **{f"{name} of a file": words for name, words in OF_ARCHIVES.items()}}
    else:
        commands = OF_ARCHIVES if kind == "archives" else COMMANDS
    for name, words in commands.items():
        faulthandler.dump_traceback_later(10 * SECONDS, exit=True)
        began = time.process_time()
        result = CliRunner().invoke(app, [word.format(case=case) for word in words])
        took = time.process_time() - began
        faulthandler.cancel_dump_traceback_later()
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            lines = traceback.format_exception(result.exception, limit=-3)
            found.append(f"{name} raises " + " | ".join(line.strip() for line in "".join(lines).splitlines()))
        elif result.exit_code not in CODES or (result.exit_code == 2 and "error: " not in result.output):
            found.append(f"{name} ends with {result.exit_code}: {result.output[-300:]!r}")
        elif took > SECONDS:
            found.append(f"{name} takes {took:.0f} s")
        elif not kind and result.exit_code:
            found.append(f"{name} refuses a sound run: {result.output!r}")
        else:
            found.append("refused" if result.exit_code else "done")
        if name == "runs" and f"{case}/good" not in result.output:
            found.append(f"runs does not list the sound run: {result.output!r}")
    if kind != "archives":
        try:
            text = Watcher(case).page(["good", "bad"])
        except Exception:
            found.append("watch raises " + " | ".join(traceback.format_exc(limit=-3).splitlines()))
        else:
            if 'value="good"' not in text or 'id="scores"' not in text:
                found.append("watch does not show the sound run")
    return found


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
