"""Configurations to begin with."""

import itertools
import re
from collections.abc import Callable
from pathlib import Path

from popgraft.config import named, shipped
from popgraft.errors import ConfigError

TEMPLATE = Path(__file__).parents[1] / "config" / "template.yaml"


def about(path: Path) -> str:
    """What a configuration is for: the sentence that it begins with."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return re.split(r"(?<=\w)[.:] ", " ".join(line.lstrip("# ") for line in lines))[0].rstrip(".")


def initial(task: str) -> tuple[Callable[[Path], str], str]:
    """The text of a configuration, which may name its file, and what the file is to be called.

    Args:
        task: name of a configuration that comes along, or id of an environment.

    Raises:
        ConfigError: it is neither.
    """
    known = shipped()
    if task in known:
        text = known[task].read_text(encoding="utf-8")
        return (lambda file: text), task
    found = named(task)
    if isinstance(found, Path):
        raise ConfigError(f"{task} is a file; give a name ({', '.join(known)}) or the id of an environment")
    run_dir = found["run_dir"]
    template = TEMPLATE.read_text(encoding="utf-8")
    return (lambda file: template.format(id=task, file=file, run_dir=run_dir)), Path(run_dir).name
