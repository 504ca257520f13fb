import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from popgraft import Run, __version__
from popgraft.cli.app import app
from popgraft.store import snapshot

SOURCE = """
import signal
import gymnasium as gym, numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

class Walk(gym.Env):
    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)
    steps = 0

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        if self.steps == 20:
            raise RuntimeError("the floor\\n is \\x1b[31mwet")
        return np.zeros(2, np.float32), 1.0, self.steps % 6 == 0, False, {}

class Interrupting(Walk):
    def step(self, action):
        if self.steps == 10:
            signal.raise_signal(signal.SIGINT)
        return super().step(action)

class Speaker(Walk):
    action_space = gym.spaces.Text(3)

def walks(num_envs):
    return SyncVectorEnv([Walk] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)

def interrupting(num_envs):
    signal.raise_signal(signal.SIGINT)
    return walks(num_envs)

made = 0
def late(num_envs):
    global made
    made += 1
    kind = Interrupting if made == 1 else Walk
    return SyncVectorEnv([kind] + [Walk] * (num_envs - 1), autoreset_mode=AutoresetMode.SAME_STEP)

def speakers(num_envs):
    return SyncVectorEnv([Speaker] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_walks.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_walks", raising=False)


def popgraft(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def settings(**values: Any) -> list[str]:
    return [part for key, value in values.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]


def test_train_reports_the_final_score_the_folder_and_the_next_commands(config: Path) -> None:
    result = popgraft("train", str(config))
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert [line.split(",")[0] for line in lines if line.startswith("generation")] == [
        "generation 1/2",
        "generation 2/2",
    ]
    run = Run("run")
    score, stderr = run.summary["final_score"], run.summary["final_stderr"]
    assert lines[-5:] == [
        f"best agent  {score:.3f} ± {stderr:.3f} over 4 fresh episodes, after {run.summary['steps']} steps",
        "run folder  run",
        "evaluate    popgraft evaluate run",
        "curves      tensorboard --logdir run/tensorboard",
        "report      run/report.html",
    ]
    assert f"The best agent scores {score:.3f} ± {stderr:.3f}" in Path("run/report.html").read_text()
    assert re.sub(r"[\n±]", "", result.stdout).isprintable()


def test_settings_win_over_the_file(config: Path) -> None:
    result = popgraft("train", str(config), *settings(run_dir="'a folder'", pbt__population_size=3, seed=7))
    assert result.exit_code == 0, result.output
    assert "training 3 members" in result.stdout
    assert "popgraft evaluate 'a folder'" in result.stdout
    assert (Run("a folder").config.pbt.population_size, Run("a folder").config.seed) == (3, 7)


def test_evaluate_repeats_the_final_score_and_plays_other_episodes_on_request(config: Path) -> None:
    popgraft("train", str(config))
    run = Run("run")
    first, again = popgraft("evaluate", "run"), popgraft("evaluate", "run", "--episodes", "4", "--seed", "0")
    assert (first.exit_code, first.stderr) == (0, "")
    assert first.stdout == again.stdout
    final = f"{run.summary['final_score']:.3f} ± {run.summary['final_stderr']:.3f}"
    detail = "(mean ± standard error, seed 0, most likely actions)"
    assert first.stdout == f"{final} over 4 episodes {detail}\n"
    scores = run.best.evaluate(9, seed=3, deterministic=False)
    other = popgraft("evaluate", "run", "--episodes", "9", "--seed", "3", "--stochastic")
    assert other.stdout == (
        f"{scores.mean.item():.3f} ± {scores.stderr.item():.3f} over 9 episodes "
        "(mean ± standard error, seed 3, sampled actions)\n"
    )
    one = popgraft("evaluate", "run", "--episodes", "1")
    assert re.fullmatch(r"-?[\d.]+ over 1 episode \(seed 0, most likely actions\)\n", one.stdout)


MISTAKES = [
    (settings(env__id="CartPoll-v1", env__kwargs="{}"), "did you mean 'CartPole-v1'"),
    (settings(env__factory="my_walks:speakers", env__id="null", env__kwargs="{}"), "the action space Text"),
    (settings(model__learning_rat=1), "unknown key 'learning_rat' in model; did you mean learning_rate?"),
    (settings(model__gamma=1.5), "model.gamma = 1.5: must lie in [0, 1]"),
    (settings(pbt__hyperparams="[{name: gamma, min_value: 0.9, max_value: 0.8}]"), "0.9"),
    (settings(pbt__population_size=1), "a population of 1 has nobody to copy from"),
    (["--set", "gamma"], "must have the form section.key=value"),
]


@pytest.mark.usefixtures("factories")
@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_a_mistake_is_one_readable_message(config: Path, arguments: list[str], message: str) -> None:
    result = popgraft("train", str(config), *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not Path("run").exists()


def test_a_missing_file_and_a_folder_in_use_are_mistakes(config: Path) -> None:
    missing = popgraft("train", "nowhere.yaml")
    assert (missing.exit_code, missing.stdout) == (2, "")
    assert missing.stderr == "error: cannot read the configuration nowhere.yaml: no such file or directory\n"
    Path("run").mkdir()
    Path("run/mine.txt").write_text("precious")
    used = popgraft("train", str(config))
    assert (used.exit_code, used.stdout) == (2, "")
    assert used.stderr == "error: run is not empty; set run_dir to another folder, or delete this one\n"
    assert [path.name for path in Path("run").iterdir()] == ["mine.txt"]


def test_evaluating_what_is_not_there_is_a_mistake(config: Path) -> None:
    nothing = popgraft("evaluate", "run")
    assert (nothing.exit_code, nothing.stderr) == (2, "error: run is not a folder; give the folder of a run\n")
    popgraft("train", str(config))
    shutil.rmtree("run/snapshots/best")
    unfinished = popgraft("evaluate", "run")
    assert (unfinished.exit_code, unfinished.stdout) == (2, "")
    assert unfinished.stderr.startswith("error: run has no best agent, because its training has not come to the end")


@pytest.mark.usefixtures("factories")
def test_a_lost_population_ends_with_1_and_says_what_is_left(config: Path) -> None:
    changes = settings(env__factory="my_walks:walks", env__id="null", env__kwargs="{}")
    result = popgraft("train", str(config), *changes)
    assert result.exit_code == 1
    assert "the environment of member 0 failed: RuntimeError: the floor  is  [31mwet\n" in result.stdout
    assert "\x1b" not in result.output
    assert "error: the environment of member 0 failed: RuntimeError: the floor" in result.stderr
    assert result.stderr.endswith(
        "run folder  run\nevaluate    popgraft evaluate run\ncurves      tensorboard --logdir run/tensorboard\n"
        "report      run/report.html\nresume      popgraft resume run\n"
    )
    assert Run("run").summary["generation"] == 0


@pytest.mark.usefixtures("factories")
def test_an_interrupt_before_training_ends_with_130(config: Path) -> None:
    changes = settings(env__factory="my_walks:interrupting", env__id="null", env__kwargs="{}")
    result = popgraft("train", str(config), *changes)
    assert (result.exit_code, result.stderr) == (130, "")
    assert result.stdout.endswith("interrupted; nothing was written\n")
    assert not Path("run").exists()


@pytest.mark.usefixtures("factories")
def test_an_interrupt_before_the_first_score_says_that_there_is_none(config: Path) -> None:
    changes = settings(env__factory="my_walks:late", env__id="null", env__kwargs="{}", pbt__perturbation_interval=9)
    result = popgraft("train", str(config), *changes)
    assert (result.exit_code, result.stderr) == (130, "")
    assert "best agent  none: its training has not come to the end of its first generation; run: " in result.stdout
    assert "popgraft evaluate" not in result.stdout
    assert snapshot.names(Run("run").folder) == ["last"]


def test_a_finished_run_without_a_score_says_why(config: Path) -> None:
    result = popgraft("train", str(config), *settings(pbt__fitness="training", env__kwargs="{delay: 1, length: 100}"))
    assert result.exit_code == 0, result.output
    why = (
        "no training episode has ended in 2 generations; set pbt.fitness: evaluation, or make generations longer than "
        "pbt.perturbation_interval=2 updates\n"
    )
    assert f"best agent  none: {why}" in result.stdout
    for command in (["evaluate", "run"], ["replay", "run"], ["compare", "run"], ["export", "run", "agent.zip"]):
        refused = popgraft(*command)
        assert (refused.exit_code, refused.stderr) == (2, f"error: run has no best agent, because {why}")
    changes = settings(pbt__fitness="evaluation", total_timesteps=192)
    assert popgraft("resume", "run", *changes).exit_code == 0
    assert popgraft("evaluate", "run").exit_code == 0


@pytest.mark.heavy
def test_ctrl_c_reaches_every_process_and_keeps_what_was_done(config: Path) -> None:
    changes = settings(env__id="CartPole-v1", env__kwargs="{}", env__vectorization="async", total_timesteps=10**7)
    changes += settings(model__n_steps=64, pbt__perturbation_interval=10)
    command = [sys.executable, "-W", "error", "-c", "from popgraft.cli.app import main; main()", "train", str(config)]
    with subprocess.Popen(
        [*command, *changes], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if line.startswith("generation 1/"):
                break
        time.sleep(0.2)  # into an update of the second generation, with environments at work
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stdout.read()
        assert process.stderr.read() == ""
        assert process.wait(120) == 130
    assert "stopping after the update in progress; press Ctrl-C again to stop at once\n" in rest
    assert "interrupted; what was reached is in the run folder\n" in rest
    assert "evaluate    popgraft evaluate run\n" in rest
    run = Run("run")
    assert [event.kind for event in run.events if event.kind != "tie"] == ["stopped"]
    assert torch.isfinite(run.agent(0).member.params).all()
    assert snapshot.names(run.folder) == ["best", "last"]


@pytest.mark.heavy
def test_a_terminated_run_is_resumed_and_listed(config: Path) -> None:
    changes = settings(total_timesteps=64 * 400, snapshots__interval=5)
    command = [sys.executable, "-W", "error", "-c", "from popgraft.cli.app import main; main()", "train", str(config)]
    with subprocess.Popen([*command, *changes], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if line.startswith("generation 7/"):
                break
        assert popgraft("runs", ".").stdout.startswith("run  running ")
        again = popgraft("resume", "run")
        assert (again.exit_code, again.stdout) == (2, "")
        assert again.stderr.startswith(f"error: run is being trained by process {process.pid} on ")
        process.terminate()
        rest = process.stdout.read()
        assert process.stderr.read() == ""
        assert process.wait(120) == 130
    assert rest.endswith("resume      popgraft resume run\n")
    assert popgraft("runs", ".").stdout.startswith("run  stopped ")
    total = 64 * (Run("run").generations + 3)
    resumed = popgraft("resume", "run", "--set", f"total_timesteps={total}")
    assert resumed.exit_code == 0, resumed.output
    assert resumed.stderr == ""
    assert f"total_timesteps: 25600 → {total}\n" in resumed.stdout
    assert "training 2 members" in resumed.stdout
    assert "from step " in resumed.stdout
    assert "popgraft resume" not in resumed.stdout
    finished = popgraft("resume", "run")
    assert (finished.exit_code, finished.stdout) == (2, "")
    assert finished.stderr == (
        f"error: run is finished; to go on, raise total_timesteps, for example --set total_timesteps={2 * total}\n"
    )
    run = Run("run")
    listed = (
        f"run  finished  {run.generations} of {run.generations} generations, best score {run.summary['score']:.3f}\n"
    )
    assert popgraft("runs", ".").stdout == listed


def test_runs_are_listed_whatever_their_state(config: Path) -> None:
    assert popgraft("runs").stdout == "there are no runs in runs\n"
    popgraft("train", str(config), *settings(run_dir="runs/b"))
    for name in ("a", "deep/c"):
        shutil.copytree("runs/b", f"runs/{name}")
    Path("runs/a/config.yaml").unlink()
    shutil.rmtree("runs/deep/c/snapshots/last")
    for name in ("lost", "odd"):
        shutil.copytree("runs/b", f"runs/e/{name}")
    Path("runs/e/lost/run.sqlite").unlink()
    Path("runs/e/odd/run.sqlite").write_bytes(b"odd" * 500)
    first, second, third, fourth, fifth = popgraft("runs").stdout.splitlines()
    saving = "popgraft resume runs/e/{} goes on with what can be read"
    assert fourth == f"runs/e/lost  damaged   the database runs/e/lost/run.sqlite is missing; {saving.format('lost')}"
    assert fifth.startswith("runs/e/odd   damaged   the database runs/e/odd/run.sqlite cannot be used: file is not a ")
    assert fifth.endswith(saving.format("odd"))
    assert first.startswith("runs/a       damaged   runs/a holds no complete run: it lacks config.yaml")
    assert second.startswith("runs/b       finished  2 of 2 generations, best score ")
    assert third.startswith("runs/deep/c  stopped   2 of 2 generations, best score ")


def test_help_explains_with_examples_and_the_version_is_told() -> None:
    assert popgraft("--version").stdout == f"popgraft {__version__}\n"
    for command, example in [
        ([], "popgraft train quickstart"),
        (["train"], "popgraft train my.yaml --set pbt.population_size=16 --dry-run"),
        (["init"], "popgraft init LunarLander-v3 --out lander.yaml"),
        (["resume"], "popgraft resume runs/quickstart --set total_timesteps=400_000"),
        (["runs"], "popgraft runs experiments/monday"),
        (["evaluate"], "popgraft evaluate runs/quickstart --episodes 200 --seed 7 --stochastic"),
    ]:
        result = popgraft(*command, "--help")
        assert result.exit_code == 0
        assert example in result.stdout
        assert popgraft(*command, "-h").stdout == result.stdout
    assert popgraft("-V").stdout == popgraft("--version").stdout
    assert popgraft("dance").exit_code == 2
    assert popgraft("evaluate", "run", "--episodes", "0").exit_code == 2


def hostile(result: Result) -> list[str]:
    """Lines of what is printed, none of which moves a cursor."""
    lines = result.output.splitlines()
    assert all(line.isprintable() for line in lines), result.output
    return lines


@pytest.mark.heavy
@pytest.mark.usefixtures("factories")
def test_nothing_that_is_quoted_moves_a_cursor_or_begins_a_line(config: Path) -> None:
    """The name of a folder, what an environment says, and an id that somebody has written into the settings."""
    folder, shown = "a\x1b[31mred\nerror: line", "a [31mred error: line"
    changes = settings(run_dir='"a\\x1b[31mred\\nerror: line"', env__factory="my_walks:walks", env__id="null")
    result = popgraft("train", str(config), *changes, *settings(env__kwargs="{}"))
    assert result.exit_code == 1
    lines = hostile(result)
    assert lines[0].endswith(f" parameters on my_walks:walks, into {shown}")
    assert any("the environment of member 0 failed: RuntimeError: the floor  is  [31mwet" in line for line in lines)
    assert [line for line in lines if line.startswith("error")] == [
        line for line in lines if line.startswith("error: the environment of member 0 failed")
    ]
    assert [line for line in hostile(popgraft("runs", ".")) if line.startswith(shown)] == hostile(popgraft("runs", "."))
    for command in (["evaluate"], ["compare"], ["report", "--text"], ["report"], ["resume"], ["export"], ["replay"]):
        arguments = [*command, folder, *(["agent.zip"] if command == ["export"] else [])]
        assert not [line for line in hostile(popgraft(*arguments))[1:] if line.startswith("error: line")]
    settings_file = Path(folder) / "config.yaml"
    settings_file.write_text(settings_file.read_text().replace("id: null", 'id: "x\\e[2J\\nerror: y"'))
    for command in ("evaluate", "resume", "compare", "runs"):
        assert len([line for line in hostile(popgraft(command, folder)) if line.startswith("error: ")]) <= 1
