"""A pin asks to be paired: ``POST /pair``, again and again until it is let in or turned away."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
from yarl import URL

from hotpind import __version__
from hotpind.errors import PinOfflineError, PinRefusedError
from hotpind.pin.transport import Tls, why

MODEL = "hotpinctl"
REQUEST_WAIT_S = 5.0
"""For one answer; a lost packet is better made up for by asking again."""
LOST_RETRY_S = 1.0
SHORTEST_RETRY_S, LONGEST_RETRY_S = 1.0, 60.0


@dataclass(frozen=True, slots=True)
class Paired:
    """What the appliance gave a pin that it let in."""

    token: str
    appliance_id: str
    name: str
    tls_port: int = 0
    """0 when there is no encrypted port."""
    fingerprint: str = ""


async def pair(base: URL, session_id: str, *, tls: Tls = True, wait_s: float = 120.0, name: str = "",
               on_waiting: Callable[[str], None] = lambda _: None,
               clock: Callable[[], float] = time.monotonic) -> Paired:
    """Ask the appliance at ``base`` to let the pin ``session_id`` in; a person may take ``wait_s`` to agree.

    ``on_waiting`` is told once, in a sentence, when a person has to agree. Raises `PinRefusedError` when
    somebody said no or nobody said yes in time, `PinOfflineError` when nobody answered.
    """
    request = {"device_id": session_id, "name": name or session_id, "model": MODEL, "firmware": __version__,
               # The same in every request of this attempt: an answer that was lost on the way is given again.
               "attempt": secrets.token_hex(16)}
    deadline = clock() + wait_s
    waiting = False
    problem = "no answer"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls, force_close=True),
                                     timeout=aiohttp.ClientTimeout(total=REQUEST_WAIT_S)) as http:
        while True:
            pause = LOST_RETRY_S
            try:
                status, reply, after = await _ask(http, base, request)
            except (aiohttp.ServerFingerprintMismatch, aiohttp.ClientConnectorCertificateError) as error:
                problem = why(error)
                break
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                problem = why(error)
            else:
                if status == 200:
                    return _read(reply, base)
                pause = _pause(status, reply, after, base)
                request.pop("nonce", None)
                if status == 202:
                    request["nonce"] = str(reply.get("nonce", ""))
                if status == 202 and not waiting:
                    waiting = True
                    on_waiting(f"The appliance waits for a person to let {session_id} in: run "
                               f"`hotpinctl devices approve {session_id}` on it.")
            if clock() + pause > deadline:
                break
            await asyncio.sleep(pause)
    if waiting:
        raise PinRefusedError(f"Nobody let {session_id} in within {wait_s:.0f} s; try again and run "
                              f"`hotpinctl devices approve {session_id}` on the appliance meanwhile.")
    raise PinOfflineError(f"The appliance at {base} could not be asked to pair: {problem}.")


async def _ask(http: aiohttp.ClientSession, base: URL,
               request: dict[str, str]) -> tuple[int, dict[str, Any], str]:
    async with http.post(base / "pair", json=request) as response:
        content: Any = None
        with contextlib.suppress(ValueError):
            content = await response.json(content_type=None)
        return response.status, content if isinstance(content, dict) else {}, response.headers.get("Retry-After", "")


def _read(reply: dict[str, Any], base: URL) -> Paired:
    token, port = reply.get("token"), reply.get("tls_port")
    if not isinstance(token, str) or not token:
        raise PinRefusedError(f"The appliance at {base} paired this pin but gave no token.")
    return Paired(token, str(reply.get("id", "")), str(reply.get("name", "")), port if isinstance(port, int) else 0,
                  str(reply.get("fp", "")))


def _pause(status: int, reply: dict[str, Any], after: str, base: URL) -> float:
    """Return the seconds to wait before asking again; raise when that is of no use."""
    message = str(reply.get("message") or "")
    if status == 403:
        raise PinRefusedError(message or f"The appliance at {base} turned this pin away.")
    if status not in (202, 410, 429) and status < 500:
        raise PinRefusedError(f"The appliance at {base} does not pair (it answered {status}): "
                              f"{message or 'no reason given'}")
    wished = reply.get("retry_after", after)
    with contextlib.suppress(TypeError, ValueError):
        return min(LONGEST_RETRY_S, max(SHORTEST_RETRY_S, float(wished)))
    return LOST_RETRY_S
