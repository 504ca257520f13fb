"""A study: one file that says what is asked, what is compared, on which tasks, and what is expected of it."""

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

import popgraft

ROOT = Path(__file__).parents[1]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Task(_Part):
    """Where agents are compared.

    Attributes:
        config: a YAML file, relative to the project.
        set: settings that win over it.
        low: the score that counts as 0 where tasks are put together: an agent that has learnt nothing.
        high: the score that counts as 1: as good as is known to be possible.
    """

    config: str
    set: dict[str, Any] = {}
    low: float
    high: float

    def normalised(self, score: float) -> float:
        """The score as a share of the way from `low` to `high`, which may be beyond either."""
        return (score - self.low) / (self.high - self.low)


class Study(_Part):
    """What is asked, and how it is answered.

    Attributes:
        question: in one sentence.
        hypothesis: written before anything was run.
        steps: environment steps that every run may take, those of evaluations included.
        seeds: how many runs of every arm on every task; they are numbered from 0, and equal numbers are a pair.
        episodes: by which a delivered agent, and everybody in the last population, is judged.
        baseline: the arm that others are compared with.
        tasks: by name.
        arms: settings that win over a task's, by name.
    """

    question: str
    hypothesis: str
    steps: Annotated[int, Field(gt=0)]
    seeds: Annotated[int, Field(gt=1)]
    episodes: Annotated[int, Field(gt=1)] = 100
    baseline: str
    tasks: dict[str, Task]
    arms: dict[str, dict[str, Any]]

    @model_validator(mode="after")
    def _something_to_compare(self) -> "Study":
        if self.baseline not in self.arms:
            raise ValueError(f"baseline {self.baseline!r} is no arm; the arms are {', '.join(self.arms)}")
        return self

    def settings(self, task: str, arm: str, seed: int, steps: int, run_dir: Path) -> popgraft.Config:
        """The configuration of one run, which trains for `steps`."""
        own = {
            "execute.shards": 1,
            "engine.threads": 1,
            "evaluation.final_episodes": self.episodes,
            "snapshots.interval": 1_000_000,
        }
        run = {"total_timesteps": steps, "seed": seed, "run_dir": str(run_dir)}
        given = self.tasks[task]
        return popgraft.load_config(ROOT / given.config, {**given.set, **own, **self.arms[arm], **run})


def load(path: Path) -> Study:
    """Reads a study's file.

    Raises:
        ValueError: it says something that a study does not have, or lacks what one must have.
    """
    return Study.model_validate(yaml.safe_load(path.read_text()))
