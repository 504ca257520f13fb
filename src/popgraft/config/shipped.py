"""Configurations that come along, and environments in place of one."""

import difflib
import re
from pathlib import Path
from typing import Any

from popgraft.errors import ConfigError

FOLDER = Path(__file__).parents[1] / "configs"
ENVIRONMENT = re.compile(r"([\w.]+:)?([\w-]+/)?[\w.-]+-v\d+")
"""Ids as Gymnasium registers them, with a version; before a colon the module that does it."""


def shipped() -> dict[str, Path]:
    """Configurations that come along, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def named(source: str) -> Path | dict[str, Any]:
    """What a word stands for that is no path: a configuration that comes along, else an environment and defaults.

    Args:
        source: path of a YAML file, name of a shipped configuration, or id of an environment.

    Returns:
        A file, or the content of one.

    Raises:
        ConfigError: it is none of them.
    """
    path, known = Path(source), shipped()
    if path.exists():
        return path
    if source in known:
        return known[source]
    if ENVIRONMENT.fullmatch(source):
        return {"env": {"id": source}, "run_dir": f"runs/{re.split('[:/]', source)[-1]}"}
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        return path  # which is missed as a file
    near = difflib.get_close_matches(source, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(
        f"{source!r} is no file, no configuration that comes along ({', '.join(known)}) and no id of an environment; "
        f"{hint}try CartPole-v1, or a YAML file"
    )
