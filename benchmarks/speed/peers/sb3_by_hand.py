"""Several of sb3-contrib's RecurrentPPO, divided among processes by hand.

python sb3_by_hand.py '{"agents": 8, "processes": 2, "seconds": 5}'
"""

import json
import sys

from measuring import N_ENVS, N_EPOCHS, N_MINIBATCHES, N_STEPS, WIDTH, Update, by_hand, cartpole, tell


def make(seed: int) -> Update:
    """An agent's update."""
    import gymnasium as gym
    import torch
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
    from stable_baselines3.common.vec_env import DummyVecEnv

    class Encoder(BaseFeaturesExtractor):
        """The dense layer before the memory; `net_arch` would put it behind."""

        def __init__(self, observation_space: gym.spaces.Box) -> None:
            super().__init__(observation_space, WIDTH)
            self.layers = torch.nn.Sequential(torch.nn.Linear(observation_space.shape[0], WIDTH), torch.nn.Tanh())

        def forward(self, observations: torch.Tensor) -> torch.Tensor:
            return self.layers(observations)

    torch.set_num_threads(1)
    model = RecurrentPPO(
        "MlpLstmPolicy",
        DummyVecEnv([cartpole] * N_ENVS),
        n_steps=N_STEPS,
        batch_size=N_ENVS * N_STEPS // N_MINIBATCHES,
        n_epochs=N_EPOCHS,
        seed=seed,
        device="cpu",
        policy_kwargs={
            "features_extractor_class": Encoder,
            "net_arch": [],
            "lstm_hidden_size": WIDTH,
            "shared_lstm": True,
            "enable_critic_lstm": False,
        },
    )

    def update() -> int:
        model.learn(N_ENVS * N_STEPS, reset_num_timesteps=False)
        return N_ENVS * N_STEPS

    return update


if __name__ == "__main__":
    tell(by_hand(make, **json.loads(sys.argv[1])), ["sb3-contrib", "stable-baselines3", "torch", "gymnasium", "numpy"])
