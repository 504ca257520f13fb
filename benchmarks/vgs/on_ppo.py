"""What the variance gradient scaler measures in recurrent PPO, without acting on it; prints Markdown tables.

    python benchmarks/vgs/on_ppo.py

The agent of configs/quickstart.yaml with its own hyperparameters, four seeds. A quarter of a minute on one core.
"""

from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from popgraft import load_config
from popgraft.execute import Shard
from popgraft.optim.vgs import VGSRule, initial_vgs_state, measure_, normalized_variance, scaling_factor
from popgraft.ppo import update
from popgraft.state import VGSState

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
SEEDS, EVERY, ROUNDS = 4, 10, 6
ALPHA = torch.full((SEEDS,), 0.1)
RULES = {
    "spatial_mean": VGSRule(),
    "spatial_mean, ε = 10⁻¹²": VGSRule(eps=1e-12),
    "per_element": VGSRule(statistic="per_element"),
}


def evolution(shard: Shard) -> VGSState:
    """Prints variance and factor every few updates; returns the state of the default rule."""
    sizes = shard.policy.layout.sizes
    states = {label: initial_vgs_state(shard.member.params, sizes, rule) for label, rule in RULES.items()}
    active = torch.ones(SEEDS, dtype=torch.bool)
    clip_gradient_ = update.clip_gradient_

    def measure_and_clip(grad: Tensor, max_norm: Tensor) -> Tensor:
        for label, rule in RULES.items():
            measure_(states[label], grad, sizes, active, rule)
        return clip_gradient_(grad, max_norm)

    print("\n### Normalised variance r → factor at α = 0.1, lowest and highest of the seeds\n")
    print(f"| optimizer steps | {' | '.join(RULES)} |\n|---|{'---|' * len(RULES)}")
    for _ in range(ROUNDS):
        with mock.patch.object(update, "clip_gradient_", measure_and_clip):
            shard.advance(EVERY, lambda: False)
        cells = []
        for label, rule in RULES.items():
            r = normalized_variance(states[label], sizes, rule)
            factor = scaling_factor(states[label], r, ALPHA, rule)
            cells.append(
                f"{float(r.min()):.3g}–{float(r.max()):.3g} → {float(factor.max()):.2f}–{float(factor.min()):.2f}"
            )
        print(f"| {int(states['per_element'].step_count[0])} | {' | '.join(cells)} |")
    return states["spatial_mean"]


def by_tensor(shard: Shard, state: VGSState) -> None:
    correction = 1 - RULES["spatial_mean"].beta ** float(state.step_count[0])
    mean, square = state.param_grad_mean_ema[0] / correction, state.param_grad_sq_ema[0] / correction
    variance = (square - mean.square()).clamp(min=0)
    print("\n### Tensor by tensor, first seed, at the end (ε = 10⁻⁸)\n")
    print("| tensor | elements | E[μ]² | V | r |\n|---|---|---|---|---|")
    layout = shard.policy.layout
    for name, size, signal, noise in zip(
        layout.shapes, layout.sizes, mean.square().tolist(), variance.tolist(), strict=True
    ):
        print(f"| {name} | {size} | {signal:.1e} | {noise:.1e} | {noise / (signal + 1e-8):.2g} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    config = load_config(CONFIG)
    hyperparams = {name: torch.full((SEEDS,), value) for name, value in config.model.hyperparams().items()}
    shard = Shard(config, range(SEEDS), hyperparams)
    try:
        by_tensor(shard, evolution(shard))
    finally:
        shard.close()
