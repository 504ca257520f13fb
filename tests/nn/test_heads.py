"""Action heads against torch.distributions, and the population laws."""

import pytest
import torch
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from torch import distributions

from popgraft import tree
from popgraft.config import NetworkConfig
from popgraft.errors import ConfigError
from popgraft.native import native
from popgraft.nn.heads import make_head
from popgraft.spaces import ActionSpec

N_IN = 5
SPECS = {
    "discrete": ActionSpec("discrete", sizes=(4,), start=(0,)),
    "multi_discrete": ActionSpec("multi_discrete", sizes=(2, 5, 3), start=(0, 0, 0), shape=(3,)),
    "multi_binary": ActionSpec("multi_binary", sizes=(2, 2, 2), start=(0, 0, 0), shape=(3,)),
    "box": ActionSpec("box", shape=(2,), low=(-1.0, -2.0), high=(1.0, 2.0)),
}
every_kind = pytest.mark.parametrize("kind", SPECS)


def reference(kind, params, outputs, member):
    """Distributions over the sub-actions of one member, as functions of one sub-action each."""
    outputs = outputs[member]
    if kind in ("discrete", "multi_discrete"):
        return [distributions.Categorical(logits=part) for part in outputs.split(SPECS[kind].sizes, dim=-1)]
    if kind == "multi_binary":
        return [distributions.Bernoulli(logits=part) for part in outputs.unbind(-1)]
    stds = params["log_std"][member].exp()
    return [distributions.Normal(mean, std) for mean, std in zip(outputs.unbind(-1), stds, strict=True)]


def draw(head, *batch, seed=3):
    generator = torch.Generator().manual_seed(seed)
    make = torch.rand if head.noise == "uniform" else torch.randn
    return make(*batch, head.noise_dims, generator=generator, dtype=torch.float64)


@every_kind
@pytest.mark.parametrize("batch", [(4,), (2, 3), ()])
def test_log_prob_entropy_and_their_gradients(kind, batch, stacked, normal):
    head = make_head(N_IN, SPECS[kind], NetworkConfig())
    params = tree.map(lambda p: p.requires_grad_(), stacked(head))
    outputs = (3 * normal(3, *batch, head.n_outputs)).requires_grad_()
    action = head.sample(params, outputs, draw(head, 3, *batch)).detach()
    sources = [outputs, params["log_std"]] if kind == "box" else [outputs]
    for ours, name in (
        (head.log_prob(params, outputs, action), "log_prob"),
        (head.entropy(params, outputs), "entropy"),
    ):
        expected = []
        for m in range(3):
            parts = reference(kind, params, outputs, m)
            columns = action[m].to(outputs.dtype).unbind(-1)
            terms = [p.log_prob(a) if name == "log_prob" else p.entropy() for p, a in zip(parts, columns, strict=True)]
            expected.append(sum(terms).expand(batch))
        expected = torch.stack(expected)
        torch.testing.assert_close(ours, expected, atol=1e-10, rtol=0)
        weight = normal(*expected.shape)
        grads = torch.autograd.grad((ours * weight).sum(), sources, materialize_grads=True)
        theirs = torch.autograd.grad((expected * weight).sum(), sources, materialize_grads=True)
        for a, b in zip(grads, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


@every_kind
@pytest.mark.parametrize("batch", [(4,), (2, 3), ()])
def test_divergence_and_its_gradient(kind, batch, stacked, normal):
    """With p held still, as the robust KL takes it: the gradient in the spread is the same as if p's were held too."""
    head = make_head(N_IN, SPECS[kind], NetworkConfig())
    params = tree.map(lambda p: p.requires_grad_(), stacked(head))
    p, q = 3 * normal(3, *batch, head.n_outputs), (3 * normal(3, *batch, head.n_outputs)).requires_grad_()
    ours = head.kl(params, p, q)
    still, expected = tree.map(torch.detach, params), []
    for m in range(3):
        pairs = zip(reference(kind, still, p, m), reference(kind, params, q, m), strict=True)
        expected.append(sum(distributions.kl_divergence(one, other) for one, other in pairs).expand(batch))
    expected = torch.stack(expected)
    torch.testing.assert_close(ours, expected, atol=1e-10, rtol=1e-10)
    sources = [q, params["log_std"]] if kind == "box" else [q]
    weight = normal(*expected.shape)
    grads, theirs = (torch.autograd.grad((kl * weight).sum(), sources) for kl in (ours, expected))
    for a, b in zip(grads, theirs, strict=True):
        assert b.any()
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)
    assert not head.kl(params, p, p).any()


