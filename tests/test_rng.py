import subprocess
import sys

import numpy as np
import pytest
import torch

from popgraft import rng


def _draws(*path):
    return [
        rng.derive(7, *path),
        rng.numpy_generator(7, *path).random(4).tolist(),
        torch.rand(4, generator=rng.torch_generator(7, *path)).tolist(),
    ]


def test_a_stream_depends_on_seed_and_path_alone():
    assert _draws("noise", 3) == _draws("noise", 3)
    assert rng.derive(7, "noise", 3) != rng.derive(8, "noise", 3)


def test_paths_name_different_streams():
    paths = [(), ("a",), ("b",), ("a", 0), ("a", 1), ("a", 0, 0), (0, "a"), ("a", 0, "b"), ("a", "b", 0)]
    for position in range(3):
        assert len({str(_draws(*path)[position]) for path in paths}) == len(paths)


def test_numpy_streams_are_spawned_seed_sequences():
    expected = np.random.default_rng(np.random.SeedSequence(7, spawn_key=(3, 5)))
    assert rng.numpy_generator(7, 3, 5).random(8).tolist() == expected.random(8).tolist()


def test_neighbouring_streams_are_uncorrelated():
    streams = np.stack([rng.numpy_generator(0, "noise", member).standard_normal(4000) for member in range(8)])
    correlation = np.corrcoef(streams) - np.eye(8)
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)


def test_derived_seeds_fit_31_bits():
    seeds = [rng.derive(0, "env", i) for i in range(1000)]
    assert min(seeds) >= 0
    assert 2**30 < max(seeds) < 2**31
    assert len(set(seeds)) == 1000


def test_torch_seeds_use_all_bits():
    seeds = [rng.torch_generator(0, i).initial_seed() for i in range(200)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62
    assert all(any(seed >> bit & 1 for seed in seeds) for bit in range(63))


@pytest.mark.heavy
def test_another_process_draws_the_same():
    code = "from popgraft import rng; print(rng.derive(7, 'noise', 3))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(output) == rng.derive(7, "noise", 3)


def test_a_negative_place_is_refused():
    with pytest.raises(ValueError, match="non-negative"):
        rng.derive(0, "env", -1)
