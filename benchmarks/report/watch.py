"""What a live page costs the training that it shows.

    python benchmarks/report/watch.py            trains the quickstart under the eyes of a browser, then watch.md

Processor time of `popgraft watch` from the moment when its page has been drawn, as a share of what training takes in
the same time; and how long after a generation was recorded the page shows it in its list of runs and in its figures.
"""

import argparse
import contextlib
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from playwright.sync_api import Page, sync_playwright

from popgraft.store import RunDatabase, RunFolder

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from popgraft.cli.app import main; main()"]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
SHOWN = (
    """() => [document.querySelector("#runs")?.innerText ?? "", document.querySelector("#summary")?.innerText ?? ""]"""
)


def used(process: psutil.Process) -> float:
    """Seconds that a process and those that it has begun have computed."""
    return sum(sum(each.cpu_times()[:2]) for each in (process, *process.children(recursive=True)))


def number(pattern: str, text: str) -> int:
    """The number in a text; 0 where it is not there."""
    found = re.search(pattern, text)
    return int(found[1].replace(",", "")) if found else 0


def followed(page: Page, training: psutil.Process) -> tuple[dict[str, dict[int, float]], float]:
    """Watches a page until training ends.

    Returns:
        When the list and the figures have first shown a number of generations; seconds since 1970.
        Processor time that training has taken at the end.
    """
    patterns = {"list": r"\t([\d,]+) of", "figures": r"in ([\d,]+) generation"}
    shown: dict[str, dict[int, float]] = {name: {} for name in patterns}
    spent = used(training)
    while True:
        for (name, pattern), text in zip(patterns.items(), page.evaluate(SHOWN), strict=True):
            shown[name].setdefault(number(pattern, text), time.time())
        page.wait_for_timeout(100)
        try:
            spent = max(spent, used(training))
            if training.status() == psutil.STATUS_ZOMBIE:
                return shown, spent
        except psutil.NoSuchProcess:
            return shown, spent


def measured(config: Path, folder: Path) -> dict[str, str]:
    """Trains one run with a page open, and gives the rows of the table."""
    run = folder / "run"
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((folder / "log").open("w"))
        training = subprocess.Popen([*COMMAND, "train", str(config), "--set", f"run_dir={run}"], stdout=log, stderr=log)
        stack.callback(training.kill)
        while not RunFolder(run).database.is_file():
            time.sleep(0.1)
        command = [*COMMAND, "watch", str(folder), "--port", "0", "--no-open"]
        watching = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        stack.callback(watching.terminate)
        assert watching.stdout is not None
        url = watching.stdout.readline().split()[-1]
        browser = stack.enter_context(sync_playwright()).chromium.launch(
            executable_path=shutil.which("chromium"), args=FLAGS
        )
        page = browser.new_page()
        page.goto(url)
        page.wait_for_selector("html[data-drawn]")
        trainer, server = psutil.Process(training.pid), psutil.Process(watching.pid)
        before, began = used(trainer), used(server)
        shown, spent = followed(page, trainer)
        served, spent = used(server) - began, spent - before
        browser.close()
    with RunDatabase(RunFolder(run).database, read_only=True) as database:
        recorded = {each.generation + 1: each.time for each in database.metrics()}
    rows = {
        "generations": str(len(recorded)),
        "processor time of training": f"{spent:.1f} s",
        "processor time of the server": f"{served:.2f} s",
        "the server's share of training's": f"{served / spent:.2%}",
    }
    for name, seen in shown.items():
        first = min(number for number in seen if number)
        delays = [
            min(at for there, at in seen.items() if there >= g) - recorded[g]
            for g in recorded
            if first < g <= max(seen)
        ]
        rows[f"from the record of a generation to the {name}"] = (
            f"median {statistics.median(delays):.1f} s, longest {max(delays):.1f} s"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "quickstart.yaml")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("watch.md"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        rows = measured(arguments.config, Path(temporary))
    table = "\n".join(["| | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows.items())])
    arguments.out.write_text(
        f"# An open live page beside the training of {arguments.config.name}\n\n"
        f"Headless Chromium on the same machine, {os.cpu_count()} cores. `python benchmarks/report/watch.py`\n\n"
        f"{table}\n"
    )
    print(table)


if __name__ == "__main__":
    main()
