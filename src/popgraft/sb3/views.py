"""Stacked tensors of one member as modules, whose parameters and buffers are views of them."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from popgraft.nn import Params


def module_of(node: Any, wrap: Callable[[Tensor], nn.Parameter] | None) -> nn.Module:
    """A tree of stacked tensors of one member as nested modules, whose parameters or buffers are views of it."""
    module = nn.Module()
    children = node.items() if isinstance(node, Mapping) else ((name, getattr(node, name)) for name in node.__slots__)
    for name, child in children:
        if not isinstance(child, Tensor):
            module.add_module(_escaped(name), module_of(child, wrap))
        elif wrap is not None:
            module.register_parameter(_escaped(name), wrap(child[0]))
        else:
            module.register_buffer(_escaped(name), child[0])
    return module


def places(params: Params, path: str = "", place: str = "") -> Iterator[tuple[str, str]]:
    """Every leaf's path in the tree, and its name among the parameters of what `module_of` makes of it."""
    for name, child in params.items():
        here, there = f"{path}{name}", f"{place}{_escaped(name)}"
        if isinstance(child, Tensor):
            yield here, there
        else:
            yield from places(child, f"{here}.", f"{there}.")


def _escaped(name: str) -> str:
    """A name that a part of a module may have, from which `urllib.parse.unquote` gets the given one."""
    escaped = name.replace("%", "%25").replace(".", "%2E")
    return f"%{ord(escaped[0]):02X}{escaped[1:]}" if hasattr(nn.Module(), escaped) else escaped
