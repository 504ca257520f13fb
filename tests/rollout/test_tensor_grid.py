"""A grid of tensors: next-step autoreset, streams of random numbers, and environments that do not fit."""

import pytest
import torch

from popgraft.config import EnvConfig
from popgraft.envs import ENVS, TensorEnv
from popgraft.errors import ConfigError
from popgraft.rollout.make import make_grid
from popgraft.rollout.tensor_grid import BLOCK, TensorGrid
from popgraft.spaces import ActionSpec, ObsSpec

ENV_COUNT = 3


class Counter(TensorEnv):
    """Shows its latest random number and its step; ends where an action is 1."""

    observation = ObsSpec((2,))
    action = ActionSpec("discrete", sizes=(3,))
    noise_dims = 1

    def __init__(self, time_limit=None):
        self.time_limit = time_limit

    def reset(self, noise):
        return {"noise": noise, "time": torch.zeros_like(noise, dtype=torch.long)}

    def step(self, state, action, noise):
        return {"noise": noise, "time": state["time"] + 1}, action.float() + 5, action == 1

    def observe(self, state):
        return torch.cat([state["noise"], state["time"].float()], dim=-1)


@pytest.fixture
def grid_of(monkeypatch):
    monkeypatch.setitem(ENVS, "Counter", Counter)

    def make(pop, name="Counter", **kwargs):
        return make_grid(EnvConfig(source="tensor", id=name, num_envs=ENV_COUNT, kwargs=kwargs), pop)

    return make


def shown(grid):
    return grid.observe()["obs"]


def actions_of(grid, value=0):
    return torch.full((grid.pop, grid.num_envs, 1), value)


def test_an_end_is_shown_and_the_next_step_only_resets(grid_of):
    grid = grid_of(2)
    grid.reset([0, 1], [1, 2])
    actions = actions_of(grid)
    actions[0, 1] = 1
    first, between, last = grid.act(actions), shown(grid), grid.act(actions_of(grid, 2))
    place = (0, 1)
    others = torch.ones(2, ENV_COUNT, dtype=torch.bool)
    others[place] = False
    assert first.terminated[place]
    assert not first.terminated[others].any()
    assert first.reward[place] == 6
    assert (first.reward[others] == 5).all()
    assert first.valid.all()
    assert not first.started.any()
    assert first.final is None
    assert between[place][1] == 1  # the terminal observation
    assert last.started[place]
    assert not last.started[others].any()
    assert not last.valid[place]
    assert last.valid[others].all()
    assert last.reward[place] == 0
    assert (last.reward[others] == 7).all()
    assert not (last.terminated | last.truncated).any()
    assert shown(grid)[place][1] == 0
    assert (shown(grid)[others][:, 1] == 2).all()
    assert grid.act(actions_of(grid)).valid.all()


def test_a_time_limit_truncates_unless_the_task_has_ended(grid_of):
    grid = grid_of(1, time_limit=3)
    grid.reset([0], [1])
    actions = actions_of(grid)
    flags = []
    for t in range(8):
        actions[0, 0] = int(t == 2)  # terminates in the step of the limit
        step = grid.act(actions)
        flags.append((step.terminated[0].tolist(), step.truncated[0].tolist()))
    no = [False] * 3
    assert flags[2] == ([True, False, False], [False, True, True])
    assert flags[6] == (no, [True] * 3)  # reset in step 3, then three steps
    assert all(flag == (no, no) for t, flag in enumerate(flags) if t not in (2, 6))


def numbers(grid, steps):
    """The random numbers that are shown, [step, pop, env]."""
    found = [shown(grid)[..., 0].clone()]
    for _ in range(steps):
        grid.act(actions_of(grid))
        found.append(shown(grid)[..., 0].clone())
    return torch.stack(found)


