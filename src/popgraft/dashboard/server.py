"""The server of the live page. It only reads, and asks nobody for anything."""

import asyncio
import ipaddress
import secrets
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from popgraft.dashboard.guard import Guard
from popgraft.dashboard.section import MakeSection
from popgraft.dashboard.watcher import Watcher
from popgraft.disk import reason
from popgraft.errors import ConfigError

TICK = 0.5
"""Seconds from one question of a stream, whether something has changed, to the next."""


class Server:
    """Serves the runs below a folder.

    Args:
        root: the folder of a run, or one above several.
        host: name or address of the interface to listen on.
        port: 0 takes one that is free.
        own: functions of the user's that make sections.

    Attributes:
        url: what a browser opens; holds a secret if other machines can reach the server.

    Raises:
        ConfigError: nothing can listen there.
    """

    def __init__(self, root: Path, host: str = "127.0.0.1", port: int = 0, own: Sequence[MakeSection] = ()) -> None:
        self._socket = _listening(host, port)
        address, port = self._socket.getsockname()[:2]
        ip = ipaddress.ip_address(address)
        token = None if ip.is_loopback else secrets.token_urlsafe()
        name = socket.gethostname() if ip.is_unspecified else f"[{host}]" if ":" in host else host
        self.url = f"http://{name}:{port}/{f'?token={token}' if token else ''}"
        self._watcher = Watcher(root, own)
        static = StaticFiles(packages=[("popgraft.dashboard", "static"), ("plotly", "package_data")])
        routes = [Route("/", self._page), Route("/changes", self._changes), Mount("/static", static)]
        app = Guard(Starlette(routes=routes), token, port)
        self._server = uvicorn.Server(
            uvicorn.Config(app, log_level="error", server_header=False, lifespan="off", ws="none")
        )

    def serve(self) -> None:
        """Answers until `close`, or until Ctrl-C, which it raises as KeyboardInterrupt when all streams have ended."""
        self._server.run([self._socket])

    def close(self) -> None:
        """Ends `serve`, from any thread."""
        self._server.should_exit = True

    def _page(self, request: Request) -> HTMLResponse:
        return HTMLResponse(self._watcher.page(request.query_params.getlist("runs")))

    async def _changes(self, request: Request) -> StreamingResponse:
        return StreamingResponse(self._versions(), media_type="text/event-stream")

    async def _versions(self) -> AsyncIterator[str]:
        """An event for the version there is, and for every new one."""
        told = None
        while not self._server.should_exit:
            version = await asyncio.to_thread(self._watcher.version)
            if version != told:
                told = version
                yield f"data: {version}\n\n"
            await asyncio.sleep(TICK)


def _listening(host: str, port: int) -> socket.socket:
    """A socket to which others can connect."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family)
    except OSError as error:
        words = reason(error).partition(" (")[0]  # what follows repeats the address
        raise ConfigError(
            f"cannot listen on {host}, port {port}: {words}; give another --port, such as 0 for any free one, or --host"
        ) from None
