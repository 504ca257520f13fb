import math
import random
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml

from popgraft.config import HYPERPARAMS, Config, ModelConfig, PopulationConfig, dump_config, load_config
from popgraft.config import schema as schema_module
from popgraft.config.fields import Section
from popgraft.errors import ConfigError
from popgraft.hyperparams import HyperparamConfig

BASE: dict[str, Any] = {"env": {"id": "CartPole-v1"}}
SECTIONS = [kind for kind in vars(schema_module).values() if isinstance(kind, type) and issubclass(kind, Section)]


def refusal(*overrides: str, source: Any = BASE) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)
    return str(caught.value)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_says_what_it_is(section: type[Section]) -> None:
    for name, field in section.model_fields.items():
        assert field.description, f"{section.__name__}.{name}"
        assert field.description.endswith("."), f"{section.__name__}.{name}"


def test_a_configuration_cannot_be_changed() -> None:
    config = load_config(BASE)
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        config.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("seed=-1", "seed = -1: must be greater than or equal to 0"),
        ("seed=4294967296", "seed = 4294967296: must be less than 4294967296"),
        ("total_timesteps=0", "total_timesteps = 0: must be greater than 0"),
        ("stop_at_score=.nan", "stop_at_score = nan: must be a finite number"),
        ("env.num_envs=0", "env.num_envs = 0: must be greater than 0"),
        ("model.learning_rate=20", "model.learning_rate = 20: must lie in [0, 10]"),
        ("model.learning_rate=-1e-3", "model.learning_rate = -0.001: must lie in [0, 10]"),
        ("model.learning_rate=.nan", "model.learning_rate = nan: must be a finite number"),
        ("model.gamma=1.1", "model.gamma = 1.1: must lie in [0, 1]"),
        ("model.clip_range=0", "model.clip_range = 0: must lie in [1e-06, 1e+06]"),
        ("model.target_kl=.inf", "model.target_kl = inf: must be a finite number"),
        ("model.optimizer_kwargs.betas=[0.9, 1]", "model.optimizer_kwargs.betas.1 = 1: must be less than 1"),
        ("model.optimizer_kwargs.eps=0", "model.optimizer_kwargs.eps = 0: must be greater than 0"),
        ("model.optimizer_kwargs.weight_decay=.inf", "weight_decay = inf: must be a finite number"),
        ("pbt.truncation_ratio=0.6", "pbt.truncation_ratio = 0.6: must be less than or equal to 0.5"),
        ("pbt.ready_percentage=.nan", "pbt.ready_percentage = nan: must be a finite number"),
        ("pbt.min_ready_members=1", "pbt.min_ready_members = 1: must be greater than or equal to 2"),
        ("evaluation.episodes=0", "evaluation.episodes = 0: must be greater than 0"),
        ("execute.shards=0", "execute.shards = 0: must be greater than 0"),
        ("engine.threads=0", "engine.threads = 0: must be greater than 0"),
    ],
)
def test_a_value_out_of_bounds_is_refused(override: str, sentence: str) -> None:
    assert sentence in refusal(override)


@pytest.mark.parametrize("value", ["0.0", "1.0"])
def test_bounds_are_inclusive(value: str) -> None:
    assert load_config(BASE, [f"model.gae_lambda={value}"]).model.gae_lambda == float(value)


def test_exactly_one_source_of_environments() -> None:
    assert "env: give either env.id or env.factory, not id=None and factory=None" in refusal(source={"env": {}})
    assert "not id='CartPole-v1' and factory='a:b'" in refusal("env.factory=a:b")
    assert "not id='' and factory=None" in refusal("env.id=''")
    assert load_config({"env": {"factory": "pkg.mod:make"}}).env.factory == "pkg.mod:make"


@pytest.mark.parametrize("factory", ["make", "pkg.mod", ":make", "pkg:", "pkg mod:make", "pkg:a:b"])
def test_a_factory_is_module_and_function(factory: str) -> None:
    message = refusal(source={"env": {"factory": factory}})
    assert f"env.factory = {factory!r}: must have the form module:name" in message


