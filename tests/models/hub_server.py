"""A hub of our own on loopback, with the manners of huggingface.co and, on request, its bad days.

A file answers HEAD and GET at ``/<repo>/resolve/<revision>/<path>``. Large files (LFS) are redirected to
another path, as to the storage host, which knows ranges; their digest is SHA-256. Small ones are served in
place with the SHA-1 by which git names them.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from aiohttp import web

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CHUNK = 1 << 16


@dataclass
class Faults:
    """What goes wrong; counters are used up."""

    cut_after: list[int] = field(default_factory=list)
    """For each of the next transfers: break the connection after this many bytes of it."""
    serve: dict[str, bytes] = field(default_factory=dict)
    """Other bytes than those whose digest is stated, by path."""
    ignore_range: bool = False
    head_status: int = 0
    get_status: list[int] = field(default_factory=list)
    """Statuses of the next transfers."""
    no_digest: bool = False
    delay_s: float = 0.0
    """Wait after each chunk."""
    endless: bool = False
    """Send more than was stated."""


@dataclass
class Hub:
    """The server, run in a thread of its own because what it serves blocks."""

    files: dict[str, bytes] = field(default_factory=dict)
    """By ``<repo>/<path>``."""
    small: set[str] = field(default_factory=set)
    """Paths that are not LFS files."""
    faults: Faults = field(default_factory=Faults)
    ranges: list[tuple[str, int]] = field(default_factory=list)
    """Path and first byte of every transfer asked for."""
    tokens: list[tuple[str, str]] = field(default_factory=list)
    """Kind of request (hub, storage) and its Authorization header."""
    sent: int = 0
    """Bytes handed to the network in all transfers."""
    on_sent: Callable[[int], None] = lambda _: None
    url: str = ""

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()

        def run() -> None:
            asyncio.set_event_loop(self._loop)
            self._loop.run_until_complete(self._start())
            ready.set()
            self._loop.run_forever()

        self._thread = threading.Thread(target=run, name="hub", daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_get(r"/{owner}/{name}/resolve/{revision}/{path:.+}", self._resolve)
        app.router.add_get(r"/storage/{path:.+}", self._storage)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"

    async def _resolve(self, request: web.Request) -> web.StreamResponse:
        self.tokens.append(("hub", request.headers.get("Authorization", "")))
        if self.faults.head_status:
            return web.Response(status=self.faults.head_status)
        info = request.match_info
        path = f"{info['owner']}/{info['name']}/{info['path']}"
        content = self.files.get(path)
        if content is None:
            return web.Response(status=404, headers={"X-Error-Code": "EntryNotFound"})
        headers = {"X-Repo-Commit": COMMIT}
        if path in self.small:
            if not self.faults.no_digest:
                headers["ETag"] = f'"{hashlib.sha1(b"blob %d" % len(content) + bytes(1) + content).hexdigest()}"'
            if request.method == "HEAD":
                return web.Response(headers=headers | {"Content-Length": str(len(content))})
            return await self._send(request, path, headers)
        headers["X-Linked-Size"] = str(len(content))
        # The storage is another host: localhost and 127.0.0.1 are two to a client.
        headers["Location"] = self.url.replace("127.0.0.1", "localhost") + f"/storage/{path}"
        if not self.faults.no_digest:
            headers["X-Linked-ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        return web.Response(status=302, headers=headers)

    async def _storage(self, request: web.Request) -> web.StreamResponse:
        self.tokens.append(("storage", request.headers.get("Authorization", "")))
        return await self._send(request, request.match_info["path"], {})

    async def _send(self, request: web.Request, path: str, headers: dict[str, str]) -> web.StreamResponse:
        faults = self.faults
        if faults.get_status:
            return web.Response(status=faults.get_status.pop(0))
        content = faults.serve.get(path, self.files[path])
        begin, status = 0, 200
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        self.ranges.append((path, int(asked[1]) if asked else 0))
        if asked and not faults.ignore_range:
            begin, status = int(asked[1]), 206
            if begin >= len(content):
                return web.Response(status=416)
            headers = headers | {"Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"}
        rest = content[begin:]
        response = web.StreamResponse(status=status, headers=headers)
        if not faults.endless:
            response.content_length = len(rest)
        await response.prepare(request)
        cut = faults.cut_after.pop(0) if faults.cut_after else None
        for at in range(0, len(rest), CHUNK):
            chunk = rest[at:at + CHUNK]
            if cut is not None and at + len(chunk) > cut:
                await response.write(chunk[:cut - at])
                assert request.transport is not None
                request.transport.close()
                return response
            await response.write(chunk)
            self.sent += len(chunk)
            self.on_sent(begin + at + len(chunk))
            if faults.delay_s:
                await asyncio.sleep(faults.delay_s)
        if faults.endless:
            await response.write(rest)
        await response.write_eof()
        return response
