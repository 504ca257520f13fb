"""What scaled gradients do under different optimizers, and which noise the statistic sees; prints Markdown tables.

    python benchmarks/vgs/under_adam.py

A population of SEEDS members, one seed each. Gradients do not depend on the parameters, so that the arms of a
comparison see the very same ones; UPGD runs without its noise. Ten seconds on one core.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from popgraft.optim import UPGDRule, initial_upgd_state, upgd_
from popgraft.optim.vgs import VGSRule, initial_vgs_state, measure_, normalized_variance
from popgraft.rng import torch_generator

SEEDS, SIZES = 20, [192, 64]
N = sum(SIZES)
RATE = 1e-3
Step = Callable[[Tensor, float], None]


def torch_optimizer(kind: type[torch.optim.Optimizer]) -> Callable[[Tensor], Step]:
    """An optimizer of PyTorch, which treats every element by itself and so every seed too."""

    def bind(params: Tensor) -> Step:
        params.requires_grad_()
        optimizer = kind([params], lr=RATE)

        def step(grad: Tensor, rate: float) -> None:
            params.grad = grad
            optimizer.param_groups[0]["lr"] = RATE * rate
            optimizer.step()

        return step

    return bind


def upgd(adaptive: bool) -> Callable[[Tensor], Step]:
    """UPGD or AdaptiveUPGD without noise."""

    def bind(params: Tensor) -> Step:
        rule = UPGDRule(adaptive=adaptive)
        state = initial_upgd_state(params, SIZES, rule)
        zero, active = torch.zeros(SEEDS), torch.ones(SEEDS, dtype=torch.bool)

        def step(grad: Tensor, rate: float) -> None:
            noise, rates = torch.zeros_like(params), torch.full((SEEDS,), RATE * rate)
            upgd_(params, grad, state, noise, rates, zero, zero, active, sizes=SIZES, rule=rule)

        return step

    return bind


OPTIMIZERS = {
    "SGD": torch_optimizer(torch.optim.SGD),
    "UPGD": upgd(adaptive=False),
    "Adam": torch_optimizer(torch.optim.Adam),
    "AdaptiveUPGD": upgd(adaptive=True),
}


def path(name: str, factors: Iterable[float], apply_to: str) -> Tensor:
    """Parameters before every step and after the last, [steps + 1, seed, n]; signal ~ N(0, 1), noise ~ N(0, 4)."""
    generator = torch_generator(0, "path")
    params, signal = (torch.randn(SEEDS, N, generator=generator) for _ in range(2))
    step, places = OPTIMIZERS[name](params), [params.detach().clone()]
    for factor in factors:
        grad = signal + 2 * torch.randn(SEEDS, N, generator=generator)
        step(grad * factor if apply_to == "gradient" else grad, factor if apply_to == "step" else 1.0)
        places.append(params.detach().clone())
    return torch.stack(places)


def shown(ratios: Tensor) -> str:
    """Mean over seeds, and the range if there is one to see."""
    mean, low, high = (f"{float(x):.3g}" for x in (ratios.mean(), ratios.min(), ratios.max()))
    return mean if low == high else f"{mean} ({low}–{high})"


def constant_factor(steps: int = 500) -> None:
    print(f"\n### A constant factor: distance travelled in {steps} steps, relative to factor 1\n")
    print("| optimizer | apply_to | factor 0.5 | factor 0.1 | factor 0.01 |\n|---|---|---|---|---|")
    for name in OPTIMIZERS:
        plain = path(name, [1.0] * steps, "gradient")
        whole = (plain[-1] - plain[0]).norm(dim=1)
        for apply_to in ("gradient", "step"):
            cells = []
            for factor in (0.5, 0.1, 0.01):
                places = path(name, [factor] * steps, apply_to)
                cells.append(shown((places[-1] - places[0]).norm(dim=1) / whole))
            print(f"| {name} | {apply_to} | {' | '.join(cells)} |")


def falling_factor(before: int = 3000, factor: float = 0.2) -> None:
    lags = (1, 10, 30, 100, 300, 1000, 3000)
    print(f"\n### The factor falls from 1 to {factor}: length of a step, relative to factor 1, so many steps later\n")
    print("| optimizer | apply_to | " + " | ".join(map(str, lags)) + " |\n|---|---|" + "---|" * len(lags))
    for name in ("SGD", "Adam"):
        plain = path(name, [1.0] * (before + lags[-1]), "gradient").diff(dim=0).norm(dim=2)
        for apply_to in ("gradient", "step"):
            falling = path(name, [1.0] * before + [factor] * lags[-1], apply_to).diff(dim=0).norm(dim=2)
            cells = [f"{float((falling / plain)[before + lag - 1].mean()):.2f}" for lag in lags]
            print(f"| {name} | {apply_to} | {' | '.join(cells)} |")


def visibility(steps: int = 1000, size: int = 100) -> None:
    half = size // 2
    one, alternating = torch.ones(SEEDS, size), torch.tensor([1.0, -1.0]).repeat(SEEDS, half)
    cases: dict[str, Callable[[Tensor], Tensor]] = {
        "none": lambda noise: one,
        "independent in every element": lambda noise: one + noise,
        "the same in every element": lambda noise: one + noise[:, :1],
        "cancels within pairs of elements": lambda noise: one + torch.cat([noise[:, :half], -noise[:, :half]], dim=1),
        "independent, and the mean gradients cancel (+1, −1, …)": lambda noise: alternating + noise,
        "as above, all × 10⁻²": lambda noise: 1e-2 * (alternating + noise),
        "as above, all × 10⁻⁴": lambda noise: 1e-4 * (alternating + noise),
    }
    print(f"\n### Normalised variance r of one tensor of {size} elements: mean gradient 1, noise ~ N(0, 1)\n")
    print("| noise | spatial_mean | per_element |\n|---|---|---|")
    active = torch.ones(SEEDS, dtype=torch.bool)
    for label, gradient in cases.items():
        cells = []
        for statistic in ("spatial_mean", "per_element"):
            rule, generator = VGSRule(statistic=statistic), torch_generator(0, "visibility")
            state = initial_vgs_state(one, [size], rule)
            for _ in range(steps):
                measure_(state, gradient(torch.randn(SEEDS, size, generator=generator)), [size], active, rule)
            cells.append(f"{float(normalized_variance(state, [size], rule).mean()):.2g}")
        print(f"| {label} | {' | '.join(cells)} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    constant_factor()
    falling_factor()
    visibility()
