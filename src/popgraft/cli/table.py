"""Tables of plain text."""

from collections.abc import Sequence

import typer

from popgraft.train import one_line


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines with aligned columns: the first one to the left, all others to the right."""
    lines = [header, *rows]
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    form = "  ".join([f"{{:<{first}}}", *(f"{{:>{width}}}" for width in others)])
    return "\n".join(form.format(*line).rstrip() for line in lines)


def say(text: str, err: bool = False) -> None:
    """Prints lines, whatever they quote: nothing in them moves a cursor, colours a terminal or cannot be encoded."""
    typer.echo("\n".join(one_line(line) for line in text.split("\n")), err=err)
