"""The population LSTM against torch.nn.LSTM, member by member, and the population laws."""

import pytest
import torch

from popgraft import tree
from popgraft.nn.blocks import initialise
from popgraft.nn.lstm import LSTM

POP, TIME, BATCH, N_IN, HIDDEN = 3, 7, 4, 5, 6


def make(layers, seed=0):
    lstm = LSTM(N_IN, HIDDEN, layers)
    params = initialise(lstm, [torch.Generator().manual_seed(seed + i) for i in range(POP)])
    generator = torch.Generator().manual_seed(99)
    params = tree.map(lambda p: (p + 0.3 * torch.randn(p.shape, generator=generator)).double(), params)
    x = torch.randn(POP, TIME, BATCH, N_IN, generator=generator).double()
    state = torch.randn(POP, BATCH, lstm.state_size, generator=generator).double()
    start = torch.rand(POP, TIME, BATCH, generator=generator) < 0.3
    return lstm, params, x, state, start


def reference(params, x, state, start, layers):
    """One member through torch.nn.LSTM, step by step, zeroing the state of environments that start an episode."""
    with torch.random.fork_rng(devices=[]):
        net = torch.nn.LSTM(N_IN, HIDDEN, layers).double()
    for layer in range(layers):
        p = params[f"layer{layer}"]
        getattr(net, f"weight_ih_l{layer}").data = p["weight_ih"].detach().clone()
        getattr(net, f"weight_hh_l{layer}").data = p["weight_hh"].detach().clone()
        getattr(net, f"bias_ih_l{layer}").data = p["bias"].detach().clone()
        getattr(net, f"bias_hh_l{layer}").data.zero_()
    h, c = state.unflatten(-1, (layers, 2, HIDDEN)).permute(2, 1, 0, 3)
    outputs = []
    for x_t, start_t in zip(x, start, strict=True):
        keep = (~start_t).double()[None, :, None]
        y, (h, c) = net(x_t[None], (h * keep, c * keep))
        outputs.append(y[0])
    return net, torch.stack(outputs), torch.stack([h, c]).permute(2, 1, 0, 3).flatten(1)


@pytest.mark.parametrize("layers", [1, 2])
def test_equals_torch_member_by_member_forward_and_backward(layers):
    lstm, params, x, state, start = make(layers)
    inputs = [x.requires_grad_(), state.requires_grad_(), *(leaf.requires_grad_() for _, leaf in tree.items(params))]
    y, final = lstm(params, x, state, start)
    generator = torch.Generator().manual_seed(5)
    weight_y, weight_final = (torch.randn(t.shape, generator=generator).double() for t in (y, final))
    grads = torch.autograd.grad((y * weight_y).sum() + (final * weight_final).sum(), inputs)
    named = dict(zip([path for path, _ in tree.items(params)], grads[2:], strict=True))
    for member in range(POP):
        own = tree.map(lambda p, m=member: p[m], params)
        x_m, state_m = (t[member].detach().clone().requires_grad_() for t in (x, state))
        net, y_m, final_m = reference(own, x_m, state_m, start[member], layers)
        torch.testing.assert_close(y[member], y_m, atol=1e-10, rtol=0)
        torch.testing.assert_close(final[member], final_m, atol=1e-10, rtol=0)
        ((y_m * weight_y[member]).sum() + (final_m * weight_final[member]).sum()).backward()
        torch.testing.assert_close(grads[0][member], x_m.grad, atol=1e-10, rtol=0)
        torch.testing.assert_close(grads[1][member], state_m.grad, atol=1e-10, rtol=0)
        for layer in range(layers):
            for ours, theirs in (("weight_ih", "weight_ih_l"), ("weight_hh", "weight_hh_l"), ("bias", "bias_ih_l")):
                expected = getattr(net, f"{theirs}{layer}").grad
                torch.testing.assert_close(named[f"layer{layer}.{ours}"][member], expected, atol=1e-10, rtol=0)