def test_an_encoder_is_built_in_or_somebodys_own() -> None:
    assert "model.network.encoder = 'mpl': must be one of auto, mlp, cnn, or module:Class" in refusal(
        "model.network.encoder=mpl"
    )
    assert "encoder_kwargs are for an own encoder, and encoder is 'auto'" in refusal(
        "model.network.encoder_kwargs={width: 8}"
    )
    network = load_config(BASE, ["model.network.encoder=pkg:Net", "model.network.encoder_kwargs={width: 8}"])
    assert network.model.network.encoder_kwargs == {"width": 8}


def test_a_population_of_one_has_nobody_to_copy_from() -> None:
    message = refusal("pbt.population_size=1")
    assert "raise pbt.population_size or set pbt.exploit_method: none" in message
    alone = load_config(BASE, ["pbt.population_size=1", "pbt.exploit_method=none"])
    assert alone.pbt.population_size == 1


def test_waiting_for_more_members_than_there_are_is_refused() -> None:
    assert "min_ready_members=9 exceeds population_size=8" in refusal("pbt.min_ready_members=9")
    assert load_config(BASE, ["pbt.min_ready_members=8"]).pbt.min_ready_members == 8


def test_a_sequence_length_divides_the_rollout() -> None:
    assert "engine.sequence_length=48 must divide model.n_steps=128; nearest: 32 or 64" in refusal(
        "engine.sequence_length=48"
    )
    assert "engine.sequence_length=999 must divide model.n_steps=128; nearest: 128" in refusal(
        "engine.sequence_length=999"
    )


def test_minibatches_divide_the_sequences() -> None:
    # 8 environments x 128 / 32 steps = 32 sequences; 5 lies between the divisors 4 and 8.
    message = refusal("engine.sequence_length=32", "model.n_minibatches=5")
    assert "model.n_minibatches=5 must divide the 32 sequences of a rollout" in message
    assert "(env.num_envs=8 x n_steps/sequence_length=4); nearest: 4 or 8" in message


def test_divisors_of_a_huge_rollout_are_found_at_once() -> None:
    # 2^31 - 1 is prime.
    message = refusal("model.n_steps=2147483647", "engine.sequence_length=7")
    assert "nearest: 1 or 2147483647" in message


def test_a_shard_holds_a_member() -> None:
    assert "execute.shards=9 exceeds pbt.population_size=8" in refusal("execute.shards=9")


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ("{name: learning_rte, min_value: 0, max_value: 1}", "unknown hyperparameter 'learning_rte'; a population may"),
        ("{name: n_steps, values: [32, 64]}", "n_steps is the same for all members, who are one stacked program"),
        ("{name: model.n_epochs, values: [1, 4]}", "model.n_epochs is the same for all members"),
        ("{name: env.kwargs.gravity, values: [9, 10]}", "env.kwargs.gravity is the same for all members"),
        ("{name: gamma, min_value: 0.9, max_value: 0.5}", "min_value=0.9 is above max_value=0.5; swap them"),
        ("{name: gamma, min_value: .nan, max_value: 0.5}", "must be finite numbers"),
        ("{name: gamma, min_value: 0.5, max_value: 1.5}", "gamma: 1.5 must be a number in [0, 1]"),
        ("{name: gamma, values: [0.9, true]}", "gamma: True must be a number in [0, 1]"),
        ("{name: gamma, values: [0.9, .nan]}", "gamma: nan must be a number in [0, 1]"),
        ("{name: gamma, values: [0.9, '0.8']}", "gamma: '0.8' must be a number in [0, 1]"),
        ("{name: gamma}", "give both bounds, or a list of `values`"),
        ("{name: gamma, values: [0.9], min_value: 0, max_value: 1}", "it has both values and bounds"),
        ("{name: gamma, min_value: 0, max_value: 1, is_log_scale: true}", "is_log_scale needs min_value > 0"),
        ("{name: gamma, min_value: 0, max_value: 1, perturbation_factor: 1}", "must be finite and above 1"),
        ("{name: gamma, values: [0.9]}, {name: gamma, values: [0.8]}", "'gamma' is listed twice; keep one"),
        ("{name: ent_coef, values: [0]}, {name: entropy_coef, values: [0]}", "'ent_coef' is listed twice; keep one"),
    ],
)
def test_a_space_that_cannot_work_is_refused(space: str, sentence: str) -> None:
    message = refusal(f"pbt.hyperparams=[{space}]")
    assert sentence in message
    assert "pbt.hyperparams" in message


