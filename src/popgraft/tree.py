"""Nested containers of tensors: dataclasses and dicts whose leaves are tensors that share leading axes.

A tree is a tensor, a dict of trees (string keys), or a dataclass whose fields are trees. Leaves are visited in *save
order*: dataclass fields as declared, dict keys sorted. That order is part of the snapshot format.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

T = TypeVar("T")


@functools.cache
def _fields(kind: type) -> tuple[str, ...]:
    """Names of a dataclass's fields, as declared."""
    if not dataclasses.is_dataclass(kind):
        raise TypeError(f"a tree holds tensors, dicts and dataclasses, not {kind.__name__}")
    return tuple(field.name for field in dataclasses.fields(kind))


def _children(node: Any) -> dict[str, Any]:
    """Named children of a container, in save order."""
    if isinstance(node, dict):
        return {name: node[name] for name in sorted(node)}
    return {name: getattr(node, name) for name in _fields(type(node))}  # type: ignore[arg-type]  # a type is hashable


def map(fn: Callable[..., Tensor], tree: T, *others: T) -> T:
    """Applies `fn` to corresponding leaves of one or more trees of the same structure and returns a new tree."""
    if isinstance(tree, Tensor):
        return cast(T, fn(tree, *others))
    children, *columns = [_children(node) for node in (tree, *others)]
    for column in columns:
        if column.keys() != children.keys():
            raise ValueError(f"trees differ in structure: {list(children)} and {list(column)}")
    mapped = {name: map(fn, child, *[column[name] for column in columns]) for name, child in children.items()}
    return cast(T, mapped if isinstance(tree, dict) else type(tree)(**mapped))


def items(tree: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yields (dotted path, leaf) in save order."""
    if isinstance(tree, Tensor):
        yield prefix, tree
        return
    for name, child in _children(tree).items():
        yield from items(child, f"{prefix}.{name}" if prefix else name)


def restore(like: T, flat: Mapping[str, Tensor], prefix: str = "") -> T:
    """Builds a tree with the structure of `like` from the leaves in `flat`, the inverse of `dict(items(tree))`.

    Raises:
        KeyError: a leaf of `like` is not in `flat`.
    """
    if isinstance(like, Tensor):
        return cast(T, flat[prefix])
    built = {
        name: restore(child, flat, f"{prefix}.{name}" if prefix else name) for name, child in _children(like).items()
    }
    return cast(T, built if isinstance(like, dict) else type(like)(**built))


def gather(tree: T, index: Tensor, device: torch.device | None = None) -> T:
    """Row `index[i]` of every leaf becomes row i, on its device or another. The result shares no memory with `tree`."""
    return map(lambda leaf: leaf.index_select(0, index.to(leaf.device)).to(device), tree)


def slice(tree: T, start: int, stop: int) -> T:
    """Rows start…stop−1 of every leaf, as views."""
    return map(lambda leaf: leaf[start:stop], tree)


def repeat(tree: T, times: int) -> T:
    """Row 0 of every leaf so many times, as a view."""
    return map(lambda leaf: leaf[:1].expand(times, *leaf.shape[1:]), tree)


def wide(column: Tensor, like: Tensor) -> Tensor:
    """One number per row, [pop], with as many axes as `like`: [pop, 1, ...]."""
    return column.view(-1, *(1,) * (like.dim() - 1))


def concatenate(trees: Sequence[T]) -> T:
    """Joins trees along the first axis."""
    return map(lambda *leaves: torch.cat(leaves), *trees)


def stack(trees: Sequence[T]) -> T:
    """Stacks trees along a new first axis."""
    return map(lambda *leaves: torch.stack(leaves), *trees)


def put_(tree: T, index: Tensor, rows: T) -> None:
    """Writes `rows` over rows `index` of every leaf, in place."""
    map(lambda leaf, row: leaf.index_copy_(0, index.to(leaf.device), row), tree, rows)


def finite(tree: Any) -> Tensor:
    """Bool["pop"]: whether all numbers in a row are finite."""
    verdicts = [leaf.isfinite().unsqueeze(1).flatten(1).all(1) for _, leaf in items(tree)]
    return torch.stack(verdicts).all(0)
