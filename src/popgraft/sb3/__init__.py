"""A Stable-Baselines3 algorithm on the engine."""

from popgraft.sb3.agent import agent_of
from popgraft.sb3.algorithm import DistributionalPPO
from popgraft.sb3.policy import CnnLstmPolicy, MlpLstmPolicy, MultiInputLstmPolicy
from popgraft.sb3.states import RNNStates

__all__ = ["CnnLstmPolicy", "DistributionalPPO", "MlpLstmPolicy", "MultiInputLstmPolicy", "RNNStates", "agent_of"]
