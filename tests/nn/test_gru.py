"""The population GRU against torch.nn.GRU, member by member, and the population laws."""

import pytest
import torch

from popgraft import tree
from popgraft.nn.gru import GRU

POP, TIME, BATCH, N_IN, HIDDEN = 3, 7, 4, 5, 6


@pytest.fixture
def make(stacked, normal):
    def make(layers):
        gru = GRU(N_IN, HIDDEN, layers)
        x, state = normal(POP, TIME, BATCH, N_IN), normal(POP, BATCH, gru.state_size)
        return gru, stacked(gru), x, state, normal(POP, TIME, BATCH) < -0.5

    return make


def reference(params, x, state, start, layers):
    """One member through torch.nn.GRU, step by step, zeroing the state of environments that start an episode."""
    net = torch.nn.GRU(N_IN, HIDDEN, layers).double()
    for layer in range(layers):
        p = tree.map(torch.Tensor.detach, params[f"layer{layer}"])
        getattr(net, f"weight_ih_l{layer}").data = p["weight_ih"].clone()
        getattr(net, f"weight_hh_l{layer}").data = p["weight_hh"].clone()
        getattr(net, f"bias_ih_l{layer}").data = p["bias"].clone()
        getattr(net, f"bias_hh_l{layer}").data = torch.cat([torch.zeros(2 * HIDDEN), p["bias_n"]])
    h = state.unflatten(-1, (layers, HIDDEN)).transpose(0, 1)
    outputs = []
    for x_t, start_t in zip(x, start, strict=True):
        y, h = net(x_t[None], h * (~start_t).double()[None, :, None])
        outputs.append(y[0])
    return net, torch.stack(outputs), h.transpose(0, 1).flatten(1)


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_equals_torch_member_by_member_forward_and_backward(layers, make, normal):
    gru, params, x, state, start = make(layers)
    assert start.any()
    assert not start.all()
    inputs = [x.requires_grad_(), state.requires_grad_(), *(leaf.requires_grad_() for _, leaf in tree.items(params))]
    y, final = gru(params, x, state, start)
    weight_y, weight_final = normal(*y.shape), normal(*final.shape)
    dx, dstate, *grads = torch.autograd.grad((y * weight_y).sum() + (final * weight_final).sum(), inputs)
    named = dict(zip([path for path, _ in tree.items(params)], grads, strict=True))
    for m in range(POP):
        x_m, state_m = (t[m].detach().clone().requires_grad_() for t in (x, state))
        net, y_m, final_m = reference(tree.map(lambda p, m=m: p[m], params), x_m, state_m, start[m], layers)
        ((y_m * weight_y[m]).sum() + (final_m * weight_final[m]).sum()).backward()
        pairs = [(y[m], y_m), (final[m], final_m), (dx[m], x_m.grad), (dstate[m], state_m.grad)]
        for layer in range(layers):
            theirs = {
                name: getattr(net, f"{name}_l{layer}").grad for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            }
            own = {name: named[f"layer{layer}.{name}"][m] for name in ("weight_ih", "weight_hh", "bias", "bias_n")}
            pairs += [(own["weight_ih"], theirs["weight_ih"]), (own["weight_hh"], theirs["weight_hh"])]
            pairs += [(own["bias"], theirs["bias_ih"]), (own["bias_n"], theirs["bias_hh"][2 * HIDDEN :])]
        for ours, expected in pairs:
            torch.testing.assert_close(ours, expected, atol=1e-10, rtol=0)


def test_gradcheck(make):
    gru, params, x, state, start = make(2)
    paths = [path for path, _ in tree.items(params)]
    leaves = [leaf[:1].clone().requires_grad_() for _, leaf in tree.items(params)]

    def run(x, state, *leaves):
        return gru(tree.restore(params, dict(zip(paths, leaves, strict=True))), x, state, start[:1, :3, :2])

    inputs = (x[:1, :3, :2].clone().requires_grad_(), state[:1, :2].clone().requires_grad_(), *leaves)
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


def test_the_final_state_alone_carries_gradients(make):
    gru, params, x, state, start = make(1)
    state.requires_grad_()
    start[:] = False
    start[1, 3] = True
    _, final = gru(params, x, state, start)
    (dstate,) = torch.autograd.grad(final.sum(), state)
    assert dstate[0].abs().min() > 0
    assert dstate[1].abs().max() == 0


def test_an_episode_start_forgets_what_came_before(make):
    gru, params, x, state, start = make(2)
    start[:, 3] = True
    y, _ = gru(params, x, state, start)
    alone, _ = gru(params, x[:, 3:], torch.zeros_like(state), start[:, 3:])
    torch.testing.assert_close(y[:, 3:], alone, atol=1e-12, rtol=0)


def test_two_halves_equal_the_whole(make):
    gru, params, x, state, start = make(2)
    y, final = gru(params, x, state, start)
    first, middle = gru(params, x[:, :4], state, start[:, :4])
    second, last = gru(params, x[:, 4:], middle, start[:, 4:])
    torch.testing.assert_close(y, torch.cat([first, second], dim=1), atol=1e-12, rtol=0)
    torch.testing.assert_close(final, last, atol=1e-12, rtol=0)


def test_hidden_slices_find_what_every_layer_puts_out(make):
    gru, params, x, state, start = make(3)
    _, final = gru(params, x, state, start)
    assert len(gru.hidden_slices) == 3
    for layers, where in enumerate(gru.hidden_slices, start=1):
        y, _ = GRU(gru.n_in, HIDDEN, layers)(params, x, state[..., : HIDDEN * layers], start)
        torch.testing.assert_close(final[..., where], y[:, -1], atol=1e-12, rtol=0)


def test_inputs_are_left_alone_and_the_state_is_not_shared(make):
    gru, params, x, state, start = make(1)
    kept = [t.clone() for t in (x, state, start)]
    y, final = gru(params, x, state, start)
    before = y.clone()
    final.zero_()
    assert torch.equal(y, before)
    for a, b in zip(kept, (x, state, start), strict=True):
        assert torch.equal(a, b)


def test_gates_begin_orthogonal_and_biases_zero():
    layer = GRU(4, 6, layers=2).init(torch.Generator().manual_seed(0))["layer1"]
    for name in ("weight_ih", "weight_hh"):
        for gate in layer[name].split(6):
            torch.testing.assert_close(gate @ gate.T, torch.eye(6), atol=1e-5, rtol=0)
    assert not layer["bias"].any()
    assert not layer["bias_n"].any()


def test_population_laws(make, check_laws):
    gru, *trees = make(2)
    check_laws(lambda *args: gru(*args)[0], *trees)
    gru, *trees = make(2)
    check_laws(lambda *args: gru(*args)[1], *trees)
