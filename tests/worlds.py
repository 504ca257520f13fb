"""Environments of tests in several rooms."""

import gymnasium as gym


class World(gym.Env):
    """Shows something else at every step, in episodes of one to seven steps."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.left = self.np_random.integers(1, 8)
        return self.observation_space.sample(), {}

    def step(self, action):
        self.left -= 1
        ended, flip = self.left == 0, self.np_random.random() < 0.5
        return self.observation_space.sample(), self.np_random.normal(), bool(ended and flip), bool(ended), {}
