"""State-adversarial training in the coordinator, with models whose loss is computed by a library."""

import copy
import functools

import gymnasium
import numpy as np
import pytest
import torch
from sb3_contrib import TRPO, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from torch.distributions import Categorical, kl_divergence

from popgraft import DistributionalPPO, HyperparamConfig, tree
from popgraft.errors import ConfigError
from popgraft.foreign import PBTAdversarialConfig, PBTConfig, PBTTrainingCoordinator, SAPPOConfig

pytestmark = pytest.mark.usefixtures("global_generators_come_back")

STEPS, ENVS = 32, 2
KINDS = {PPO: "MlpPolicy", RecurrentPPO: "MlpLstmPolicy", DistributionalPPO: "MlpLstmPolicy"}
SPACES = [
    HyperparamConfig("adversarial_epsilon", min_value=0.05, max_value=0.5),
    HyperparamConfig("adversarial_ratio", min_value=0.1, max_value=1.0),
    HyperparamConfig("robust_kl_coef", min_value=0.01, max_value=1.0),
]


class Masked(gymnasium.Wrapper):
    """CartPole in which everything may be done."""

    def action_masks(self):
        return np.ones(2, bool)


@pytest.fixture
def make(tmp_path):
    def build(spaces=(), **settings):
        pbt = PBTConfig(
            population_size=2,
            perturbation_interval=1,
            hyperparams=list(spaces),
            optimizer_exploit_strategy="copy",
            checkpoint_dir=tmp_path,
        )
        adversarial = SAPPOConfig(**{"enabled": True, "warmup_updates": 0, **settings})
        coordinator = PBTTrainingCoordinator(PBTAdversarialConfig(pbt=pbt, adversarial=adversarial), seed=0)
        coordinator.initialize_population()
        return coordinator

    return build


def model_of(coordinator, kind=PPO, member=0, policy=None, env=None, **settings):
    own = {} if kind is A2C else {"batch_size": STEPS, "n_epochs": 2}
    return coordinator.create_member_model(
        coordinator.scheduler.population[member],
        kind,
        policy=policy or KINDS.get(kind, "MlpPolicy"),
        env=env or make_vec_env("CartPole-v1", ENVS, seed=0, wrapper_class=Masked),
        **{"n_steps": STEPS, "seed": 0, "device": "cpu", **own, **settings},
    )


def weights(model):
    return torch.cat([weight.detach().flatten() for weight in model.policy.parameters()])


@pytest.mark.parametrize("kind", [PPO, RecurrentPPO, A2C, MaskablePPO])
def test_the_term_changes_what_is_learned_and_at_weight_zero_nothing(make, kind):
    learned = {}
    for name, settings in {
        "plain": {"enabled": False},
        "zero": {"robust_kl_coef": 0.0},
        "robust": {"robust_kl_coef": 1e4},
    }.items():
        small = {"net_arch": [8], **({"lstm_hidden_size": 8} if kind is RecurrentPPO else {})}
        model, adversary = model_of(make(**settings), kind, policy_kwargs=small)
        learned[name] = weights(model.learn(STEPS * ENVS))
        assert (adversary is None) is (name == "plain")
    assert torch.equal(learned["zero"], learned["plain"])
    assert (learned["robust"] - learned["plain"]).abs().max() > 1e-6
    stats = adversary.get_stats()
    assert stats["sa_ppo/enabled"] == 1
    assert stats["sa_ppo/robust_kl_penalty"] > 0
    assert stats["sa_ppo/adversarial_ratio"] == pytest.approx(0.5, abs=0.2)


def hand_kl(model, samples, seed_state, epsilon):
    """Mean KL(π(s) ‖ π(s + δ)) over all steps, with δ uniform in the ball, drawn as the attack draws it."""
    generator = torch.Generator()
    generator.set_state(seed_state)
    torch.rand((), generator=generator)
    policy = model.policy
    if not isinstance(model, RecurrentPPO):
        order = torch.randperm(len(samples.observations), generator=generator)
        x = samples.observations[order]
        delta = epsilon * (2 * torch.rand(1, 1, 1, *x.shape, generator=generator).view(x.shape) - 1)

        def law(x):
            hidden = policy.mlp_extractor.policy_net(x)
            return Categorical(logits=policy.action_net(hidden))

        with torch.no_grad():
            clean = law(x)
        return kl_divergence(clean, law(x + delta)).mean()
    sequences = samples.lstm_states.pi[0].shape[1]
    x, start, mask = (
        part.view(sequences, -1, *part.shape[1:])
        for part in (samples.observations, samples.episode_starts, samples.mask)
    )
    order = torch.randperm(sequences, generator=generator)
    noise = torch.rand(1, 1, x.shape[1], sequences, x.shape[2], generator=generator)[0, 0].transpose(0, 1)
    total, count = 0.0, 0
    for place, i in enumerate(order.tolist()):
        states = {"clean": None, "moved": None}
        states = {name: tuple(part[:, i : i + 1] for part in samples.lstm_states.pi) for name in states}
        for t in range(int(mask[i].sum())):
            laws = {}
            for name, moved in (("clean", 0.0), ("moved", epsilon * (2 * noise[place, t] - 1))):
                states[name] = tuple((1 - start[i, t]) * part for part in states[name])
                out, states[name] = policy.lstm_actor((x[i, t] + moved).view(1, 1, -1), states[name])
                laws[name] = Categorical(logits=policy.action_net(policy.mlp_extractor.policy_net(out[0])))
            fixed = Categorical(logits=laws["clean"].logits.detach())
            total, count = total + kl_divergence(fixed, laws["moved"]).sum(), count + 1
    return total / count


