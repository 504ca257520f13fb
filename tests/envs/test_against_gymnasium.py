"""Whole episodes, step by step: the same state in, the same observation, reward and end out.

Gymnasium computes in double precision, tensors in single: numbers of size 1 agree to 1e-6, and the tolerance is 5e-6.
"""

import gymnasium as gym
import numpy as np
import pytest
import torch

from popgraft.envs import CartPole, Pendulum

POP, ENVS = 2, 3


def noise_of(env, generator):
    return torch.rand(POP, ENVS, env.noise_dims, generator=generator)


def balancing(state, rng):
    """Keeps most poles up: pushes to where the pole falls."""
    lean = (state[..., 2] + 0.3 * state[..., 3] + 0.05 * state[..., 0] + 0.1 * state[..., 1]).numpy()
    pushes = (lean > 0).astype(np.int64)
    pushes[0, 0] = rng.integers(2)  # this one falls
    return torch.from_numpy(pushes)


def swinging(state, rng):
    return torch.from_numpy(rng.uniform(-2, 2, (POP, ENVS, 1)).astype(np.float32))


@pytest.mark.parametrize(
    ("ours", "theirs", "policy", "length"),
    [(CartPole(), "CartPole-v1", balancing, 500), (Pendulum(), "Pendulum-v1", swinging, 200)],
    ids=["CartPole", "Pendulum"],
)
def test_every_step_of_whole_episodes(ours, theirs, policy, length):
    reference = [gym.make(theirs) for _ in range(POP * ENVS)]
    for env in reference:
        env.reset(seed=0)
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    state, playing, ends = ours.reset(noise_of(ours, generator)), np.ones(POP * ENVS, bool), []
    for t in range(1, length + 1):
        action = policy(state, rng)
        after, reward, terminated = ours.step(state, action, noise_of(ours, generator))
        shown = ours.observe(after)
        for place, env in enumerate(reference):
            if not playing[place]:
                continue
            m, e = divmod(place, ENVS)
            env.unwrapped.state = state[m, e].double().numpy()
            obs, paid, ended, cut, _ = env.step(action[m, e].numpy() if action.dim() == 3 else int(action[m, e]))
            np.testing.assert_allclose(shown[m, e], obs, atol=5e-6, rtol=5e-6)
            assert reward[m, e].item() == pytest.approx(paid, abs=5e-6, rel=5e-6)
            assert bool(terminated[m, e]) == ended
            assert (t >= ours.time_limit) == cut
            if ended or cut:
                playing[place] = False
                ends.append("terminated" if ended else "truncated")
        state = after
    assert not playing.any()
    assert ends.count("truncated") >= POP * ENVS - 1
    assert isinstance(ours, Pendulum) or "terminated" in ends


@pytest.mark.parametrize(("ours", "theirs"), [(CartPole(), "CartPole-v1"), (Pendulum(), "Pendulum-v1")])
def test_episodes_begin_in_the_same_box(ours, theirs):
    env = gym.make(theirs).unwrapped
    starts = np.stack([(env.reset(seed=seed), env.state)[1] for seed in range(300)])
    noise = torch.rand(1, 300, ours.noise_dims, generator=torch.Generator().manual_seed(0))
    mine = ours.reset(noise)[0].numpy()
    np.testing.assert_allclose(np.abs(mine).max(0), np.abs(starts).max(0), rtol=0.03)
    np.testing.assert_allclose(mine.std(0), starts.std(0), rtol=0.1)


@pytest.mark.parametrize(("kind", "kept"), [(CartPole, [0, 2]), (Pendulum, [0, 1])])
def test_hidden_velocities(kind, kept):
    whole, part = kind(), kind(hide_velocities=True)
    state = whole.reset(torch.rand(POP, ENVS, whole.noise_dims, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(part.observe(state), whole.observe(state)[..., kept], rtol=0, atol=0)
    assert part.observation.shape == (2,)
