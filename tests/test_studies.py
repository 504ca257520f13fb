"""Studies: estimates beside arithmetic by hand, and a small one from its file to its page."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml

STUDIES = Path(__file__).parents[1] / "studies"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, STUDIES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


estimates = script("estimates")


def test_an_interquartile_mean_is_that_of_the_middle_half() -> None:
    scores = np.array([[8.0, 1.0, 3.0, 100.0], [4.0, 5.0, 6.0, -50.0]])  # −50 1 | 3 4 5 6 | 8 100
    assert estimates.iqm(scores) == 4.5


def test_ties_count_half_where_arms_are_compared() -> None:
    scores, others = np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([[1.0, 0.0], [1.0, 1.0]])
    # First task: 1 = 1, 1 > 0, 2 > 1, 2 > 0: 3.5 of 4. Second: 0 of 4.
    assert estimates.better(scores, others) == pytest.approx(3.5 / 8)
    assert estimates.better(scores, scores) == 0.5


def test_runs_are_drawn_again_within_their_task() -> None:
    scores = np.array([[1.0] * 5, [9.0] * 5])
    assert estimates.stratified(np.mean, scores) == (5.0, 5.0, 5.0)


def test_intervals_are_those_of_the_normal_distribution() -> None:
    rng = np.random.default_rng(1)
    scores, others = rng.normal(1, 1, 400), rng.normal(0, 1, 400)
    for found in (estimates.paired(scores, others), estimates.stratified(np.mean, (scores - others)[None])):
        apart, error = (scores - others).mean(), (scores - others).std(ddof=1) / 20
        assert found == pytest.approx((apart, apart - 1.96 * error, apart + 1.96 * error), abs=0.015)


def test_runs_that_do_not_differ_have_no_width() -> None:
    assert estimates.paired(np.array([2.0, 3.0]), np.array([1.0, 2.0])) == (1.0, 1.0, 1.0)


TINY = {
    "question": "Does anything happen?",
    "hypothesis": "It does.",
    "steps": 2_000,
    "seeds": 2,
    "episodes": 3,
    "baseline": "one",
    "tasks": {
        name: {
            "config": "configs/repeat_previous.yaml",
            "set": {
                "env": {"source": "tensor", "id": "RepeatPrevious", "num_envs": 2, "kwargs": {"delay": 1, "length": 5}},
                "model.n_steps": 16,
                "model.n_epochs": 1,
                "model.n_minibatches": 1,
                "model.network.hidden_size": 4,
                "engine.sequence_length": 16,
                "pbt.perturbation_interval": 2,
                "evaluation.episodes": 2,
            },
            "low": -1,
            "high": 1,
        }
        for name in ("first", "second")
    },
    "arms": {
        "one": {"pbt.population_size": 1, "pbt.exploit_method": "none", "pbt.hyperparams": []},
        "three": {"pbt.population_size": 3},
    },
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"baseline": "two"}, "baseline 'two' is no arm; the arms are one, three"),
        ({"steps": 0}, "steps"),
        ({"claim": "none"}, "claim"),
    ],
)
def test_a_study_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(TINY | change))
    with pytest.raises(ValueError, match=reason):
        script("study").load(tmp_path / "study.yaml")


def test_shipped_studies_can_be_run(tmp_path: Path) -> None:
    study = script("study")
    for file in STUDIES.glob("*.yaml"):
        asked = study.load(file)
        for task in asked.tasks:
            for arm in asked.arms:
                assert asked.settings(task, arm, 3, asked.steps, tmp_path).seed == 3


def command(name: str, *arguments: str | Path) -> None:
    subprocess.run([sys.executable, str(STUDIES / f"{name}.py"), *map(str, arguments)], check=True)


@pytest.mark.slow
def test_a_study_from_its_file_to_its_page(tmp_path: Path) -> None:
    file, out = tmp_path / "study.yaml", tmp_path / "results.jsonl"
    file.write_text(yaml.safe_dump(TINY))
    command("run", file, "--out", out, "--workers", "1")
    lines = out.read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len({(row["task"], row["arm"], row["seed"]) for row in rows}) == len(rows) == 2 * 2 * (1 + 2)
    for row in rows:
        assert len(row["population"]) == {"one": 1, "three": 3}[row["arm"]]
        spent = row["training_steps"] + row["evaluation_steps"]
        if row["seed"] < 2:  # contests differ from seed to seed, and a run has whole generations
            assert spent == pytest.approx(2_000, rel=0.2)
        else:
            assert spent > 2_500

    out.write_text("\n".join([*lines[:-2], lines[-1][:40]]))  # two are missing, one of them cut off
    command("run", file, "--out", out, "--workers", "1")
    parsed = [json.loads(line) for line in out.read_text().splitlines() if line.endswith("}")]
    again = {(row["task"], row["arm"], row["seed"]): row for row in parsed}
    assert len(again) == len(parsed) == len(rows)
    for row in rows:
        found = again[row["task"], row["arm"], row["seed"]]
        assert (found["final"], found["curve"]) == (row["final"], row["curve"])

    command("report", file, out, "--out", tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "| three |" in page
    assert (tmp_path / "page.png").stat().st_size > 5_000
