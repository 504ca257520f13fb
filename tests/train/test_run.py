import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from popgraft import Agent, ConfigError, Run, StoreError, load_config, train

from .same import tensors

Tiny = Callable[..., dict[str, Any]]


def test_everything_can_be_read_again_from_the_folder(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(tiny())
    monkeypatch.chdir(run.path.parent)
    for again in (Run(run.path), Run("run")):
        assert again.scores == run.scores
        assert again.lineage == run.lineage
        assert again.events == run.events
        assert again.summary == run.summary
        assert torch.equal(again.best.member.params, run.best.member.params)
        assert isinstance(again.best, Agent)
        assert torch.equal(again.best.evaluate(3, 1).mean, run.best.evaluate(3, 1).mean)


def test_the_configuration_reloads_equal(tiny: Tiny) -> None:
    settings = tiny(model__target_kl=0.02, model__optimizer_kwargs={"betas": [0.8, 0.99]}, stop_at_score=-1)
    run = train(settings)
    assert load_config(run.folder.config) == run.config
    given, kept = load_config(settings).model_dump(), run.config.model_dump()
    assert kept == given


def test_a_run_repeats_from_its_own_configuration(tiny: Tiny, tmp_path: Path) -> None:
    run = train(tiny(seed=5))
    again = train(run.folder.config, {"run_dir": str(tmp_path / "again")})
    assert again.scores == run.scores
    assert again.lineage == run.lineage


def test_a_run_without_a_scored_generation_has_no_best_agent(tiny: Tiny) -> None:
    run = train(tiny(total_timesteps=1))
    shutil.rmtree(run.folder.snapshots / "best")
    for what in ("best", "summary"):
        with pytest.raises(StoreError, match="has no best agent, because its training has not come to the end"):
            getattr(Run(run.path), what)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no complete run"):
        Run(tmp_path)


def test_a_damaged_agent_is_refused(tiny: Tiny) -> None:
    run = train(tiny(total_timesteps=1))
    (file,) = (run.folder.snapshots / "best").glob("*.safetensors")
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(StoreError, match="does not match its checksum"):
        _ = Run(run.path).best


def test_every_member_of_the_last_population_is_an_agent(tiny: Tiny) -> None:
    run = train(tiny(total_timesteps=64))
    population = tensors(run, "last")
    for number in (0, 1, "1"):
        agent = run.agent(number)
        assert torch.equal(agent.member.params[0], population["params"][int(number)])
        assert float(agent.member.hyperparams["learning_rate"]) == population["hyperparams.learning_rate"][int(number)]
    assert torch.equal(run.agent("best").member.params, run.best.member.params)
    with pytest.raises(ConfigError, match=r"has no member -1; give 'best', or a number up to 1"):
        run.agent(-1)


def test_what_a_stop_does_to_environments_that_are_being_made_is_a_stop(tiny: Tiny, tmp_path: Path) -> None:
    """A signal to the whole job ends their processes too."""

    def factory(num_envs: int, **_: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        raise EOFError

    with pytest.raises(KeyboardInterrupt):
        train(tiny(), factory=factory)
    assert not (tmp_path / "run").exists()
