import signal
from collections.abc import Iterator

import numpy as np
import pytest
import torch

torch.set_num_threads(1)

# As in a terminal: what is started in the background, or with nohup, begins with signals that are ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _global_generators_are_untouched() -> Iterator[None]:
    """Randomness is explicit everywhere. Python's own generator is left out: the run-time shape checks draw from it."""
    numpy_before, torch_before = np.random.get_state()[1:3], torch.random.get_rng_state()
    yield
    keys, position = np.random.get_state()[1:3]
    numpy_same = position == numpy_before[1] and np.array_equal(keys, numpy_before[0])
    assert numpy_same, "the test drew from NumPy's global generator, or seeded it; give it a numpy.random.Generator"
    torch_same = torch.equal(torch.random.get_rng_state(), torch_before)
    assert torch_same, (
        "the test drew from torch's global generator, or seeded it; give it a torch.Generator, "
        "and build references such as torch.nn.LSTM inside torch.random.fork_rng()"
    )
