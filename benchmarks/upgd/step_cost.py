"""Cost of a step of the UPGD family beside Adam's; prints a Markdown table.

    python benchmarks/upgd/step_cost.py

Rules are timed within one run, in processor time on one thread and in a new order in every round, so that other work
on the machine and the contents of its caches meet all of them alike. Noise is drawn anew for every step and counts.
The last rows are torch.optim's Adam, one optimizer for every member, its parameters in one tensor.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch

from popgraft.execute.allocator import keep_freed_memory
from popgraft.optim import AdamUpdate, UPGDRule, adam_, draw_noise_, initial_upgd_state, upgd_

TENSORS = 12
RULES = {
    "UPGD": UPGDRule(adaptive=False),
    'UPGD, noise "rms"': UPGDRule(adaptive=False, noise_scaling="rms"),
    "AdaptiveUPGD": UPGDRule(),
    'AdaptiveUPGD, noise "rms"': UPGDRule(noise_scaling="rms"),
}

Work = dict[str, Callable[[], object]]


def works(pop: int, n: int) -> Work:
    """What is timed, by name, each on parameters and state of its own."""
    generators = [torch.Generator().manual_seed(m) for m in range(pop)]
    params, grad, noise = torch.randn(pop, n), 0.1 * torch.randn(pop, n), torch.empty(pop, n)
    rate, active = torch.full((pop,), 1e-3), torch.ones(pop, dtype=torch.bool)
    sizes = [n // TENSORS] * (TENSORS - 1) + [n - n // TENSORS * (TENSORS - 1)]
    state, own = AdamUpdate((n,), (0.9, 0.999), 1e-8).initial_state(params), params.clone()
    found: Work = {
        "adam_": lambda: adam_(own, grad, state, rate, active),
        "the noise alone": lambda: draw_noise_(noise, generators),
        "torch.randn instead": lambda: [torch.randn(n, generator=g, out=noise[m]) for m, g in enumerate(generators)],
    }
    for name, rule in RULES.items():
        found[name] = upgd_step(params.clone(), grad, noise, generators, rate, active, sizes, rule)
    for name, fused in (("torch.optim.Adam", False), ("torch.optim.Adam, fused", True)):
        found[name] = torch_steps(params, grad, fused)
    return found


def upgd_step(
    params: torch.Tensor,
    grad: torch.Tensor,
    noise: torch.Tensor,
    generators: list[torch.Generator],
    rate: torch.Tensor,
    active: torch.Tensor,
    sizes: list[int],
    rule: UPGDRule,
) -> Callable[[], object]:
    state = initial_upgd_state(params, sizes, rule)

    def step() -> None:
        draw_noise_(noise, generators)
        upgd_(params, grad, state, noise, rate, rate, rate, active, sizes=sizes, rule=rule)

    return step


def torch_steps(params: torch.Tensor, grad: torch.Tensor, fused: bool) -> Callable[[], object]:
    optimizers = []
    for row, own in zip(params.clone(), grad, strict=True):
        parameter = torch.nn.Parameter(row.clone())
        parameter.grad = own.clone()
        optimizers.append(torch.optim.Adam([parameter], fused=fused, foreach=False))
    return lambda: [optimizer.step() for optimizer in optimizers]


def measure(work: Work, rounds: int) -> dict[str, list[float]]:
    """Seconds of processor time of each work in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    order, shuffler = list(work), random.Random(0)
    for i in range(rounds + 3):
        shuffler.shuffle(order)
        for name in order:
            start = time.process_time()
            work[name]()
            if i >= 3:
                seconds[name].append(time.process_time() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=60_000, help="of one member")
    parser.add_argument("--populations", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=200, help="for one member; fewer for more")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    columns = {}
    for pop in args.populations:
        seconds = measure(works(pop, args.parameters), max(30, args.rounds // pop))
        baseline = seconds["adam_"]
        columns[pop] = {
            name: (
                statistics.median(own) / pop / args.parameters * 1e9,
                statistics.median(a / b for a, b in zip(own, baseline, strict=True)),
            )
            for name, own in seconds.items()
        }
    print(f"{args.parameters} parameters in {TENSORS} tensors, one thread, PyTorch {torch.__version__}\n")
    print("| |" + "".join(f" {pop} member{'s' * (pop > 1)}: ns per parameter | × adam_ |" for pop in columns))
    print("|---|" + "---:|---:|" * len(columns))
    for name in next(iter(columns.values())):
        cells = (f" {column[name][0]:.2f} | {column[name][1]:.2f} |" for column in columns.values())
        print(f"| {name} |" + "".join(cells))


if __name__ == "__main__":
    main()
