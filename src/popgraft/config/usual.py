"""What a population tunes where nobody says what."""

from popgraft.config.model import ModelConfig
from popgraft.hyperparams import HyperparamConfig

HORIZONS = (0.9, 0.95, 0.98, 0.99, 0.995, 0.998)
"""Discounts whose horizons 1/(1 − γ) are 10, 20, 50, 100, 200 and 500 steps."""
TRACES = (0.8, 0.9, 0.95, 0.975, 0.99)
"""λ of advantages, evenly far apart in the same way."""
FASTEST = 1.0
"""Largest learning rate: upgd, whose rates are the largest, has learnt nothing with 2 (benchmarks/LOG.md)."""
ENTROPY = ("ent_coef", "ent_coef_final", "ent_coef_min")
"""Numbers that say together how the entropy bonus goes."""
USUAL = (
    HyperparamConfig("clip_range", 0.1, 0.4),
    HyperparamConfig("gamma", values=HORIZONS),
    HyperparamConfig("gae_lambda", values=TRACES),
)


def usual_spaces(model: ModelConfig) -> list[HyperparamConfig]:
    """The numbers of PPO that matter most from task to task, but for those that the user has set.

    Args:
        model: the agent; its learning rates reach from a third of what its optimizer has by default to ten times that.
            That of a rule of the user's own does not vary, because nobody knows which ones suit it.
    """
    rate, spaces = model.learning_rate, []
    if rate is not None and not model.sets("learning_rate"):
        slowest, fastest = float(f"{rate / 3:.0e}"), min(10 * rate, FASTEST)
        spaces.append(HyperparamConfig("learning_rate", slowest, fastest, is_log_scale=True))
    if not any(map(model.sets, ENTROPY)):
        spaces.append(HyperparamConfig("ent_coef", 1e-5, 1e-2, is_log_scale=True))
    return spaces + [space for space in USUAL if not model.sets(space.name)]
