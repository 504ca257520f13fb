"""Graphs that models are exported to, against the models themselves."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from popgraft.sb3 import RNNStates

KINDS = {
    "multi-discrete": (spaces.Box(-2, 2, (3,)), spaces.MultiDiscrete([2, 3], start=[1, 0])),
    "dict": (
        spaces.Dict(
            {
                "state": spaces.Box(-1, 1, (2,), np.float64),
                "eye": spaces.Box(0, 255, (12, 10, 3), np.uint8),
                "cards": spaces.MultiDiscrete([2, 3], start=[0, 4]),
            }
        ),
        spaces.Box(np.float32([-0.1, 0.0]), np.float32([0.1, 0.2])),
    ),
    "dotted": (
        spaces.Dict({key: spaces.Box(-1, 1, (2,)) for key in ("robot.arm", "robot__arm", "type")}),
        spaces.Discrete(2),
    ),
    "box": (spaces.Box(-2, 2, (3,)), spaces.Box(-1, 1, (2,))),
    "image": (spaces.Box(0, 255, (3, 12, 10), np.uint8), spaces.MultiBinary([2, 2])),
    "discrete": (spaces.Discrete(4, start=2), spaces.Discrete(3, start=5)),
    "integers": (spaces.MultiBinary(3), spaces.Box(-3, 3, (2, 1), np.int64)),
}


def sequence(model, steps=8):
    """Observations of three environments, and where episodes start."""
    space = model.raw_space  # the environment's own: images may have their channels last
    space.seed(3)
    rng = np.random.default_rng(4)
    for step in range(steps):
        samples = [space.sample() for _ in range(3)]
        keyed = isinstance(space, spaces.Dict)
        obs = {key: np.stack([s[key] for s in samples]) for key in space} if keyed else np.stack(samples)
        yield obs, np.full(3, True) if step == 0 else rng.random(3) < 0.3


def as_torch(x):
    return {key: torch.from_numpy(part) for key, part in x.items()} if isinstance(x, dict) else torch.from_numpy(x)


def check_graph(model, step, steps=8):
    """A graph against the model: actions, outputs and state over a sequence, and for any number of environments."""
    policy, memory, seen = model.policy, None, []
    width = policy.network.actor_memory.state_size if policy.network.actor_memory else 0
    state = np.zeros((3, width), np.float32)
    for obs, start in sequence(model, steps):
        before = None if memory is None else RNNStates(*(tuple(map(torch.from_numpy, memory)),) * 2)
        with torch.no_grad():
            own = policy._unroll(policy._params(), policy._tensors(obs), before, torch.from_numpy(start), 3)
        expected, memory = model.predict(obs, memory, start, deterministic=True)
        action, outputs, state = step(obs, state, start)
        assert action.dtype == expected.dtype
        np.testing.assert_allclose(action, expected, atol=5e-4, rtol=2e-4)  # other kernels round otherwise
        np.testing.assert_allclose(outputs, own.outputs[0, 0], atol=5e-4, rtol=2e-4)
        np.testing.assert_allclose(state, np.stack(memory).transpose(2, 1, 0, 3).reshape(3, -1), atol=5e-4, rtol=2e-4)
        seen.append(outputs)
    assert np.ptp(seen, axis=(0, 1)).max() > 0.1, "the outputs differ"
    one = {key: value[:1] for key, value in obs.items()} if isinstance(obs, dict) else obs[:1]
    np.testing.assert_allclose(step(one, state[:1], start[:1])[0], step(obs, state, start)[0][:1], atol=1e-5)


def check_program(model, path, steps=8):
    model.export(path)
    graph = torch.export.load(path).module()
    check_graph(model, lambda *arguments: [part.numpy() for part in graph(*map(as_torch, arguments))], steps)


def check_onnx(model, tmp_path, steps=8):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model.export(tmp_path / "policy.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    assert [output.name for output in session.get_outputs()] == ["action", "distribution", "next_state"]

    def step(obs, state, start):
        keyed = isinstance(obs, dict)
        named = {f"observation.{key}": part for key, part in obs.items()} if keyed else {"observation": obs}
        return session.run(None, {**named, "state": state, "episode_start": start})

    check_graph(model, step, steps)
