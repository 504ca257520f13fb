"""The last evaluation of a run."""

import threading
from typing import Any

from popgraft.config import Config
from popgraft.errors import EnvironmentFault
from popgraft.store import snapshot
from popgraft.train.announce import Announcer
from popgraft.train.interrupt import signals_first
from popgraft.train.observer import readable
from popgraft.train.run import BEST, Run


def evaluate_best(config: Config, run: Run, announcer: Announcer, stop: threading.Event) -> None:
    """Scores the best member on fresh episodes, because the best of many noisy scores flatters."""
    episodes, settings = config.evaluation.final_episodes, config.evaluation
    announcer.tell("on_final_evaluation", episodes)
    agent, found = run.best, run.summary
    attacks = [None, settings.attack] if settings.attack_weight else [None]
    try:
        with signals_first(stop):
            results = [agent.evaluate(episodes, config.seed, settings.deterministic, attack) for attack in attacks]
    except EnvironmentFault as error:
        announcer.event("environment", f"the best agent has no final score: {error}")
        return
    final: dict[str, Any] = {"final_episodes": episodes}
    texts = []
    for name, scores in zip(("final", "final_attacked"), results, strict=False):
        score, stderr = float(scores.mean[0]), float(scores.stderr[0])
        final |= {f"{name}_score": score, f"{name}_stderr": stderr}
        texts.append(readable(score, stderr))
    snapshot.save(run.folder, BEST, agent.member, {**found, **final})
    scored = " and under attack ".join(texts)
    announcer.event("final", f"the best agent scores {scored} over {episodes} fresh episodes")
