"""The network as a whole: how its parts are joined, what is forgotten at a reset, and the population laws."""

import pytest
import torch

from popgraft import tree
from popgraft.config import NetworkConfig
from popgraft.nn import Policy
from popgraft.spaces import ActionSpec, ObsSpec, Spaces

POP, TIME, BATCH = 3, 5, 4
SPACES = Spaces({"obs": ObsSpec((3,))}, ActionSpec("discrete", sizes=(2,), start=(0,)))
MEMORIES = [
    (recurrent, critic, layers)
    for recurrent in ("lstm", "gru")
    for critic in ("separate", "shared", "none")
    for layers in (1, 2)
] + [("mingru", "separate", 2), ("none", "none", 1)]


@pytest.fixture
def make(stacked, normal):
    def make(recurrent, critic, layers):
        config = NetworkConfig(
            encoder_layers=[5],
            recurrent=recurrent,
            critic_recurrent=critic,
            recurrent_layers=layers,
            hidden_size=4,
            head_layers=[6],
            n_quantiles=7,
        )
        policy = Policy(SPACES, config)
        start = normal(POP, TIME, BATCH) < -0.5
        return (
            policy,
            stacked(policy),
            {"obs": normal(POP, TIME, BATCH, 3)},
            normal(POP, BATCH, policy.state_size),
            start,
        )

    return make


