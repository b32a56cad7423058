"""What every backend does alike with an answer that streams in over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator

from hotpind.chat.backend import DRAIN_S, Aside, Event, Using
from hotpind.chat.completions import AnswerReader
from hotpind.chat.messages import Message

_LOG = logging.getLogger(__name__)

ERROR_BYTES = 64 * 1024
"""As much of an error's body as is read; they are a few hundred bytes."""
CONNECTIONS = 16
"""Connections to one server at a time; more turns than this are refused long before."""
PROBE = (Message("user", "Say yes."),)
"""The question of a probe, which is nobody's."""


async def events_of(chunks: AsyncIterator[bytes], reader: AnswerReader) -> AsyncGenerator[Event, None]:
    """Translate the body of an answer, to its very end, so that its connection can be used again.

    Once the answer is whole nothing that happens to the connection matters any more. Raises as ``reader`` does, and
    what ``chunks`` raises before.
    """
    async for chunk in chunks:
        for event in reader.feed(chunk):
            yield event
        if reader.ended:
            await _drain(chunks)
            return
    for event in reader.finish():
        yield event


async def time_to_first(events: AsyncGenerator[Event, None]) -> float:
    """Read an answer to its end and return after how many seconds its first event came; closes ``events``."""
    begun = asyncio.get_running_loop().time()
    taken: float | None = None
    async with contextlib.aclosing(events):
        async for _ in events:
            if taken is None:
                taken = asyncio.get_running_loop().time() - begun
    return taken or 0.0


async def introduced(events: AsyncGenerator[Event, None], *, model: str, aside: str) -> AsyncGenerator[Event, None]:
    """Put who answers, and what is to be said first, before the first of ``events``; closes them at the end."""
    begun = False
    async with contextlib.aclosing(events):
        async for event in events:
            if not begun:
                begun = True
                yield Using(model)
                if aside:
                    yield Aside(aside)
            yield event


async def _drain(chunks: AsyncIterator[bytes]) -> None:
    try:
        async with asyncio.timeout(DRAIN_S):
            async for _ in chunks:
                pass
    except Exception as error:  # noqa: BLE001  # each HTTP library has its own, and none of them costs the answer a word
        _LOG.debug("the connection of a whole answer cannot be used again (%s)", type(error).__name__)
