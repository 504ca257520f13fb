"""Optimizer steps as functions over the flat parameters of all members."""

from popgraft.optim.adam import adam_, initial_adam_state
from popgraft.optim.clip import clip_gradient_

__all__ = ["adam_", "clip_gradient_", "initial_adam_state"]
