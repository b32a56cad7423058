"""Sending a picture as the firmware does: one multipart POST on a connection of its own."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import aiohttp
from yarl import URL

from hotpind.errors import PinOfflineError
from hotpind.pin.transport import Tls, why

BOUNDARY = "----HotPinESP32CamBoundary"
REPLY_BYTES = 1024
"""The pin's buffer for the reply: the body must be smaller."""
REPLY_WAIT_S = 30.0
"""The firmware's HTTP timeout is of this order; a picture is re-encoded well within it."""


@dataclass(frozen=True, slots=True)
class ImageReply:
    """What the appliance said to a picture."""

    status: int
    """HTTP status."""
    ok: bool
    """The picture was taken."""
    message: str
    body: dict[str, Any]
    """The whole reply; empty when it was not a JSON object."""
    violations: tuple[str, ...]
    """One sentence for each breach of the protocol."""


def multipart(session_id: str, jpeg: bytes, filename: str = "image.jpg") -> bytes:
    """Make the request's body byte for byte as the firmware does: part session, then part file."""
    return (f"--{BOUNDARY}\r\n"
            'Content-Disposition: form-data; name="session"\r\n\r\n'
            f"{session_id}\r\n"
            f"--{BOUNDARY}\r\n"
            f'Content-Disposition: form-data; name="file"; filename="{filename}"\r\n'
            "Content-Type: image/jpeg\r\n\r\n").encode() + jpeg + f"\r\n--{BOUNDARY}--\r\n".encode()


async def post_image(base: URL, session_id: str, jpeg: bytes, *, token: str | None, tls: Tls,
                     filename: str = "image.jpg") -> ImageReply:
    """Send a picture for ``session_id`` to the appliance at ``base``.

    Raises `hotpind.errors.PinOfflineError` when no reply came.
    """
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    try:
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True, ssl=tls)) as http,
            http.post(base / "image", data=multipart(session_id, jpeg, filename), headers=headers,
                      timeout=aiohttp.ClientTimeout(total=REPLY_WAIT_S)) as reply,
        ):
            return check_reply(reply.status, await reply.read(), session_id, len(jpeg))
    except (aiohttp.ClientError, TimeoutError, asyncio.IncompleteReadError, OSError) as error:
        raise PinOfflineError(f"The picture did not reach {base}: {why(error)}.") from None


def check_reply(status: int, body: bytes, session_id: str, size: int) -> ImageReply:
    """Read the reply to a picture of ``size`` bytes and check it against the protocol. Pure."""
    violations = []
    if len(body) >= REPLY_BYTES:
        violations.append(f"The reply to a picture has {len(body)} bytes; "
                          f"a pin takes less than {REPLY_BYTES}.")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        violations.append("The reply to a picture is not a JSON object.")
        content = {}
    ok = status == 200 and content.get("status") == "success"
    if status == 200:
        expected = {"status": "success", "session": session_id, "context_ready": True}
        violations += [f"The reply to a picture has {key} {content.get(key)!r}, expected {value!r}."
                       for key, value in expected.items() if content.get(key) != value]
        violations += [f"The reply to a picture has no {key}." for key, kind in
                       (("message", str), ("filename", str), ("size_bytes", int))
                       if not isinstance(content.get(key), kind)]
    return ImageReply(status, ok, str(content.get("message") or content.get("detail") or ""), content,
                      tuple(violations))
