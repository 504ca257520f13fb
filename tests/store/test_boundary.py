from pathlib import Path

import pytest

from popgraft.errors import ConfigError, Damaged, StoreError
from popgraft.store.boundary import reading


@pytest.mark.parametrize(
    "error", [KeyError("score"), TypeError("x"), IndexError("1"), OverflowError("y"), MemoryError(), RecursionError()]
)
def test_whatever_a_run_holds_is_damage_in_words(error):
    with (
        pytest.raises(Damaged, match=r"runs/a is damaged: it holds what no run has written") as caught,
        reading("runs/a"),
    ):
        raise error
    assert type(error).__name__ in str(caught.value)


def test_other_errors_are_what_they_are():
    with pytest.raises(StoreError, match="runs/a cannot be read: no such file") as caught, reading("runs/a"):
        Path("/nowhere/at/all").read_bytes()
    assert not isinstance(caught.value, Damaged)
    for error in (ConfigError("c"), KeyboardInterrupt()):
        with pytest.raises(type(error)), reading("runs/a"):
            raise error
