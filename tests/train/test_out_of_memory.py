import errno
from collections.abc import Callable
from typing import Any

import pytest
import torch

from popgraft import Run, train
from popgraft.config import load_config
from popgraft.errors import OutOfMemory
from popgraft.ppo import Learner
from popgraft.train import resume
from popgraft.train.out_of_memory import in_words

from .same import tensors


def too_much() -> None:
    torch.empty(2**60)


def on_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")


def on_a_fork() -> None:
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


def in_python() -> None:
    bytearray(2**62)


@pytest.mark.parametrize("work", [too_much, on_a_gpu, on_a_fork, in_python])
def test_every_shortage_names_what_to_lower(tiny: Callable[..., dict[str, Any]], work: Callable[[], None]) -> None:
    config = load_config(tiny())
    with (
        pytest.raises(
            OutOfMemory,
            match=r"memory does not suffice \(.*\); .* go on with --set model.n_minibatches=2 or --set env.num_envs=1, or "
            r"train anew with less than pbt.population_size=2$",
        ) as caught,
        in_words(config),
    ):
        work()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError(errno.ENOENT, "no such file"), KeyError("x")])
def test_other_errors_are_left_alone(tiny: Callable[..., dict[str, Any]], error: Exception) -> None:
    with pytest.raises(type(error)) as caught, in_words(load_config(tiny())):
        raise error
    assert caught.value is error


def test_a_run_that_is_out_of_memory_in_an_update_can_be_resumed(
    tiny: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    straight = train(tiny(run_dir=str(tmp_path / "straight"), snapshots={"interval": 1}))
    settings, learn, calls = tiny(snapshots={"interval": 1}), Learner.learn_, []

    def greedy(self: Learner, *arguments: Any) -> Any:
        calls.append(None)
        if len(calls) == 4:
            too_much()
        return learn(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "learn_", greedy)
        with pytest.raises(OutOfMemory, match="memory does not suffice"):
            train(settings)
    run = Run(settings["run_dir"])
    assert next(event.text for event in run.events if event.kind == "stopped").startswith("memory does not suffice")
    resume(run.path)
    leaves, others = (tensors(each, "last") for each in (run, straight))
    assert all(torch.equal(leaves[name], others[name]) for name in others)
