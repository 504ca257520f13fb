"""Population-based training of a plain PyTorch loop: no environment, no library, twelve networks that fit sin(3x).

    python examples/pbt_with_your_own_trainer.py

The scheduler only ever sees scores and state dicts. The population tunes the learning rate and the momentum of its
optimizers; at an exploit the network and the optimizer move, then the explored values are set.
"""

import argparse
import logging
import tempfile

import torch
from torch import Tensor, nn

from popgraft import HyperparamConfig, PBTConfig, PBTScheduler

STEPS_PER_REPORT = 20


class Trainer:
    """One member's network, optimizer and data."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.network = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1, momentum=0.9)

    def set_hyperparams(self, hyperparams: dict[str, float]) -> None:
        """Makes explored values live."""
        for group in self.optimizer.param_groups:
            group["lr"], group["momentum"] = hyperparams["learning_rate"], hyperparams["momentum"]

    def train(self) -> None:
        """A few steps on fresh, noisy data."""
        for _ in range(STEPS_PER_REPORT):
            x = torch.rand(64, 1, generator=self.generator) * 4 - 2
            noise = 0.1 * torch.randn(64, 1, generator=self.generator)
            self.optimizer.zero_grad()
            self.loss(x, torch.sin(3 * x) + noise).backward()
            self.optimizer.step()

    def score(self) -> float:
        """Minus the error on a grid that training never sees."""
        x = torch.linspace(-2, 2, 200).unsqueeze(1)
        with torch.no_grad():
            return -self.loss(x, torch.sin(3 * x)).item()

    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        """Mean squared error."""
        return (self.network(x) - target).square().mean()

    def state_dict(self) -> dict[str, dict[str, object]]:
        """All that a recipient inherits."""
        return {"policy": self.network.state_dict(), "optimizer_state": self.optimizer.state_dict()}

    def load_state_dict(self, parameters: dict[str, dict[str, object]]) -> None:
        """Becomes the donor's copy."""
        self.network.load_state_dict(parameters["policy"])
        self.optimizer.load_state_dict(parameters["optimizer_state"])


def main() -> PBTScheduler:
    """Trains the population and prints how it went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="reports of every member")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as folder:
        config = PBTConfig(
            population_size=12,
            perturbation_interval=5,
            hyperparams=[
                HyperparamConfig("learning_rate", min_value=1e-4, max_value=1.0, is_log_scale=True),
                HyperparamConfig("momentum", min_value=0.0, max_value=0.99),
            ],
            optimizer_exploit_strategy="copy",
            checkpoint_dir=folder,
        )
        scheduler = PBTScheduler(config, arguments.seed)
        members = scheduler.initialize_population()
        trainers = [Trainer(seed=member.member_id) for member in members]
        for member, trainer in zip(members, trainers, strict=True):
            trainer.set_hyperparams(member.hyperparams)
        for step in range(1, arguments.rounds + 1):
            for member, trainer in zip(members, trainers, strict=True):
                trainer.train()
                scheduler.update_performance(member, trainer.score(), step, trainer.state_dict())
            for member, trainer in zip(members, trainers, strict=True):  # once all have reported
                if scheduler.should_exploit_and_explore(member):
                    parameters, hyperparams, _ = scheduler.exploit_and_explore(member)
                    if parameters is not None:
                        trainer.load_state_dict(parameters)
                    trainer.set_hyperparams(hyperparams)  # last: the donor's groups hold the donor's values
    best = scheduler.best
    print(f"{scheduler.exploitation_count} exploits; best error {-best.performance:.4f} with {best.hyperparams}")
    return scheduler


if __name__ == "__main__":
    main()
