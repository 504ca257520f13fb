"""The live page of runs, from the command line."""

import contextlib
import gc
import os
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from popgraft.cli.table import say
from popgraft.dashboard.own import named
from popgraft.dashboard.server import Server
from popgraft.errors import StoreError

NICE = 10
"""How far the server's priority is below that of the runs that train beside it."""


def watch(path: Path, host: str, port: int, show: bool, sections: Sequence[str] = ()) -> None:
    """Serves the page until Ctrl-C.

    Args:
        path: the folder of a run, or one above several.
        host: interface to listen on.
        port: 0 takes any that is free.
        show: whether to open the page in a browser, where there is a screen.
        sections: functions of the user's that make sections, as `module:function`.

    Raises:
        StoreError: there is no such folder.
        ConfigError: nothing can listen there, or there is no such function.
    """
    if not path.is_dir():
        raise StoreError(f"{path} is not a folder; give the folder of a run, or one above several")
    server = Server(path, host, port, named(sections))
    os.nice(NICE)
    gc.freeze()  # what has been imported stays: to look through all of it for garbage takes longer than many updates
    say(f"watching {path} until Ctrl-C, at {server.url}")
    if show and (sys.platform == "darwin" or {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ)):
        webbrowser.open(server.url)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve()
