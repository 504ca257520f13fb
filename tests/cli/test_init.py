"""The first minute: help, a configuration to begin with, and what a run would take."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from popgraft import ConfigError, Run, load_config
from popgraft.cli.app import app
from popgraft.config import dump_config, shipped

LITTLE = [
    "model={n_steps: 8, n_epochs: 1, n_minibatches: 1, network: {hidden_size: 4, encoder_layers: [4]}}",
    "env.num_envs=2",
    "pbt.population_size=2",
    "pbt.perturbation_interval=1",
    "evaluation={episodes: 2, max_steps: 20, final_episodes: 3}",
    "execute.shards=1",
    "total_timesteps=64",
]
SMALL = [word for setting in LITTLE for word in ("--set", setting)]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def popgraft(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_help_imports_nothing_that_is_slow() -> None:
    code = (
        "import sys; sys.argv = ['popgraft', '--help']\n"
        "from popgraft.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: print({'torch', 'numpy', 'pydantic', 'gymnasium', 'plotly'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_completion_is_offered() -> None:
    assert "--install-completion" in popgraft("--help").stdout


def test_a_name_stands_for_what_comes_along(tmp_path: Path) -> None:
    for name, path in shipped().items():
        if name == "config_pbt_adversarial":
            continue
        assert load_config(name) == load_config(path)
        assert load_config(name).code_dir == tmp_path, "modules are looked for where the user is"


def test_the_id_of_an_environment_stands_for_defaults() -> None:
    for source, folder in (("CartPole-v1", "CartPole-v1"), ("popgraft/RepeatPrevious-v0", "RepeatPrevious-v0")):
        found = load_config(source)
        assert (found.env.id, found.run_dir) == (source, Path("runs") / folder)
        assert found.model_fields_set == {"env", "run_dir", "code_dir"}
    assert load_config("my.games:Chess-v2").run_dir == Path("runs/Chess-v2")


def test_a_file_wins_over_a_name() -> None:
    Path("quickstart").write_text("env: {id: Acrobot-v1}")
    assert load_config("quickstart").env.id == "Acrobot-v1"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("quikstart", "did you mean 'quickstart'"),
        ("chess", "is no file, no configuration that comes along (config_pbt_adversarial, config_train, "),
        ("none.yaml", "cannot read the configuration none.yaml: no such file"),
        ("config_pbt_adversarial", "run: python examples/pbt_with_sb3.py"),
    ],
)
def test_a_word_that_stands_for_nothing_is_explained(source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(source)


def test_init_lists_what_comes_along() -> None:
    lines = popgraft("init").stdout.splitlines()
    assert {line.split()[0] for line in lines[:-1]} == shipped().keys()
    assert "quickstart              CartPole whose velocities are hidden" in lines


def test_init_writes_a_file_that_comes_along_as_it_is() -> None:
    result = popgraft("init", "quickstart")
    assert result.stdout == "wrote quickstart.yaml; run: popgraft train quickstart.yaml\n"
    assert Path("quickstart.yaml").read_bytes() == shipped()["quickstart"].read_bytes()


def test_init_says_the_defaults_of_an_environment(tmp_path: Path) -> None:
    result = popgraft("init", "LunarLander-v3", "--out", "my lander.yaml")
    assert result.stdout == "wrote my lander.yaml; run: popgraft train 'my lander.yaml'\n"
    text = Path("my lander.yaml").read_text()
    assert dump_config(load_config("my lander.yaml")) == dump_config(load_config("LunarLander-v3"))
    assert "# A population on LunarLander-v3." in text
    bold = "".join(re.sub(r"^( *)# (?=  - |[a-z_]+: )", r"\1", line) for line in text.splitlines(keepends=True))
    Path("bold.yaml").write_text(bold)
    found = load_config("bold.yaml")  # with everything that is only suggested
    assert (found.model.gamma, found.env.wrappers[0].name, len(found.pbt.hyperparams)) == (0.99, "hide", 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["init", "quickstart", "--out", "there.yaml"], "cannot write there.yaml: file exists; choose another file"),
        (["init", "there.yaml"], "there.yaml is a file; give a name ("),
        (["init", "cartpole"], "is no file, no configuration"),
    ],
)
def test_init_overwrites_nothing(arguments: list[str], message: str) -> None:
    Path("there.yaml").write_text("mine")
    result = popgraft(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert Path("there.yaml").read_text() == "mine"


def test_a_dry_run_says_what_the_run_would_take_and_writes_nothing(tmp_path: Path) -> None:
    result = popgraft("train", "CartPole-v1", "--dry-run", *SMALL)
    lines = result.stdout.splitlines()
    assert re.fullmatch(r"training 2 members of [\d,]+ parameters on CartPole-v1, into runs/CartPole-v1", lines[0])
    assert lines[2] == "64 steps in 2 generations, 32 for each member"
    assert lines[3] == "agents see obs 4, act by discrete choices of 2, and remember 16 numbers"
    assert re.match(r"[\d,]+ steps/s when tried for a second: about 0:00:0\d for the run", lines[5])
    assert [*tmp_path.iterdir()] == []
    assert popgraft("train", "CartPole-v1", "--dry-run", "--set", "env.id=Nothing-v1").exit_code == 2


def test_a_dry_run_names_the_folder_that_is_there_already() -> None:
    Path("runs/CartPole-v1").mkdir(parents=True)
    assert "runs/CartPole-v1 is there already" in popgraft("train", "CartPole-v1", "--dry-run", *SMALL).stdout


def test_a_seed_is_a_setting() -> None:
    assert popgraft("train", "CartPole-v1", "--seed", "7", *SMALL).exit_code == 0
    assert Run("runs/CartPole-v1").config.seed == 7
