import functools
import inspect
import random
import signal
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch

torch.set_num_threads(1)

# As in a terminal: what is started in the background, or with nohup, begins with signals that are ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

jaxtyped = jaxtyping.jaxtyped


def kind(value: Any) -> Any:
    """What annotations can tell of an argument; the same for those that pass or fail alike."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return type(value), *((key, kind(each)) for key, each in value.items())
    if isinstance(value, tuple):
        return type(value), *map(kind, value)
    shape = getattr(value, "shape", None)
    return type(value) if shape is None else (type(value), shape, getattr(value, "dtype", None))


def has_shape(annotation: Any) -> bool:
    """Whether a type tells the shape of an array somewhere."""
    if isinstance(annotation, type) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    parts = annotation if isinstance(annotation, list) else typing.get_args(annotation)
    return any(has_shape(part) for part in parts)


def once(typechecker: Any) -> Callable[[Any], Any]:
    """`jaxtyping.jaxtyped`, but of calls whose arguments are alike the first that passes is checked, for all the others.

    The checks of a call take longer than most calls do. What tells no shape is not checked: mypy reads its types.
    """

    def decorate(found: Any) -> Any:
        owners = found.__mro__ if isinstance(found, type) else [found]  # a dataclass has its parents' fields
        if not any(has_shape(each) for owner in owners for each in inspect.get_annotations(owner).values()):
            return found
        return jaxtyped(found, typechecker=typechecker) if isinstance(found, type) else remembering(found)

    def remembering(function: types.FunctionType) -> Any:
        checked = functools.cache(lambda: jaxtyped(function, typechecker=typechecker))  # many are never called
        passed = set()

        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            __tracebackhide__ = True
            try:
                kinds = kind(arguments), kind(named)
                alike = kinds in passed
            except (TypeError, RecursionError):  # an exported program's sizes are symbols; a dict may hold itself
                return checked()(*arguments, **named)
            if alike:
                return function(*arguments, **named)
            result = checked()(*arguments, **named)
            passed.add(kinds)
            return result

        return call

    return decorate


jaxtyping.jaxtyped = once  # what `--jaxtyping-packages` decorates every function with


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


@pytest.fixture
def global_generators_come_back() -> Iterator[None]:
    """For tests of libraries that seed every global generator."""
    before = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    yield
    random.setstate(before[0])
    np.random.set_state(before[1])
    torch.random.set_rng_state(before[2])
