"""Ray Tune's population-based training of sb3-contrib's RecurrentPPO.

python ray_tune_sb3.py '{"agents": 8, "seconds": 15}'
"""

import contextlib
import json
import sys
from typing import Any

import ray_tune
import sb3_by_hand
from ray import tune


def trainable(config: dict[str, Any]) -> None:
    """One agent; the learning rate does not change its speed."""
    update = sb3_by_hand.make(seed=0)
    while True:
        update()
        tune.report({"score": 0.0})


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        ray_tune.measure(trainable, ["sb3-contrib", "stable-baselines3"], **json.loads(sys.argv[1]))