@every_kind
def test_sampling_frequencies(kind, stacked, normal):
    head = make_head(N_IN, SPECS[kind], NetworkConfig())
    params, n = stacked(head), 40_000
    outputs = normal(3, 1, head.n_outputs).expand(3, n, head.n_outputs)
    action = head.sample(params, outputs, draw(head, 3, n)).double()
    for m in range(3):
        for dim, part in enumerate(reference(kind, params, outputs, m)):
            values = action[m, :, dim]
            if kind == "box":
                observed, expected, spread = (
                    [values.mean(), values.std()],
                    [part.mean[0], part.stddev[0]],
                    part.stddev[0],
                )
            else:
                support = part.enumerate_support(expand=False).flatten().double()
                observed = [(values == value).double().mean() for value in support]
                expected, spread = part.log_prob(support[:, None])[:, 0].exp(), 0.5
            for a, b in zip(observed, expected, strict=True):
                assert abs(a - b) < 5 * spread / n**0.5


@every_kind
def test_mode_is_the_most_likely_action(kind, stacked, normal):
    head = make_head(N_IN, SPECS[kind], NetworkConfig())
    params, outputs = stacked(head), normal(3, 6, head.n_outputs)
    best = head.log_prob(params, outputs, head.mode(params, outputs))
    for seed in range(50):
        other = head.sample(params, outputs, draw(head, 3, 6, seed=seed))
        assert (head.log_prob(params, outputs, other) <= best + 1e-12).all()


def test_shapes_types_and_noise(stacked, normal):
    for kind, spec in SPECS.items():
        head = make_head(N_IN, spec, NetworkConfig())
        params = stacked(head)
        outputs = head(params, normal(3, 2, 4, N_IN))
        action = head.sample(params, outputs, draw(head, 3, 2, 4))
        assert head.noise_dims == spec.dims
        assert head.noise == ("normal" if kind == "box" else "uniform")
        assert action.shape == head.mode(params, outputs).shape == (3, 2, 4, spec.dims)
        assert action.dtype == head.mode(params, outputs).dtype == (torch.float64 if kind == "box" else torch.int64)
        assert head.log_prob(params, outputs, action).shape == head.entropy(params, outputs).shape == (3, 2, 4)


def test_a_float32_box_gives_float32_actions():
    head = make_head(N_IN, SPECS["box"], NetworkConfig())
    params = tree.stack([head.init(torch.Generator())])
    assert head.sample(params, torch.zeros(1, 4, 2), torch.zeros(1, 4, 2)).dtype == torch.float32


def test_inverse_cdf_by_hand():
    head = make_head(N_IN, ActionSpec("discrete", sizes=(3,), start=(0,)), NetworkConfig())
    outputs = torch.tensor([0.2, 0.5, 0.3]).log().expand(1, 6, 3)
    noise = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 0.999]).view(1, 6, 1)
    assert head.sample({}, outputs, noise).flatten().tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_categorical_at_the_ends_of_the_noise(dtype):
    sizes = (3, 2)
    head = make_head(N_IN, ActionSpec("multi_discrete", sizes=sizes, start=(0, 0), shape=(2,)), NetworkConfig())
    impossible = -torch.inf
    outputs = torch.tensor([impossible, 0.7, impossible, impossible, 0.1], dtype=dtype).expand(1, 4, 5)
    below_one = 1 - torch.finfo(dtype).eps / 2
    noise = torch.tensor([0.0, torch.finfo(dtype).tiny, 0.5, below_one], dtype=dtype).view(1, 4, 1).expand(1, 4, 2)
    assert head.sample({}, outputs, noise).tolist() == [[[1, 1]] * 4]
    generator = torch.Generator().manual_seed(0)
    outputs = 5 * torch.randn(1, 5000, 5, generator=generator, dtype=dtype)
    for extreme in (0.0, below_one, 1.0):
        action = head.sample({}, outputs, torch.full((1, 5000, 2), extreme, dtype=dtype))
        assert (action >= 0).all()
        assert (action < torch.tensor(sizes)).all()


