"""Optimizer steps as functions over the flat parameters of all members."""

from popgraft.optim.adam import AdamUpdate, adam_
from popgraft.optim.clip import clip_gradient_
from popgraft.optim.noise import draw_noise_
from popgraft.optim.rule import Metrics, UpdateRule, make_rule, momentum_of
from popgraft.optim.scaler import GradientScaler, make_scaler
from popgraft.optim.upgd import UPGDRule, initial_upgd_state, upgd_
from popgraft.optim.vgs import (
    VGSRule,
    initial_vgs_state,
    measure_,
    normalized_variance,
    scaling_factor,
)

__all__ = [
    "AdamUpdate",
    "GradientScaler",
    "Metrics",
    "UPGDRule",
    "UpdateRule",
    "VGSRule",
    "adam_",
    "clip_gradient_",
    "draw_noise_",
    "initial_upgd_state",
    "initial_vgs_state",
    "make_rule",
    "make_scaler",
    "measure_",
    "momentum_of",
    "normalized_variance",
    "scaling_factor",
    "upgd_",
]
