"""The training loop, the run it leaves behind, and the agent that comes out."""

from popgraft.train.agent import Agent
from popgraft.train.observer import Generation, Observer, Plan, counted, readable
from popgraft.train.replay import Replay, replay
from popgraft.train.resume import resume
from popgraft.train.run import Run
from popgraft.train.start import train

__all__ = [
    "Agent",
    "Generation",
    "Observer",
    "Plan",
    "Replay",
    "Run",
    "counted",
    "readable",
    "replay",
    "resume",
    "train",
]
