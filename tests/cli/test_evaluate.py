"""`popgraft evaluate` with attacks: what it prints, draws and refuses."""

import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from popgraft import AttackConfig, DistributionalPPO, Run
from popgraft.cli.app import app
from popgraft.cli.evaluate import t_quantile
from popgraft.train import readable


def popgraft(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), prog_name="popgraft")


@pytest.mark.parametrize(("freedom", "known"), [(1, 12.7062), (4, 2.77645), (19, 2.093024), (10_000, 1.960201)])
def test_quantiles_of_students_law_are_those_of_the_tables(freedom: int, known: float) -> None:
    assert t_quantile(freedom) == pytest.approx(known, rel=1e-5)


def test_a_table_of_the_same_episodes_with_and_without_attacks(run: Run) -> None:
    words = [
        "--attack",
        "pgd",
        "--attack",
        "critic",
        "--epsilon",
        "0.5",
        "--epsilon",
        "2",
        "--steps",
        "3",
        "--norm",
        "l2",
    ]
    result = popgraft("evaluate", "run", "--episodes", "5", "--seed", "3", *words)
    assert (result.exit_code, result.stderr) == (0, "")
    head, empty, columns, *lines = result.stdout.splitlines()
    assert head == "5 episodes (seed 3, most likely actions), the same ones in every line"
    assert empty == ""
    assert re.split("  +", columns) == ["attack", "epsilon", "return", "95 % interval", "change"]
    rows = [re.split("  +", line) for line in lines]
    assert [row[0] for row in rows] == ["none", *["pgd (l2, 3 steps)"] * 2, *["critic (l2, 3 steps)"] * 2]
    assert [row[1] for row in rows[1:]] == ["0.5", "2", "0.5", "2"]
    clean = run.best.evaluate(5, seed=3)
    half = 2.776445 * clean.stderr.item()
    assert rows[0][1:] == [
        f"{clean.mean.item():.3f}",
        f"{clean.mean.item() - half:.3f} to {clean.mean.item() + half:.3f}",
    ]
    attack = AttackConfig(method="critic", epsilon=2.0, steps=3, norm="l2")
    attacked = run.best.evaluate(5, seed=3, attack=attack)
    assert rows[4][2] == f"{attacked.mean.item():.3f}"
    assert rows[4][4] == f"{attacked.mean.item() - clean.mean.item():.3f}"


def test_what_is_not_said_stands_in_the_configuration(config: Path) -> None:
    changes = ["--set", "evaluation.attack={method: fgsm, epsilon: 0.25, norm: l2}"]
    assert popgraft("train", str(config), *changes).exit_code == 0
    assert "fgsm (l2)      0.1  " in popgraft("evaluate", "run", "--epsilon", "0.1").stdout
    one = popgraft("evaluate", "run", "--attack", "random", "--episodes", "1").stdout
    assert re.search(r"^random \(l2\) +0.25 +\S+ +one episode +\S+$", one, re.MULTILINE)


def test_a_picture_of_the_curve(run: Run) -> None:
    result = popgraft("evaluate", "run", "--epsilon", "0.2", "--epsilon", "0.1", "--picture", "curve.png")
    assert result.exit_code == 0, result.output
    assert Path("curve.png").read_bytes().startswith(b"\x89PNG")
    Path("folder").mkdir()
    for path, why in [
        ("nowhere/curve.png", "there is no folder nowhere; make it first"),
        ("curve.pong", "the suffix '.pong' names no format; take .png, .svg or .pdf"),
        ("curve", "the suffix '' names no format; take .png, .svg or .pdf"),
        ("folder", "it is a folder; name a file in it, such as picture.png"),
    ]:
        for command in ("evaluate", "replay", "compare"):
            wrong = popgraft(command, "run", "--picture", path)
            assert (wrong.exit_code, wrong.stdout) == (2, "")  # before any work
            assert wrong.stderr == f"error: --picture {path} cannot be written: {why}\n"
    assert not Path("run/replay").exists()


def test_a_picture_without_matplotlib_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = popgraft("evaluate", "run", "--picture", "curve.png")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "error: matplotlib is needed for --picture but is not installed; run: pip install 'popgraft[plot]'\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attack", "pdg"], "evaluation.attack.method = 'pdg'"),
        (["--epsilon", "-1"], "evaluation.attack.epsilon = -1"),
        (["--epsilon", "nan"], "evaluation.attack.epsilon = nan"),
        (["--steps", "0"], "evaluation.attack.steps = 0"),
        (["--norm", "l1"], "evaluation.attack.norm = 'l1'"),
        (["--env", "CartPole-v1"], "--env is for files of models; the run run has environments of its own"),
    ],
)
def test_a_mistake_is_one_readable_message(run: Run, arguments: list[str], message: str) -> None:
    result = popgraft("evaluate", "run", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_member_of_the_last_population_is_scored(run: Run) -> None:
    for member in (0, 1):
        scores = run.agent(member).evaluate()
        expected = f"{readable(float(scores.mean), float(scores.stderr))} over {int(scores.episodes)} episodes"
        assert popgraft("evaluate", "run", "--member", str(member)).stdout.startswith(expected)
    assert (
        "run has no member '7'; give 'best', or a number up to" in popgraft("evaluate", "run", "--member", "7").stderr
    )


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    small = {"lstm_hidden_size": 8, "net_arch": [6]}
    DistributionalPPO("MlpLstmPolicy", "CartPole-v1", seed=0, device="cpu", policy_kwargs=small).save("agent.zip")
    return Path("agent.zip")


def test_a_model_in_a_file_plays_the_environment_that_is_named(archive: Path) -> None:
    Path("hidden.yaml").write_text("env: {id: CartPole-v1, wrappers: [{name: hide, kwargs: {indices: [1]}}]}")
    Path("same.yaml").write_text("env: {id: CartPole-v1}\nevaluation: {final_episodes: 20, attack: {epsilon: 0.3}}")
    by_name = popgraft("evaluate", "agent.zip", "--env", "CartPole-v1", "--attack", "pgd", "--epsilon", "0.3")
    assert (by_name.exit_code, by_name.stderr) == (0, "")
    assert "pgd (linf, 10 steps)      0.3  " in by_name.stdout
    assert popgraft("evaluate", "agent.zip", "--env", "same.yaml", "--attack", "pgd").stdout == by_name.stdout
    hidden = popgraft("evaluate", "agent.zip", "--env", "hidden.yaml")
    assert (hidden.exit_code, hidden.stdout) == (2, "")
    assert "the environment has observations obs (3,) and discrete actions (2,)" in hidden.stderr
    assert "but the agent knows observations obs (4,) and discrete actions (2,)" in hidden.stderr
    other = popgraft("evaluate", "agent.zip", "--env", "CartPole-v1", "--member", "2")
    assert other.stderr.startswith("error: --member 2 is for runs; the file agent.zip holds one agent")
    nameless = popgraft("evaluate", "agent.zip")
    assert nameless.exit_code == 2
    assert nameless.stderr.startswith("error: agent.zip does not hold the model's environment; add --env CartPole-v1")
    missing = popgraft("evaluate", "gone.zip", "--env", "CartPole-v1")
    assert missing.exit_code == 2
    assert missing.stderr == "error: cannot read the model gone.zip: no such file or directory\n"