@pytest.mark.parametrize("bound", [1e9, 0.01])
@pytest.mark.parametrize("kind", [PPO, RecurrentPPO])
def test_the_gradient_is_that_of_the_sum(make, kind, bound):
    """∇(L_PPO + κ · KL), clipped as a whole, against the loss of a plain model and the divergence by hand."""
    attack = {"attack_method": "random", "epsilon": 2.0}
    settings = {"batch_size": STEPS * ENVS, "n_epochs": 1, "max_grad_norm": bound}
    robust, adversary = model_of(
        make(robust_kl_coef=40.0, adversarial_ratio=1.0, perturbation=attack), kind, **settings
    )
    plain, _ = model_of(make(enabled=False), kind, **{**settings, "max_grad_norm": 1e9})
    for model in (robust, plain):
        model.policy.action_net.weight.data.mul_(200)  # away from a policy that is the same everywhere
    drawn, found, seen = adversary.perturbation.generator.get_state(), [], []
    get = robust.rollout_buffer.get
    robust.rollout_buffer.get = lambda size: (seen.append(samples) or samples for samples in get(size))
    before = copy.deepcopy(robust.policy.state_dict())
    for model in (robust, plain):
        torch.manual_seed(1)
        np.random.seed(1)
        model.learn(STEPS * ENVS)
        found.append([parameter.grad.clone() for parameter in model.policy.parameters()])
    plain.policy.load_state_dict(before)
    plain.policy.zero_grad()
    (40.0 * hand_kl(plain, *seen, drawn, 2.0)).backward()
    expected = [
        own if parameter.grad is None else own + parameter.grad
        for own, parameter in zip(found[1], plain.policy.parameters(), strict=True)
    ]
    assert any((own - whole).abs().max() > 0.05 for own, whole in zip(found[1], expected, strict=True))
    norm = float(torch.cat([gradient.flatten() for gradient in expected]).norm())
    for gradient, hand in zip(found[0], expected, strict=True):
        torch.testing.assert_close(gradient, hand * min(1.0, bound / norm), atol=1e-5 * min(1.0, bound), rtol=1e-3)


