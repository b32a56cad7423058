"""All connected devices: the route ``/ws``, one connection for each session id, the bound on their number."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web

from hotpind.conversation.assistant import Assistant
from hotpind.errors import DeviceGone
from hotpind.system.logs import fields
from hotpind.wearable import protocol
from hotpind.wearable.link import Link
from hotpind.wearable.protocol import Hello
from hotpind.wearable.session import Session

_LOG = logging.getLogger(__name__)

HEARTBEAT_S = 20.0
"""The appliance pings too: a silently dead connection is found after one ping and half an interval without answer."""
OVERSIZE_FACTOR = 4
"""A message over the limit is answered with an error; one over this many times the limit ends the connection."""
MOST_STRANGERS = 64
"""Connections that have not said who they are; one more and the oldest, which had the longest time to, is closed."""


class Hub:
    """The connected devices by session id."""

    def __init__(self, assistant: Assistant, may_use: Callable[[web.Request, str], Awaitable[None]],
                 condition: Callable[[], dict[str, Any]]) -> None:
        """Check each device with ``may_use``, which raises an HTTP error for one that is not let in."""
        self.sessions: dict[str, Session] = {}
        self._serving: set[Session] = set()
        """All that have not ended, also one that was replaced by a new connection of its device."""
        self._past_underruns = 0
        self._assistant = assistant
        self._may_use = may_use
        self._condition = condition
        self._strangers: dict[asyncio.Task[Any], None] = {}

    @property
    def underruns(self) -> int:
        """Times that playback ran dry at any device since the start; never goes down."""
        return self._past_underruns + sum(session.underruns for session in self._serving)

    async def connect(self, request: web.Request) -> web.StreamResponse:
        """Serve one device from its upgrade to its goodbye."""
        await self._may_use(request, "")
        if len(self._strangers) >= MOST_STRANGERS:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.cancel()
        ws = web.WebSocketResponse(heartbeat=HEARTBEAT_S, compress=False,
                                   max_msg_size=OVERSIZE_FACTOR * self._assistant.config.server.max_message_bytes)
        task = asyncio.current_task()
        assert task is not None
        self._strangers[task] = None
        try:
            await ws.prepare(request)
            hello = await _hello(ws)
        finally:
            self._strangers.pop(task, None)
        link = Link(ws, request.transport)
        if hello is None or not hello.session_id:
            await link.close(WSCloseCode.POLICY_VIOLATION, "the first message must carry a session_id")
            return ws
        try:
            await self._may_use(request, hello.session_id)
        except web.HTTPException:
            await _refuse(link, "This device may not use that session id.", WSCloseCode.POLICY_VIOLATION)
            return ws
        await self._serve(link, hello)
        return ws

    async def _serve(self, link: Link, hello: Hello) -> None:
        name = hello.session_id
        most = self._assistant.config.server.max_devices
        if name not in self.sessions and len(self.sessions) >= most:
            await _refuse(link, f"The appliance already serves {most} devices. Please try again later.",
                          WSCloseCode.TRY_AGAIN_LATER)
            return
        if self._assistant.stopping:
            await _refuse(link, "The appliance is being switched off. Please try again later.",
                          WSCloseCode.GOING_AWAY)
            return
        old = self.sessions.get(name)
        session = self.sessions[name] = Session(link, hello, self._assistant, self._condition)
        if old is not None:
            _LOG.debug("%s connected again; its old connection is closed", name)
            # The old connection is usually dead without a FIN: the new one does not wait for its farewell.
            farewell = asyncio.create_task(old.close(WSCloseCode.GOING_AWAY, "replaced by a new connection"))
        else:
            farewell = None
            _LOG.info("%s is connected", name, extra=fields(device=name))
        self._serving.add(session)
        try:
            await session.run()
        finally:
            link.let_go()
            self._serving.discard(session)
            self._past_underruns += session.underruns
            if self.sessions.get(name) is session:
                del self.sessions[name]
                _LOG.info("%s is gone", name, extra=fields(device=name))
            if farewell is not None:
                with contextlib.suppress(Exception, asyncio.CancelledError):
                    await farewell

    def disconnect(self, device: str) -> asyncio.Task[None] | None:
        """End a device's connection now (its token was revoked)."""
        session = self.sessions.get(device)
        if session is None:
            return None
        return asyncio.create_task(session.close(WSCloseCode.POLICY_VIOLATION, "this device was revoked"),
                                   name="disconnect")

    async def close(self) -> None:
        """End all connections."""
        await asyncio.gather(*(session.leave() for session in list(self.sessions.values())), return_exceptions=True)


async def _hello(ws: web.WebSocketResponse) -> Hello | None:
    """Wait for the message with the session id."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(protocol.HELLO_DEADLINE_S):
            async for message in ws:
                if message.type is not WSMsgType.TEXT:
                    return None
                parsed = protocol.parse(message.data)
                if isinstance(parsed, Hello):
                    return parsed
    return None


async def _refuse(link: Link, sentence: str, code: int) -> None:
    with contextlib.suppress(DeviceGone):
        await link.send_text(protocol.error(sentence))
        await link.send_text(protocol.idle())
    await link.close(code, sentence)
