"""The acting policy as one graph that runs without this project: PyTorch's exported program, and ONNX.

    (observation, state, episode_start) → (action, distribution, next_state)

Observations [env, *shape] come as the environment gives them, those of a Dict space in a dict. The state [env, n] is
that of the actor's memory: zeros before the first step, and zeroed where `episode_start` (Bool [env]) says so. The
action [env, *action shape] is the most likely one, as the environment takes it; `distribution` [env, outputs] is what
it is the mode of: logits, or means and what belongs to them.
"""

import io
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from torch import Tensor, nn

from popgraft import tree
from popgraft.disk import reason, write_atomic
from popgraft.errors import ConfigError, MissingExtra, StoreError
from popgraft.ops import moments
from popgraft.spaces import ObsSpec
from popgraft.state import Moments

OUTPUTS = ["action", "distribution", "next_state"]
BATCH = 2
"""Environments in the example that a graph is traced with; the graph takes any number."""


class ActingProgram(nn.Module):
    """What a policy does in one step without randomness, on constants of its own.

    Args:
        model: a DistributionalPPO.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        policy = model.policy
        self.network, self.spaces = policy.network, policy.spaces
        self.observation_space, self.action_space = model.raw_space, model.action_space
        weights = self.network.views(policy.member.params)
        acting = {name: weights[name] for name in ("encoder", "actor_memory", "actor_mlp", "head") if name in weights}
        constants = {"params": acting, "obs": policy.member.normalizer.obs, "action": self._bounds()}
        self._paths = {}
        for i, (path, leaf) in enumerate(tree.items(constants)):  # numbered, for paths may differ in their dots alone
            self._paths[path] = f"{path.replace('.', '__')}__{i}"
            self.register_buffer(self._paths[path], leaf.detach().cpu().clone())
        self._like = tree.map(lambda leaf: leaf.new_empty(0), constants)

    def forward(
        self, observation: Any, state: Float[Tensor, "env state"], episode_start: Bool[Tensor, "env"]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step of every environment."""
        constants = tree.restore(self._like, {path: getattr(self, name) for path, name in self._paths.items()})
        obs = {name: self._seen(name, spec, observation, constants["obs"]) for name, spec in self.spaces.obs.items()}
        outputs, state = self.network.act(constants["params"], obs, state.unsqueeze(0), episode_start.view(1, 1, -1))
        action = self.network.head.mode(constants["params"]["head"], outputs[:, 0])
        return self._taken(action[0], constants["action"]), outputs[0, 0], state[0]

    def example(self) -> tuple[Any, Tensor, Tensor]:
        """Arguments of `forward`."""
        space, memory = self.observation_space, self.network.actor_memory
        keyed = isinstance(space, spaces.Dict)
        zeros = {key: _zeros(child) for key, child in space.items()} if keyed else _zeros(space)
        state = torch.zeros(BATCH, memory.state_size if memory else 0)
        return zeros, state, torch.ones(BATCH, dtype=torch.bool)

    def _bounds(self) -> dict[str, Tensor]:
        """What turns a stored action into the environment's: smallest choices, or bounds."""
        space = self.action_space
        if not isinstance(space, spaces.Box):
            return {"start": torch.tensor(self.spaces.action.start)}
        working = np.float64 if np.issubdtype(space.dtype, np.integer) else space.dtype
        bounds = {"low": space.low, "high": space.high}
        return {name: torch.from_numpy(bound.astype(working)) for name, bound in bounds.items()}

    def _taken(self, action: Tensor, bounds: dict[str, Tensor]) -> Tensor:
        """As `action_encoder` does it."""
        action = action.reshape(-1, *self.spaces.action.shape)
        dtype = _dtype(self.action_space)
        if "start" in bounds:
            return (action + bounds["start"].view(self.spaces.action.shape)).to(dtype)
        bounded = action.nan_to_num().to(bounds["low"].dtype).clamp(bounds["low"], bounds["high"])
        return bounded if dtype.is_floating_point else bounded.round().to(dtype)

    def _seen(self, name: str, spec: ObsSpec, observation: Any, known: dict[str, Moments]) -> Tensor:
        """One key of an observation as the network takes it [1, time, env, *shape]."""
        whole: Any = self.observation_space
        keyed = isinstance(whole, spaces.Dict)
        space, raw = (whole[name], observation[name]) if keyed else (whole, observation)
        raw = raw.clone(memory_format=torch.contiguous_format)  # the graph is traced with contiguous tensors
        if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
            raw = _one_hot(space, raw)
            torch._assert_async(
                (raw.sum(1) == len(np.ravel(space.start))).all(), f"observation {name!r} is not in {space}"
            )
        elif isinstance(space, spaces.MultiBinary):
            torch._assert_async(((raw == 0) | (raw == 1)).all(), f"observation {name!r} is not in {space}")
        elif spec.image and not space.shape[0] < space.shape[2]:
            raw = raw.permute(0, 3, 1, 2).contiguous()
        x = raw.reshape(1, -1, *spec.shape).to(torch.uint8 if spec.image else torch.float32)
        return (moments.normalize(moments.standard(known[name]), x) if name in known else x).unsqueeze(1)


