"""Ratio of noise to signal in the step of the UPGD family while gradients shrink; prints a Markdown table.

    python benchmarks/upgd/noise_to_signal.py

‖Δθ_σ − Δθ₀‖/‖Δθ₀‖, where both steps share parameters, gradients and state, and only σ differs. Gradients of a small
network's shapes are drawn at random around a fixed mean; all are multiplied by a factor, as a gradient scaler would,
from the first step on. The ratio is that of the last step, averaged over seeds.
"""

import argparse
import itertools
import statistics
from typing import Any

import torch

from popgraft import tree
from popgraft.optim import UPGDRule, draw_noise_, initial_upgd_state, upgd_

SIZES = [64 * 128, 64, 256 * 128, 256, 64 * 4, 4]
"""Elements of the network's tensors."""
FACTORS = [1.0, 0.3, 0.1, 0.03, 0.01]
SIGMA = 0.001
NOISES: dict[str, dict[str, Any]] = {
    "fixed": {"noise_scaling": "fixed"},
    "rms": {"noise_scaling": "rms"},
    "rms, no floor": {"noise_scaling": "rms", "min_noise_std": 0.0},
    "l2": {"noise_scaling": "l2"},
}


def ratio(rule: UPGDRule, factor: float, seed: int, steps: int, rms: float, dtype: torch.dtype) -> float:
    """The ratio at the last of `steps` steps; `rms` is that of a gradient's element before it is scaled."""
    generator, n = torch.Generator().manual_seed(seed), sum(SIZES)
    params, mean, noise = (torch.randn(1, n, generator=generator).to(dtype) for _ in range(3))
    params *= 0.1
    state, active = initial_upgd_state(params, SIZES, rule), torch.ones(1, dtype=torch.bool)
    rate, quiet, loud = (torch.tensor([value], dtype=dtype) for value in (1e-3, 0.0, SIGMA))
    for step in range(steps):
        grad = factor * rms * (mean + torch.randn(1, n, generator=generator).to(dtype)) / 2**0.5
        draw_noise_(noise, [generator])
        if step == steps - 1:
            before, calm, calm_state = params.clone(), params.clone(), tree.map(torch.clone, state)
            silent = torch.zeros_like(noise)
            upgd_(calm, grad, calm_state, silent, rate, quiet, quiet, active, sizes=SIZES, rule=rule)
        upgd_(params, grad, state, noise, rate, loud, quiet, active, sizes=SIZES, rule=rule)
    return float((params - calm).norm() / (calm - before).norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rms", type=float, default=1e-2, help="root mean square of a gradient's element")
    parser.add_argument(
        "--single", action="store_true", help="single precision, whose rounding of parameters then counts"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    dtype = torch.float32 if args.single else torch.float64
    precision = "single" if args.single else "double"
    print(
        f"σ = {SIGMA}, gradients of root mean square {args.rms:g} × factor, step {args.steps}, {precision} precision\n"
    )
    print("| rule | noise |" + "".join(f" × {factor:g} |" for factor in FACTORS) + " largest/smallest |")
    print("|---|---|" + "---:|" * (len(FACTORS) + 1))
    for adaptive, (name, scaling) in itertools.product((False, True), NOISES.items()):
        rule = UPGDRule(adaptive=adaptive, **scaling)
        row = [
            statistics.mean(ratio(rule, factor, seed, args.steps, args.rms, dtype) for seed in range(args.seeds))
            for factor in FACTORS
        ]
        cells = "".join(f" {100 * value:.3g} % |" for value in row)
        print(f"| {'AdaptiveUPGD' if adaptive else 'UPGD'} | {name} |{cells} {max(row) / min(row):.3g} |")


if __name__ == "__main__":
    main()