def test_an_alias_takes_the_hyperparameters_own_name() -> None:
    config = load_config(BASE, ["pbt.hyperparams=[{name: entropy_coef, min_value: 0, max_value: 0.1}]"])
    assert config.pbt.hyperparams[0].name == "ent_coef"


def test_an_initial_value_lies_in_its_space() -> None:
    space = "pbt.hyperparams=[{name: gamma, min_value: 0.5, max_value: 0.9}]"
    assert "model.gamma=0.95 is outside the bounds [0.5, 0.9] that pbt.hyperparams gives it" in refusal(
        space, "model.gamma=0.95"
    )
    assert "outside the values [0.02, 0.05]" in refusal(
        "pbt.hyperparams=[{name: target_kl, values: [0.02, 0.05]}]", "model.target_kl=null"
    )
    assert load_config(BASE, [space, "model.gamma=0.8"]).model.gamma == 0.8
    # Nobody asked for the default of 0.99: the population draws its own values.
    assert load_config(BASE, [space]).pbt.hyperparams[0].bounds == (0.5, 0.9)


def test_initial_values_hold_every_tunable_number() -> None:
    values = ModelConfig(learning_rate=1e-3).hyperparams()
    assert list(values) == list(HYPERPARAMS)
    assert values["learning_rate"] == 1e-3
    assert values["target_kl"] == math.inf
    assert ModelConfig(target_kl=0.02).hyperparams()["target_kl"] == 0.02


def test_a_learning_rule_that_cannot_work_is_refused_with_what_to_set() -> None:
    assert "normalize_reward and normalize_returns scale the same thing twice; set one of them to false" in refusal(
        "model.normalize_returns=true"
    )
    assert load_config(BASE, ["model.normalize_returns=true", "model.normalize_reward=false"]).model.normalize_returns
    assert "model.kl_penalty needs a divergence to aim at; set model.target_kl" in refusal("model.kl_penalty=true")
    assert "kl_beta=2.0 exceeds kl_beta_max=1.0; lower it" in refusal("model.kl_beta=2", "model.kl_beta_max=1")
    assert "support=[2.0, 2.0] must rise" in refusal("model.network.support=[2, 2]")
    assert "support=[3.0, -3.0] must rise from the lowest to the highest return; swap its ends" in refusal(
        "model.network.support=[3, -3]"
    )
    assert load_config(BASE, ["model.kl_penalty=true", "model.target_kl=0.01"]).model.kl_penalty


@pytest.mark.parametrize(
    ("critic", "name", "sentence"),
    [
        ("categorical", "cvar_weight", "model.cvar_weight needs the quantiles of the return, but"),
        ("scalar", "cvar_weight", "model.network.critic is 'scalar', which predicts none; remove it, or set"),
        (
            "categorical",
            "clip_range_vf",
            "model.clip_range_vf bounds predicted returns, but model.network.critic is 'categorical', which",
        ),
    ],
)
def test_a_critic_that_cannot_do_it_is_refused_also_where_the_population_draws_the_value(
    critic: str, name: str, sentence: str
) -> None:
    space = f"pbt.hyperparams=[{{name: {name}, min_value: 0.1, max_value: 0.5}}]"
    for asked in (f"model.{name}=0.5", space):
        assert sentence in refusal(f"model.network.critic={critic}", asked)
        assert load_config(BASE, [asked]).uses(name)
    assert not load_config(BASE).uses(name)


def test_a_target_that_the_population_draws_is_a_target() -> None:
    target = "pbt.hyperparams=[{name: target_kl, min_value: 0.005, max_value: 0.05}]"
    assert load_config(BASE, ["model.kl_penalty=true", target]).model.kl_penalty


