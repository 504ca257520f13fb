"""Films of agents, as mp4 or gif."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from popgraft.errors import ConfigError, MissingExtra
from popgraft.train import Agent

FORMATS = (".mp4", ".gif")


def film(agent: Agent, path: Path, episodes: int, seed: int, fps: int | None) -> list[float]:
    """Writes some episodes of an agent to a file, which is there only if it is whole.

    Args:
        agent: who acts.
        path: a .mp4 or .gif file.
        episodes: how many, one after the other.
        seed: names them.
        fps: frames per second; None: what the environment says.

    Returns:
        The return of every episode.

    Raises:
        ConfigError: the file cannot be written there, or not in that format.
        MissingExtra: what writes films is not installed.
        EnvironmentFault: the environment cannot be rendered, or fails.
    """
    if path.suffix not in FORMATS:
        raise ConfigError(f"--out {path} must end in {' or '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise ConfigError(f"--out {path} cannot be written: {path.parent} is not a folder")
    try:
        import imageio.v2 as imageio
        import imageio_ffmpeg  # noqa: F401 - which imageio needs for .mp4
    except ImportError as error:
        raise MissingExtra(error.name or "imageio", "video", "popgraft video") from None
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # what Gymnasium draws with needs no window
    writer: Any = None
    partial = path.with_name(f".{path.name}")

    def show(frame: np.ndarray, rate: int) -> None:
        nonlocal writer
        if writer is None:
            rate = fps or rate
            gif = {"duration": 1000 / rate, "loop": 0}  # milliseconds; for ever
            options = gif if path.suffix == ".gif" else {"fps": rate, "macro_block_size": 2}
            writer = imageio.get_writer(partial, **options)
        writer.append_data(frame)

    try:
        returns = agent.film(show, episodes, seed)
        writer.close()
        os.replace(partial, path)
    except OSError as error:
        raise ConfigError(f"--out {path} cannot be written: {error.strerror or error}") from None
    finally:
        if writer is not None:
            writer.close()
        partial.unlink(missing_ok=True)
    return returns
