"""The recipes of docs/extending.md, followed to the letter as a user's modules outside the package."""

import base64
import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv

from popgraft import Run, load_config, train

from .documents import ROOT, SHORT, blocks, follow, headings

EXTENDING = ROOT / "docs/extending.md"
RECIPES = [heading for heading in headings(EXTENDING, "##") if blocks(EXTENDING, heading)]


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    defined = follow(blocks(EXTENDING, recipe), tmp_path, monkeypatch)
    if recipe in CHECKS:
        CHECKS[recipe](tmp_path, defined)
    else:
        assert any("assert" in text for _, text in blocks(EXTENDING, recipe)), "say in CHECKS what must be so"


def of_a_layer(folder: Path, defined: dict[str, Any]) -> None:
    assert {*defined["params"]["linear"]} == {"weight", "bias"}
    assert defined["stacked"].shape == (3, 5, 8)


def of_an_encoder(folder: Path, defined: dict[str, Any]) -> None:
    shapes = Run(folder / "runs/wide").best.policy.layout.shapes
    own = {path: tuple(shape) for path, shape in shapes.items() if "layers." in path}
    # A linear layer from CartPole's four numbers to 32 features, and a norm of these: a weight and a bias each.
    assert sorted(own.values()) == [(32,), (32,), (32,), (32, 4)]


def of_a_memory(folder: Path, defined: dict[str, Any]) -> None:
    """The agent's next state is its equation, in NumPy."""
    agent = Run(folder / "runs/elman").best
    policy, params = agent.policy, agent.policy.views(agent.member.params)
    layer = {name: leaf[0].numpy() for name, leaf in params["actor_memory"]["layer0"].items()}
    assert policy.state_size == 2 * 16  # the actor's, and the critic's
    source = torch.Generator().manual_seed(0)
    obs = {name: torch.rand(1, 1, 3, *spec.shape, generator=source) for name, spec in policy.specs.items()}
    state = torch.rand(1, 3, 32, generator=source)
    start = torch.tensor([[[True, False, False]]])
    found = policy.unroll(params, obs, state, start).state[0, :, :16]
    before = state[0, :, :16].numpy() * np.array([[0.0], [1], [1]])
    x = policy.encoder(params["encoder"], obs)[0, 0].numpy()
    np.testing.assert_allclose(found, np.tanh(x @ layer["w"].T + 0.9 * before @ layer["u"].T), rtol=0, atol=1e-6)


def of_a_critic(folder: Path, defined: dict[str, Any]) -> None:
    agent = Run(folder / "runs/expectile").best
    kind = agent.policy.critic.kind
    # At −1 and 2 with the level 0.7: 0.3 · 1² and 0.7 · 2².
    assert kind.loss(torch.zeros(1, 2, 1), torch.tensor([[-1.0, 2.0]])).tolist() == [
        [pytest.approx(0.3), pytest.approx(2.8)]
    ]
    assert agent.member.returns.updates > 0
    assert not torch.equal(agent.member.returns.std, torch.ones(1))  # it has followed the returns' units


def of_an_optimizer(folder: Path, defined: dict[str, Any]) -> None:
    """Two steps of two members in NumPy; the second member rests in the second, with a gradient that is none."""
    run = Run(folder / "runs/lion")
    rule = run.config.model.update_rule([3])
    assert rule.betas == (0.95, 0.98)
    assert float(run.best.member.hyperparams["learning_rate"]) == pytest.approx(1e-4)
    draws = np.random.default_rng(0)
    theta, grads = draws.normal(size=(2, 3)), draws.normal(size=(2, 2, 3))
    rates, decay, mean = np.array([[0.1], [0.2]]), np.array([[0.3], [0.4]]), np.zeros((2, 3))
    params, active = torch.from_numpy(theta.copy()), torch.tensor([True, True])
    state = rule.initial_state(params)
    for step, grad in enumerate(grads):
        given = torch.from_numpy(grad.copy())
        if step:
            active, given[1] = torch.tensor([True, False]), torch.nan
        values = {"weight_decay": torch.from_numpy(decay[:, 0])}
        rule.step_(params, given, state, torch.from_numpy(rates[:, 0]), active, values, [])
        rows = slice(2 - step)
        direction = np.sign(0.95 * mean + 0.05 * grad)
        theta[rows] -= (rates * (direction + decay * theta))[rows]
        mean[rows] = (0.98 * mean + 0.02 * grad)[rows]
    np.testing.assert_allclose(params, theta, rtol=0, atol=1e-12)
    np.testing.assert_allclose(state.averages["exp_avg"], mean, rtol=0, atol=1e-12)
    assert state.step.tolist() == [2, 1]


def of_an_action_head(folder: Path, defined: dict[str, Any]) -> None:
    """What PyTorch's own distribution says, and as many draws below a quantile as there should be."""
    agent = Run(folder / "runs/laplace").best
    head = agent.policy.head
    params = {"log_scale": torch.tensor([[0.3], [-0.2]])}
    ours, other = torch.randn(2, 2, 500, 1, generator=torch.Generator().manual_seed(0))
    scale = params["log_scale"].exp().unsqueeze(1)
    law, against = torch.distributions.Laplace(ours, scale), torch.distributions.Laplace(other, scale)
    noise = torch.linspace(0, 0.998, 500).view(1, 500, 1).expand(2, 500, 1)
    action = head.sample(params, ours, noise)
    torch.testing.assert_close(law.cdf(action)[:, 1:], noise[:, 1:], atol=1e-5, rtol=0)
    assert action.isfinite().all()
    pairs = [
        (head.log_prob(params, ours, action), law.log_prob(action)),
        (head.entropy(params, ours), law.entropy()),
        (head.kl(params, ours, other), torch.distributions.kl_divergence(law, against)),
    ]
    for found, expected in pairs:
        torch.testing.assert_close(found, expected.sum(-1), atol=1e-5, rtol=1e-5)