@pytest.mark.parametrize(
    ("optimizer", "key", "value"),
    [("adam", "sigma", "0.1"), ("adamw", "adaptive_noise", "true"), ("upgd", "betas", "[0.5, 0.9]")],
)
def test_a_constant_that_the_optimizer_does_not_read_is_refused(optimizer: str, key: str, value: str) -> None:
    setting = f"model.optimizer_kwargs.{key}={value}"
    message = refusal(f"model.optimizer={optimizer}", setting)
    assert f"optimizer_kwargs.{key} is not read by optimizer={optimizer!r}; remove it, or choose" in message
    assert load_config(BASE, [setting, "model.optimizer=adaptive_upgd"]).model.optimizer == "adaptive_upgd"


@pytest.mark.parametrize(
    ("overrides", "path"),
    [
        (["model.optimizer=upgd", "model.optimizer_kwargs.sigma=-1"], "model.optimizer_kwargs.sigma = -1"),
        (["model.vgs.alpha=-0.1"], "model.vgs.alpha = -0.1"),
        (["model.vgs.min_scaling_factor=0"], "model.vgs.min_scaling_factor = 0"),
        (["model.cvar_alpha=0"], "model.cvar_alpha = 0"),
        (["model.cvar_weight=1.5"], "model.cvar_weight = 1.5"),
        (["model.ent_coef_decay_steps=0"], "model.ent_coef_decay_steps = 0"),
        (["model.optimizer=sgd"], "model.optimizer = 'sgd'"),
        (["model.quantile_target=td"], "model.quantile_target = 'td'"),
    ],
)
def test_a_number_of_the_learning_rule_out_of_bounds_is_refused(overrides: list[str], path: str) -> None:
    assert path in refusal(*overrides)


def test_tunable_numbers_that_stand_in_a_section() -> None:
    model = load_config(
        BASE, ["model.optimizer=upgd", "model.vgs.alpha=0.3", "model.optimizer_kwargs.sigma=0.02"]
    ).model
    values = model.hyperparams()
    assert (values["sigma"], values["vgs_alpha"], values["weight_decay"]) == (0.02, 0.3, 0.001)
    assert (model.sets("sigma"), model.sets("weight_decay"), model.sets("vgs_alpha")) == (True, False, True)
    space = "pbt.hyperparams=[{name: sigma, min_value: 0.1, max_value: 0.2}]"
    message = refusal(space, "model.optimizer=upgd", "model.optimizer_kwargs.sigma=0.5")
    assert "model.optimizer_kwargs.sigma=0.5 is outside the bounds [0.1, 0.2] that pbt.hyperparams gives it" in message


def test_nested_tunable_numbers_read_back_equal(tmp_path: Path) -> None:
    names = ("sigma", "weight_decay", "vgs_alpha")
    spaces = ", ".join(f"{{name: {name}, min_value: 0.01, max_value: 0.5}}" for name in names)
    settings = [f"pbt.hyperparams=[{spaces}]", "model.optimizer=upgdw", "model.vgs.enabled=true"]
    for given in ([], ["model.optimizer_kwargs.sigma=0.02"], ["model.vgs.alpha=0.1", "model.vgs.beta=0.9"]):
        config = load_config(BASE, [*settings, *given])
        path = tmp_path / "config.yaml"
        path.write_text(dump_config(config), encoding="utf-8")
        again = load_config(path)
        assert again == config
        assert dump_config(again) == dump_config(config)
        for name in names:
            # What nobody has set stays out of the file, so that the population still draws it.
            assert again.model.sets(name) == config.model.sets(name)
        assert again.model.hyperparams() == config.model.hyperparams()


