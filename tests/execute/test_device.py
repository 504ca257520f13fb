"""Nothing in an iteration waits for an accelerator: shown without one, on PyTorch's `meta` device.

Its tensors have shapes and no numbers, so whatever looks at a number on the host raises. What a copy from the host to an
accelerator would wait for is found by watching the operations: only `to_device` copies without waiting.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from popgraft.config import load_config
from popgraft.execute.shard import Shard
from popgraft.pbt import Evolution

META = torch.device("meta")
FROM_HOST = {torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor}


class Copies(TorchDispatchMode):
    """Refuses copies between host and device that wait, and counts those that do not."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].device != kwargs.get("device", args[0].device):
            assert kwargs.get("non_blocking"), f"a copy to {kwargs['device']} waits"
            self.count += 1
        hosts = [x for x in args if isinstance(x, Tensor) and x.device.type == "cpu" and x.dim()]
        assert not (hosts and any(isinstance(x, Tensor) and x.device == META for x in args)), f"{func} mixes devices"
        return func(*args, **kwargs)


class Constants(TorchFunctionMode):
    """Refuses tensors on the device that are made of Python's numbers, and lists or host tensors as an index."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in FROM_HOST:
            assert result.device != META, f"{func.__name__} copies {args} to the device, which waits"
        if func in (Tensor.__getitem__, Tensor.__setitem__) and args[0].device == META:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            assert not any(isinstance(i, list) or (isinstance(i, Tensor) and i.device != META) for i in index), index
        return result


def shard_of(settings: dict[str, Any]) -> Shard:
    config = load_config(
        {
            "env": {"source": "tensor", "id": "CartPole", "num_envs": 2},
            "model": {"n_steps": 4, "n_epochs": 2, "n_minibatches": 2, "network": {"hidden_size": 8}},
            "pbt": {"population_size": 2},
            "engine": {"sequence_length": 2, "device": "meta"},
        },
        settings,
    )
    shard = Shard(config, range(2), Evolution(config.pbt, 0).initial_hyperparams(config.model.hyperparams()))
    shard.iterate()  # constants are made once
    return shard


@pytest.mark.parametrize(
    "settings",
    [
        {"model.optimizer": "adaptive_upgd", "model.vgs.enabled": True, "model.vgs.statistic": "per_element"},
        {
            "env.id": "Pendulum",
            "env.kwargs.hide_velocities": True,
            "model.network.use_sde": True,
            "model.kl_penalty": True,
            "model.target_kl": 0.01,
            "model.optimizer": "adamw",
        },
        {
            "env.id": "RepeatPrevious",
            "model.network.recurrent": "gru",
            "model.network.critic": "categorical",
            "model.optimizer": "upgdw",
            "model.optimizer_kwargs.adaptive_noise": True,
            "model.vgs.enabled": True,
        },
        {"env.id": "TMaze", "model.network.critic_recurrent": "shared", "model.network.critic": "scalar"},
        {"env.id": "Tracking", "model.cvar_weight": 0.5, "model.clip_range_vf": 0.2, "model.normalize_reward": True},
    ],
    ids=lambda settings: str(settings.get("env.id", "CartPole")),
)
def test_an_iteration_never_waits_for_the_device(settings: dict[str, Any]) -> None:
    shard = shard_of(settings)
    with Copies() as copies, Constants():
        shard.iterate()
    # The noise of actions, of environments when a block is used up, and the order of sequences in each of two epochs.
    assert 3 <= copies.count <= 4


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: bool((x > 0).any()),
        lambda x: x.nonzero(),
        lambda x: x[:, [0]],
        lambda x: x[torch.tensor([0])],
        lambda x: x * torch.tensor([1.0, 2.0], device=x.device),
        lambda x: x.new_tensor([1.0]),
        lambda x: torch.ones(2).to(x.device),
    ],
)
def test_the_check_sees_what_waits(wait: Any) -> None:
    x = torch.ones(2, 2, device=META)
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), Copies(), Constants():
        wait(x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_agrees_and_never_waits() -> None:
    shards = [shard_of({"engine.device": device}) for device in ("cpu", "cuda")]
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = [shard.iterate() for shard in shards]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected, result = (iteration.metrics for iteration in found)
    for name, values in expected.items():
        torch.testing.assert_close(result[name].cpu(), values, rtol=1e-3, atol=1e-4, msg=name)
