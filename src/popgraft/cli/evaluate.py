"""What `popgraft evaluate` shows of an agent: its return, with and without an attack on what it sees."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from popgraft.cli.picture import save
from popgraft.cli.table import table
from popgraft.config import AttackConfig, load_config
from popgraft.config.kinds import chosen_kinds
from popgraft.errors import ConfigError
from popgraft.pbt.welch import t_quantile
from popgraft.state import Scores
from popgraft.train import Agent, Run, counted, readable
from popgraft.train.run import BEST

HEADER = ("attack", "epsilon", "return", "95 % interval", "change")


@dataclasses.dataclass(frozen=True)
class Row:
    """One evaluation.

    Attributes:
        attack: what the agent was attacked with.
        episodes: how many.
        mean: return.
        stderr: standard error of the mean.
    """

    attack: AttackConfig | None
    episodes: int
    mean: float
    stderr: float

    @classmethod
    def of(cls, attack: AttackConfig | None, scores: Scores) -> "Row":
        """The scores of one agent."""
        return cls(attack, int(scores.episodes[0]), float(scores.mean[0]), float(scores.stderr[0]))

    @property
    def interval(self) -> tuple[float, float]:
        """The mean's confidence interval by Student's law; without bounds for a single episode."""
        half = self.stderr * t_quantile(self.episodes - 1) if self.episodes > 1 else math.inf
        return self.mean - half, self.mean + half


def open_agent(source: Path, env: str | None, member: str = BEST) -> Agent:
    """An agent of a run, or the one in a file that `DistributionalPPO.save` wrote.

    Args:
        source: folder of the run, or the file.
        member: of a run: "best", or a number in the last population.
        env: for a file: a registered id, or a YAML file whose section `env` makes the environments, and which names an
            encoder of the user's that the model has.

    Raises:
        ConfigError: a file without its environment or encoder, or a run with another environment.
        StoreError: there is no such agent.
    """
    if not (source.is_file() or source.suffix == ".zip"):
        if env is not None:
            raise ConfigError(
                f"--env is for files of models; the run {source} has environments of its own: leave it out"
            )
        return Run(source).agent(member)
    if member != BEST:
        raise ConfigError(f"--member {member} is for runs; the file {source} holds one agent: leave it out")
    if env is None:
        raise ConfigError(
            f"{source} does not hold the model's environment; add --env CartPole-v1, say, or --env my_run.yaml, "
            "of which the section env is taken, wrappers included"
        )
    from popgraft.sb3 import DistributionalPPO, agent_of  # slow to import
    from popgraft.sb3.archive import code_of
    from popgraft.sb3.kinds import KINDS

    config = load_config(env if Path(env).suffix in (".yaml", ".yml") else {"env": {"id": env}})
    own, known = code_of(source), {kinds.setting: name for kinds, name in chosen_kinds(config)}
    for name, path in own.items():  # its import runs code, which the file alone cannot ask for
        setting = KINDS[name].setting
        if path != known[setting]:
            raise ConfigError(
                f"{source} was saved with {name}={path}, which a file cannot hold without code; give --env a "
                f"configuration whose {setting} names it too"
            )
    return agent_of(DistributionalPPO.load(source, device=config.engine.device, custom_objects=own), config)


def attacks(
    agent: Agent, methods: Sequence[str], radii: Sequence[float], **fixed: int | str | None
) -> list[AttackConfig]:
    """Every method with every radius; what is not given stands under `evaluation.attack` of the agent's configuration.

    Raises:
        ConfigError: a method, radius or norm that cannot work.
    """
    default = agent.config.evaluation.attack
    fixed = {name: value for name, value in fixed.items() if value is not None}
    wanted: list[dict[str, Any]] = [
        {"method": method, "epsilon": epsilon, **fixed}
        for method in methods or [default.method]
        for epsilon in radii or [default.epsilon]
    ]
    return [
        load_config(
            agent.config, {f"evaluation.attack.{name}": value for name, value in each.items()}
        ).evaluation.attack
        for each in wanted
    ]


def said(rows: Sequence[Row], how: str) -> str:
    """What is printed: a sentence, or a table where there are attacks.

    Args:
        rows: evaluations on the same episodes, the first one without an attack.
        how: which episodes these were.
    """
    clean, count = rows[0], counted(rows[0].episodes, "episode")
    if len(rows) > 1:
        return f"{count} ({how}), the same ones in every line\n\n" + table(HEADER, [_cells(row, clean) for row in rows])
    if clean.episodes == 1:
        return f"{readable(clean.mean)} over {count} ({how})"
    return f"{readable(clean.mean, clean.stderr)} over {count} (mean ± standard error, {how})"


def _cells(row: Row, clean: Row) -> tuple[str, ...]:
    interval = " to ".join(map(readable, row.interval)) if row.episodes > 1 else "one episode"
    if row.attack is None:
        return "none", "", readable(row.mean), interval, ""
    return _name(row.attack), f"{row.attack.epsilon:g}", readable(row.mean), interval, readable(row.mean - clean.mean)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Return over the radius, one curve with its band of confidence for every kind of attack.

    Raises:
        ConfigError: the picture cannot be written there, or not in that format.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    curves: dict[str, list[tuple[float, Row]]] = {}
    for row in rows:
        if row.attack is not None:
            curves.setdefault(_name(row.attack), [(0.0, rows[0])]).append((row.attack.epsilon, row))
    for name, curve in curves.items():
        curve.sort(key=lambda point: point[0])
        x = [epsilon for epsilon, _ in curve]
        axes.plot(x, [row.mean for _, row in curve], marker="o", label=name)
        if rows[0].episodes > 1:
            low, high = zip(*(row.interval for _, row in curve), strict=True)
            axes.fill_between(x, low, high, alpha=0.15, linewidth=0)
    axes.set_xlabel("radius epsilon of the attack, in units of normalised observations")
    axes.set_ylabel("return (band: 95 % confidence)")
    axes.legend(frameon=False)
    save(figure, path)


def _name(attack: AttackConfig) -> str:
    steps = f", {counted(attack.steps, 'step')}" if attack.method in ("pgd", "critic") else ""
    return f"{attack.method} ({attack.norm}{steps})"