def test_a_tail_thinner_than_a_quantile_is_a_caution() -> None:
    # 21 quantiles: 0.04 · 21 = 0.84 of one; 25 of them suffice.
    (caution,) = load_config(BASE, ["model.cvar_weight=0.5", "model.cvar_alpha=0.04"]).cautions
    assert "model.cvar_alpha=0.04 is less than one of 21 quantiles" in caution
    assert caution.endswith("raise model.network.n_quantiles to 25")
    assert (
        load_config(BASE, ["model.cvar_weight=0.5", "model.cvar_alpha=0.04", "model.network.n_quantiles=25"]).cautions
        == []
    )
    assert load_config(BASE, ["model.cvar_weight=0.5", "model.cvar_alpha=0.05"]).cautions == []
    assert load_config(BASE, ["model.cvar_alpha=0.04"]).cautions == []
    space = "pbt.hyperparams=[{name: cvar_alpha, min_value: 0.02, max_value: 0.9}]"
    (caution,) = load_config(BASE, ["model.cvar_weight=0.5", space]).cautions
    assert caution.endswith("raise model.network.n_quantiles to 50")


@pytest.mark.parametrize("name", HYPERPARAMS)
def test_defaults_lie_in_their_domain(name: str) -> None:
    low, high = HYPERPARAMS[name]
    default = ModelConfig().hyperparam(name)
    assert default is None or low <= default <= high


def test_derived_numbers() -> None:
    config = load_config(
        {
            "env": {"id": "CartPole-v1", "num_envs": 4},
            "model": {"n_steps": 64, "n_minibatches": 2},
            "pbt": {"population_size": 3, "perturbation_interval": 5},
            "engine": {"sequence_length": 16},
            "total_timesteps": 10_000,
        }
    )
    assert config.steps_per_generation == 3 * 4 * 64 * 5
    assert config.generations == 3  # 3840 steps each; 2 generations are 7680, 3 are 11520
    assert (config.sequence_length, config.sequences) == (16, 4 * 4)
    whole = load_config(BASE)
    assert (whole.sequence_length, whole.sequences) == (whole.model.n_steps, whole.env.num_envs)


def test_defaults_of_the_population_are_the_published_contract() -> None:
    # Specification A17.
    pbt = PopulationConfig()
    assert (pbt.exploit_method, pbt.explore_method, pbt.truncation_ratio) == ("truncation", "both", 0.2)
    assert (pbt.metric_mode, pbt.ready_percentage, pbt.min_ready_members) == ("max", 0.8, 2)
    assert (pbt.perturbation_interval, pbt.ready_check_max_wait) == (5, 10)


def test_paths_are_paths() -> None:
    assert load_config(BASE, ["run_dir=runs/a b"]).run_dir == Path("runs/a b")


def test_random_documents_give_a_configuration_or_a_refusal() -> None:
    """Whatever values stand in a file, the outcome is a `Config` or a `ConfigError`, never another exception."""
    draw = random.Random(0)
    junk: list[Any] = [None, True, -1, 0, 1, 3.5, math.nan, math.inf, 1e6, "", "x", "1", [], [1], [{}], {}, {"x": 1}]
    keys = [
        f"{section}.{name}" if section else name
        for section, kind in [("", Config), *((name, field.annotation) for name, field in Config.model_fields.items())]
        if isinstance(kind, type) and issubclass(kind, Section)
        for name in kind.model_fields
    ]
    accepted = 0
    for _ in range(1500):
        overrides = {draw.choice(keys): draw.choice(junk) for _ in range(draw.randint(1, 2))}
        try:
            config = load_config(BASE, overrides)
        except ConfigError:
            continue
        accepted += isinstance(config, Config)
    assert 0 < accepted < 1500


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("sigma", "model.optimizer=adaptive_upgd"),
        ("vgs_alpha", "model.vgs.enabled=true"),
        ("cvar_alpha", "model.cvar_weight=0.5"),
        ("kl_pid_i", "model.kl_penalty=true"),
    ],
)
def test_a_number_that_nothing_reads_cannot_be_tuned(name: str, fix: str) -> None:
    space = f"pbt.hyperparams=[{{name: {name}, min_value: 0.1, max_value: 0.5}}]"
    assert f"pbt.hyperparams lists '{name}', which nothing reads" in refusal(space)
    load_config(BASE, [space, fix, "model.target_kl=0.01"])


