"""Points whose checksums are right, and whose content cannot be: `resume` refuses them in words, or goes on from one before."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from popgraft import Run, resume, train
from popgraft.errors import Damaged, StoreError
from popgraft.store import snapshot

Tiny = Callable[..., dict[str, Any]]
POINTS = ["generation_000002", "generation_000003"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three generations."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    network = {"encoder_layers": [8], "hidden_size": 16}
    train(
        {
            "env": {"id": "popgraft/RepeatPrevious-v0", "num_envs": 2, "kwargs": {"delay": 1, "length": 6}},
            "model": {"n_steps": 8, "n_epochs": 2, "n_minibatches": 1, "network": network},
            "pbt": {
                "population_size": 2,
                "perturbation_interval": 2,
                "hyperparams": [{"name": "learning_rate", "min_value": 1e-4, "max_value": 1e-2}],
            },
            "evaluation": {"episodes": 3, "max_steps": 20, "final_episodes": 4},
            "snapshots": {"interval": 1, "keep": 2},
            "total_timesteps": 192,
            "execute": {"shards": 1},
            "run_dir": str(folder),
        }
    )
    return folder


def rewrite(folder: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the metadata of a snapshot, and gives it the checksum that it should have."""
    file = folder / "snapshots" / name / "manifest.json"
    body = json.loads(file.read_text())
    del body["checksum"]
    change(body["metadata"])
    file.write_text(json.dumps({**body, "checksum": snapshot._checksum(body)}))


def at(*keys: str) -> Callable[[Any], Callable[[dict[str, Any]], Any]]:
    """Sets what lies there."""

    def to(value: Any) -> Callable[[dict[str, Any]], Any]:
        def change(metadata: dict[str, Any]) -> None:
            for key in keys[:-1]:
                metadata = metadata[key]
            metadata[keys[-1]] = value

        return change

    return to


CASES = [
    (at("generation")(-1), "its generation is -1: "),
    (at("generation")(7), "it is that of generation 7"),
    (at("generation")("two"), "its generation is 'two': "),
    (at("steps")(-64), "its steps is -64: "),
    (at("steps")(64.5), "its steps is 64.5: "),
    (at("steps")(2**60), "its steps is "),
    (at("steps")(65), "its numbers are not those of its members"),
    (at("exploits")(None), "its exploits is none: "),
    (at("found")({}), "its found.generation is missing"),
    (at("found")([1]), "its found is "),
    (at("found", "generation")(-1), "its found.generation is -1: "),
    (at("found", "generation")(9), "its numbers are not those of its members"),
    (at("found", "member")(2), "its numbers are not those of its members"),
    (at("found", "score")(float("nan")), "its found.score is nan: "),
    (at("found", "score")("high"), "its found.score is 'high': "),
    (at("found")(None), "does not fit|damaged"),  # though there are its tensors
    (at("follower", "pending")([[1]]), "its follower.pending.0"),
    (at("strategy")(3), "its strategy is 3: "),
    (at("events")(True), "its events is true: "),
    (at("tensorboard")({"population/x": -3}), "its tensorboard.population/x is -3: "),
    (lambda metadata: metadata.pop("strategy"), "its strategy is missing"),
    (lambda metadata: metadata.clear(), "its generation is missing"),
]
EVERYDAY = 6


@pytest.mark.parametrize(
    ("change", "words"),
    [*CASES[:EVERYDAY], *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES[EVERYDAY:])],
)
def test_a_point_that_cannot_be_is_refused_in_words(
    whole: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    for name in POINTS:
        rewrite(folder, name, change)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file() and "sqlite" not in file.name}
    with pytest.raises(StoreError, match=words) as found:
        resume(folder, {"total_timesteps": 256})
    assert str(folder) in str(found.value)
    assert before == {file: file.read_bytes() for file in before}


def test_one_before_it_is_gone_on_from(whole: Path, tmp_path: Path) -> None:
    straight, folder = tmp_path / "straight", tmp_path / "run"
    for copy in (straight, folder):
        shutil.copytree(whole, copy)
    rewrite(folder, POINTS[1], at("steps")(-64))
    expected = resume(straight, {"total_timesteps": 256}).scores
    run = resume(folder, {"total_timesteps": 256})
    assert run.scores == expected
    assert [event.kind for event in run.events].count("damaged") == 1


@pytest.mark.parametrize("change", [at("generation")(-1), at("score")(None), lambda metadata: metadata.clear()])
def test_a_best_agent_whose_origin_cannot_be_is_refused_in_words(
    whole: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    rewrite(folder, "best", change)
    with pytest.raises(Damaged, match=r"snapshot .*best is damaged: its (generation|score) is "):
        _ = Run(folder).summary
