"""The page and its interface: JSON over HTTP on the loopback address, for who has the token.

    GET  /                       the page
    GET  /api/state              classes, counts, accuracy
    GET  /api/pictures           ?view=worth|labelled|class:NAME&start=0&count=100
    GET  /api/thumbnail/ID       a JPEG
    POST /api/label              {"pictures": [ID, ...], "label": NAME or null}
    POST /api/rename             {"old": NAME, "new": NAME or null}
    POST /api/undo
    POST /api/export             {"kind": "learner" | "predictions.csv" | "sorted"}
    POST /api/predict            the content of an image file

Each needs the token, as the header `X-Token` or `?token=`. What is wrong with a request comes back as {"error": ...}.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from umeta.errors import UserError
from umeta.teach.session import Session

PAGE = Path(__file__).parent
LARGEST = 32 << 20  # bytes of a request
MOST = 500  # pictures in an answer
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class TooLarge(Exception):
    """A request is larger than anything that is meant for this."""


class Guard:
    """Lets nothing through but requests to this machine's own names, from its own page, with the token, and not huge.

    A page of another site can neither read the token nor, by a name that leads here, pass for this one.
    """

    def __init__(self, app: ASGIApp, token: str, hosts: frozenset[str]) -> None:
        self.app, self.token, self.hosts = app, token, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        if refused := self.refuse(scope):
            await JSONResponse({"error": refused[1]}, refused[0], HEADERS)(scope, receive, send)
            return
        received = 0

        async def count() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > LARGEST:
                raise TooLarge(f"more than {LARGEST:,} bytes")
            return message

        await self.app(scope, count, send)

    def refuse(self, scope: Scope) -> tuple[int, str] | None:
        """Say what is wrong with a request."""
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value)
        host = [value.decode("latin-1") for value in headers.get(b"host", [])]
        if len(host) != 1 or host[0] not in self.hosts:
            return 403, "this is served to this machine alone"
        origins = [value.decode("latin-1") for value in headers.get(b"origin", [])]
        if any(origin.removeprefix("http://") not in self.hosts for origin in origins):
            return 403, "this takes nothing from the pages of others"
        query = parse_qs(scope["query_string"].decode("latin-1"))
        given = headers.get(b"x-token") or [word.encode() for word in query.get("token", [])]
        if len(given) != 1 or not hmac.compare_digest(given[0], self.token.encode()):
            return 403, "the token is missing or wrong; open the link that umeta teach has printed"
        length = headers.get(b"content-length", [b"0"])[0]
        if not length.isdigit() or int(length) > LARGEST:
            return 413, f"more than {LARGEST:,} bytes"
        return None


def make_app(session: Session, token: str, hosts: frozenset[str]) -> ASGIApp:
    """Return the application for a session, under these names of this machine, such as 127.0.0.1:8000."""

    def page(name: str, kind: str, request: Request) -> Response:
        text = (PAGE / name).read_text(encoding="utf-8").replace("{token}", token)
        return Response(text, media_type=kind, headers=HEADERS)

    def pictures(request: Request) -> Response:
        query = request.query_params
        start, count = (int(query.get(name, default)) for name, default in (("start", "0"), ("count", "100")))
        found = session.pictures(query.get("view", "worth"), max(0, start), min(max(0, count), MOST))
        return JSONResponse(found, headers=HEADERS)

    def thumbnail(request: Request) -> Response:
        picture = session.thumbnail(request.path_params["id"])
        return Response(picture, media_type="image/jpeg", headers={**HEADERS, "Cache-Control": "private, max-age=3600"})

    async def predict(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(session.predict, await request.body()), headers=HEADERS)

    def change(act: Callable[[Any], Any]) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            body = await request.body()
            found = await run_in_threadpool(act, json.loads(body) if body else {})
            return JSONResponse(found or session.state(), headers=HEADERS)

        return answer

    changes: dict[str, Callable[[Any], Any]] = {
        "label": lambda asked: session.label([int(i) for i in asked["pictures"]], asked["label"]),
        "rename": lambda asked: session.rename(asked["old"], asked["new"]),
        "undo": lambda asked: session.undo(),
        "export": lambda asked: session.export(asked["kind"]),
    }
    routes = [
        Route("/", partial(page, "page.html", "text/html")),
        Route("/page.js", partial(page, "page.js", "text/javascript")),
        Route("/api/state", lambda request: JSONResponse(session.state(), headers=HEADERS)),
        Route("/api/pictures", pictures),
        Route("/api/thumbnail/{id:int}", thumbnail),
        Route("/api/predict", predict, methods=["POST"]),
        *(Route(f"/api/{name}", change(act), methods=["POST"]) for name, act in changes.items()),
    ]
    handlers: dict[Any, Any] = {
        UserError: tell(400),
        OSError: tell(500),
        TooLarge: tell(413),
        ClientDisconnect: tell(400),
        **{kind: tell(400, "not such a request: ") for kind in (ValueError, KeyError, TypeError, AttributeError)},
    }
    return Guard(Starlette(routes=routes, exception_handlers=handlers), token, hosts)


def tell(status: int, before: str = "") -> Callable[[Request, Exception], Response]:
    """Return what answers a request with what is wrong."""
    return lambda request, error: JSONResponse({"error": f"{before}{error}"}, status, HEADERS)
