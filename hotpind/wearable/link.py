"""The WebSocket under a session: every send has a deadline, and a device that takes nothing loses its connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable

from aiohttp import WSMessage, web

from hotpind.errors import DeviceGone

SEND_DEADLINE_S = 10.0
"""A device that takes no data for this long is gone: its own playback gives up after a gap of ten seconds."""
CLOSE_DEADLINE_S = 1.0
LONGEST_REASON = 120
"""Bytes of a closing reason; a WebSocket's control frame holds 123."""


class Link:
    """One WebSocket connection."""

    def __init__(self, ws: web.WebSocketResponse, transport: asyncio.Transport | None) -> None:
        """Take a connection that is open; ``transport`` is what carries it, None when that is gone already."""
        self._ws = ws
        self._transport = transport

    def __aiter__(self) -> AsyncIterator[WSMessage]:
        """Give the messages that come, until the connection ends."""
        return aiter(self._ws)

    async def send_text(self, text: str) -> None:
        """Send a text message. Raises `DeviceGone`."""
        await self._sending(self._ws.send_str(text))

    async def send_bytes(self, data: bytes) -> None:
        """Send a binary message. Raises `DeviceGone`."""
        await self._sending(self._ws.send_bytes(data))

    async def close(self, code: int, reason: str) -> None:
        """Say goodbye; a device that does not take it within a second is cut off."""
        try:
            async with asyncio.timeout(CLOSE_DEADLINE_S):
                await self._ws.close(code=code, message=reason.encode()[:LONGEST_REASON])
        except (ConnectionError, TimeoutError):
            self.cut()

    def cut(self) -> None:
        """End the connection now: closing in good order would wait until everything sent has been taken."""
        if self._transport is not None:
            self._transport.abort()

    def let_go(self) -> None:
        """Cut a device off that has not taken all that was sent: nobody is left who would see it gone."""
        if self._transport is None:
            return
        try:
            unsent = self._transport.get_write_buffer_size()
        except AttributeError:
            return  # asyncio's TLS transport has nothing beneath it once the connection is lost
        if unsent:
            self.cut()

    async def _sending(self, sending: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(SEND_DEADLINE_S):
                await sending
        except (ConnectionError, RuntimeError) as error:
            # aiohttp raises RuntimeError for a connection that is closing.
            raise DeviceGone(f"the device is gone ({type(error).__name__})") from None
        except TimeoutError:
            self.cut()
            raise DeviceGone(f"the device took nothing for {SEND_DEADLINE_S:g} s") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # All senders of a connection wait in aiohttp for one future, which is cancelled with the first of them
            # that gives up. Nobody cancelled this one, and it must not end without a word.
            self.cut()
            raise DeviceGone("the device took nothing while something else was being sent") from None
