"""Pictures that commands draw with matplotlib, which is an extra."""

from pathlib import Path
from typing import TYPE_CHECKING

from popgraft.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check(path: Path | None) -> None:
    """Finds out, before anything else is done, whether a picture can be drawn there, if one is wanted.

    Raises:
        MissingExtra: matplotlib is not installed.
        ConfigError: the path is a folder, its own folder is missing, or its suffix names no format.
    """
    if path is None:
        return
    try:
        from matplotlib import backend_bases
    except ImportError:
        raise MissingExtra("matplotlib", "plot", "--picture") from None
    fault = None
    if path.is_dir():
        fault = "it is a folder; name a file in it, such as picture.png"
    elif path.suffix[1:].lower() not in backend_bases.FigureCanvasBase.get_supported_filetypes():
        fault = f"the suffix {path.suffix!r} names no format; take .png, .svg or .pdf"
    elif not path.parent.is_dir():
        fault = f"there is no folder {path.parent}; make it first"
    if fault:
        raise ConfigError(f"--picture {path} cannot be written: {fault}")


def save(figure: "Figure", path: Path) -> None:
    """Writes a picture in the format that the file's name asks for.

    Raises:
        ConfigError: it cannot be written there, or not in that format.
    """
    try:
        figure.savefig(path, dpi=160)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--picture {path} cannot be written: {error}") from None
