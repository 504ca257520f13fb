from pathlib import Path
from typing import Any

import pytest
import yaml

from popgraft.config import Config, dump_config, load_config, read_yaml
from popgraft.errors import ConfigError

BASE: dict[str, Any] = {"env": {"id": "CartPole-v1"}}
GAMMA = "{name: gamma, min_value: 0.9, max_value: 0.999}"


def refusal(source: Any, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)
    return str(caught.value)


def test_a_file_a_mapping_and_a_config_give_the_same(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("env: {id: CartPole-v1}\nmodel: {learning_rate: 1e-4}\nseed: 3\n")
    mapping = {**BASE, "model": {"learning_rate": 1e-4}, "seed": 3}
    config = load_config(path)
    assert config.model.learning_rate == 1e-4
    assert config == load_config(str(path)) == load_config(config)
    assert config == load_config(mapping, {"code_dir": str(tmp_path)})


def test_a_configuration_knows_the_folder_of_its_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "own.yaml").write_text("env: {id: CartPole-v1}")
    (tmp_path / "a" / "other.yaml").write_text("env: {id: CartPole-v1}\ncode_dir: ../b")
    monkeypatch.chdir(tmp_path)
    assert load_config("a/own.yaml").code_dir == tmp_path / "a"
    assert load_config("a/other.yaml").code_dir == tmp_path / "b"
    assert load_config(BASE).code_dir == tmp_path
    config = load_config(BASE, ["code_dir=c"])
    monkeypatch.chdir(tmp_path / "a")
    assert load_config(config).code_dir == tmp_path / "c"
    (tmp_path / "dumped.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "dumped.yaml") == config


def test_overrides_win_and_leave_their_source_alone() -> None:
    source = {"env": {"id": "CartPole-v1", "wrappers": [{"name": "hide", "kwargs": {"indices": [1]}}]}}
    config = load_config(source, ["env.wrappers.0.kwargs.indices=[1, 3]", "model.network.hidden_size=8", "seed=5"])
    assert config.env.wrappers[0].kwargs == {"indices": [1, 3]}
    assert (config.model.network.hidden_size, config.seed) == (8, 5)
    assert source["env"]["wrappers"][0]["kwargs"] == {"indices": [1]}  # type: ignore[index]
    assert load_config(config, {"seed": 6}).seed == 6
    assert load_config(BASE, "seed=7").seed == 7
    section = {"id": "Acrobot-v1"}
    assert load_config(BASE, {"env": section, "env.num_envs": 4}).env.num_envs == 4
    assert section == {"id": "Acrobot-v1"}


def test_an_override_may_hold_an_equals_sign_and_null() -> None:
    config = load_config(BASE, ["env.kwargs.name=a=b", "model.target_kl=", "engine.sequence_length=null"])
    assert config.env.kwargs == {"name": "a=b"}
    assert config.model.target_kl is None


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("seeed=1", "unknown key 'seeed' at the top level; did you mean seed?"),
        ("env.idd=x", "unknown key 'idd' in env; did you mean id?"),
        ("model.network.hiden_size=3", "unknown key 'hiden_size' in model.network; did you mean hidden_size?"),
        ("model.optimizer_kwargs.bets=1", "unknown key 'bets' in model.optimizer_kwargs; did you mean betas?"),
        ("env.wrappers=[{name: hide, kwrgs: {}}]", "unknown key 'kwrgs' in env.wrappers.0; did you mean kwargs?"),
        (
            "pbt.hyperparams=[{name: gamma, min: 0.9, max_value: 1}]",
            "unknown key 'min' in pbt.hyperparams.0; did you mean min_value?",
        ),
        ("learning_rate=1", "unknown key 'learning_rate' at the top level; did you mean model.learning_rate?"),
        ("execute.qqq=1", "unknown key 'qqq' in execute; the keys there are address, cpus_per_shard, "),
        ("1=2", "unknown key '1' at the top level; the keys there are code_dir, engine, env, "),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(override: str, sentence: str) -> None:
    assert sentence in refusal(BASE, override)


def test_a_key_that_is_no_string_is_refused() -> None:
    assert "unknown key 1 at the top level" in refusal({**BASE, 1: 2})


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.n_steps=abc", "model.n_steps = 'abc': must be a number, without quotes"),
        ("model.n_steps='12'", "model.n_steps = '12': must be a number, without quotes"),
        ("model.n_steps=true", "model.n_steps = True: must be a number"),
        ("model.n_steps=1.5", "model.n_steps = 1.5: must be an integer"),
        ("model.n_steps=null", "model.n_steps = None: must be an integer"),
        ("model.network.layer_norm=1", "model.network.layer_norm = 1: must be true or false"),
        ("model.network.encoder_layers=64", "model.network.encoder_layers = 64: must be a list"),
        ("model.network.encoder_layers=[8, -1]", "model.network.encoder_layers.1 = -1: must be greater than 0"),
        (
            "model.network.recurrent=lsmt",
            "model.network.recurrent = 'lsmt': must be one of lstm, gru, ",
        ),
        ("model.optimizer_kwargs.betas=[0.9]", "model.optimizer_kwargs.betas.1 is missing; add it"),
        ("env=CartPole-v1", "env = 'CartPole-v1': must hold settings as `key: value`"),
        ("env.id=3", "env.id = 3: must be a string"),
        ("env.wrappers=[hide]", "env.wrappers.0 = 'hide': must hold settings as `key: value`"),
        ("env.kwargs=3", "env.kwargs = 3: must hold settings as `key: value`"),
        ("env.kwargs={1: 2}", "env.kwargs.1 = 1: must be a string"),
        ("pbt.hyperparams=[gamma]", "pbt.hyperparams.0 = 'gamma': must hold settings as `key: value`"),
        ("pbt.hyperparams=[{name: gamma, values: 3}]", "pbt.hyperparams.0.values = 3: must be a list"),
        ("pbt.hyperparams=[{values: [0.9]}]", "pbt.hyperparams.0.name is missing; add it"),
        ("run_dir=1", "run_dir = 1: must be a path"),
    ],
)
def test_a_wrong_type_is_refused_in_plain_words(override: str, sentence: str) -> None:
    message = refusal(BASE, override)
    assert message.startswith("the configuration has a wrong setting:\n  ")
    assert sentence in message


