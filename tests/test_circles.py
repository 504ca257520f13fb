"""No module of the package needs itself: not in a function either, nor for types alone."""

import ast
import graphlib
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"


def modules():
    """Every module of the package: its file, by name."""
    files = {".".join(path.relative_to(SOURCE).with_suffix("").parts): path for path in SOURCE.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in files.items()}


def imported(path, known):
    """Modules that a file imports anywhere in its text."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in known else node.module for name in names)


def test_no_module_needs_itself():
    known = modules()
    assert "popgraft.train.loop" in known
    graph = {name: {other for other in imported(path, known) if other in known} for name, path in known.items()}
    assert "popgraft.execute" in graph["popgraft.train.loop"]
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
