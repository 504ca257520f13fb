"""What has become of the runs below a folder, in a line each."""

import dataclasses
import html
import math
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

from popgraft.dashboard.page import escaped
from popgraft.errors import ConfigError, Damaged, PopgraftError, StoreError
from popgraft.store import RunDatabase
from popgraft.store.boundary import reading
from popgraft.train import Run, readable
from popgraft.train.run import State, planned_generations


@dataclasses.dataclass(frozen=True)
class Status:
    """How far a run has come.

    Attributes:
        state: `running`, `finished`, `stopped`, `damaged`, or `unknown` where it cannot be read now.
        done: generations that have been scored.
        planned: generations of the whole run.
        score: the best so far; NaN if there is none.
        fault: what is damaged, or in the way, and what to do; empty if nothing is.
    """

    state: State | Literal["damaged", "unknown"]
    done: int = 0
    planned: int = 0
    score: float = math.nan
    fault: str = ""


def status_of(run: Run) -> Status:
    """Reads how far a run has come, whatever its folder holds; nothing in it is changed."""
    try:
        with reading(run.path):
            return _read(run)
    except PopgraftError as error:
        return Status("damaged" if isinstance(error, (ConfigError, Damaged)) else "unknown", fault=str(error))


def _read(run: Run) -> Status:
    config, state = run.config, run.state
    try:
        with RunDatabase(run.folder.database, read_only=True) as database:
            done, planned = database.generations(), planned_generations(config, database)
    except Damaged as error:
        advice = f"popgraft resume {shlex.quote(str(run.path))} goes on with what can be read"
        raise Damaged(f"{error}; {advice}") from None
    try:
        score = float(run.summary["score"])
    except Damaged:
        raise
    except StoreError:  # no generation has been scored yet
        score = math.nan
    return Status(state, done, planned, score)


def listing(root: Path, statuses: Mapping[str, Status], chosen: Collection[str]) -> str:
    """HTML of the runs below a folder, by name, with those ticked that are shown."""
    if not statuses:
        return f'<nav id="runs" aria-label="Runs"><p>There are no runs in {escaped(str(root))} yet.</p></nav>'
    rows = "".join(_row(name, found, name in chosen) for name, found in statuses.items())
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("Run", "State", "Generations", "Best score"))
    return f"""<nav id="runs" aria-label="Runs">
<form><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></form>
</nav>"""


def _row(name: str, found: Status, shown: bool) -> str:
    value = html.escape(name.encode(errors="replace").decode())
    box = f'<input type="checkbox" name="runs" value="{value}"{" checked" if shown else ""}>'
    label = f'<th scope="row"><label>{box} {escaped(name)}</label></th>'
    state = f'<td class="state {found.state}">{found.state}</td>'
    if found.fault:
        return f'<tr>{label}{state}<td colspan="2">{escaped(found.fault)}</td></tr>'
    score = "none yet" if math.isnan(found.score) else readable(found.score)
    return f"<tr>{label}{state}<td>{found.done:,} of {found.planned:,}</td><td>{score}</td></tr>"