def test_a_member_draws_its_own_stream_whoever_is_beside_it(grid_of):
    steps = BLOCK + 40  # into the second block
    together, alone = grid_of(3), grid_of(1)
    together.reset([0, 1, 2], [5, 6, 7])
    alone.reset([0], [6])
    found, expected = numbers(together, steps), numbers(alone, steps)
    assert torch.equal(found[:, 1], expected[:, 0])
    assert len(found.unique()) > 0.999 * found.numel()
    together.reset([1], [6])  # in the middle of a block
    assert torch.equal(numbers(together, steps)[:, 1], expected[:, 0])
    other = grid_of(3)
    other.reset([0, 1, 2], [5, 6, 7])
    undisturbed = numbers(other, 2 * steps)
    assert torch.equal(undisturbed[:, [0, 2]][: steps + 1], found[:, [0, 2]])


def test_a_reset_of_some_members_leaves_the_others_alone(grid_of):
    found, expected = grid_of(3, time_limit=4), grid_of(3, time_limit=4)
    for grid in (found, expected):
        grid.reset([0, 1, 2], [5, 6, 7])
        grid.act(actions_of(grid))
    for grid in (found, expected):
        grid.act(actions_of(grid, 1))  # all have ended
    found.reset([1], [8])
    assert (shown(found)[1, :, 1] == 0).all()
    for _ in range(BLOCK + 10):
        mine, calm = found.act(actions_of(found)), expected.act(actions_of(expected))
        for name in ("reward", "terminated", "truncated", "valid", "started"):
            assert torch.equal(getattr(mine, name)[[0, 2]], getattr(calm, name)[[0, 2]])
        assert torch.equal(shown(found)[[0, 2]], shown(expected)[[0, 2]])


@pytest.mark.parametrize("name", [name for name in ENVS if name != "Counter"])
def test_every_task_plays_with_whatever_an_agent_does(name, grid_of):
    grid = grid_of(2, name)
    grid.reset([0, 1], [1, 2])
    generator = torch.Generator().manual_seed(0)
    spec, count = grid.spaces.action, 0
    for _ in range(150):
        if spec.kind == "box":
            actions = 9 * torch.randn(2, ENV_COUNT, spec.dims, generator=generator)
            actions[0, 0] = torch.nan
        else:
            actions = torch.randint(spec.sizes[0], (2, ENV_COUNT, 1), generator=generator)
        step = grid.act(actions)
        count += int((step.terminated | step.truncated).sum())
        assert grid.spaces.observation_space.shape == grid.spaces.obs["obs"].shape
        assert shown(grid).isfinite().all()
        assert step.reward.isfinite().all()
    assert (count == 0) == (name in ("Pendulum", "Tracking"))


def test_actions_arrive_as_the_environment_counts_them(grid_of):
    heard = []

    class Listener(Counter):
        def step(self, state, action, noise):
            heard.append(action)
            return super().step(state, torch.zeros(noise.shape[:2]), noise)

    cases = [
        (ActionSpec("discrete", sizes=(3,), start=(4,)), torch.tensor([2]), torch.tensor(6)),
        (
            ActionSpec("multi_discrete", sizes=(3, 2), start=(0, 5), shape=(2,)),
            torch.tensor([1, 1]),
            torch.tensor([1, 6]),
        ),
        (ActionSpec("multi_binary", sizes=(2, 2), shape=(2,)), torch.tensor([0, 1]), torch.tensor([0, 1])),
        (
            ActionSpec("box", shape=(2, 1), low=(-1.0, -1.0), high=(1.0, 2.0)),
            torch.tensor([-3.0, 3]),
            torch.tensor([[-1.0], [2]]),
        ),
    ]
    for spec, stored, expected in cases:
        Listener.action = spec
        ENVS["Counter"] = Listener
        grid = grid_of(1)
        grid.act(stored.expand(1, ENV_COUNT, -1))
        assert torch.equal(heard[-1], expected.expand(1, ENV_COUNT, *expected.shape))


def broken(**functions):
    return type("Broken", (Counter,), functions)


