"""Who may ask a server on loopback, and what a browser may do with its answers. Knows nothing of what is served."""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, field

from aiohttp import web
from aiohttp.typedefs import Handler

_NAMES = ("127.0.0.1", "localhost", "[::1]")
_REFUSAL = "Open the address with the token in it, as it was printed when this server started\n"
# The terminal writes styles while it runs. `connect-src` names the socket: not every browser's 'self' covers it.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; font-src 'self'; img-src 'self' data:; "
    "connect-src 'self' {socket}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Guard:
    """The token of one server. A page of another site, or another user of this machine, does not know it.

    A browser sends a cookie to every port of a host, so the cookie is named after this one.
    """

    port: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    @property
    def address(self) -> str:
        """What to open."""
        return f"http://127.0.0.1{self._suffix}/?token={self.token}"

    @property
    def _suffix(self) -> str:
        return "" if self.port == 80 else f":{self.port}"

    @property
    def _cookie(self) -> str:
        return f"phi4local-{self.port}"

    def install(self, app: web.Application) -> None:
        """Stand before every route of `app`, those it does not have included."""

        @web.middleware
        async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
            if not (self._is_addressed(request) and self._is_known(request)):
                raise web.HTTPForbidden(text=_REFUSAL)
            return await handler(request)

        app.middlewares.append(check)
        app.on_response_prepare.append(self._harden)

    def admit(self, response: web.StreamResponse) -> None:
        """Give the browser what makes its next requests known."""
        response.set_cookie(self._cookie, self.token, httponly=True, samesite="Strict")

    def _is_addressed(self, request: web.Request) -> bool:
        """Whether the request means this server: a name that somebody points at 127.0.0.1 is not one of ours."""
        hosts, origins = request.headers.getall("Host", []), request.headers.getall("Origin", [])
        if len(hosts) != 1 or hosts[0] not in [f"{name}{self._suffix}" for name in _NAMES]:
            return False
        return all(origin == f"http://{hosts[0]}" for origin in origins)

    def _is_known(self, request: web.Request) -> bool:
        return self._is_token(request.query.get("token", "")) or self._is_token(request.cookies.get(self._cookie, ""))

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(errors="replace"), self.token.encode())

    async def _harden(self, request: web.Request, response: web.StreamResponse) -> None:
        socket = f"ws://{request.headers.get('Host', '')}" if self._is_addressed(request) else ""
        response.headers["Content-Security-Policy"] = _POLICY.format(socket=socket)
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
        response.headers["Cache-Control"] = "no-store"
