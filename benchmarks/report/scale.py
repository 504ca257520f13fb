"""How large the report of a large run is, and how long it takes to write and to open.

    python benchmarks/report/scale.py            writes a run of 64 members and 500 generations, then results.md

The run is made up: scores that rise with noise, hyperparameters that are drawn and perturbed as in training.
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

import psutil
import torch
from playwright.sync_api import sync_playwright

from popgraft.config import dump_config, load_config
from popgraft.dashboard.data import read
from popgraft.dashboard.report import report
from popgraft.pbt import Evolution, everybody
from popgraft.state import Scores
from popgraft.store import Aftermath, RunDatabase, RunFolder, snapshot
from popgraft.train.run import BEST

METRICS = ("entropy_loss", "approx_kl", "explained_variance", "value_loss", "policy_loss", "vgs/scaling_factor")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def made_up(path: Path, pop: int, generations: int) -> None:
    """Writes the folder of a run that nobody trained."""
    spaces = [
        {"name": "learning_rate", "min_value": 1e-5, "max_value": 1e-2, "is_log_scale": True},
        {"name": "clip_range", "min_value": 0.1, "max_value": 0.4},
        {"name": "ent_coef", "min_value": 0.0, "max_value": 0.02},
        {"name": "gae_lambda", "min_value": 0.8, "max_value": 1.0},
        {"name": "vf_coef", "min_value": 0.1, "max_value": 1.0},
    ]
    config = load_config(
        {
            "env": {"id": "CartPole-v1"},
            "pbt": {"population_size": pop, "hyperparams": spaces},
            "total_timesteps": 1,
            "run_dir": str(path),
        }
    )
    config = load_config(
        config.model_dump(), {"total_timesteps": generations * config.steps_per_generation, "run_dir": str(path)}
    )
    folder, evolution = RunFolder.create(path, dump_config(config), {"popgraft": "made up"}), Evolution(config.pbt, 0)
    generator = torch.Generator().manual_seed(0)
    values = evolution.initial_hyperparams(config.model.hyperparams())
    skill, best = torch.zeros(pop), -1.0
    with RunDatabase(folder.database) as database:
        for number in range(generations):
            skill += torch.rand(pop, generator=generator) - 4 * (values["learning_rate"].log10() + 3).square() / 10
            mean = 500 * torch.sigmoid(skill / generations * 8 - 3) + 10 * torch.randn(pop, generator=generator)
            scores = Scores(mean, torch.full((pop,), 3.0), torch.full((pop,), 10))
            decision = evolution.decide(everybody(number, scores, values, config.pbt, 0), values)
            strategies = dict.fromkeys(decision.reasons, "copy")
            steps = (number + 1) * config.steps_per_generation // pop
            database.record_generation(number, scores, values, steps, decision, strategies)
            noise = {name: torch.rand(pop, generator=generator) for name in METRICS}
            database.record_metrics(number, noise | values, {"member_distance": 0.1, "optimizer_distance": 0.9})
            for member in decision.recipients.tolist():
                before = float(mean[member])
                database.record_aftermath(number, member, Aftermath(1.0, 0.0, before, before, before + 5, before + 9))
            if float(mean.max()) > best:
                best, leader = float(mean.max()), int(mean.argmax())
                found = {"generation": number, "member": leader, "score": best, "stderr": 3.0, "steps": steps * pop}
                snapshot.save(folder, BEST, {"nothing": torch.zeros(1)}, found | {"episodes": 10})
            values, skill = decision.hyperparams, skill[decision.parents]


def opened(file: Path) -> tuple[float, float, float]:
    """Seconds until a headless Chromium has drawn what is in view, and all figures; and of its processors, together."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page()
        page.goto("about:blank")
        began, used = time.perf_counter(), children_time()
        page.goto(file.as_uri(), wait_until="commit")
        page.wait_for_selector("html[data-drawn]")
        in_view = time.perf_counter() - began
        page.evaluate("dispatchEvent(new Event('beforeprint'))")  # for which everything is drawn
        page.wait_for_function("() => !document.querySelector('.plot:not(:has(.modebar-btn))')")
        return in_view, time.perf_counter() - began, children_time() - used


def children_time() -> float:
    """Seconds that the processes begun from here have computed."""
    times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return sum(each.user + each.system for each in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=64)
    parser.add_argument("--generations", type=int, default=500)
    parser.add_argument("--keep", type=Path, help="folder in which the run is left")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.md"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        path = arguments.keep or Path(temporary) / "run"
        made_up(path, arguments.members, arguments.generations)
        began = time.process_time()
        read(path)
        reading = time.process_time() - began
        began = time.process_time()
        file = report(path)
        writing = time.process_time() - began
        in_view, drawn, used = (min(column) for column in zip(*(opened(file) for _ in range(5)), strict=True))
        rows = {
            "database": f"{(path / 'run.sqlite').stat().st_size / 1e6:.1f} MB",
            "reading the run (processor time)": f"{reading:.2f} s",
            "reading it and writing the report (processor time)": f"{writing:.2f} s",
            "report": f"{file.stat().st_size / 1e6:.2f} MB",
            "opening it, until all that is in view is drawn (best of 5)": f"{in_view:.2f} s",
            "the same, until everything is drawn": f"{drawn:.2f} s",
            "the same, processor time of all of Chromium's processes": f"{used:.2f} s",
        }
    table = "\n".join(["| | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows.items())])
    arguments.out.write_text(
        f"# The report of {arguments.members} members over {arguments.generations} generations\n\n"
        f"Headless Chromium without a GPU, {os.cpu_count()} cores. `python benchmarks/report/scale.py`\n\n{table}\n"
    )
    print(table)


if __name__ == "__main__":
    main()
