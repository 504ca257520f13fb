import threading
from collections.abc import Callable
from typing import Any

import pytest

from popgraft import Observer, Run, StoreError, train
from popgraft.store import snapshot
from popgraft.train import resume
from popgraft.train.background import Background


def test_one_piece_of_work_at_a_time_and_in_order() -> None:
    background, done, gate = Background(), [], threading.Event()

    def first() -> None:
        gate.wait(120)
        done.append(1)

    background.start(first)
    background.start(lambda: done.append(2))
    assert done == []
    gate.set()
    background.wait()
    background.wait()
    assert done == [1, 2]


def test_what_goes_wrong_is_raised_once_to_who_waits() -> None:
    def fail() -> None:
        raise StoreError("no")

    background, done = Background(), []
    background.start(fail)
    background.start(lambda: done.append("after a failure"))
    with pytest.raises(StoreError, match="no"):
        background.wait()
    background.wait()
    assert done == []
    background.start(lambda: done.append("anew"))
    background.wait()
    assert done == ["anew"]


def test_training_goes_on_while_a_point_is_written(
    tiny: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    save, written, updates = snapshot.save, threading.Event(), threading.Event()

    def slow(folder: Any, name: str, *rest: Any) -> None:
        if name == "generation_000002":
            assert updates.wait(120), "the next generation waits for the files of the one before"
        save(folder, name, *rest)
        written.set()

    class Watching(Observer):
        def on_update(self, steps: int) -> None:
            if steps > 2 * 64:
                updates.set()

        def on_generation(self, generation: Any) -> None:
            if generation.number == 2:
                assert "generation_000002" in snapshot.names(Run(settings["run_dir"]).folder)

    settings = tiny(snapshots={"interval": 2}, total_timesteps=4 * 64)
    monkeypatch.setattr(snapshot, "save", slow)
    run = train(settings, observer=Watching())
    assert written.is_set()
    assert run.state == "finished"


def test_a_point_that_cannot_be_written_ends_the_run_within_a_generation(
    tiny: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    save, settings = snapshot.save, tiny(snapshots={"interval": 1}, total_timesteps=4 * 64)

    def fail(folder: Any, name: str, *rest: Any) -> None:
        if name == "generation_000002":
            raise StoreError("no space")
        save(folder, name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "save", fail)
        with pytest.raises(StoreError, match="no space"):
            train(settings)
    run = Run(settings["run_dir"])
    assert run.generations == 2
    assert resume(run.path).generations == 4
