"""The tasks that Gymnasium does not have, against plain Python, one environment at a time."""

import numpy as np
import pytest
import torch

from popgraft.envs import RepeatPrevious, TMaze, Tracking
from popgraft.errors import ConfigError
from popgraft.rollout.tasks import RepeatPreviousVectorEnv

POP, ENVS = 2, 4


def played(env, actions, seed=0):
    """States, observations, rewards and terminations of a given sequence of actions [time, pop, env, ...]."""
    generator = torch.Generator().manual_seed(seed)

    def noise():
        drawn = torch.rand(POP, ENVS, env.noise_dims, generator=generator)
        draws.append(drawn)
        return drawn

    draws = []
    state = env.reset(noise())
    shown, rewards, ends = [env.observe(state)], [], []
    for action in actions:
        state, reward, terminated = env.step(state, action, noise())
        shown.append(env.observe(state))
        rewards.append(reward)
        ends.append(terminated)
    return torch.stack(shown), torch.stack(rewards), torch.stack(ends), torch.stack(draws)


@pytest.mark.parametrize(("delay", "suits", "length"), [(4, 4, 52), (1, 2, 5), (3, 7, 9)])
def test_repeat_previous_equals_the_registered_task(delay, suits, length):
    answers = torch.randint(suits, (length, POP, ENVS), generator=torch.Generator().manual_seed(1))
    shown, rewards, ends, _ = played(RepeatPrevious(delay, suits, length), answers)
    cards = shown.argmax(-1)
    assert cards.unique().tolist() == list(range(suits))
    for m in range(POP):
        task = RepeatPreviousVectorEnv(ENVS, delay, suits, length)
        task.reset(seed=0)
        task._suits[...] = cards[:, m].numpy()
        for t in range(length):
            card, reward, terminated, truncated, _ = task.step(answers[t, m].numpy())
            np.testing.assert_array_equal(shown[t + 1, m], np.eye(suits)[card])
            np.testing.assert_allclose(rewards[t, m], reward, rtol=1e-6)
            np.testing.assert_array_equal(ends[t, m], terminated)
            assert not truncated.any()
        assert terminated.all()


def test_repeat_previous_deals_uniformly():
    shown, *_ = played(RepeatPrevious(1, 5, 4000), torch.zeros(1000, POP, ENVS, dtype=torch.long))
    share = shown.mean(dim=(0, 1, 2))
    torch.testing.assert_close(share, torch.full((5,), 0.2), atol=0.02, rtol=0)


def walk(length, north, moves):
    """Bakker's maze in plain Python: what is seen after every move, its reward, and the index of the move that ends it."""
    cell, seen, rewards = 0, [], []

    def look():
        if cell == 0:
            return [0, 1, 1] if north else [1, 1, 0]
        return [0, 1, 0] if cell == length else [1, 0, 1]

    seen.append(look())
    for index, move in enumerate(moves):
        name = "NESW"[move]
        if cell == length and name in "NS":
            rewards.append(4.0 if (name == "N") == north else -0.1)
            return seen, rewards, index
        if name == "E" and cell < length:
            cell, reward = cell + 1, 0.0
        elif name == "W" and cell > 0:
            cell, reward = cell - 1, 0.0
        else:
            reward = -0.1
        seen.append(look())
        rewards.append(reward)
    return seen, rewards, None


@pytest.mark.parametrize("length", [1, 3])
def test_t_maze_equals_plain_python(length):
    moves = torch.randint(4, (60, POP, ENVS), generator=torch.Generator().manual_seed(2))
    moves[:length, 0], moves[length, 0] = 1, torch.tensor([0, 2, 0, 2])  # the first member walks straight on and turns
    shown, rewards, ends, draws = played(TMaze(length), moves)
    goals, finals = set(), set()
    for m, e in np.ndindex(POP, ENVS):
        north = bool(draws[0, m, e, 0] < 0.5)
        seen, paid, end = walk(length, north, moves[:, m, e].tolist())
        assert end is not None
        assert ends[: end + 1, m, e].tolist() == [False] * end + [True]
        assert rewards[: end + 1, m, e].tolist() == pytest.approx(paid)
        assert shown[: end + 1, m, e].tolist() == seen[: end + 1]
        goals.add(north)
        finals.add(paid[-1])
    assert goals == {True, False}
    assert finals == {4.0, -0.1}


def test_tracking_equals_plain_python():
    probability, steps = 0.3, 200
    pushes = torch.rand(steps, POP, ENVS, 1, generator=torch.Generator().manual_seed(3)) * 2 - 1
    shown, rewards, ends, draws = played(Tracking(probability), pushes)
    turns = walls = 0
    for m, e in np.ndindex(POP, ENVS):
        x, y, w = (2 * draws[0, m, e].double() - 1).tolist()
        v = 0.0
        for t in range(steps):
            assert shown[t, m, e].tolist() == pytest.approx([x, y], abs=1e-4)
            turn, drawn = draws[t + 1, m, e, :2].tolist()
            v += 0.1 * (4 * pushes[t, m, e, 0].item() - v)
            x += 0.1 * v
            if turn < probability:
                w, turns = 2 * drawn - 1, turns + 1
            y += 0.1 * w
            if abs(y) > 1:
                y, w, walls = np.sign(y) * 2 - y, -w, walls + 1
            assert rewards[t, m, e].item() == pytest.approx(-((x - y) ** 2), abs=2e-4)
    assert not ends.any()
    assert turns > 100
    assert walls > 20


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: RepeatPrevious(length=4), "delay=4, suits=4, length=4"),
        (lambda: TMaze(0), "length=0"),
        (lambda: Tracking(1.5), "turn_probability=1.5"),
    ],
)
def test_impossible_arguments(make, text):
    with pytest.raises(ConfigError, match=text):
        make()
