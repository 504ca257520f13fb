"""Equations in PyTorch, some with a second form that calls the compiled library."""

from collections.abc import Callable
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from torch import Tensor

from popgraft.native.library import serves

P = ParamSpec("P")
R = TypeVar("R")
Form = Callable[Concatenate[Tensor, P], R]


class Definition(Generic[P, R]):
    """A function in PyTorch, which says what is computed; its compiled form, where there is one, is faster.

    A call runs the compiled form where the library serves the first argument and the form takes the others, and the
    definition everywhere else: other devices and precisions, traced graphs, machines without a compiler. Either form
    can be called by itself. The tests compare both of every definition in `DEFINITIONS`.

    Attributes:
        plain: the function in PyTorch.
        fast: its compiled form.
    """

    def __init__(self, plain: Form[P, R]) -> None:
        self.plain = self.fast = plain
        self._takes: Callable[..., bool] | None = None
        self.__doc__ = plain.__doc__

    def __call__(self, x: Tensor, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """What `plain` returns, up to rounding."""
        if serves(x) and (self._takes is None or self._takes(x, *args, **kwargs)):
            return self.fast(x, *args, **kwargs)
        return self.plain(x, *args, **kwargs)

    def compiled(self, takes: Callable[..., bool] | None = None) -> Callable[[Form[P, R]], Form[P, R]]:
        """Declares the function below as the compiled form.

        Args:
            takes: which of the arguments that the library serves the form takes; None: all.
        """

        def declare(fast: Form[P, R]) -> Form[P, R]:
            self.fast, self._takes = fast, takes
            DEFINITIONS[f"{self.plain.__module__}.{self.plain.__name__}"] = self
            return fast

        return declare


DEFINITIONS: dict[str, Definition[..., Any]] = {}
"""All that have a compiled form, by module and name."""
