"""The value head against NumPy, C51's expectation and PopArt's promise, and the population laws."""

import numpy as np
import pytest
import torch

from popgraft import tree
from popgraft.config import NetworkConfig
from popgraft.config.network import CRITICS
from popgraft.nn.blocks import Layout, initialise
from popgraft.nn.critics import CriticEnsemble

N_IN, ATOMS, SUPPORT = 5, 7, (-2.0, 4.0)
KINDS = ["quantile", "categorical", "scalar"]
EACH = [(kind, twin, reduce) for kind in KINDS for twin, reduce in [(False, "min"), (True, "min"), (True, "mean")]]


def make(kind="quantile", twin=True, reduce="min"):
    network = NetworkConfig(n_quantiles=ATOMS, n_bins=ATOMS, support=SUPPORT)
    return CriticEnsemble(N_IN, CRITICS.make(kind, network), twin, reduce)


def numpy_means(kind, predictions):
    """Mean return of every critic, in NumPy."""
    if kind != "categorical":
        return predictions.mean(-1)
    weight = np.exp(predictions)
    return (weight * np.array([-2.0, -1, 0, 1, 2, 3, 4])).sum(-1) / weight.sum(-1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_predictions_are_one_linear_layer_read_critic_by_critic(kind, batch, stacked, normal):
    critic = make(kind)
    params, features = stacked(critic), normal(3, *batch, N_IN)
    atoms = 1 if kind == "scalar" else ATOMS
    found = critic(params, features)
    assert found.shape == (3, *batch, 2, atoms)
    for m in range(3):
        w, b = params["weight"][m].view(2, atoms, N_IN), params["bias"][m].view(2, atoms)
        for c in range(2):
            torch.testing.assert_close(found[m, ..., c, :], features[m] @ w[c].T + b[c], atol=1e-12, rtol=0)


@pytest.mark.parametrize(("kind", "twin", "reduce"), EACH)
def test_means_and_value_equal_numpy(kind, twin, reduce, stacked, normal):
    critic = make(kind, twin, reduce)
    predictions = critic(stacked(critic), normal(3, 2, 4, N_IN))
    means = numpy_means(kind, predictions.numpy())
    np.testing.assert_allclose(critic.kind.means(predictions), means, rtol=0, atol=1e-12)
    expected = means.min(-1) if reduce == "min" else means.mean(-1)
    np.testing.assert_allclose(critic.value(predictions), expected, rtol=0, atol=1e-12)


def test_a_categorical_critic_that_is_sure_names_its_atom():
    critic = make("categorical", twin=False)
    logits = torch.full((1, ATOMS, 1, ATOMS), -200.0)
    logits[0, :, 0].fill_diagonal_(200)
    assert critic.value(logits).tolist() == [[-2, -1, 0, 1, 2, 3, 4]]


@pytest.mark.parametrize(("twin", "reduce"), [(False, "min"), (True, "min"), (True, "mean")])
def test_quantiles_together_have_the_value_as_their_mean(twin, reduce, stacked, normal):
    critic = make("quantile", twin, reduce)
    predictions = critic(stacked(critic), normal(3, 2, 4, N_IN))
    quantiles = critic.quantiles(predictions)
    torch.testing.assert_close(quantiles.mean(-1), critic.value(predictions), atol=1e-12, rtol=0)
    if reduce == "min":
        for where in np.ndindex(3, 2, 4):
            lowest = min(predictions[where], key=lambda atoms: float(atoms.mean()))
            assert torch.equal(quantiles[where], lowest)
    else:
        torch.testing.assert_close(quantiles, (predictions[..., 0, :] + predictions[..., 1, :]) / 2)


def test_a_single_critic_is_the_first_shape_of_a_twin(normal):
    """Equal reductions, one axis, and twins that disagree from the start."""
    assert make("quantile", twin=False).critics == 1
    predictions = normal(3, 4, 1, ATOMS)
    assert torch.equal(make(twin=False, reduce="min").value(predictions), predictions.mean(-1).squeeze(-1))
    assert torch.equal(make(twin=False, reduce="mean").value(predictions), predictions.mean(-1).squeeze(-1))
    weight = make(twin=True).init(torch.Generator().manual_seed(0))["weight"].view(2, ATOMS, N_IN)
    assert (weight[0] - weight[1]).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["quantile", "scalar"])
