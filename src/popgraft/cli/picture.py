"""Pictures that commands draw with matplotlib, which is an extra."""

from pathlib import Path
from typing import TYPE_CHECKING

from popgraft.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def require_matplotlib() -> None:
    """Finds out, before anything else is done, whether pictures can be drawn.

    Raises:
        MissingExtra: they cannot.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingExtra("matplotlib", "plot", "--picture") from None


def save(figure: "Figure", path: Path) -> None:
    """Writes a picture in the format that the file's name asks for.

    Raises:
        ConfigError: it cannot be written there, or not in that format.
    """
    try:
        figure.savefig(path, dpi=160)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--picture {path} cannot be written: {error}") from None