def of_an_environment_backend(folder: Path, defined: dict[str, Any]) -> None:
    """The same corridor as a Gymnasium vector environment teaches the same weights, to the bit."""

    class Known(VectorEnv[Any, Any, Any]):
        metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.SAME_STEP}

        def __init__(self, num_envs: int, length: int) -> None:
            self.num_envs, self.length = num_envs, length
            self.single_observation_space, self.single_action_space = Box(0.0, 1.0, (1,)), Discrete(2)

        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            self.rng = np.random.default_rng(seed)
            self.walks = [[int(place), 0] for place in self.rng.integers(self.length, size=self.num_envs)]
            return self.shown(), {}

        def shown(self) -> np.ndarray:
            return np.array([[place / self.length] for place, _ in self.walks], np.float32)

        def step(self, actions: np.ndarray) -> Any:
            for walk, action in zip(self.walks, actions, strict=True):
                walk[0], walk[1] = max(walk[0] + (1 if action else -1), 0), walk[1] + 1
            found = np.array([place == self.length for place, _ in self.walks])
            late = np.array([time == 12 and place < self.length for place, time in self.walks])
            last, over = self.shown(), np.flatnonzero(found | late)
            for env, place in zip(over, self.rng.integers(self.length, size=len(over)), strict=True):
                self.walks[env] = [int(place), 0]
            return self.shown(), np.where(found, 1.0, 0.0), found, late, {"final_obs": last}

    mine = Run(folder / "runs/corridor")
    settings = {"env.source": "python", "env.factory": None, "run_dir": folder / "runs/known"}
    known = train(load_config(folder / "corridor.yaml", {**SHORT, **settings}), factory=Known)
    assert [record.score for record in mine.scores] == [record.score for record in known.scores]
    torch.testing.assert_close(mine.best.member.params, known.best.member.params, rtol=0, atol=0)


def of_a_tensor_environment(folder: Path, defined: dict[str, Any]) -> None:
    run = Run(folder / "runs/lights")
    assert run.is_finished
    assert {record.score for record in run.scores} <= {0.0, 0.5, 1.0}  # of two episodes, each won or lost


def of_an_exploit_method(folder: Path, defined: dict[str, Any]) -> None:
    run = Run(folder / "runs/ranked")
    (graft,) = run.lineage
    assert graft.reason == "my_exploit:RankWeighted"
    scores = [record.score for record in run.scores]
    assert scores[graft.member] == min(scores)


def of_a_strategy(folder: Path, defined: dict[str, Any]) -> None:
    """In the second of its generations the recipients keep their hyperparameters, and their weights cross over."""
    run = Run(folder / "runs/halves")
    assert run.generations >= 2
    for graft in run.lineage:
        crossing = graft.generation % 2 == 1
        assert (graft.member < 2) == ((graft.parent < 2) != crossing)
        assert (graft.hyperparams_after == graft.hyperparams_before) == crossing
    assert {(one.member, one.parent) for one in run.adoptions} == {
        (graft.member, graft.member) for graft in run.lineage if graft.generation % 2 == 1
    }


def of_an_observer(folder: Path, defined: dict[str, Any]) -> None:
    run = Run(folder / "runs/watched")
    rows = [line.split(",") for line in (folder / "runs/watched/best.csv").read_text().splitlines()]
    steps = load_config(folder / "runs/watched/config.yaml").steps_per_generation
    assert rows == [[str(steps), str(max(record.score for record in run.scores)), str(len(run.lineage))]]


def of_a_section_of_the_report(folder: Path, defined: dict[str, Any]) -> None:
    run = Run(folder / "runs/told")
    page = (run.path / "report.html").read_text()
    assert page.index('<section id="settings"') < page.index('<section id="own-spread"') < page.index('id="own-ages"')
    assert page.count('<a href="#own-spread">Spread</a>') == 1
    (json_text,) = re.findall(r'<section id="own-spread".*?<script type="application/json">(.*?)</script>', page, re.S)
    (trace,) = json.loads(json_text)["data"]
    (drawn,) = np.frombuffer(base64.b64decode(trace["y"]["bdata"]), trace["y"]["dtype"])
    assert drawn == pytest.approx(statistics.pstdev(record.score for record in run.scores))
    overwritten = {graft.member for graft in run.lineage}
    table = re.findall(r"<td[^>]*>(\d)</td>", page[page.index('id="own-ages"') :])
    assert table == [text for i in range(3) for text in (str(i), "0" if i in overwritten else "1")]


CHECKS: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    "A layer": of_a_layer,
    "An encoder": of_an_encoder,
    "A memory": of_a_memory,
    "A critic": of_a_critic,
    "An action head": of_an_action_head,
    "An optimizer": of_an_optimizer,
    "An environment backend": of_an_environment_backend,
    "A tensor environment": of_a_tensor_environment,
    "An exploit method": of_an_exploit_method,
    "A strategy": of_a_strategy,
    "An observer": of_an_observer,
    "A section of the report": of_a_section_of_the_report,
}
"""What must be so when a recipe has been followed that does not assert it itself."""