@pytest.mark.parametrize("kind", ["discrete", "multi_discrete", "multi_binary"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_outputs_that_are_not_finite_still_give_a_valid_action(kind, value):
    head = make_head(N_IN, SPECS[kind], NetworkConfig())
    outputs = torch.zeros(2, 3, head.n_outputs)
    outputs[0] = value
    outputs[1, 0, -1] = value
    for action in (head.sample({}, outputs, torch.full((2, 3, head.noise_dims), 0.5)), head.mode({}, outputs)):
        assert (action >= 0).all()
        assert (action < torch.tensor(SPECS[kind].sizes)).all()
        head.log_prob({}, outputs, action)


@pytest.mark.skipif(native().library is None, reason=native().reason)
@pytest.mark.parametrize("sizes", [(2,), (4,), (16, 2), (17,), (3, 40, 2)])
def test_the_compiled_draw_is_that_of_pytorch(sizes):
    """Both of the same single-precision logits, in single and in double precision."""
    head = make_head(
        N_IN, ActionSpec("multi_discrete", sizes=sizes, start=(0,) * len(sizes), shape=(len(sizes),)), NetworkConfig()
    )
    generator = torch.Generator().manual_seed(sum(sizes))
    outputs = 3 * torch.randn(3, 2, 400, head.n_outputs, generator=generator)
    noise = torch.rand(2, 3, 400, len(sizes), generator=generator).transpose(0, 1)
    expected = head.sample({}, outputs.double(), noise.double())
    found = head.sample({}, outputs, noise)
    assert torch.equal(found, expected)
    assert all(len(found[..., dim].unique()) == size for dim, size in enumerate(sizes))


def test_initial_policy_is_nearly_uniform_with_unit_spread():
    for kind, spec in SPECS.items():
        params = make_head(64, spec, NetworkConfig()).init(torch.Generator().manual_seed(0))
        assert not params["linear"]["bias"].any()
        torch.testing.assert_close(torch.linalg.svdvals(params["linear"]["weight"]).max(), torch.tensor(0.01))
        assert ("log_std" in params) == (kind == "box")
        if kind == "box":
            assert params["log_std"].tolist() == [0, 0]


def their_law(params, outputs, head, m):
    """Stable-Baselines3's distribution with the parameters of one member."""
    law = StateDependentNoiseDistribution(2, learn_features=False)
    law.latent_sde_dim = N_IN
    mean, _, latent = (part[m] for part in outputs.split([2, 2, N_IN], dim=-1))
    return law.proba_distribution(mean, params["log_std"][m], latent)


def test_state_dependent_noise_is_stable_baselines3s(stacked, normal):
    head = make_head(N_IN, SPECS["box"], NetworkConfig(log_std_init=-0.5, use_sde=True))
    params = tree.map(lambda p: p.requires_grad_(), stacked(head))
    assert (head.init(torch.Generator())["log_std"] == torch.full((N_IN, 2), -0.5)).all()
    latent, noise = normal(3, 4, N_IN).requires_grad_(), draw(head, 3, 4)
    outputs = head(params, latent)
    assert outputs.shape == (3, 4, head.n_outputs)
    action = head.sample(params, outputs, noise)
    other = head(params, normal(3, 4, N_IN))
    sources = [latent, params["log_std"], params["linear"]["weight"]]
    for m in range(3):
        law = their_law(params, outputs, head, m)
        law.exploration_matrices = noise[m].view(4, N_IN, 2) * params["log_std"][m].exp()
        law.exploration_mat = law.exploration_matrices[0]
        torch.testing.assert_close(action[m], law.sample(), atol=1e-12, rtol=0)
        assert torch.equal(head.mode(params, outputs)[m], law.mode())
        divergence = distributions.kl_divergence(law.distribution, their_law(params, other, head, m).distribution)
        pairs = [
            (head.log_prob(params, outputs, action.detach())[m], law.log_prob(action.detach()[m])),
            (head.entropy(params, outputs)[m], law.entropy()),
            (head.kl(params, outputs, other)[m], divergence.sum(-1)),
        ]
        weight = normal(4)
        for ours, expected in pairs:
            torch.testing.assert_close(ours, expected, atol=1e-10, rtol=1e-10)
            grads, theirs = (
                torch.autograd.grad((x * weight).sum(), sources, retain_graph=True, materialize_grads=True)
                for x in (ours, expected)
            )
            for a, b in zip(grads, theirs, strict=True):
                torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


def test_the_latent_learns_nothing_from_the_noise(stacked, normal):
    head = make_head(N_IN, SPECS["box"], NetworkConfig(use_sde=True))
    params, latent = stacked(head), normal(3, 4, N_IN).requires_grad_()
    (gradient,) = torch.autograd.grad(head.entropy(params, head(params, latent)).sum(), latent)
    assert not gradient.any()


def test_only_continuous_actions_have_state_dependent_noise():
    with pytest.raises(ConfigError, match="use_sde=True needs a continuous action"):
        make_head(N_IN, SPECS["discrete"], NetworkConfig(use_sde=True))


@pytest.mark.parametrize("kind", [*SPECS, "sde"])
def test_population_laws(kind, stacked, normal, check_laws):
    head = (
        make_head(N_IN, SPECS["box"], NetworkConfig(use_sde=True))
        if kind == "sde"
        else make_head(N_IN, SPECS[kind], NetworkConfig())
    )
    params, latent, noise = stacked(head), normal(3, 4, N_IN), draw(head, 3, 4)
    action = head.sample(params, head(params, latent), noise)
    check_laws(lambda p, x, a: head.log_prob(p, head(p, x), a), params, latent, action)
    check_laws(lambda p, x: head.entropy(p, head(p, x)), stacked(head), latent)
    check_laws(lambda p, x, y: head.kl(p, head(p, x), head(p, y)), stacked(head), latent, normal(3, 4, N_IN))
    fresh = stacked(head)
    for m in range(3):
        own = [tree.slice(t, m, m + 1) for t in (fresh, latent, noise)]
        assert torch.equal(head.sample(own[0], head(own[0], own[1]), own[2]), action[m : m + 1])
