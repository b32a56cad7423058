"""The routes that pins and their users have always called: /health, /voices and /."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web

from hotpind import __version__
from hotpind.web.replies import reply

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Hotpin</title>
<body style="font-family:sans-serif;max-width:40em;margin:3em auto;padding:0 1em">
<h1>Hotpin</h1>
<p>This appliance answers Hotpins on your network. To see how it is, run <code>hotpinctl status</code> on it; to talk
to it without a pin, run <code>hotpinctl ask --text "What can you do?"</code>.</p>
</body></html>
"""


def add_routes(app: web.Application, health: Callable[[], dict[str, Any]],
               voices: Callable[[], list[str]]) -> None:
    """Serve the three routes; ``health`` gives what everybody may know."""
    async def get_health(_: web.Request) -> web.Response:
        return reply({"service": "hotpin", **health()})

    async def get_voices(_: web.Request) -> web.Response:
        names = voices()
        return reply({"voices": names, "count": len(names)})

    async def get_root(request: web.Request) -> web.Response:
        if "text/html" in request.headers.get("Accept", ""):
            return web.Response(text=_PAGE, content_type="text/html")
        return reply({"service": "hotpin", "version": __version__, "websocket_endpoint": "/ws",
                      "image_endpoint": "/image", "protocol": 2})

    app.router.add_get("/health", get_health)
    app.router.add_get("/voices", get_voices)
    app.router.add_get("/", get_root)