def test_an_update_that_stops_takes_no_step(make):
    """Nothing follows the first step, after which the policy has moved further than it may, and no gradient is left."""
    model, _ = model_of(make(robust_kl_coef=1e4), target_kl=1e-9, learning_rate=0.1)
    steps, taken = [], []
    model.policy.optimizer.register_step_post_hook(lambda *_: steps.append(weights(model)))
    model.policy.optimizer.register_step_pre_hook(
        lambda *_: taken.append([parameter.grad.clone() for parameter in model.policy.parameters()])
    )
    model.learn(STEPS * ENVS)
    assert len(steps) == 1
    assert torch.equal(weights(model), steps[0])
    for parameter, gradient in zip(model.policy.parameters(), taken[0], strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_attacks_begin_after_the_warm_up_whether_or_not_updates_are_announced(make):
    for announced in (False, True):
        coordinator = make(warmup_updates=2)
        member = coordinator.scheduler.population[0]
        model, adversary = model_of(coordinator)
        attacks = []
        for update in range(4):
            if announced:
                coordinator.on_member_update_start(member)
            model.learn(STEPS * ENVS, reset_num_timesteps=update == 0)
            attacks.append(adversary.get_stats()["sa_ppo/attack_count"])
        assert adversary.update_count == 4
        assert attacks == [0, 0, 4, 8]


@pytest.mark.parametrize(
    ("kind", "settings", "given", "message"),
    [
        (TRPO, {}, {}, "TRPO cannot be given the robust term; PPO, RecurrentPPO"),
        (DQN, {}, {"learning_starts": 1}, "has no policy.get_distribution"),
        (PPO, {"attack_policy": False}, {}, "attack_policy=False leaves nothing"),
        (PPO, {"attack_value": True}, {}, "attack_value=True is not available for PPO"),
        (PPO, {"attack_objective": "value"}, {}, "attack_objective='value' is not available for PPO"),
        (DistributionalPPO, {"attack_policy": False}, {}, "attack_policy=False leaves nothing"),
        (DistributionalPPO, {"attack_value": True}, {}, "attack_value=True is not available for DistributionalPPO"),
        (PPO, {}, {"env": "FrozenLake-v1"}, "moves vectors of real numbers, but PPO sees Discrete"),
    ],
)
def test_what_cannot_be_right_is_refused_by_name(make, kind, settings, given, message):
    coordinator = make(**settings)
    member = coordinator.scheduler.population[0]
    arguments = {"policy": KINDS.get(kind, "MlpPolicy"), "env": "CartPole-v1", "device": "cpu", **given}
    with pytest.raises(ConfigError, match=message):
        coordinator.create_member_model(member, kind, **arguments)


def own_factory(adversary, **arguments):
    return DistributionalPPO(adversary=adversary, **arguments)


@pytest.mark.parametrize("factory", [DistributionalPPO, functools.partial(DistributionalPPO, verbose=0), own_factory])
def test_the_engine_gets_the_section_and_the_explored_values_are_live(make, factory, tmp_path):
    attack = {"epsilon": 0.2, "attack_lr": 0.05, "attack_steps": 2}
    schedule = {"adaptive_epsilon": True, "epsilon_schedule": "linear", "epsilon_final": 0.1, "max_updates": 9}
    coordinator = make(SPACES, perturbation=attack, warmup_updates=1, **schedule)
    model, adversary = model_of(coordinator, factory, policy="MlpLstmPolicy")
    config = model.learner.config.adversary
    assert (config.perturbation.epsilon, config.perturbation.attack_steps, config.warmup_updates) == (0.2, 2, 1)
    assert (config.epsilon_schedule, config.epsilon_final, config.max_updates) == ("linear", 0.1, 9)
    member = coordinator.scheduler.population[0]
    names = [space.name for space in SPACES]
    seen = []
    improve = model.learner.improve_

    def spy(member, *rest):
        seen.append([float(member.hyperparams[name]) for name in names])
        return improve(member, *rest)

    model.learner.improve_ = spy
    model.learn(STEPS * ENVS)
    assert seen[-1] == pytest.approx([member.hyperparams[name] for name in names])
    assert coordinator.get_stats()["avg_sa_ppo/enabled"] == 0
    member.hyperparams = {"adversarial_epsilon": 0.3, "adversarial_ratio": 1.0, "robust_kl_coef": 0.7}
    coordinator.apply_hyperparameters(model, member)
    model.learn(STEPS * ENVS, reset_num_timesteps=False)
    assert seen[-1] == pytest.approx([0.3, 1.0, 0.7])
    stats = coordinator.get_stats()
    assert stats["avg_sa_ppo/enabled"] == stats["avg_sa_ppo/adversarial_ratio"] == 1
    model.save(tmp_path / "model.zip")
    loaded = DistributionalPPO.load(tmp_path / "model.zip", env=model.env)
    assert loaded.adversary.state_dict() == adversary.state_dict() == member.hyperparams
    given = {"enabled": True, "robust_kl_coef": 0.5}
    assert DistributionalPPO.load(tmp_path / "model.zip", adversary=given).adversary.robust_kl_coef == 0.5


def test_a_factory_that_hides_its_arguments_is_told_what_to_take(make):
    with pytest.raises(ConfigError, match="take `adversary` by name"):
        model_of(make(), lambda **arguments: DistributionalPPO(verbose=0, **arguments), policy="MlpLstmPolicy")


def test_a_recurrent_policy_is_not_attacked_by_observations_alone(make):
    model, adversary = model_of(make(), RecurrentPPO)
    model.learn(STEPS * ENVS)
    with pytest.raises(ConfigError, match="its minibatches carry the robust term already"):
        adversary.robust_kl_penalty(torch.zeros(3, 4))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [PPO, RecurrentPPO])
