"""The entropy coefficient's schedule against np.polyfit and np.interp, and the population laws."""

import numpy as np
import pytest
import torch

from popgraft import tree
from popgraft.ops.entropy_schedule import coefficient, initial_entropy_schedule, observe_

CPU = torch.device("cpu")
INF = float("inf")


def column(*values):
    return torch.tensor(values)


def feed(state, entropies, tolerance=0.01, min_updates=0):
    """Shows the first member one entropy after the other, and returns `decay_start` after each."""
    starts = []
    for entropy in entropies:
        observe_(state, column(entropy), tolerance, min_updates)
        starts.append(state.decay_start.item())
    return starts


@pytest.mark.parametrize("window", [2, 3, 8])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_the_slope_is_numpys(window, offset):
    """The decay starts for a tolerance just above the fitted slope, and not for one just below."""
    rng = np.random.default_rng(window)
    entropies = offset + rng.normal(size=window)
    slope = abs(np.polyfit(np.arange(window), entropies, 1)[0])
    for tolerance, started in ((slope * 1.001, True), (slope * 0.999, False)):
        state = tree.map(torch.Tensor.double, initial_entropy_schedule(1, window, CPU))
        for entropy in entropies:
            observe_(state, torch.tensor([entropy]), float(tolerance), 0)
        assert (state.decay_start.item() < INF) == started


def test_only_the_latest_updates_count_oldest_first():
    state = initial_entropy_schedule(1, 3, CPU)
    assert feed(state, [9.0, 5.0, 3.0, 2.0, 1.0]) == [INF] * 5
    assert state.recent.tolist() == [[3, 2, 1]]
    assert state.seen.tolist() == [5]


def test_a_plateau_needs_a_full_window_and_enough_updates():
    assert feed(initial_entropy_schedule(1, 4, CPU), [1.0] * 6) == [INF, INF, INF, 3, 3, 3]
    assert feed(initial_entropy_schedule(1, 4, CPU), [1.0] * 7, min_updates=6) == [INF] * 5 + [5, 5]
    assert feed(initial_entropy_schedule(1, 4, CPU), [0.0] * 2 + [1.0] * 4) == [INF] * 5 + [5]


def test_a_rise_is_as_little_a_plateau_as_a_fall():
    for slope in (0.02, -0.02):
        assert feed(initial_entropy_schedule(1, 3, CPU), [1 + slope * t for t in range(6)]) == [INF] * 6
        assert feed(initial_entropy_schedule(1, 3, CPU), [1 + slope * t for t in range(6)], 0.021)[2] == 2


def test_a_decay_never_begins_anew():
    state = initial_entropy_schedule(1, 2, CPU)
    assert feed(state, [1.0, 1.0, 5.0, 9.0, 9.0, 9.0]) == [INF, 1, 1, 1, 1, 1]


def test_without_a_window_the_decay_begins_with_the_first_update():
    state = initial_entropy_schedule(1, 0, CPU)
    assert feed(state, [3.0, 1.0, float("nan")], min_updates=100) == [0, 0, 0]
    assert state.recent.shape == (1, 0)


def test_a_window_of_one_waits_for_the_updates_alone():
    assert feed(initial_entropy_schedule(1, 1, CPU), [3.0, 1.0, 7.0, 2.0], min_updates=3) == [INF, INF, 2, 2]


@pytest.mark.parametrize("odd", [float("nan"), INF, -INF])
def test_an_entropy_that_is_not_finite_postpones_the_start(odd):
    assert feed(initial_entropy_schedule(1, 2, CPU), [1.0, odd, 1.0, 1.0]) == [INF, INF, INF, 3]
    assert feed(initial_entropy_schedule(1, 1, CPU), [odd, 1.0]) == [INF, 1]


def coefficients(state, updates, initial, final, decay_steps, minimum):
    """Coefficient of every update, read before its rollout is observed."""
    found = []
    for _ in range(updates):
        found.append(coefficient(state, column(initial), column(final), decay_steps, column(minimum)).item())
        observe_(state, column(1.0), 0.01, 0)
    return found


@pytest.mark.parametrize("decay_steps", [1, 4])
@pytest.mark.parametrize(("window", "start"), [(0, 0), (3, 2)])
def test_falls_linearly_from_the_start_and_then_stays(decay_steps, window, start):
    found = coefficients(initial_entropy_schedule(1, window, CPU), 10, 0.1, 0.02, decay_steps, 0.0)
    expected = np.interp(np.arange(10), [start, start + decay_steps], [0.1, 0.02])
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found[-1] == column(0.02).item()


