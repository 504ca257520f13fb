"""Nothing that is not finite reaches a neighbour: another member of the population, or another environment."""

import itertools
import math

import pytest
import torch
from torch import nn

from popgraft import tree
from popgraft.config import NetworkConfig
from popgraft.nn import Policy
from popgraft.nn.blocks import initialise
from popgraft.spaces import ActionSpec, ObsSpec, Spaces

POP, TIME, BATCH = 3, 4, 5  # 17 rows and more are read in tiles by some kernels
VECTOR, IMAGE, PIXELS = ObsSpec((7,)), ObsSpec((3, 7, 7), image=True), ObsSpec((1, 36, 36), image=True)
DISCRETE = ActionSpec("multi_discrete", sizes=(3, 4), start=(0, 0))
BINARY = ActionSpec("multi_binary", sizes=(2, 2, 2), start=(0, 0, 0))
BOX = ActionSpec("box", shape=(2,), low=(-1.0, -1.0), high=(1.0, 1.0))


class Own(nn.Module):
    """An encoder of the user's, with a convolution and a layer that bfloat16 would round."""

    def __init__(self, space):
        super().__init__()
        self.conv, self.dense = nn.Conv1d(1, 5, 3), nn.Linear(25, 33)

    def forward(self, x):
        return self.dense(self.conv(x.unsqueeze(1)).flatten(1).tanh())


KINDS = {
    "compiled": (VECTOR, DISCRETE, {"hidden_size": 48, "recurrent_layers": 2, "critic": "categorical"}),
    "lstm": (VECTOR, BOX, {"hidden_size": 33, "encoder_layers": [35], "layer_norm": True}),
    "gru": (VECTOR, BINARY, {"hidden_size": 34, "recurrent": "gru", "critic": "scalar", "twin_critics": True}),
    "mingru": (VECTOR, BOX, {"hidden_size": 34, "recurrent": "mingru", "recurrent_layers": 2}),
    "lru": (VECTOR, BOX, {"hidden_size": 34, "recurrent": "lru"}),
    "ffm": (VECTOR, BOX, {"hidden_size": 36, "recurrent": "ffm"}),
    "dense": (VECTOR, BOX, {"recurrent": "none", "critic_recurrent": "none", "use_sde": True, "activation": "relu"}),
    "cnn": (IMAGE, DISCRETE, {"hidden_size": 16, "cnn_features": 37, "critic_recurrent": "shared"}),
    "nature": (PIXELS, DISCRETE, {"recurrent": "none", "critic_recurrent": "none", "cnn_features": 33}),
    "lifted": (VECTOR, BOX, {"hidden_size": 16, "critic_recurrent": "detached"}),
}


VALUES = (math.nan, math.inf, -math.inf)


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def given(kind, request):
    """A policy with its parameters, observations, a state, episode starts, and gradients of its results; and these."""
    obs_spec, action_spec, settings = KINDS[kind]
    settings = {"encoder_layers": [], "head_layers": [35, 33], "n_quantiles": 33, **settings}
    config = NetworkConfig(precision=request.param, **settings)
    policy = Policy(Spaces({"obs": obs_spec}, action_spec), config, Own if kind == "lifted" else None)
    generator = torch.Generator().manual_seed(3)
    params = initialise(policy, [torch.Generator().manual_seed(m) for m in range(POP)])
    shape = (POP, TIME, BATCH, *obs_spec.shape)
    obs = (
        torch.randint(256, shape, generator=generator).byte()
        if obs_spec.image
        else torch.randn(shape, generator=generator)
    )
    state = torch.randn(POP, BATCH, policy.state_size, generator=generator)
    start = torch.rand(POP, TIME, BATCH, generator=generator) < 0.2
    trees = {"params": params, "obs": obs, "state": state}
    grads = {str(i): torch.randn(y.shape, generator=generator) for i, y in enumerate(results(policy, trees, start))}
    sound = {**trees, "grads": grads}
    return policy, sound, start, run(policy, sound, start)


def results(policy, given, start):
    out = policy.unroll(given["params"], {"obs": given["obs"]}, given["state"], start)
    action = policy.head.mode(given["params"]["head"], out.outputs)
    log_prob = policy.head.log_prob(given["params"]["head"], out.outputs, action)
    return out.outputs, log_prob, out.state, policy.predict(given["params"], out.critic)


def run(policy, given, start):
    """Results; gradients of parameters, and those of observations and state, of a weighted sum of the results."""

    def leaf(x):
        return x.clone().requires_grad_(x.is_floating_point())

    own = {name: tree.map(leaf, given[name]) for name in ("params", "obs", "state")}
    found = results(policy, own, start)
    weights = [x for _, x in tree.items(own["params"])]
    inputs = [x for x in (own["obs"], own["state"]) if x.requires_grad]
    grads = torch.autograd.grad(
        found, weights + inputs, [*given["grads"].values()], allow_unused=True, materialize_grads=True
    )
    return [y.detach() for y in found], [*grads[: len(weights)]], [*grads[len(weights) :]]


def environments(leaf, which):
    """Some environments of [pop, time, env, ...], or of a state [pop, env, state]."""
    return leaf[:, which] if leaf.shape[:2] == (POP, BATCH) else leaf[:, :, which]


def spoilt(given, where, rows, value):
    """A copy with a value that is not finite in some rows of all numbers under a name."""
    own = {**given, where: tree.map(torch.clone, given[where])}
    for _, leaf in tree.items(own[where]):
        if leaf.is_floating_point():
            rows(leaf).fill_(value)
    return own


@pytest.mark.parametrize("where", ["params", "obs", "state", "grads"])
def test_a_member_that_is_not_finite_leaves_no_trace_in_the_others(given, where):
    policy, sound, start, before = given
    for member, value in enumerate(VALUES):
        after = run(policy, spoilt(sound, where, lambda leaf, own=member: leaf[own], value), start)
        others = [m for m in range(POP) if m != member]
        for ours, expected in zip(itertools.chain(*after), itertools.chain(*before), strict=True):
            assert torch.equal(ours[others], expected[others])
        if where == "params":
            assert not after[0][0][member].isfinite().any()


@pytest.mark.parametrize("where", ["obs", "state", "grads"])
def test_an_environment_that_is_not_finite_leaves_no_trace_in_the_others(given, where):
    """In results, and in gradients of observations and states; those of parameters are sums over all environments."""
    policy, sound, start, before = given
    for env, value in zip((0, 1, BATCH - 1), VALUES, strict=True):
        after = run(policy, spoilt(sound, where, lambda leaf, own=env: environments(leaf, own), value), start)
        others = [e for e in range(BATCH) if e != env]
        for ours, expected in zip(after[0] + after[2], before[0] + before[2], strict=True):
            assert torch.equal(environments(ours, others), environments(expected, others))
