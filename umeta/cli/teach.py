"""`umeta teach`: label pictures on a page in the browser, and see all others sorted."""

from __future__ import annotations

import argparse
import secrets
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from umeta.cli.options import Commands, add_pictures_options
from umeta.errors import UserError


def add_parser(commands: Commands) -> None:
    text = "a page in the browser: name classes, label a few pictures, see all others sorted"
    sub = commands.add_parser("teach", help=text, description=text)
    add_pictures_options(sub)
    where = "where the labels are kept and exports are written; the same again goes on (default: teach)"
    sub.add_argument("--out", type=Path, default=Path("teach"), metavar="DIR", help=where)
    sub.add_argument("--port", type=int, default=0, metavar="N", help="of this machine alone (default: a free one)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    try:
        import uvicorn

        from umeta.teach.app import make_app
    except ImportError as error:
        raise UserError(f"teach: {error.name} is not installed; pip install 'umeta[teach]'") from error
    from umeta.runtime.lock import hold_folder
    from umeta.teach.session import Session

    with socket.socket() as listening, hold_folder(options.out):
        try:
            listening.bind(("127.0.0.1", options.port))
            listening.listen()  # so that the link can be opened as soon as it is shown
        except (OSError, OverflowError) as error:
            raise UserError(f"--port {options.port}: {error}; leave it out for a free one") from error
        device, plugins = options.device, options.allow_plugin
        session = Session(options.run, options.photos, options.out, device=device, allow_plugin=plugins)
        port, token = listening.getsockname()[1], secrets.token_urlsafe(24)
        hosts = frozenset(f"{name}:{port}" for name in ("127.0.0.1", "localhost"))
        link = f"http://127.0.0.1:{port}/?token={token}"
        print(f"open {link}\nCtrl-C ends it; labels are kept in {options.out}", flush=True)
        config = uvicorn.Config(make_app(session, token, hosts), log_level="warning", server_header=False)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])
        session.close()
    return {"teach": str(options.out), "labels": len(session.labels), "classes": session.classes}
