"""A stand-in for the cloud, for benchmarks only: it speaks the chat completions protocol and thinks nothing.

Every question gets the same sentences, the first word after a given time. It takes the cloud's place so that the
appliance's own part can be measured the same way on every machine, without a key, a network, or anybody's limits.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from aiohttp import web

SENTENCES = ("This is the stand-in of the benchmark, and it says the same to everyone.",
             "No model has thought about your question, so please do not take this for an answer.",
             "It speaks in sentences of ordinary length, because that is what the appliance has to keep up with.")
MODEL = "benchmark-stand-in"
KEY = "gsk_benchmark_stand_in"
"""Looks like a key and opens nothing."""
WORDS_PER_S = 120.0
"""A hosted model of middling size."""
LARGEST_REQUEST = 16_000_000


def words(count: int) -> Iterator[str]:
    """Yield the answer's ``count`` words, each with the space before it; the last sentence is always whole."""
    given = 0
    for sentence in itertools.cycle(SENTENCES):
        if given >= count:
            return
        for word in sentence.split():
            yield word if not given else " " + word
            given += 1


class StandIn:
    """The server; `url` is what ``chat.groq.base_url`` is set to."""

    def __init__(self, first_word_s: float, *, answer_words: int = 30) -> None:
        """Answer with at least ``answer_words`` words, the first ``first_word_s`` seconds after the question."""
        self.first_word_s = first_word_s
        self.answer_words = answer_words
        self.url = ""
        self.questions = 0
        """Questions answered, the appliance's own probes among them."""

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[StandIn]:
        """Serve on loopback, on a port that is free."""
        app = web.Application(client_max_size=LARGEST_REQUEST)
        app.add_routes([web.post("/openai/v1/chat/completions", self._chat), web.get("/openai/v1/models", self._list)])
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0,
                               keepalive_timeout=300)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield self
        finally:
            await runner.cleanup()

    def settings(self) -> dict[str, Any]:
        """Return the settings of an appliance that asks the stand-in."""
        return {"chat.groq.enabled": True, "chat.groq.base_url": self.url,
                "chat.groq.models": [{"name": MODEL, "images": True}], "chat.backend": []}

    async def _list(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [
            {"id": MODEL, "object": "model", "created": 0, "owned_by": "benchmark"}]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        asked = time.monotonic()
        await request.read()
        self.questions += 1
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        # Counted from the question's first byte: reading a picture is part of the way, not of the thinking.
        await asyncio.sleep(max(0.0, asked + self.first_word_s - time.monotonic()))
        await response.prepare(request)
        began = time.monotonic()
        for number, word in enumerate(words(self.answer_words)):
            await asyncio.sleep(max(0.0, began + number / WORDS_PER_S - time.monotonic()))
            await response.write(_event({"content": word}, None))
        await response.write(_event({}, "stop") + b"data: [DONE]\n\n")
        await response.write_eof()
        return response


def _event(delta: dict[str, str], reason: str | None) -> bytes:
    return b"data: " + json.dumps({
        "id": "chatcmpl-stand-in", "object": "chat.completion.chunk", "created": 0, "model": MODEL,
        "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}).encode() + b"\n\n"
