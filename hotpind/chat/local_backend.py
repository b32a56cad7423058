"""The language model on this machine, behind the engine that keeps it alive."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from hotpind.chat.backend import Aside, Event, Probe, Using, Words
from hotpind.chat.blind import for_the_blind, newest_pictured, question_pictures
from hotpind.chat.coaching import coached
from hotpind.chat.completions import Service, encoded_messages
from hotpind.chat.lookup import NameLookup
from hotpind.chat.messages import ChatRequest, Message, Picture
from hotpind.chat.ocr import PictureReader
from hotpind.chat.openai_client import ChatClient
from hotpind.chat.pictures import PictureLimits, fit, has_pictures, newest_pictures
from hotpind.chat.readiness import Ahead
from hotpind.config.schema import LocalSection
from hotpind.errors import BackendUnreachable, HotpinError

NAME = "local"
SERVICE = Service(NAME, "restart the appliance, whose own engine wants none", has_key=False)
PICTURE_LIMITS = PictureLimits(count=1, base64_bytes=1_000_000, side=512)
"""One picture of one 512 px tile: 128 tokens to read on a slow machine (tile and overview), not a thousand."""
FITTING = 2
"""Pictures made smaller at a time before their question is complete; further ones wait for it."""
CONNECT_TIMEOUT_S = 2.0


class LocalEngine(Protocol):
    """The process that runs the model; loads it when it is needed and not there yet."""

    @property
    def model(self) -> str:
        """Name of the model."""

    @property
    def state(self) -> str:
        """idle, loading, online or off, for the status."""

    @property
    def sees_images(self) -> bool:
        """Whether the model has a vision projector."""

    async def socket(self, *, refused: bool = False) -> Path:
        """Return the unix socket of the running engine, having loaded the model if need be.

        ``refused``: a request to the one before failed, so it is probably dying, and its successor is wanted.
        Raises `hotpind.errors.HotpinError`.
        """

    def warm(self, messages: list[dict[str, Any]]) -> None:
        """Read these messages ahead, or look at their pictures; returns at once."""


class LocalBackend:
    """Asks the local model; retries once when the engine died, since it is started again at once."""

    def __init__(self, engine: LocalEngine, config: LocalSection, *, lookup: NameLookup,
                 reader: PictureReader | None) -> None:
        """``reader``: reads the text in pictures for a model without eyes; None when that is not
        installed.
        """
        self._engine = engine
        self._config = config
        self._lookup = lookup
        self._reader = reader
        self._fitting: Ahead[tuple[Picture, ...]] = Ahead(self._fit_and_show, name="chat picture",
                                                              most=FITTING)
        self._clients: dict[Path, ChatClient] = {}

    @property
    def name(self) -> str:
        """Name in the status and in turn records."""
        return NAME

    @property
    def model(self) -> str:
        """The loaded model, or the one that would be."""
        return self._engine.model

    @property
    def ready(self) -> bool:
        """It always is: a model that is not there yet is fetched by the engine's keeper."""
        return True

    @property
    def note(self) -> str:
        """Nothing."""
        return ""

    @property
    def retired(self) -> list[str]:
        """None."""
        return []

    @property
    def state(self) -> str:
        """The engine's state."""
        return self._engine.state

    async def stream(self, request: ChatRequest, *, quiet_s: float) -> AsyncGenerator[Event, None]:
        """Ask for an answer; see `hotpind.chat.backend.Backend`."""
        # The engine is asked first, so that it loads while the picture is worked on.
        waking = asyncio.ensure_future(self._socket())
        try:
            request, aside = await self._adapted(request)
            # Without pictures it takes less time than the way to a thread.
            body = (await asyncio.to_thread(self._body, request) if has_pictures(request.messages)
                    else self._body(request))
            path = await waking
        finally:
            waking.cancel()
            await asyncio.wait({waking})
            if not waking.cancelled():
                waking.exception()  # known already, or of no interest to a question that was given up
        yield Using(self.model)
        if aside:
            yield Aside(aside)
        for last in (False, True):
            spoke = False
            client = await self._client_of(path)
            try:
                async with contextlib.aclosing(client.stream(body, model=self.model, quiet_s=quiet_s)) as events:
                    async for event in events:
                        spoke = spoke or (isinstance(event, Words) and bool(event.text))
                        yield event
                return
            except BackendUnreachable:
                if spoke or last:
                    raise
            path = await self._socket(refused=True)

    async def probe(self, kind: Probe, *, quiet_s: float) -> float:
        """Load the model; ``kind`` makes no difference."""
        await self._socket()
        return 0.0

    async def refresh_key(self) -> bool:
        """It has none."""
        return False

    def expect(self, pictures: Sequence[Picture]) -> None:
        """Begin the work on the pictures of a question that is still being asked; returns at once."""
        newest = pictures[-PICTURE_LIMITS.count:]
        if not self._engine.sees_images:
            if self._reader:
                self._reader.expect(newest)
            return
        for picture in newest:
            self._fitting.begin(picture)

    async def close(self) -> None:
        """Close every connection and the reader, and end the work on pictures."""
        await self._fitting.close()
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.close()
        if self._reader:
            await self._reader.close()

    async def _socket(self, *, refused: bool = False) -> Path:
        try:
            return await self._engine.socket(refused=refused)
        except HotpinError as error:
            raise BackendUnreachable(f"the local model is not available: {error}") from None

    async def _adapted(self, request: ChatRequest) -> tuple[ChatRequest, str]:
        """Return the request as the model can take it, and what has to be said first."""
        if self._engine.sees_images:
            return await asyncio.to_thread(fit, await self._with_fitted(request), PICTURE_LIMITS), ""
        text: list[str] = []
        at = newest_pictured(request.messages)
        if self._reader and at is not None:
            text = await self._reader.read(request.messages[at].pictures[-PICTURE_LIMITS.count:])
        return for_the_blind(request, text)

    async def _with_fitted(self, request: ChatRequest) -> ChatRequest:
        """Return the request with what was prepared of its pictures in their place."""
        pictures = question_pictures(request)[-PICTURE_LIMITS.count:]
        jobs = [job for picture in pictures if (job := self._fitting.begin(picture)) is not None]
        if not jobs or len(jobs) < len(pictures):
            return request
        # As long as the question itself waits: the contest cancels it.
        await asyncio.wait(jobs)
        for picture in pictures:
            self._fitting.forget(picture)
        *before, question = newest_pictures(request.messages, PICTURE_LIMITS.count)
        fitted = tuple(picture for job in jobs for picture in job.result())
        return replace(request, messages=(*before, replace(question, pictures=fitted)))

    async def _fit_and_show(self, picture: Picture) -> tuple[Picture, ...]:
        """Return a picture as the model takes it, and have it looked at before the question that it belongs to."""
        fitted = await _fitted(picture)
        if fitted:
            shown = await asyncio.to_thread(encoded_messages, [Message("user", "", fitted)])
            self._engine.warm(shown)
        return fitted

    def _body(self, request: ChatRequest) -> bytes:
        messages = encoded_messages(coached(request.messages, self.model))
        return json.dumps({
            "model": self.model, "messages": messages, "stream": True,
            "max_tokens": self._config.max_tokens, "temperature": self._config.temperature,
            "repeat_penalty": self._config.repeat_penalty, "user": request.device}).encode()

    async def _client_of(self, path: Path) -> ChatClient:
        client = self._clients.get(path)
        if client is None:
            # An engine that was replaced took its socket with it.
            old, self._clients = self._clients, {}
            client = self._clients[path] = ChatClient("http://localhost/v1", SERVICE, lookup=self._lookup,
                                                      socket=path, connect_timeout_s=CONNECT_TIMEOUT_S)
            for gone in old.values():
                await gone.close()
        return client


async def _fitted(picture: Picture) -> tuple[Picture, ...]:
    """Return a picture as the model takes it; nothing when it cannot be decoded."""
    alone = ChatRequest((Message("user", "", (picture,)),))
    return (await asyncio.to_thread(fit, alone, PICTURE_LIMITS)).messages[0].pictures
