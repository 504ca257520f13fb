"""A user's module over the population against the module itself, and what is refused."""

import pytest
import torch
from torch import nn

from popgraft import tree
from popgraft.errors import ConfigError
from popgraft.nn.blocks import Layout
from popgraft.nn.lifted import Lifted


class Net(nn.Module):
    """Nested and tied parameters, a scalar one, a constant buffer, a frozen parameter and frozen batch statistics."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.LayerNorm(5))
        self.again = self.body[0]
        self.tied = nn.Linear(6, 5, bias=False)
        self.tied.weight = self.body[0].weight
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.frozen = nn.Parameter(torch.randn(5), requires_grad=False)
        self.register_buffer("offset", torch.randn(5))
        self.norm = nn.BatchNorm1d(5).eval()
        self.norm.running_mean.uniform_(-2, 2)
        self.norm.running_var.uniform_(0.5, 3)

    def forward(self, x):
        x = x.flatten(1)
        return self.norm(self.scale * self.body(x) * self.frozen + self.offset + self.again(x) * self.tied(x))


class Keyed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.dense = nn.Conv2d(2, 3, 3), nn.Linear(4, 5)

    def forward(self, obs):
        return torch.cat([self.conv(obs["image"]).flatten(1), self.dense(obs["vector"])], dim=1)


def make_net():
    return Net().double()


def reference(params, member):
    """The module with the constants of seed 0 and one member's parameters."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = make_net()
    net.load_state_dict({path: leaf[member].detach() for path, leaf in tree.items(params)}, strict=False)
    return net


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_equals_the_module_member_by_member(batch, stacked, normal):
    lifted = Lifted(make_net, torch.zeros(2, 3, dtype=torch.float64))
    params = tree.map(lambda p: p.requires_grad_(), stacked(lifted))
    x, weight = normal(3, *batch, 2, 3), normal(3, *batch, 5)
    y = lifted(params, x)
    leaves = dict(tree.items(params))
    grads = torch.autograd.grad((y * weight).sum(), list(leaves.values()))
    assert lifted.n_out == 5
    assert y.shape == (3, *batch, 5)
    for m in range(3):
        net = reference(params, m)
        expected = net(x[m].reshape(-1, 2, 3)).view(*batch, 5)
        torch.testing.assert_close(y[m], expected, atol=1e-12, rtol=0)
        (expected * weight[m]).sum().backward()
        theirs = dict(net.named_parameters())
        for path, grad in zip(leaves, grads, strict=True):
            torch.testing.assert_close(grad[m], theirs[path].grad, atol=1e-12, rtol=0)


def test_a_member_alone_is_what_it_is_among_others(stacked, normal):
    lifted = Lifted(make_net, torch.zeros(2, 3, dtype=torch.float64))
    params, x = stacked(lifted), normal(3, 2, 4, 2, 3)
    alone = [lifted(tree.slice(params, m, m + 1), x[m : m + 1]) for m in range(3)]
    torch.testing.assert_close(torch.cat(alone), lifted(params, x), atol=1e-12, rtol=0)


def test_parameters_are_nested_and_constants_are_not_among_them(stacked):
    lifted = Lifted(make_net, torch.zeros(6, dtype=torch.float64))
    params = lifted.init(torch.Generator().manual_seed(0))
    paths = [path for path, _ in tree.items(params)]
    assert paths == [
        "body.0.bias",
        "body.0.weight",
        "body.2.bias",
        "body.2.weight",
        "norm.bias",
        "norm.weight",
        "scale",
    ]
    assert not any(leaf.requires_grad for _, leaf in tree.items(params))
    stack = stacked(lifted)
    layout = Layout(params)
    for (_, leaf), (_, back) in zip(tree.items(stack), tree.items(layout.views(layout.flatten(stack))), strict=True):
        assert torch.equal(leaf, back)


def test_init_depends_on_the_generator_alone_and_leaves_the_global_one():
    state = torch.get_rng_state()
    lifted = Lifted(make_net, torch.zeros(6, dtype=torch.float64))
    first, second, other = (lifted.init(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    weight = [params["body"]["0"]["weight"] for params in (first, second, other)]
    assert torch.equal(weight[0], weight[1])
    assert not torch.equal(weight[0], weight[2])
    generator = torch.Generator().manual_seed(1)
    assert not torch.equal(lifted.init(generator)["body"]["0"]["weight"], lifted.init(generator)["body"]["0"]["weight"])


def test_a_dictionary_of_inputs(stacked, normal):
    lifted = Lifted(Keyed, {"image": torch.zeros(2, 5, 4), "vector": torch.zeros(4)})
    params = stacked(lifted)
    obs = {"image": normal(3, 2, 6, 2, 5, 4), "vector": normal(3, 2, 6, 4)}
    y = lifted(params, obs)
    assert lifted.n_out == 18 + 5
    assert y.shape == (3, 2, 6, 23)
    with torch.random.fork_rng(devices=[]):
        net = Keyed().double()
    for m in range(3):
        net.load_state_dict({path: leaf[m] for path, leaf in tree.items(params)})
        expected = net({name: leaf[m].flatten(0, 1) for name, leaf in obs.items()})
        torch.testing.assert_close(y[m].flatten(0, 1), expected, atol=1e-12, rtol=0)


def test_a_module_without_parameters(normal):
    lifted = Lifted(nn.Flatten, torch.zeros(2, 3))
    x = normal(3, 4, 2, 3)
    assert lifted.init(torch.Generator()) == {}
    assert torch.equal(lifted({}, x), x.flatten(2))


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


class Accumulated(nn.Module):
    def forward(self, x):
        return x.cumsum(0)


class Pair(nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), "changes its buffers 1.running_mean.*nn.LayerNorm"),
        (lambda: nn.BatchNorm1d(4, track_running_stats=False), "other features in other company.*nn.LayerNorm"),
        (lambda: nn.BatchNorm1d(4, track_running_stats=False).eval(), "other features in other company"),
        (lambda: nn.Sequential(nn.Linear(4, 1), nn.Softmax(dim=0)), "other features in other company"),
        (Centred, "other features in other company"),
        (Accumulated, "other features in other company"),
        (lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.1)), "draws random numbers.*remove it"),
        (lambda: nn.Linear(5, 3), r"fails on a batch of two observations \{'tensor': \(2, 4\)\}"),
        (lambda: nn.Unflatten(1, (2, 2)), r"returns \(2, 2, 2\).*nn.Flatten"),
        (lambda: nn.Flatten(0), r"returns \(8,\)"),
        (Pair, "returns tuple"),
        (Branches, "cannot be vectorised.*avoid"),
    ],
)
def test_what_cannot_work_is_refused_with_a_reason(make, words):
    state = torch.get_rng_state()
    with pytest.raises(ConfigError, match=words):
        Lifted(make, torch.zeros(4))
    assert torch.equal(state, torch.get_rng_state())


def test_population_laws(stacked, normal, check_laws):
    lifted = Lifted(make_net, torch.zeros(6, dtype=torch.float64))
    check_laws(lifted, stacked(lifted), normal(3, 2, 4, 6))
