"""What stands before every request: token, rate and size limits, a request id, security headers, counts."""

import hmac
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dermtune_bundle.decode import MAX_PIXELS

log = logging.getLogger("dermtune.serve")

OPEN_PATHS: Final = frozenset({"/", "/page.js", "/page.css", "/healthz", "/readyz"})
"""What needs no token: the page itself holds nothing, and asks for one."""
_HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_CLIENTS: Final = 10_000  # whose rates are remembered; the longest silent is forgotten first


@dataclass(frozen=True)
class Limits:
    """How much a client may ask for."""

    max_bytes: int = 64 << 20
    """Of one request."""
    max_files: int = 16
    """Of one request."""
    max_pixels: int = MAX_PIXELS
    """Of one image."""
    per_minute: int = 600
    """Requests of one client, by its address; the page itself and /healthz are not counted."""
    at_once: int = 32
    """Requests that may hold images in memory; more are asked to wait."""


class Counts:
    """What /metrics shows: no image, no name, no address."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "dermtune_requests", "Requests answered.", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "dermtune_request_seconds", "Time to answer.", ["path"], registry=self.registry
        )
        self.images = Counter(
            "dermtune_images", "Images: answered, abstained or refused.", ["outcome"], registry=self.registry
        )


@dataclass
class _Rates:
    """A token bucket a client: it fills at `per_minute`, and holds a minute's worth."""

    per_minute: int
    buckets: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)

    def wait(self, client: str, now: float) -> float:
        """Seconds until the client may ask again; 0: now, and this request is counted."""
        level, before = self.buckets.pop(client, (float(self.per_minute), now))
        level = min(self.per_minute, level + (now - before) * self.per_minute / 60)
        allowed = level >= 1
        self.buckets[client] = (level - allowed, now)
        if len(self.buckets) > _CLIENTS:
            self.buckets.popitem(last=False)
        return 0.0 if allowed else (1 - level) * 60 / self.per_minute


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(
        self, app: "ASGIApp", *, paths: frozenset[str], token: str, limits: Limits, counts: Counts
    ) -> None:
        """Guard an application.

        Args:
            app: what is guarded.
            paths: those it has; others are counted as one.
            token: that a client must bear; empty: none.
            limits: how much a client may ask for.
            counts: where requests are counted.
        """
        self._app, self._paths, self._limits, self._counts = app, paths, limits, counts
        self._token = token.encode()
        self._rates = _Rates(limits.per_minute)
        self._inside = 0

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, request_id, status = time.monotonic(), uuid4().hex, 500
        path = scope["path"] if scope["path"] in self._paths else "other"
        received = 0

        async def count_received() -> "Message":
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limits.max_bytes:
                raise HTTPException(413, _too_large_words(self._limits))
            return message

        async def send_with_headers(message: "Message") -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = _HEADERS | {"x-request-id": request_id}
                message["headers"] = [
                    *message["headers"],
                    *((k.encode(), v.encode()) for k, v in added.items()),
                ]
            await send(message)

        refusal = self._refusal(scope)
        self._inside += 1
        try:
            await (refusal or self._app)(scope, count_received, send_with_headers)
        finally:
            self._inside -= 1
            seconds = time.monotonic() - start
            self._counts.requests.labels(path, str(status)).inc()
            self._counts.seconds.labels(path).observe(seconds)
            log.info("%s %s %s %d %.0f ms", request_id, scope["method"], path, status, 1000 * seconds)

    def _refusal(self, scope: "Scope") -> JSONResponse | None:
        if scope["path"] in OPEN_PATHS:
            return None
        headers = dict(scope["headers"])
        client = (scope.get("client") or ("", 0))[0]
        if wait := self._rates.wait(client, time.monotonic()):
            return _problem(429, "too many requests; wait and ask again", {"Retry-After": str(int(wait) + 1)})
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        if self._token and not (kind.lower() == b"bearer" and hmac.compare_digest(given, self._token)):
            return _problem(401, "a token is needed: Authorization: Bearer …", {"WWW-Authenticate": "Bearer"})
        if self._inside >= self._limits.at_once:
            return _problem(503, "busy; wait and ask again", {"Retry-After": "1"})
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._limits.max_bytes:
            return _problem(413, _too_large_words(self._limits))
        return None


def _too_large_words(limits: Limits) -> str:
    return f"more than {limits.max_bytes >> 20} MiB in one request; send fewer images at a time"


def _problem(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, headers)
