"""Who may see a live page.

A server that only its own machine can reach answers requests that name that machine, so that a foreign page cannot read
it under a name of its own (DNS rebinding). Any other server demands a secret: first in the address, then in a cookie.
"""

import ipaddress
import secrets
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from popgraft.dashboard.page import POLICY, policy

HEADERS = {
    "cache-control": "private, no-cache",
    "content-security-policy": policy({**POLICY, "frame-ancestors": "'none'"}),
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""What every answer says of itself."""


class Guard:
    """Passes on to an application what may be answered, and refuses the rest with status 403.

    Args:
        app: the application.
        token: the secret; None where only this machine can reach the server.
        port: where the server listens; cookies do not tell ports apart.
    """

    def __init__(self, app: ASGIApp, token: str | None, port: int) -> None:
        self._app, self._token, self._cookie = app, token, f"popgraft-{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        request = Request(scope)
        refusal = self._refusal(request)
        cookie = f"{self._cookie}={self._token}; Path=/; HttpOnly; SameSite=Strict"

        async def complete(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                if "token" in request.query_params and self._token and not refusal:
                    headers.append("set-cookie", cookie)
            await send(message)

        app = PlainTextResponse(f"{refusal}\n", status_code=403) if refusal else self._app
        await app(scope, receive, complete)

    def _refusal(self, request: Request) -> str:
        """Why a request is not answered; empty if it is."""
        if self._token is None:
            host = request.headers.get("host", "")
            return "" if names_this_machine(host) else f"this server is not called {host}; open its localhost address"
        given = request.query_params.get("token") or request.cookies.get(self._cookie, "")
        known = secrets.compare_digest(given.encode(), self._token.encode())
        return "" if known else "open the whole address that popgraft watch has printed, with its token"


def names_this_machine(host: str) -> bool:
    """Whether a host, with or without a port, can be no other machine than this one."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:  # neither a host nor an address
        return False