@pytest.mark.parametrize("twin", [False, True])
def test_popart_leaves_raw_predictions_where_they_are(kind, twin):
    """Several changes of units in a row, in float32, each member by its own, through views of flat parameters."""
    critic = make(kind, twin)
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    features = torch.randn(3, 40, N_IN, generator=generators[0])
    stacked = initialise(critic, generators)
    layout = Layout(tree.map(lambda leaf: leaf[0], stacked))
    flat = layout.flatten(stacked)
    mean, std = torch.zeros(3), torch.ones(3)
    raw = critic(layout.views(flat), features)
    scales = [([0.5, -3, 0], [2.0, 0.4, 1]), ([8, -0.2, 0], [0.3, 1.5, 1]), ([-1.0, 2, 0], [5, 0.1, 1])]
    for new_mean, new_std in [(torch.tensor(m), torch.tensor(s)) for m, s in scales]:
        before = flat.clone()
        critic.kind.rescale_(layout.views(flat), mean, std, new_mean, new_std)
        mean, std = new_mean, new_std
        again = std.view(3, 1, 1, 1) * critic(layout.views(flat), features) + mean.view(3, 1, 1, 1)
        torch.testing.assert_close(again, raw, atol=1e-5, rtol=0)
        assert not torch.equal(flat[:2], before[:2])
        assert torch.equal(flat[2], before[2])  # whose units did not change, to the bit


def test_popart_by_hand():
    # w = 2, b = 1; from (μ, σ) = (3, 4) to (5, 8): w′ = 2·4/8 = 1, b′ = (4·1 + 3 − 5)/8 = ¼.
    params = {"weight": torch.tensor([[[2.0]]]), "bias": torch.tensor([[1.0]])}
    make("scalar").kind.rescale_(
        params, torch.tensor([3.0]), torch.tensor([4.0]), torch.tensor([5.0]), torch.tensor([8.0])
    )
    assert params["weight"].item() == 1
    assert params["bias"].item() == 0.25


def test_what_a_kind_cannot_do_is_absent():
    assert make("categorical").kind.rescale_ is None
    for kind in ("categorical", "scalar"):
        critic = make(kind)
        assert critic.kind.quantiles is None
        with pytest.raises(AssertionError, match="predicts no quantiles"):
            critic.quantiles(torch.zeros(3, 2, critic.kind.atoms))


@pytest.mark.parametrize(("kind", "twin", "reduce"), EACH)
def test_population_laws(kind, twin, reduce, stacked, normal, check_laws):
    critic, features = make(kind, twin, reduce), normal(3, 2, 4, N_IN)
    check_laws(critic, stacked(critic), features)
    check_laws(lambda params, x: critic.value(critic(params, x)), stacked(critic), features)
    if kind == "quantile":
        check_laws(lambda params, x: critic.quantiles(critic(params, x)), stacked(critic), features)


def test_population_laws_of_popart(stacked, normal, check_laws):
    critic = make()
    scale = [normal(3), normal(3).exp(), normal(3), normal(3).exp()]

    def rescaled(params, features, *scale):
        own = tree.map(torch.clone, params)
        critic.kind.rescale_(own, *scale)
        return critic(own, features)

    def as_block(params, *inputs):  # differentiate in the head as it came out
        return rescaled(tree.map(torch.Tensor.detach, params), *inputs) + 0 * critic(params, inputs[0])

    check_laws(as_block, stacked(critic), normal(3, 4, N_IN), *scale)
