"""The language model engine as the chat chain sees it: loaded when it may be needed, unloaded when long unused."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp

from hotpind.engines.supervisor import Engine, EngineState
from hotpind.errors import EngineUnavailable

_LOG = logging.getLogger(__name__)

LOAD_DEADLINE_S = 40.0
"""A turn has 50 s to begin; a 1.5 B model on a Pi 4 loads in about 30."""
LONGEST_ANSWER_S = 30.0
"""For this long after a request its engine's liveness is watched every second."""
WARM_DEADLINE_S = 5.0


class LocalModel:
    """Starts the engine when it is needed and gives out its socket."""

    def __init__(self, engine: Engine, *, model: str, sees_images: bool, idle_s: float,
                 may_unload: Callable[[], bool] = lambda: False, has_room: Callable[[], bool] = lambda: False,
                 clock: Callable[[], float] = time.monotonic) -> None:
        """Manage ``engine``; it may be unloaded after ``idle_s`` seconds without use when ``may_unload`` says so.

        ``has_room`` (called in a thread) tells whether it may be loaded before anybody needs it.
        """
        self.engine = engine
        self.model = model
        self.sees_images = sees_images
        self.idle_s = idle_s
        self._may_unload = may_unload
        self._has_room = has_room
        self._clock = clock
        self._last_used = clock()
        self._standing_by: asyncio.Task[None] | None = None
        self._warming: asyncio.Task[None] | None = None
        self._to_warm: list[dict[str, Any]] | None = None

    @property
    def state(self) -> str:
        """One of idle (not loaded), loading, online and off (cannot be used)."""
        return {EngineState.STOPPED: "idle", EngineState.READY: "online",
                EngineState.UNUSABLE: "off"}.get(self.engine.state, "loading")

    async def socket(self, *, refused: bool = False) -> Path:
        """Return the socket of the running engine, loading the model if need be.

        ``refused``: a request to the one before failed, see `Engine.ready`. Raises `EngineUnavailable`.
        """
        self._last_used = self._clock()
        self.engine.start()
        self.engine.expect_use(LONGEST_ANSWER_S)
        return await self.engine.ready(LOAD_DEADLINE_S, refused=refused)

    def stand_by(self, messages: list[dict[str, Any]]) -> None:
        """Load the model where there is room, in case the cloud is lost, and evaluate ``messages``, a conversation's
        beginning or nothing; returns at once. A model that is loaded stays so for as long as if it had been used.
        """
        self._last_used = self._clock()
        if self.state != "idle":
            self._warm_if_any(messages)
        elif self._standing_by is None or self._standing_by.done():
            self._standing_by = asyncio.create_task(self._stand_by(messages), name="have the local model stand by")

    async def _stand_by(self, messages: list[dict[str, Any]]) -> None:
        if await asyncio.to_thread(self._has_room):
            self.engine.start()
            self._warm_if_any(messages)

    def _warm_if_any(self, messages: list[dict[str, Any]]) -> None:
        if messages:
            self.warm(messages)

    def warm(self, messages: list[dict[str, Any]]) -> None:
        """Evaluate a conversation's beginning in a model that is loaded or being loaded, after the one under way.

        Of those that wait only the latest is evaluated: the model remembers one conversation at a time.
        """
        if self.state not in {"online", "loading"}:
            return
        self._to_warm = messages
        if self._warming is None or self._warming.done():
            self._warming = asyncio.create_task(self._warm(), name="warm the local model")

    async def _warm(self) -> None:
        try:
            await self.engine.ready(LOAD_DEADLINE_S)
        except EngineUnavailable as error:
            _LOG.debug("nothing is read ahead: %s", error)
            return
        while (messages := self._to_warm) is not None:
            self._to_warm = None
            await self._warm_with(messages)

    async def _warm_with(self, messages: list[dict[str, Any]]) -> None:
        connector = aiohttp.UnixConnector(str(self.engine.spec.socket))
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with (aiohttp.ClientSession(connector=connector) as session,
                        session.post("http://localhost/hotpind/warm", json={"messages": messages},
                                     timeout=aiohttp.ClientTimeout(total=WARM_DEADLINE_S))):
                self._last_used = self._clock()

    async def unload_when_idle(self) -> None:
        """Unload the model after a long time without use while something else answers; runs until cancelled."""
        while True:
            await asyncio.sleep(max(30.0, self.idle_s / 4) if self.idle_s else 3600.0)
            await self.unload_if_unused()

    async def unload_if_unused(self) -> bool:
        """Unload the model if nobody asked for long enough while something else answers; tells whether it was."""
        if not (self.idle_s and self.engine.state is EngineState.READY and self._may_unload()
                and self._clock() - self._last_used > self.idle_s):
            return False
        _LOG.info("Nobody asked for %.0f minutes, and the local model is unloaded", self.idle_s / 60)
        await self.engine.stop()
        return True

    async def close(self) -> None:
        """Stop the engine, and what is evaluated or waits to be."""
        self._to_warm = None
        for task in (self._standing_by, self._warming):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self.engine.stop()
