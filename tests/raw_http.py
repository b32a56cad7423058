"""Bytes over a TCP connection of their own, as no HTTP client would send them."""

from __future__ import annotations

import asyncio
import contextlib
import re


async def send_raw(port: int, data: bytes, *, seconds: float = 2.0) -> bytes:
    """Send bytes to a port of this machine; return what comes back until the connection ends or the time is over."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    try:
        writer.write(data)
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(seconds):
                await writer.drain()
                while piece := await reader.read(65536):
                    answer += piece
    finally:
        writer.close()
    return answer


def statuses(answer: bytes) -> list[int]:
    """Return the status codes of all HTTP answers in some bytes."""
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", answer)]