@pytest.mark.parametrize(
    ("functions", "text"),
    [
        ({"observation": ObsSpec((3,))}, r"the observation has shape \(2, 3, 2\) .* not \(2, 3, 3\)"),
        ({"step": lambda s, x, a, n: (x, a.long(), a == 1)}, r"the reward has .*int64"),
        ({"step": lambda s, x, a, n: (x, a.float(), a.float())}, r"the termination has .*float32"),
        ({"step": lambda s, x, a, n: (x | {"time": x["time"] * 0.5}, a.float(), a == 1)}, r"the state time has"),
        ({"step": lambda s, x, a, n: ({"noise": n}, a.float(), a == 1)}, r"consists of \['noise', 'time'\]"),
    ],
)
def test_an_environment_of_another_form_is_refused(functions, text, grid_of, monkeypatch):
    monkeypatch.setitem(ENVS, "Counter", broken(**functions))
    with pytest.raises(ConfigError, match=text):
        grid_of(2)


def test_names_and_arguments_that_do_not_exist(grid_of):
    with pytest.raises(ConfigError, match=r"'CartPole-v1' is no tensor environment; there are CartPole, Pendulum"):
        grid_of(1, "CartPole-v1")
    with pytest.raises(ConfigError, match=r"'torch:Tensor' is <class 'torch.Tensor'>, not a subclass"):
        grid_of(1, "torch:Tensor")
    with pytest.raises(ConfigError, match=r"does not take kwargs=\{'wind': 3\}"):
        grid_of(1, "CartPole", wind=3)
    assert isinstance(grid_of(1, "popgraft.envs:TMaze", length=2), TensorGrid)


class Odd(Counter):
    """One environment gives an odd number in its third step; which, its first random number says."""

    def __init__(self, place="nowhere", value=0.0, of=-1.0):
        super().__init__()
        self.place, self.value, self.of = place, value, of

    def reset(self, noise):
        return {**super().reset(noise), "name": noise}

    def step(self, state, action, noise):
        after, reward, ended = super().step(state, action, noise)
        found = self._found({**after, "name": state["name"]})
        if self.place == "reward":
            reward = torch.where(found, self.value, reward)
        return {**after, "name": state["name"]}, reward, ended

    def observe(self, state):
        seen = super().observe(state)
        if self.place == "observation":
            seen = torch.where(self._found(state).unsqueeze(-1) & torch.tensor([False, True]), self.value, seen)
        return seen

    def _found(self, state):
        return ((state["name"] == self.of) & (state["time"] == 3)).squeeze(-1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("place", ["observation", "reward"])
def test_a_number_that_is_not_usable_fails_the_member(place, value, grid_of, monkeypatch):
    monkeypatch.setitem(ENVS, "Odd", Odd)
    seeds = [1, 2, 3]
    calm = grid_of(3, "Odd")
    calm.reset(range(3), seeds)
    odd = grid_of(3, "Odd", place=place, value=value, of=float(shown(calm)[1, 2, 0]))
    odd.reset(range(3), seeds)
    for step in range(6):
        mine, theirs = odd.act(actions_of(odd)), calm.act(actions_of(calm))
        for name in ("reward", "terminated", "truncated", "valid", "started"):
            assert torch.equal(getattr(mine, name)[[0, 2]], getattr(theirs, name)[[0, 2]])
        assert torch.equal(shown(odd)[[0, 2]], shown(calm)[[0, 2]])
        failed = step >= 2
        assert mine.valid[1].any() == (not failed)
        assert bool(shown(odd)[1].any() or mine.reward[1].any()) == (not failed)
        assert list(odd.failures) == [1] * failed
    name = "reward" if place == "reward" else "observation 'obs' at [1]"
    assert odd.failures[1].startswith(f"UnusableNumber: environment 2 gave {value:g} as {name};")
    odd.reset([1], [2])
    calm.reset([1], [2])
    assert odd.failures == {}
    assert torch.equal(shown(odd), shown(calm))
    assert odd.act(actions_of(odd)).valid.all()


def test_what_tensor_environments_cannot_have():
    for name, value in {"vectorization": "sync", "autoreset": "next_step"}.items():
        with pytest.raises(ValueError, match=f"env.{name}={value!r} has no effect on a tensor environment"):
            EnvConfig(source="tensor", id="CartPole", **{name: value})
    with pytest.raises(ValueError, match="wrappers"):
        EnvConfig(source="tensor", id="CartPole", wrappers=[{"name": "hide"}])