def test_gradcheck():
    lstm, params, x, state, start = make(2)
    leaves = [leaf[:1, ...].clone().requires_grad_() for _, leaf in tree.items(params)]
    paths = [path for path, _ in tree.items(params)]

    def run(x, state, *leaves):
        return lstm(tree.restore(params, dict(zip(paths, leaves, strict=True))), x, state, start[:1, :3, :2])

    inputs = (x[:1, :3, :2].clone().requires_grad_(), state[:1, :2].clone().requires_grad_(), *leaves)
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


def test_an_episode_start_forgets_what_came_before():
    lstm, params, x, state, start = make(2)
    start[:, 3] = True
    y, _ = lstm(params, x, state, start)
    alone, _ = lstm(params, x[:, 3:], torch.zeros_like(state), start[:, 3:])
    torch.testing.assert_close(y[:, 3:], alone, atol=1e-12, rtol=0)


def test_two_halves_equal_the_whole():
    lstm, params, x, state, start = make(2)
    y, final = lstm(params, x, state, start)
    first, middle = lstm(params, x[:, :4], state, start[:, :4])
    second, last = lstm(params, x[:, 4:], middle, start[:, 4:])
    torch.testing.assert_close(y, torch.cat([first, second], dim=1), atol=1e-12, rtol=0)
    torch.testing.assert_close(final, last, atol=1e-12, rtol=0)


def test_hidden_slices_find_what_every_layer_puts_out():
    lstm, params, x, state, start = make(3)
    _, final = lstm(params, x, state, start)
    assert len(lstm.hidden_slices) == 3
    for layers, where in enumerate(lstm.hidden_slices, start=1):
        y, _ = LSTM(N_IN, HIDDEN, layers)(params, x, state[..., : 2 * HIDDEN * layers], start)
        torch.testing.assert_close(final[..., where], y[:, -1], atol=1e-12, rtol=0)


def run(lstm, params, x, state, start):
    """Outputs, and the gradient of their squared sum in every parameter."""
    params = tree.map(lambda p: p.detach().clone().requires_grad_(), params)
    y, final = lstm(params, x, state, start)
    grads = torch.autograd.grad(y.square().sum() + final.sum(), [leaf for _, leaf in tree.items(params)])
    return [y.detach(), final.detach(), *grads]


def test_stacked_equals_singles():
    lstm, params, x, state, start = make(2)
    singles = [run(lstm, *(tree.slice(t, m, m + 1) for t in (params, x, state, start))) for m in range(POP)]
    for stacked, *parts in zip(run(lstm, params, x, state, start), *singles, strict=True):
        torch.testing.assert_close(stacked, torch.cat(parts), atol=1e-12, rtol=0)


def test_disturbing_a_member_leaves_the_others_untouched():
    lstm, params, x, state, start = make(2)
    before = run(lstm, params, x, state, start)
    disturbed = tree.map(torch.clone, params)
    tree.map(lambda p: p[1].fill_(float("nan")), disturbed)
    after = run(lstm, disturbed, x, state, start)
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a[[0, 2]], b[[0, 2]])
        assert b[1].isnan().any()


def test_permuting_members_permutes_results():
    lstm, params, x, state, start = make(2)
    order = torch.tensor([2, 0, 1])
    permuted = run(lstm, *(tree.gather(t, order) for t in (params, x, state, start)))
    for a, b in zip(run(lstm, params, x, state, start), permuted, strict=True):
        assert torch.equal(a[order], b)


def test_a_graft_is_a_deep_copy():
    lstm, params, x, state, start = make(2)
    parents = torch.tensor([0, 0, 2])
    grafted = tree.gather(params, parents)
    x, state, start = (tree.gather(t, parents) for t in (x, state, start))
    first = run(lstm, grafted, x, state, start)
    for leaf in first:
        assert torch.equal(leaf[0], leaf[1])
    tree.map(lambda p: p[0].zero_(), params)
    for a, b in zip(first, run(lstm, grafted, x, state, start), strict=True):
        assert torch.equal(a, b)
