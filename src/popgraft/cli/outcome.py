"""What the commands say of a run: how far it has come, and how it ended."""

import math
import shlex
from pathlib import Path

from popgraft.cli.table import say
from popgraft.dashboard.report import report
from popgraft.dashboard.status import status_of
from popgraft.errors import PopgraftError, StoreError
from popgraft.names import searched
from popgraft.train import Run, counted, readable


def stand(path: Path) -> str:
    """State, generations and best score of a run."""
    try:
        found = status_of(Run(path))
    except PopgraftError as error:
        return f"damaged   {error}"
    if found.fault:
        return f"{found.state:<8}  {found.fault}"
    score = "none" if math.isnan(found.score) else readable(found.score)
    return f"{found.state:<8}  {found.done:,} of {found.planned:,} generations, best score {score}"


def conclude(run: Run, err: bool = False) -> None:
    """Says how good the best agent is, where the run lies, and what to do with it."""
    folder = shlex.quote(str(run.path))
    try:
        found = run.summary
    except StoreError as error:
        lines = {
            "best agent": f"none: {run.lack or error}",
            "run folder": folder,
        }
    else:
        if "final_score" in found:
            score = readable(found["final_score"], found["final_stderr"])
            score += f" over {counted(found['final_episodes'], 'fresh episode')}"
            if "final_attacked_score" in found:
                score += f", under attack {readable(found['final_attacked_score'], found['final_attacked_stderr'])}"
        else:
            score = readable(found["score"], found["stderr"]) + " when it was found"
        lines = {
            "best agent": f"{score}, after {found['steps']:,} steps",
            "run folder": folder,
            "evaluate": f"popgraft evaluate {folder}",
            "curves": f"tensorboard --logdir {shlex.quote(str(run.path / run.folder.tensorboard.name))}",
        }
    try:
        with searched(run.config.code_dir):
            lines["report"] = shlex.quote(str(report(run.path, sections=run.config.report.sections)))
    except Exception as error:  # the run itself is whole
        say(f"warning: the run has no report: {error}", err=True)
    if not run.is_finished:
        lines["resume"] = f"popgraft resume {folder}"
    for name, text in lines.items():
        say(f"{name:<12}{text}", err=err)