def test_every_wrong_setting_is_listed_once() -> None:
    message = refusal({"seed": -1, "modle": {}})
    assert message.splitlines()[0] == "the configuration has 3 wrong settings:"
    assert "env is missing; add it" in message
    assert "seed = -1: must be greater than or equal to 0" in message
    assert "did you mean model?" in message


@pytest.mark.parametrize("text", ["seed", "=3", "a..b=1", ".seed=1", "seed.=1", " =1"])
def test_a_malformed_assignment_shows_the_form(text: str) -> None:
    assert refusal(BASE, text) == (
        f"--set {text!r} must have the form section.key=value, for example --set env.id=CartPole-v1"
    )


def test_an_assignment_of_malformed_yaml_names_the_assignment() -> None:
    assert refusal(BASE, "seed={").startswith("--set seed={ is not valid YAML at line 1, column 2: ")


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("env.id.x", "env.id is a value ('CartPole-v1'), not a section"),
        ("env.wrappers.1.name", "'1' is not a position in the list; its positions are 0 to 0"),
        ("env.wrappers.-1", "'-1' is not a position in the list"),
        ("env.wrappers.name", "'name' is not a position in the list"),
        ("env.wrappers.²", "'²' is not a position in the list"),
        ("pbt.hyperparams.0", "'0' is not a position in the list; the list is empty"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused(key: str, sentence: str) -> None:
    source = {"env": {"id": "CartPole-v1", "wrappers": [{"name": "hide"}]}, "pbt": {"hyperparams": []}}
    assert refusal(source, f"{key}=x").startswith(f"cannot set {key}: {sentence}")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty; it needs at least an environment"),
        ("# nothing but a comment\n", "is empty; it needs at least an environment"),
        ("- 1\n", "must hold settings as `key: value`, not a list"),
        ("seed: 1\nenv:\n  id: a\n  id: b\n", "at line 4, column 3: the key 'id' appears twice"),
        ("env: {id: a\n", "is not valid YAML at line 2, column 1: while parsing a flow mapping"),
        ("env:\n\tid: a\n", "is not valid YAML at line 2, column 1"),
        ("seed: 1\n---\nseed: 2\n", "expected a single document"),
        ("[a]: 1\n", "found unhashable key"),
        ("seed: !!python/object/apply:os.getcwd []\n", "could not determine a constructor for the tag"),
        ("seed: !!int abc\n", "is not valid YAML: invalid literal"),
        ("[" * 5000, "is not valid YAML: maximum recursion depth"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_by_name(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    message = refusal(path)
    assert message.startswith(str(path))
    assert sentence in message


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no.yaml") == (
        f"cannot read the configuration {tmp_path / 'no.yaml'}: no such file or directory"
    )
    assert refusal(tmp_path) == f"cannot read the configuration {tmp_path}: is a directory"
    (tmp_path / "latin.yaml").write_bytes("env: {id: Pöle}".encode("latin-1"))
    assert "must be UTF-8 text" in refusal(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-2.5E+3", -2500.0),
        ("1e6", 1e6),
        ("1_000", 1000),
        ("2026-01-31", "2026-01-31"),
        ("2026-13-45", "2026-13-45"),
        ("module:Class", "module:Class"),
        ("'1e-4'", "1e-4"),
        ("none", "none"),
        ("null", None),
    ],
)
def test_scalars_read_as_yaml_1_2_says(text: str, value: Any) -> None:
    read = read_yaml(text, "text")
    assert read == value
    assert type(read) is type(value)


def test_merge_keys_may_repeat_what_they_override() -> None:
    text = "a: &a {x: 1, y: 1}\nb: &b {<<: *a, y: 2}\nc: {<<: *b, x: 3}\n"
    assert read_yaml(text, "text")["c"] == yaml.safe_load(text)["c"] == {"x": 3, "y": 2}


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["seed=3", "model.target_kl=0.02", "run_dir=runs/1e5", "stop_at_score=-1e-12", "total_timesteps=1e6"],
        ["env.kwargs={a: '1e-4', b: 1e-4, c: null, d: [1, x], e: {f: .inf}, g: '2026-01-31', h: 'null', i: 'é'}"],
        [f"pbt.hyperparams=[{GAMMA}, {{name: entropy_coef, values: [0, 0.01]}}]", "model.gamma=0.95"],
        ["pbt.hyperparams=[{name: learning_rate, min_value: 0.01, max_value: 0.1, is_log_scale: true}]"],
        ["env.wrappers=[{name: hide, kwargs: {indices: [1, 3]}}, {name: 'pkg.mod:Wrapper'}]"],
    ],
)
def test_what_is_written_reads_back_equal(overrides: list[str], tmp_path: Path) -> None:
    config = load_config(BASE, overrides)
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    again = load_config(path)
    assert again == config
    assert load_config(again) == config
    assert dump_config(again) == dump_config(config)