def test_it_makes_policies_robust(make, kind):
    """The divergence under a stronger attack than that of training is a fraction of the plain model's, on all seeds."""
    layers = {"net_arch": [32], **({"lstm_hidden_size": 32} if kind is RecurrentPPO else {})}
    for seed in range(3):
        moved = {}
        for coefficient in (0.0, 1.0):
            attack = {"epsilon": 0.2, "attack_lr": 0.1, "attack_steps": 1}
            env = make_vec_env("CartPole-v1", 4, seed=seed)
            common = {"env": env, "seed": seed, "n_steps": 128, "batch_size": 512, "policy_kwargs": layers}
            model, _ = model_of(
                make(robust_kl_coef=coefficient, perturbation=attack), kind, n_epochs=5, learning_rate=3e-3, **common
            )
            model.learn(8192)
            stronger = {"epsilon": 0.2, "attack_lr": 0.05, "attack_steps": 10}
            judged, judge = model_of(make(perturbation=stronger, robust_kl_coef=1.0), kind, n_epochs=1, **common)
            judged.policy.load_state_dict(model.policy.state_dict())
            judged.learning_rate, judged.lr_schedule = 0.0, lambda _: 0.0
            judged.learn(512)
            moved[coefficient] = judge.get_stats()["sa_ppo/robust_kl_penalty"]
        assert moved[1.0] < 0.7 * moved[0.0], (seed, moved)


def test_an_update_without_attacks_is_a_warning(make, caplog):
    coordinator = make()
    member = coordinator.scheduler.population[0]
    model, _ = model_of(coordinator)
    for learns in (True, False):
        caplog.clear()
        coordinator.on_member_update_start(member)
        if learns:
            model.learn(STEPS * ENVS)
        coordinator.on_member_update_end(member, 1.0, 1)
        assert ("asked for no attack" in caplog.text) is not learns


RAMPS = {
    "adversary": {"adversary": {"warmup_updates": 3}},
    "risk": {"cvar_weight": 0.5, "cvar_start": 2, "cvar_ramp": 9},
    "value clipping": {"clip_range_vf": 0.01, "clip_range_vf_warmup": 3},
}


@pytest.mark.parametrize("ramp", RAMPS)
def test_a_graft_is_a_deep_copy_also_where_updates_count(make, ramp):
    """Every number of the recipient's member is the donor's, and so it is after the update that a ramp begins with."""
    coordinator = make(enabled=ramp == "adversary", warmup_updates=3)
    recipient, donor = models = [
        model_of(coordinator, DistributionalPPO, i, policy_kwargs={"net_arch": [8]}, n_epochs=1, **RAMPS[ramp])[0]
        for i in range(2)
    ]
    donor.learn(3 * STEPS * ENVS)
    recipient.learn(STEPS * ENVS)
    member = coordinator.scheduler.population[0]
    coordinator.apply_exploited_parameters(recipient, coordinator.collect_parameters(donor), member)
    for learned in (False, True):
        for model in models if learned else ():
            model.env.seed(7)
            model._last_obs = None
            for generator in model.generators:
                generator.manual_seed(7)
            model.learn(STEPS * ENVS, reset_num_timesteps=False)
        found = dict(tree.items(recipient.member))
        wrong = [path for path, leaf in tree.items(donor.member) if not torch.equal(found[path], leaf)]
        assert wrong == []


@pytest.mark.parametrize("kind", [PPO, RecurrentPPO])
def test_a_graft_inherits_how_far_attacks_have_come(make, kind):
    coordinator = make(SPACES[:1], warmup_updates=3)
    (recipient, mine), (donor, theirs) = (
        model_of(coordinator, kind, i, n_epochs=1, policy_kwargs={"net_arch": [8]}) for i in range(2)
    )
    donor.learn(3 * STEPS * ENVS)
    theirs.robust_kl_coef = 0.7  # set by hand
    coordinator.save_member_checkpoint(coordinator.scheduler.population[1], donor)
    for i, score in ((1, 1.0), (0, 0.0)):
        new, *_ = coordinator.on_member_update_end(
            coordinator.scheduler.population[i],
            score,
            1,
            model_parameters=None if i else coordinator.collect_parameters(recipient),
        )
    coordinator.apply_exploited_parameters(recipient, new, coordinator.scheduler.population[0])
    explored = coordinator.scheduler.population[0].hyperparams["adversarial_epsilon"]
    assert (mine.update_count, mine.adversarial_epsilon, mine.robust_kl_coef) == (3, explored, 0.7)
    recipient.learn(STEPS * ENVS, reset_num_timesteps=False)
    assert mine.get_stats()["sa_ppo/attack_count"] == 2
    before = mine.state_dict()
    with pytest.raises(ConfigError, match="must hold numbers of at least 0 for update_count"):
        coordinator.apply_exploited_parameters(
            recipient, {**new, "sa_ppo_state": {"update_count": -1}}, coordinator.scheduler.population[0]
        )
    assert mine.state_dict() == before
