"""One environment that is watched: a frame at the beginning and after every step."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from popgraft.config import EnvConfig
from popgraft.errors import EnvironmentFault
from popgraft.messages import told
from popgraft.rollout.base import Transition
from popgraft.rollout.grid import EnvGrid

FPS = 30
"""Frames per second of an environment that does not name its own."""


class FilmedGrid(EnvGrid):
    """The environment that agents were trained in, made with `render_mode="rgb_array"`.

    It is stepped by itself, and shows its last frame before it starts anew.

    Args:
        config: the environments of the run.
        factory: takes the place of the configured source; called with `render_mode`, too.
        device: where the agent is.
        show: gets every frame, [height, width, 3] in 0…255.

    Raises:
        EnvironmentFault: it cannot be rendered; every method raises it too.
    """

    def __init__(
        self,
        config: EnvConfig,
        factory: Callable[..., Any] | None,
        device: torch.device,
        show: Callable[[np.ndarray], None],
    ) -> None:
        self._show_frame = show
        self._name = f"env.id={config.id!r}" if config.id and factory is None else "the environment of the factory"
        changes: dict[str, Any] = {"kwargs": {**config.kwargs, "render_mode": "rgb_array"}}
        if config.id and factory is None and config.vectorization != "envpool":
            changes |= {"vectorization": "sync", "autoreset": "next_step"}
        with warnings.catch_warnings():  # Gymnasium's, of a mode that is not among the environment's own
            warnings.filterwarnings("ignore", message=".*render_mode")
            try:
                super().__init__(config.model_copy(update=changes), 1, 1, factory, device)
            except EnvironmentFault as error:
                raise EnvironmentFault(f"{self._name} cannot be made for rendering: {error}") from None

    @property
    def fps(self) -> int:
        """Frames per second at which the environment looks as it is meant to."""
        assert self._envs[0] is not None
        return int(self._envs[0].metadata.get("render_fps") or FPS)

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> None:
        """Starts a new episode."""
        super().reset(rows, seeds)
        self._film()

    def step(self, actions: np.ndarray) -> Transition:
        """Takes one step."""
        result = super().step(actions)
        self._film()
        return result

    def _film(self) -> None:
        env = self._envs[0]
        if env is None:
            raise EnvironmentFault(f"the environment failed: {self.failures[0]}")
        try:
            frame = env.render()
        except Exception as error:
            raise EnvironmentFault(f"{self._name} cannot be rendered: {told(error)}") from error
        if not isinstance(frame, np.ndarray) or frame.ndim != 3:
            raise EnvironmentFault(
                f'{self._name} cannot be rendered: for render_mode="rgb_array" it gives {type(frame).__name__}, no '
                "image"
            )
        self._show_frame(frame)
