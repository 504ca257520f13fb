"""Tables of plain text."""

from collections.abc import Sequence

import typer

from popgraft.messages import one_line


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines with aligned columns: the first one to the left, all others to the right."""
    lines = [header, *rows]
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    form = "  ".join([f"{{:<{first}}}", *(f"{{:>{width}}}" for width in others)])
    return "\n".join(form.format(*line).rstrip() for line in lines)


def say(text: str, err: bool = False) -> None:
    """Prints a sentence, whatever it quotes: nothing in it breaks the line, moves a cursor or colours a terminal."""
    typer.echo(one_line(text), err=err)


def show(text: str, err: bool = False) -> None:
    """Prints several lines."""
    for line in text.split("\n"):
        say(line, err)
