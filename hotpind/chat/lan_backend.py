"""An OpenAI-compatible server on the network: Ollama, llama-server, vLLM."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

from hotpind.chat.backend import Event, Probe
from hotpind.chat.blind import for_the_blind
from hotpind.chat.completions import Service, encoded_messages
from hotpind.chat.key import Secret, read_configured_key
from hotpind.chat.lookup import NameLookup
from hotpind.chat.messages import ChatRequest, Picture
from hotpind.chat.openai_client import ChatClient
from hotpind.chat.pictures import PictureLimits, fit, has_pictures
from hotpind.chat.streaming import PROBE, introduced, time_to_first
from hotpind.config.schema import BackendTable
from hotpind.errors import OperatorError, PayloadTooLarge

_LOG = logging.getLogger(__name__)

PICTURE_LIMITS = PictureLimits()
SMALL_PICTURES = PictureLimits(count=1, base64_bytes=500_000, side=768)
"""What is sent after the server refused a request as too large."""


class LanBackend:
    """One `[[chat.backend]]` table."""

    def __init__(self, table: BackendTable, *, lookup: NameLookup, connect_timeout_s: float) -> None:
        self._table = table
        self._key_file = Path(table.key_file).expanduser() if table.key_file else None
        self._key: Secret | None = None
        self._note = ""
        self._setting = f'key_file of [[chat.backend]] "{table.name}"'
        advice = (f"put a valid one into {self._key_file} ({self._setting})" if self._key_file else
                  f"name the file of one as {self._setting}")
        self._client = ChatClient(table.url, Service(table.name, advice, has_key=self._key_file is not None),
                                  lookup=lookup, key=lambda: self._key, connect_timeout_s=connect_timeout_s)

    @property
    def name(self) -> str:
        """Name in the status and in turn records."""
        return self._table.name

    @property
    def model(self) -> str:
        """The model asked for."""
        return self._table.model

    @property
    def ready(self) -> bool:
        """It always is; whether its key is needed only the server knows."""
        return True

    @property
    def note(self) -> str:
        """Why its key is not used; empty when nothing is wrong with it."""
        return self._note

    @property
    def key_problem(self) -> str:
        """The same: nothing else is ever noted."""
        return self._note

    @property
    def retired(self) -> list[str]:
        """None: a server on the network has what its owner put there."""
        return []

    async def stream(self, request: ChatRequest, *, quiet_s: float) -> AsyncGenerator[Event, None]:
        """Ask for an answer; see `hotpind.chat.backend.Backend`."""
        aside = ""
        if not self._table.images:
            request, aside = for_the_blind(request)
        for limits in (PICTURE_LIMITS, SMALL_PICTURES):
            # Without pictures it takes less time than the way to a thread.
            body = (await asyncio.to_thread(self._body, request, limits) if has_pictures(request.messages)
                    else self._body(request, limits))
            begun = False
            try:
                asking = self._client.stream(body, model=self.model, quiet_s=quiet_s)
                async with contextlib.aclosing(introduced(asking, model=self.model, aside=aside)) as events:
                    async for event in events:
                        begun = True
                        yield event
                return
            except PayloadTooLarge:
                if begun or limits is SMALL_PICTURES or not has_pictures(request.messages):
                    raise

    async def probe(self, kind: Probe, *, quiet_s: float) -> float:
        """Find out in the background whether the server works; see `hotpind.chat.backend.Backend`."""
        if kind is Probe.REACH:
            await self._client.models(quiet_s=quiet_s)
            return 0.0
        body = {"model": self.model, "messages": encoded_messages(PROBE), "stream": True, "max_tokens": 1}
        return await time_to_first(self._client.stream(body, model=self.model, quiet_s=quiet_s))

    def expect(self, pictures: Sequence[Picture]) -> None:
        """Do nothing: over the cable of a house a picture is sent in a moment."""

    async def refresh_key(self) -> bool:
        """Look for the key again and return whether it is another one than before."""
        if self._key_file is None:
            return False
        before, problem = self._key, ""
        try:
            self._key = await asyncio.to_thread(read_configured_key, self._key_file, setting=self._setting)
        except OperatorError as error:
            self._key, problem = None, str(error)
        if problem and problem != self._note:
            _LOG.warning("%s: %s", self.name, problem)
        self._note = problem
        return before != self._key

    async def close(self) -> None:
        """Close every connection."""
        await self._client.close()

    def _body(self, request: ChatRequest, limits: PictureLimits) -> bytes:
        messages = encoded_messages(fit(request, limits).messages)
        return json.dumps({"model": self.model, "messages": messages, "stream": True,
                           "max_tokens": self._table.max_tokens}).encode()