def test_may_rise_too():
    found = coefficients(initial_entropy_schedule(1, 0, CPU), 4, 0.0, 0.3, 2, 0.0)
    np.testing.assert_allclose(found, [0, 0.15, 0.3, 0.3], rtol=1e-6)


def test_the_floor_holds_at_both_ends_and_between():
    """Floors 0.05 under 0.1 → 0 and 0.2 over both ends: the decay runs from floored end to floored end."""
    found = coefficients(initial_entropy_schedule(1, 0, CPU), 4, 0.1, 0.0, 2, 0.05)
    np.testing.assert_allclose(found, [0.1, 0.075, 0.05, 0.05], rtol=1e-6)
    assert set(coefficients(initial_entropy_schedule(1, 0, CPU), 4, 0.1, 0.0, 2, 0.2)) == {column(0.2).item()}
    waiting = initial_entropy_schedule(1, 9, CPU)
    assert set(coefficients(waiting, 3, 0.1, 0.0, 2, 0.2)) == {column(0.2).item()}


def test_never_below_the_floor_by_rounding():
    generator = torch.Generator().manual_seed(0)
    initial, final, minimum, seen = (torch.rand(10_000, generator=generator) for _ in range(4))
    state = initial_entropy_schedule(10_000, 0, CPU)
    state.seen = (10 * seen).floor()
    assert (coefficient(state, initial, final, 7, minimum) >= minimum).all()


@pytest.mark.parametrize("final", [float("nan"), INF])
def test_without_a_final_value_there_is_no_decay(final):
    found = coefficients(initial_entropy_schedule(1, 0, CPU), 3, 0.1, final, 2, 0.0)
    assert found == [column(0.1).item()] * 3


def test_every_member_has_its_own_values_and_they_are_live():
    """Halfway through a decay of four updates, member 0 towards 0, member 1 without a decay, member 2 floored."""
    state = initial_entropy_schedule(3, 0, CPU)
    for _ in range(2):
        observe_(state, torch.ones(3), 0.01, 0)
    initial, final, minimum = column(0.4, 0.4, 0.4), column(0.0, INF, 0.0), column(0.0, 0.0, 0.2)
    torch.testing.assert_close(coefficient(state, initial, final, 4, minimum), column(0.2, 0.4, 0.3))
    torch.testing.assert_close(coefficient(state, 2 * initial, final, 4, minimum), column(0.4, 0.8, 0.5))


def test_a_graft_in_mid_window_goes_on_as_the_donor_would():
    """Member 1 copies member 0 after two of three updates; later entropies are the same, so is the start."""
    state = initial_entropy_schedule(2, 3, CPU)
    for entropies in ([1.0, 4.0], [1.0, 9.0]):
        observe_(state, torch.tensor(entropies), 0.01, 0)
    donor = tree.map(torch.clone, state)
    state = tree.gather(state, torch.tensor([0, 0]))
    observe_(donor, column(1.0, 1.0), 0.01, 0)
    assert donor.decay_start.tolist() == [2, INF]
    observe_(state, column(1.0, 1.0), 0.01, 0)
    assert state.decay_start.tolist() == [2, 2]
    observe_(state, column(1.0, 7.0), 0.01, 0)
    assert state.recent.tolist() == [[1, 1, 1], [1, 1, 7]]


@pytest.mark.parametrize("window", [0, 1, 2, 4])
@pytest.mark.parametrize("before", [1, 6])
def test_population_laws(window, before, normal, check_laws):
    state = tree.map(torch.Tensor.double, initial_entropy_schedule(3, window, CPU))
    for _ in range(before):
        observe_(state, normal(3), 0.3, 2)
    hyperparams = {name: normal(3) for name in ("initial", "final", "minimum")}

    def step(entropy, state, hyperparams):
        after = tree.map(torch.clone, state)
        observe_(after, entropy.detach(), 0.3, 2)
        weight = coefficient(after, decay_steps=5, **hyperparams)
        return torch.cat(
            [weight.unsqueeze(1), after.recent, after.seen.unsqueeze(1), after.decay_start.unsqueeze(1)], 1
        )

    check_laws(step, normal(3), state, hyperparams)