def test_what_python_callers_pass_reads_back_equal(tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    space = {"name": "clip_range", "values": (0.1, 0.2)}
    config = load_config(
        {**BASE, "run_dir": tmp_path, "pbt": {"hyperparams": [space]}},
        {"env.kwargs": {"bounds": (1, 2), "scale": np.float64(0.5)}, "model.learning_rate": np.float64(1e-4)},
    )
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config


def test_every_setting_is_written_but_what_the_population_draws() -> None:
    def leaves(value: Any, prefix: str = "") -> set[str]:
        if not isinstance(value, dict) or not value:
            return {prefix}
        return {leaf for key, child in value.items() for leaf in leaves(child, f"{prefix}.{key}" if prefix else key)}

    override = f"pbt.hyperparams=[{GAMMA}, {{name: clip_range, min_value: 0.1, max_value: 0.3}}]"
    config = load_config(BASE, [override, "model.clip_range=0.2"])
    every = leaves(Config.model_validate(BASE).model_dump())
    assert leaves(yaml.safe_load(dump_config(config))) == every - {"model.gamma"}


def test_keyword_arguments_that_no_file_can_hold_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"env.kwargs: a\.f\.0=.*print.* cannot be written to a file"):
        load_config(BASE, {"env.kwargs": {"a": {"f": [print]}}})


ALIASES = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
MERGES = "m0: &m0 {k: 1}\n" + "".join(f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}\n" for n in range(1, 40))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ALIASES, "more than 100,000 values"),
        (MERGES, "<< brings more than 1,000 keys"),
        ("env: &e {id: CartPole-v1, kwargs: {x: *e}}", "by an alias"),
        ("env: {id: x, kwargs: " + "{a: " * 90 + "1" + "}" * 90 + "}", "nested more than 50 deep"),
        ("env: {id: x, kwargs: " + "{a: " * 9000, "is not valid YAML"),
        ("env: !!timestamp x", "is not valid YAML"),
        ("env: !!python/object/apply:os.getcwd []", "is not valid YAML"),
    ],
    ids=["aliases", "merges", "itself", "deep", "deeper", "timestamp", "code"],
)
def test_text_that_means_harm_is_refused_at_once(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_config(tmp_path / "config.yaml")
