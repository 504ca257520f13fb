"""A population of AgileRL's recurrent PPO, trained in turn as by its `train_on_policy`.

python agilerl_evo.py '{"agents": 8, "processes": 1, "seconds": 5}'
"""

import json
import math
import sys
from typing import Any

from measuring import N_ENVS, N_EPOCHS, N_MINIBATCHES, N_STEPS, WIDTH, Update, by_hand, tell


def make(seed: int) -> Update:
    """An agent's update."""
    import gymnasium as gym
    import torch
    from agilerl.algorithms import PPO
    from agilerl.modules.lstm import EvolvableLSTM
    from agilerl.rollouts import collect_rollouts_recurrent

    class Encoder(EvolvableLSTM):
        """Its own has a dense layer behind the memory instead of before it."""

        def __init__(self, observation_space: gym.spaces.Box, num_outputs: int, **kwargs: Any) -> None:
            super().__init__(observation_space.shape[0], WIDTH, num_outputs, **kwargs)

        def create_lstm(self) -> torch.nn.ModuleDict:
            layers = torch.nn.ModuleDict()
            layers["dense"] = torch.nn.Sequential(torch.nn.Linear(self.input_size, WIDTH), torch.nn.Tanh())
            layers[f"{self.name}_lstm"] = torch.nn.LSTM(WIDTH, WIDTH, batch_first=True)
            layers[f"{self.name}_lstm_output"] = torch.nn.Identity()
            layers[f"{self.name}_output_activation"] = torch.nn.Identity()
            return layers

        def forward(self, x: torch.Tensor, hidden_state: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict]:
            return super().forward(self.model["dense"](x), hidden_state)

    torch.set_num_threads(1)
    env = gym.make_vec("CartPole-v1", num_envs=N_ENVS, vectorization_mode="vector_entry_point")
    box = gym.spaces.Box(env.single_observation_space.low[::2], env.single_observation_space.high[::2])
    env = gym.wrappers.vector.TransformObservation(env, lambda rows: rows[:, ::2], single_observation_space=box)
    agent = PPO(
        box,
        env.single_action_space,
        index=seed,
        recurrent=True,
        num_envs=N_ENVS,
        learn_step=N_ENVS * N_STEPS,
        max_seq_len=N_STEPS,
        update_epochs=N_EPOCHS,
        net_config={
            "latent_dim": WIDTH,
            "encoder_cls": Encoder,
            "encoder_config": {},
            "head_config": {"hidden_size": [16]},
        },
    )
    agent.set_training_mode(True)
    last: dict[str, Any] = {}

    def update() -> int:
        _, *ended = collect_rollouts_recurrent(agent, env, **last)
        last.update(zip(("last_obs", "last_done", "last_scores", "last_info"), ended, strict=True))
        sequences = N_ENVS + int(agent.rollout_buffer.buffer["dones"][:-1].sum())  # they end with episodes
        agent.batch_size = math.ceil(sequences / N_MINIBATCHES)
        agent.learn()
        return N_ENVS * N_STEPS

    return update


if __name__ == "__main__":
    tell(by_hand(make, **json.loads(sys.argv[1])), ["agilerl", "torch", "gymnasium", "numpy"])
