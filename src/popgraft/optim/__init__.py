"""Optimizer steps as functions over the flat parameters of all members."""

from popgraft.optim.adam import adam_, initial_adam_state
from popgraft.optim.clip import clip_gradient_
from popgraft.optim.noise import draw_noise_
from popgraft.optim.rule import GradientScaler, UpdateRule, make_rule, make_scaler
from popgraft.optim.upgd import UPGDRule, initial_upgd_state, upgd_
from popgraft.optim.vgs import (
    VGSRule,
    initial_vgs_state,
    measure_,
    normalized_variance,
    scaling_factor,
)

__all__ = [
    "GradientScaler",
    "UPGDRule",
    "UpdateRule",
    "VGSRule",
    "adam_",
    "clip_gradient_",
    "draw_noise_",
    "initial_adam_state",
    "initial_upgd_state",
    "initial_vgs_state",
    "make_rule",
    "make_scaler",
    "measure_",
    "normalized_variance",
    "scaling_factor",
    "upgd_",
]