def write(path: Path, model: Any) -> None:
    """Writes a model, or its policy, in the format that the suffix names; see `DistributionalPPO.export`."""
    if path.suffix not in FORMATS:
        raise ConfigError(f"{path}: the suffix must name the format, one of {', '.join(FORMATS)}")
    file = io.BytesIO()
    FORMATS[path.suffix](model, file)
    try:
        write_atomic(path, file.getvalue())
    except OSError as error:
        raise StoreError(f"cannot write {path}: {reason(error, path)}") from None


def write_program(model: Any, file: io.BytesIO) -> None:
    """PyTorch's format: `torch.export.load(path).module()` is the graph."""
    torch.export.save(_traced(ActingProgram(model)), file)


def write_onnx(model: Any, file: io.BytesIO) -> None:
    """ONNX; every key of a Dict space is an input `observation.KEY`.

    Raises:
        MissingExtra: the exporter is not installed.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise MissingExtra(missing[0], "onnx", "files in the ONNX format")
    program = ActingProgram(model)
    space = program.observation_space
    keys = [f"observation.{key}" for key in space] if isinstance(space, spaces.Dict) else ["observation"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about what it calls itself
        converted = torch.onnx.export(
            _traced(program),
            input_names=[*keys, "state", "episode_start"],
            output_names=OUTPUTS,
            dynamo=True,
            verbose=False,
        )
    assert converted is not None, "dynamo=True returns the program"
    file.write(converted.model_proto.SerializeToString())


FORMATS: dict[str, Callable[[Any, io.BytesIO], None]] = {
    ".zip": lambda model, file: model.save(file),
    ".pt2": write_program,
    ".onnx": write_onnx,
}
"""Writers by suffix."""


def _traced(program: ActingProgram) -> torch.export.ExportedProgram:
    example, axis = program.example(), {0: torch.export.Dim("env")}
    shapes = dict.fromkeys(example[0], axis) if isinstance(example[0], dict) else axis
    with torch.no_grad():
        return torch.export.export(program, example, dynamic_shapes=(shapes, axis, axis))


def _zeros(space: gym.Space[Any]) -> Tensor:
    return torch.zeros(BATCH, *(space.shape or ()), dtype=_dtype(space))


def _dtype(space: gym.Space[Any]) -> torch.dtype:
    return torch.from_numpy(np.zeros(0, space.dtype)).dtype


def _one_hot(space: Any, raw: Tensor) -> Tensor:
    """One indicator per choice [env, choices]."""
    many = isinstance(space, spaces.MultiDiscrete)
    sizes, starts = (np.ravel(part) for part in ((space.nvec if many else space.n), space.start))
    owner = np.repeat(np.arange(len(sizes)), sizes)
    choices = np.concatenate([start + np.arange(size) for start, size in zip(starts, sizes, strict=True)])
    return raw.reshape(-1, len(sizes))[:, torch.from_numpy(owner)] == torch.from_numpy(choices)