def test_a_score_under_attack_needs_episodes_of_its_own() -> None:
    sentence = refusal("evaluation.attack_weight=0.5", "pbt.fitness=training")
    assert "set pbt.fitness: evaluation, or attack_weight: 0" in sentence
    assert "evaluation.attack_weight = 1.5" in refusal("evaluation.attack_weight=1.5")
    assert "clip_min=1.0 must be below clip_max=-1.0" in refusal("evaluation.attack={clip_min: 1, clip_max: -1}")


@pytest.mark.parametrize(
    ("optimizer", "rate"), [("adam", 3e-4), ("adamw", 3e-4), ("adaptive_upgd", 3e-4), ("upgdw", 3e-4), ("upgd", 0.3)]
)
def test_every_optimizer_has_a_learning_rate_of_its_own(optimizer: str, rate: float) -> None:
    config = load_config(BASE, {"model.optimizer": optimizer, "pbt.hyperparams": []})
    assert config.model.learning_rate == rate
    assert f"learning_rate: {rate}" in dump_config(config)
    assert not config.model.sets("learning_rate")
    assert config.cautions == []
    assert load_config(BASE, {"model.optimizer": optimizer, "model.learning_rate": 0.02}).model.learning_rate == 0.02
    spaces = [{"name": "learning_rate", "min_value": 1e-4, "max_value": 1e-2}]
    for slow in ({"model.learning_rate": 1e-3}, {"pbt.hyperparams": spaces}):
        cautions = load_config(BASE, {"model.optimizer": optimizer, **slow}).cautions
        assert ["made for Adam" in caution for caution in cautions] == ([True] if optimizer == "upgd" else [])


def tuned(*overrides: str, source: Any = BASE) -> dict[str, HyperparamConfig]:
    return {space.name: space for space in load_config(source, overrides).pbt.hyperparams}


def test_where_nothing_is_said_of_what_varies_the_usual_numbers_do() -> None:
    spaces = tuned()
    assert list(spaces) == ["learning_rate", "ent_coef", "clip_range", "gamma", "gae_lambda"]
    for name, space in spaces.items():
        default = ModelConfig().hyperparam(name)
        assert space.contains(default) or name == "ent_coef", "what an agent has by default can be found"
    assert spaces["learning_rate"].bounds == pytest.approx((1e-4, 3e-3))
    assert tuned("model.optimizer=upgd")["learning_rate"].bounds == (0.1, 1.0)
    assert list(tuned("pbt.exploit_method=none")) == list(spaces), "random search needs something to search"


def test_what_the_user_sets_stays_as_it_is() -> None:
    others = ["ent_coef", "clip_range", "gae_lambda"]
    assert list(tuned("model.learning_rate=9", "model.gamma=0")) == others
    own_rule = tuned("model.optimizer=my_rules:Mine")
    assert "learning_rate" not in own_rule, "nobody knows which rates suit it"
    assert "ent_coef" not in tuned("model.ent_coef_final=0.0")
    named = {**BASE, "pbt": {"hyperparams": [{"name": "vf_coef", "min_value": 0.1, "max_value": 1.0}]}}
    assert list(tuned(source=named)) == ["vf_coef"]


def test_nothing_is_tuned_on_request_alone_or_by_a_schedule() -> None:
    assert tuned("pbt.hyperparams=[]") == {}
    assert tuned("pbt.population_size=1", "pbt.exploit_method=none") == {}
    assert tuned("pbt.exploit_method=none", "pbt.schedule=[{steps: 0, hyperparams: {gamma: 0.9}}]") == {}


def test_what_is_tuned_by_default_is_written_and_follows_later_overrides() -> None:
    config = load_config(BASE)
    again = load_config(yaml.safe_load(dump_config(config)))
    assert again.pbt.hyperparams == config.pbt.hyperparams
    assert dump_config(again) == dump_config(config)
    assert "gamma" not in tuned("model.gamma=0.9", source=config)
    assert tuned("pbt.population_size=1", "pbt.exploit_method=none", source=config) == {}
    section = PopulationConfig(population_size=3)
    assert Config(env={"id": "CartPole-v1"}, pbt=section).pbt.hyperparams
    assert section.hyperparams == []
