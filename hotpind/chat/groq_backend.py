"""Groq: question and pictures in one streamed request, with several models, a token budget and a live
list.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

import groq
import httpx

from hotpind.chat.backend import Event, Probe
from hotpind.chat.blind import for_the_blind
from hotpind.chat.budget import TokenBudget, economise, estimate, without_oldest
from hotpind.chat.completions import NOTHING_ENCODED, AnswerReader, data_url, encoded_messages
from hotpind.chat.groq_client import SERVICE, GroqClient, was_stale
from hotpind.chat.key import KeySource, Secret
from hotpind.chat.lookup import NameLookup
from hotpind.chat.messages import ChatRequest, Message, Picture
from hotpind.chat.pictures import GROQ_LIMITS, PictureLimits, fit, has_pictures
from hotpind.chat.readiness import Ahead
from hotpind.chat.streaming import PROBE, events_of, introduced, time_to_first
from hotpind.config.schema import GroqModel, GroqSection
from hotpind.errors import (
    BackendError,
    BackendTooLate,
    BackendUnreachable,
    KeyRejected,
    ModelRetired,
    PayloadTooLarge,
)

_LOG = logging.getLogger(__name__)

SMALL = PictureLimits(count=1, base64_bytes=300_000, side=512)
"""What is sent after the service refused a request as too large."""
FORGIVEN_S = 6 * 3600.0
"""After this time a model that was refused, but is still listed, is tried again."""
LIST_PATIENCE_S = 10.0
"""For the list of models, which comes in a fraction of a second over a line that works."""
CHECK_S = 10.0
"""Somebody at a terminal can wait longer than somebody who asked a question."""


class GroqBackend:
    """The cloud brain."""

    def __init__(self, config: GroqSection, keys: KeySource, *, lookup: NameLookup, clock: Callable[[], float]
                 ) -> None:
        """``clock`` gives monotonic seconds."""
        self._config = config
        self._keys = keys
        self._lookup = lookup
        self._clock = clock
        self._key: Secret | None = None
        self._source = ""
        self._note = ""
        self._client: GroqClient | None = None
        self._opening = asyncio.Lock()
        self._unlisted: set[str] = set()
        self._refused: dict[str, float] = {}
        self._told: set[str] = set()
        self._budgets: dict[str, TokenBudget] = {}
        self._encoding: Ahead[str] = Ahead(_data_url, name="chat picture", most=GROQ_LIMITS.count)

    @property
    def name(self) -> str:
        """Name in the status and in turn records."""
        return SERVICE.name

    @property
    def model(self) -> str:
        """The model that would be asked now; empty when the service has none of the settings'."""
        return next((model.name for model in self._served()), "")

    @property
    def ready(self) -> bool:
        """Whether there is a key."""
        return self._key is not None

    @property
    def note(self) -> str:
        """Where the key comes from, or why one is not used."""
        return self._note or (f"key from {self._source}" if self._key else
                              "no key; set one with `hotpinctl key set`")

    @property
    def key_problem(self) -> str:
        """Why a key is not used, though there is one; another one may be used in its place."""
        return self._note

    @property
    def retired(self) -> list[str]:
        """Models of the settings that the service no longer has."""
        return [model.name for model in self._config.models if self._gone(model)]

    async def stream(self, request: ChatRequest, *, quiet_s: float) -> AsyncGenerator[Event, None]:
        """Ask for an answer; see `hotpind.chat.backend.Backend`."""
        while model := self._choose(request):
            begun = False
            try:
                async with contextlib.aclosing(self._ask(model, request, quiet_s)) as events:
                    async for event in events:
                        begun = True
                        yield event
                return
            except ModelRetired:
                self._refused[model.name] = self._clock()
                self._tell(model.name)
                if begun:
                    raise
        raise self._none_left()

    async def probe(self, kind: Probe, *, quiet_s: float) -> float:
        """Ask for the list of models, and (``ANSWER``) for one token; see `hotpind.chat.backend.Backend`."""
        await self._list_models(quiet_s)
        if kind is Probe.ANSWER and not self._served():
            # None is left: the only way back is to try those again that are listed.
            self._refused.clear()
        while model := next(iter(self._served()), None):
            if kind is Probe.REACH:
                return 0.0
            try:
                return await time_to_first(self._exchange(model, PROBE, 1, quiet_s))
            except ModelRetired:
                self._refused[model.name] = self._clock()
                self._tell(model.name)
        raise self._none_left()

    def expect(self, pictures: Sequence[Picture]) -> None:
        """Encode the pictures of a question that is still being asked, so that they only have to be sent; returns at
        once.
        """
        for picture in pictures:
            self._encoding.begin(picture)

    async def refresh_key(self) -> bool:
        """Look for the key again and return whether it is another one than before."""
        reading = await asyncio.to_thread(self._keys.read)
        if reading.problem and reading.problem != self._note:
            _LOG.warning("groq: %s", reading.problem)
        self._note, self._source = reading.problem, reading.source
        if reading.key == self._key:
            return False
        self._key = reading.key
        self._refused.clear()
        self._budgets.clear()
        if self._client and self._key:
            self._client.use_key(self._key)
        return True

    async def close(self) -> None:
        """Close every connection, and end the work on pictures."""
        await self._encoding.close()
        client, self._client = self._client, None
        if client:
            await client.close()

    def _gone(self, model: GroqModel) -> bool:
        return model.name in self._unlisted or model.name in self._refused

    def _served(self) -> list[GroqModel]:
        return [model for model in self._config.models if not self._gone(model)]

    def _choose(self, request: ChatRequest) -> GroqModel | None:
        """Return the first model that is served, one with eyes when there are pictures to be seen, be it of an earlier
        question.
        """
        served = self._served()
        if has_pictures(request.messages):
            served.sort(key=lambda model: not model.images)
        return served[0] if served else None

    def _none_left(self) -> ModelRetired:
        names = ", ".join(model.name for model in self._config.models)
        return ModelRetired(f"groq serves none of the models {names} any more; choose others in chat.groq.models",
                            model=names)

    def _tell(self, model: str) -> None:
        if model not in self._told:
            self._told.add(model)
            instead = f"{self.model} is asked instead" if self.model else "none of chat.groq.models is left"
            _LOG.warning("groq no longer serves the model %s; %s", model, instead)

    async def _list_models(self, quiet_s: float) -> None:
        client = await self._opened()
        try:
            async with asyncio.timeout(LIST_PATIENCE_S):
                names = await client.models(quiet_s=quiet_s)
        except TimeoutError:
            raise BackendUnreachable(f"groq gave no list of models within {LIST_PATIENCE_S:g} s") from None
        except (groq.GroqError, httpx.HTTPError, BackendError) as error:
            mapped = client.mapped(error, model="")
            # A list is no matter of thinking: its silence is the line's.
            raise BackendUnreachable(str(mapped)) if isinstance(mapped, BackendTooLate) else mapped from None
        if not names:
            return
        # What is listed and was refused all the same may have been a passing fault of the service.
        long_ago = self._clock() - FORGIVEN_S
        self._refused = {model: at for model, at in self._refused.items() if at > long_ago or model not in names}
        self._unlisted = {model.name for model in self._config.models} - names
        for model in sorted(self._unlisted):
            self._tell(model)

    async def _ask(self, model: GroqModel, request: ChatRequest, quiet_s: float) -> AsyncGenerator[Event, None]:
        """Ask one model: once with what the budget allows, once more with less when that is too large."""
        budget = self._budgets.setdefault(model.name, TokenBudget())
        aside = ""
        if not model.images:
            request, aside = for_the_blind(request)
        request, side = economise(request, budget.available(self._clock()), answer=model.max_tokens)
        budget.spend(estimate(request.messages, side=side) + model.max_tokens, self._clock())
        limits = PictureLimits(side=side) if side else GROQ_LIMITS
        pictures = has_pictures(request.messages)
        for retry in (False, True):
            begun = False
            fitted = await asyncio.to_thread(fit, request, limits) if pictures else request
            try:
                exchange = self._exchange(model, fitted.messages, model.max_tokens, quiet_s)
                async with contextlib.aclosing(introduced(exchange, model=model.name, aside=aside)) as events:
                    async for event in events:
                        begun = True
                        yield event
                return
            except PayloadTooLarge:
                if begun or retry:
                    raise
            limits = SMALL
            while not pictures and (shorter := without_oldest(request.messages)) is not None:
                request = ChatRequest(shorter, request.device, request.turn)

    async def _exchange(self, model: GroqModel, messages: tuple[Message, ...], most: int, quiet_s: float
                        ) -> AsyncGenerator[Event, None]:
        """Do one request; a kept connection that was closed meanwhile is replaced once."""
        body: dict[str, Any] = {"model": model.name, "stream": True, "max_completion_tokens": most}
        if model.reasoning_effort:
            body["reasoning_effort"] = model.reasoning_effort
        # Without pictures it takes less time than the way to a thread.
        encoded = (await asyncio.to_thread(_encoded, body, messages, await self._urls(messages))
                   if has_pictures(messages) else _encoded(body, messages))
        client = await self._opened()
        for last in (False, True):
            try:
                response = await client.post(encoded, quiet_s=quiet_s)
                try:
                    self._budgets.setdefault(model.name, TokenBudget()).update(response.headers, self._clock())
                    reader = AnswerReader(SERVICE, model=model.name)
                    async with contextlib.aclosing(events_of(response.aiter_bytes(), reader)) as events:
                        async for event in events:
                            yield event
                finally:
                    await response.aclose()
                return
            except (groq.GroqError, httpx.HTTPError, BackendError) as error:
                if isinstance(error, groq.APIStatusError):
                    self._budgets.setdefault(model.name, TokenBudget()).update(error.response.headers, self._clock())
                if last or not was_stale(error):
                    raise client.mapped(error, model=model.name) from None

    async def _urls(self, messages: tuple[Message, ...]) -> dict[Picture, str]:
        """Return the pictures that were encoded while their question was being asked."""
        pictures = {picture for message in messages for picture in message.pictures if self._encoding.expected(picture)}
        jobs = {picture: job for picture in pictures if (job := self._encoding.begin(picture)) is not None}
        if jobs:
            await asyncio.wait(jobs.values())
        return {picture: job.result() for picture, job in jobs.items() if not job.cancelled()}

    async def _opened(self) -> GroqClient:
        async with self._opening:
            if self._key is None:
                raise KeyRejected("groq has no API key; set one with `hotpinctl key set`")
            if self._client is None:
                self._client = await GroqClient.open(self._config.base_url or None, self._key, lookup=self._lookup,
                                                     connect_timeout_s=self._config.connect_timeout_s)
            return self._client


def _encoded(body: dict[str, Any], messages: tuple[Message, ...], urls: Mapping[Picture, str] = NOTHING_ENCODED
             ) -> bytes:
    return json.dumps({**body, "messages": encoded_messages(messages, urls)}).encode()


async def _data_url(picture: Picture) -> str:
    return await asyncio.to_thread(data_url, picture)


async def check_key(key: Secret, base_url: str, *, connect_timeout_s: float) -> list[str]:
    """Ask the service whether it takes the key; returns the models that the key may use.

    Raises `hotpind.errors.KeyRejected` when it does not, another `BackendError` when it cannot be asked.
    """
    client = await GroqClient.open(base_url or None, key, connect_timeout_s=connect_timeout_s, lookup=NameLookup())
    try:
        return sorted(await client.models(quiet_s=CHECK_S))
    except (groq.GroqError, httpx.HTTPError, BackendError) as error:
        raise client.mapped(error, model="") from None
    finally:
        await client.close()
