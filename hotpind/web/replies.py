"""JSON in and out: bounded request bodies, and errors as one sentence that every client can show."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import json
import logging
import math
import socket
from collections.abc import Mapping
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from hotpind.errors import DeviceError, HotpinError

BODY_BYTES = 4096
"""Largest JSON body of the API; the longest sensible request is a tenth of it."""
BODY_SECONDS = 10.0
"""Time for a body to arrive as a whole: a client that trickles it loses its connection."""
_LONGEST_PATH = 200

_LOGGER = logging.getLogger(__name__)
_EXCEPTIONS: dict[int, type[web.HTTPException]] = {
    400: web.HTTPBadRequest, 401: web.HTTPUnauthorized, 403: web.HTTPForbidden, 404: web.HTTPNotFound,
    408: web.HTTPRequestTimeout, 421: web.HTTPMisdirectedRequest, 426: web.HTTPUpgradeRequired,
    429: web.HTTPTooManyRequests,
}


_compact = functools.partial(json.dumps, separators=(",", ":"))
"""As the pins' own messages are written; their buffers are small."""


_shortest = functools.partial(_compact, ensure_ascii=False)


def reply(data: Mapping[str, Any], status: int = 200, *, shortest: bool = False) -> web.Response:
    """Answer with JSON that nobody keeps a copy of: it may hold a token.

    ``shortest`` writes letters as they are, which takes a third of the bytes; for text that came as valid UTF-8.
    """
    return web.json_response(data, status=status, dumps=_shortest if shortest else _compact,
                             headers={"Cache-Control": "no-store"})


def problem(status: int, message: str, **more: Any) -> web.Response:
    """Answer with an error: ``{"status": "error", "message": one sentence}``."""
    return reply({"status": "error", "message": message, **more}, status)


def retry_after(seconds: float) -> dict[str, str]:
    """Return the header that tells a client how long to wait, in whole seconds and at least one."""
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def too_often(message: str, wait: float, **more: Any) -> web.Response:
    """Answer 429 to a client that may try again after ``wait`` seconds."""
    response = problem(429, message, **more)
    response.headers.update(retry_after(wait))
    return response


def refusal(status: int, message: str, headers: Mapping[str, str] | None = None) -> web.HTTPException:
    """Make the exception to raise where a request is refused before its handler."""
    return _EXCEPTIONS[status](text=json.dumps({"status": "error", "message": message}),
                               content_type="application/json",
                               headers={"Cache-Control": "no-store", **(headers or {})})


@web.middleware
async def errors_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn our own errors and the framework's into answers, and unexpected ones into a plain 500 and a log entry."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400 or error.content_type == "application/json":
            raise
        return _in_json(error)
    except DeviceError as error:
        return problem(error.status, str(error))
    except HotpinError as error:
        _LOGGER.error("%s %s: %s", request.method, path_of(request), error)  # noqa: TRY400 - the sentence says it all
        return problem(503, str(error))
    except Exception:
        _LOGGER.exception("%s %s failed", request.method, path_of(request))
        return problem(500, "Something went wrong inside the appliance; its log says more.")


def _in_json(error: web.HTTPException) -> web.Response:
    """Say in our own form what the framework found wrong: an unknown path or method, a handshake that is none."""
    match error:
        case web.HTTPNotFound():
            message = "There is nothing at this address."
        case web.HTTPMethodNotAllowed():
            message = f"This address does not take {error.method}, only {', '.join(sorted(error.allowed_methods))}."
        case _:
            message = " ".join((error.text or error.reason).split())
    response = problem(error.status, message)
    for name in ("Allow", "Retry-After"):
        if name in error.headers:
            response.headers[name] = error.headers[name]
    return response


async def read_body(request: web.Request, *, most: int, seconds: float) -> bytes:
    """Read a body of at most ``most`` bytes that arrives within ``seconds``. Raises `DeviceError` (400, 408, 413)."""
    length = request.content_length
    if length is not None and length > most:
        raise DeviceError(f"the request's body has {length:,} bytes, at most {most:,} are taken", status=413)
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for piece in request.content.iter_any():
                body += piece
                if len(body) > most:
                    raise DeviceError(f"the request's body is larger than {most:,} bytes", status=413)
    except TimeoutError:
        raise DeviceError(f"the request's body took longer than {seconds:.0f} s", status=408) from None
    except (web.RequestPayloadError, ConnectionError):
        raise DeviceError("the request's body is incomplete") from None
    return bytes(body)


async def read_json(request: web.Request, *, most: int = BODY_BYTES) -> dict[str, Any]:
    """Read a JSON object of at most ``most`` bytes; an empty body is an empty object.

    Raises `DeviceError` (400, 408, 413).
    """
    body = await read_body(request, most=most, seconds=BODY_SECONDS)
    if not body:
        return {}
    try:
        data = json.loads(body.decode())
    except (ValueError, RecursionError):
        raise DeviceError("the request's body is not JSON") from None
    if not isinstance(data, dict):
        raise DeviceError("the request's body has to be a JSON object")
    return data


def address_of(request: web.Request) -> str:
    """Return the client's address in its shortest form; an IPv4 one even when it came over an IPv6 socket.

    Forwarding headers are not believed: anybody can send them.
    """
    peer = request.remote or ""
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return peer or "local"
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def path_of(request: web.Request) -> str:
    """Return the request's path as it may be logged: as it was sent, without its query, on one line, and not long.

    Decoded, it may hold line ends and escape sequences, with which a stranger would write into the log.
    """
    raw = request.rel_url.raw_path
    return "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in raw[:_LONGEST_PATH])


def came_over_unix_socket(request: web.Request) -> bool:
    """Tell whether the request came over the control socket."""
    return unix_socket_of(request) is not None


def unix_socket_of(request: web.Request) -> socket.socket | None:
    """Return the connection's socket if it is a unix one; only for reading its options."""
    found = request.transport.get_extra_info("socket") if request.transport is not None else None
    return found if found is not None and found.family == socket.AF_UNIX else None