@pytest.mark.parametrize("memory", MEMORIES)
def test_equals_its_parts_joined_by_hand(memory, make):
    recurrent, critic, _ = memory
    policy, params, obs, state, start = make(*memory)
    found = policy.unroll(params, obs, state, start)
    features = policy.encoder(params["encoder"], obs)
    recalled = valued = features
    after = [state]
    if recurrent != "none":
        own = state[..., : policy.actor_memory.state_size]
        recalled, own = policy.actor_memory(params["actor_memory"], features, own, start)
        valued = {"separate": None, "shared": recalled, "none": features}[critic]
        after = [own]
    if recurrent != "none" and critic == "separate":
        rest = state[..., policy.actor_memory.state_size :]
        valued, rest = policy.critic_memory(params["critic_memory"], features, rest, start)
        after.append(rest)
    assert torch.equal(found.outputs, policy.head(params["head"], policy.actor_mlp(params["actor_mlp"], recalled)))
    assert torch.equal(found.critic, policy.critic_mlp(params["critic_mlp"], valued))
    assert torch.equal(found.state, torch.cat(after, -1))
    assert policy.predict(params, found.critic).shape == (POP, TIME, BATCH, 1, 7)


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_reset_zeroes_the_state_of_its_own_environment_only(memory, make):
    policy, params, obs, state, _ = make(*memory)
    start = torch.zeros(POP, TIME, BATCH, dtype=torch.bool)
    calm = policy.unroll(params, obs, state, start)
    start[:, 2, 1] = True
    found = policy.unroll(params, obs, state, start)
    others = [0, 2, 3]
    for before, after in ((calm.outputs, found.outputs), (calm.critic, found.critic)):
        torch.testing.assert_close(after[:, :, others], before[:, :, others], atol=1e-12, rtol=0)
        torch.testing.assert_close(after[:, :2], before[:, :2], atol=1e-12, rtol=0)
    tail = {"obs": obs["obs"][:, 2:]}
    alone = policy.unroll(params, tail, torch.zeros_like(state), torch.zeros_like(start[:, 2:]))
    torch.testing.assert_close(found.outputs[:, 2:, 1], alone.outputs[:, :, 1], atol=1e-12, rtol=0)
    torch.testing.assert_close(found.critic[:, 2:, 1], alone.critic[:, :, 1], atol=1e-12, rtol=0)
    torch.testing.assert_close(found.state[:, 1], alone.state[:, 1], atol=1e-12, rtol=0)
    if memory[0] != "none":
        assert (found.outputs[:, 2:, 1] - calm.outputs[:, 2:, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("memory", MEMORIES)
def test_one_step_at_a_time_is_the_whole_unroll(memory, make):
    policy, params, obs, state, start = make(*memory)
    whole = policy.unroll(params, obs, state, start)
    outputs, critic = [], []
    for t in range(TIME):
        step = policy.unroll(params, {"obs": obs["obs"][:, t : t + 1]}, state, start[:, t : t + 1])
        outputs.append(step.outputs)
        critic.append(step.critic)
        state = step.state
    torch.testing.assert_close(torch.cat(outputs, 1), whole.outputs, atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.cat(critic, 1), whole.critic, atol=1e-12, rtol=0)
    torch.testing.assert_close(state, whole.state, atol=1e-12, rtol=0)


@pytest.mark.parametrize("memory", MEMORIES)
def test_hidden_parts_find_the_last_layers_output_of_both_memories(memory, make):
    recurrent, critic, layers = memory
    policy, params, obs, state, start = make(*memory)
    owners = [] if recurrent == "none" else ["actor", "critic"] if critic == "separate" else ["actor"]
    assert list(policy.hidden_parts) == [f"{owner}_layer{i}" for owner in owners for i in range(layers)]
    found, features = policy.unroll(params, obs, state, start).state, policy.encoder(params["encoder"], obs)
    split = policy.actor_memory.state_size if owners else 0
    for owner, own in zip(owners, (state[..., :split], state[..., split:]), strict=False):
        block = policy.actor_memory if owner == "actor" else policy.critic_memory
        y, last = block(params[f"{owner}_memory"], features, own, start)
        h = found[..., policy.hidden_parts[f"{owner}_layer{layers - 1}"]]
        assert torch.equal(h, last[..., block.hidden_slices[-1]])
        assert torch.equal(h, y[:, -1]) == (recurrent != "mingru")  # which puts out more than it remembers


def test_flat_parameters_are_views_and_members_are_drawn_from_their_own_generators():
    policy = Policy(SPACES, NetworkConfig())
    flat = policy.init_population([torch.Generator().manual_seed(seed) for seed in (1, 2, 1)])
    assert flat.shape == (3, policy.layout.size)
    assert torch.equal(flat[0], flat[2])
    assert not torch.equal(flat[0], flat[1])
    policy.views(flat)["critic"]["bias"][1] = 7
    assert (flat[1] == 7).sum() == 21
    assert not (flat[[0, 2]] == 7).any()


@pytest.mark.parametrize("memory", MEMORIES)
def test_population_laws(memory, make, check_laws):
    for output in (
        lambda policy, params, out: out.outputs,
        lambda policy, params, out: policy.predict(params, out.critic),
    ):
        policy, params, *trees = make(*memory)
        check_laws(
            lambda p, *inputs, policy=policy, output=output: output(policy, p, policy.unroll(p, *inputs)),
            params,
            *trees,
        )


def test_a_detached_critic_reads_the_actors_memory_and_does_not_shape_it(make):
    _, params, *inputs = make("lstm", "shared", 1)
    settings = {"encoder_layers": [5], "hidden_size": 4, "head_layers": [6], "n_quantiles": 7}
    gradients = {}
    for critic in ("shared", "detached"):
        policy = Policy(SPACES, NetworkConfig(critic_recurrent=critic, **settings))
        own = tree.map(lambda p: p.clone().requires_grad_(), params)
        out = policy.unroll(own, *inputs)
        policy.predict(own, out.critic).square().sum().backward()
        gradients[critic] = (out.critic.detach(), own)
    assert torch.equal(gradients["shared"][0], gradients["detached"][0])
    shared, detached = (dict(tree.items(own)) for _, own in gradients.values())
    for name in shared:
        if name.startswith("critic"):
            assert torch.equal(shared[name].grad, detached[name].grad)
        else:
            assert detached[name].grad is None


def test_a_critic_with_an_encoder_and_layers_of_its_own(stacked, normal):
    settings = {"encoder_layers": [5], "hidden_size": 4, "head_layers": [6], "critic_head_layers": [3, 2]}
    policy = Policy(SPACES, NetworkConfig(share_encoder=False, log_std_init=-1.5, **settings))
    params, obs = stacked(policy), {"obs": normal(POP, TIME, BATCH, 3)}
    state, start = normal(POP, BATCH, policy.state_size), torch.zeros(POP, TIME, BATCH, dtype=torch.bool)
    found = policy.unroll(params, obs, state, start)
    features = policy.critic_encoder(params["critic_encoder"], obs)
    valued, _ = policy.critic_memory(params["critic_memory"], features, state[..., 8:], start)
    assert torch.equal(found.critic, policy.critic_mlp(params["critic_mlp"], valued))
    assert found.critic.shape[-1] == 2
    tree.map(torch.Tensor.zero_, params["encoder"])
    assert torch.equal(policy.unroll(params, obs, state, start).critic, found.critic)


def test_initial_spread_of_actions_and_features_of_images():
    box = ActionSpec("box", shape=(2,), low=(-1.0, -1.0), high=(1.0, 1.0))
    spaces = Spaces({"obs": ObsSpec((1, 8, 8), image=True)}, box)
    policy = Policy(spaces, NetworkConfig(encoder_layers=[], cnn_features=9, log_std_init=-1.5))
    assert policy.encoder.n_out == 9
    assert (policy.init(torch.Generator())["head"]["log_std"] == -1.5).all()


class Doubling(torch.nn.Module):
    """An encoder that is given as a class."""

    def __init__(self, space):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.full((1,), 2.0))

    def forward(self, x):
        return x * self.scale


def test_an_encoder_given_as_a_class(normal):
    policy = Policy(SPACES, NetworkConfig(hidden_size=4), Doubling)
    params = policy.views(policy.init_population([torch.Generator() for _ in range(POP)]))
    x = normal(POP, TIME, BATCH, 3).float()
    assert torch.equal(policy.encoder(params["encoder"], {"obs": x}), 2 * x)
