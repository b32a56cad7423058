"""A binding that raises: the client is told at once, in a sentence without what was said, and the engine goes on."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import cast

import pytest
from wyoming.info import Info

from hotpind.engines import piper
from hotpind.engines.child import EngineHandler, serve_wyoming
from hotpind.engines.piper import PiperHandler, Resting
from hotpind.engines.recognizer import FULL_WINDOW, Audio, Decode
from hotpind.engines.speaker import Speaker
from hotpind.engines.whisper import WhisperHandler, warm_largest
from hotpind.errors import EngineBroke
from hotpind.speech.endpoint import RemoteEndpoint
from hotpind.speech.stt import Transcriber
from hotpind.speech.tts import Synthesizer
from tests.waiting import until

SECRET = "the wearer's words"
SECOND = bytes(2 * 16_000)
Serve = Callable[[Callable[..., EngineHandler]], Awaitable[RemoteEndpoint]]


class Breaks:
    """A recogniser that fails when it is given two seconds."""

    def decode(self, audio: Audio, *, audio_ctx: int, max_tokens: int, cancelled: Callable[[], bool]) -> Decode:
        if len(audio) > 24_000:
            raise RuntimeError(SECRET)
        return Decode("fine", -0.1)


class BreaksOff:
    """A speaker that fails at every other sentence."""

    rate = 16_000

    def speak(self, text: str, gone: threading.Event) -> Iterator[bytes]:
        for sentence in text.split("."):
            if sentence == "break":
                raise RuntimeError(SECRET)
            yield SECOND

    def stop(self, gone: threading.Event) -> None:
        """None that can be stopped in the middle of one."""


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    servers: list[asyncio.Task[None]] = []

    async def serve(factory: Callable[..., EngineHandler]) -> RemoteEndpoint:
        socket = tmp_path / "engine.sock"
        servers.append(asyncio.create_task(serve_wyoming(socket, factory)))
        async with asyncio.timeout(30):
            while not socket.exists():
                await asyncio.sleep(0.01)
        return RemoteEndpoint("test", f"unix://{socket}")

    yield serve
    for server in servers:
        server.cancel()
    await asyncio.gather(*servers, return_exceptions=True)


@pytest.fixture
def worker() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as worker:
        yield worker


async def test_a_failed_decode_is_told_at_once(
        serve: Serve, worker: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture) -> None:
    endpoint = await serve(partial(WhisperHandler, Breaks(), worker, Info(), threading.Event()))
    transcriber = Transcriber(endpoint, language="en", deadline_s=30)
    async with asyncio.timeout(30):
        with pytest.raises(EngineBroke, match=r"failed inside the engine \(RuntimeError at test_failed_requests\.py"):
            await transcriber.transcribe(2 * SECOND)
        assert await transcriber.transcribe(SECOND) == "fine"
    assert SECRET not in caplog.text


async def collect(audio: AsyncIterable[bytes], into: bytearray) -> None:
    async for pcm in audio:
        into += pcm


async def test_a_failed_synthesis_is_told_at_once(
        serve: Serve, worker: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture) -> None:
    endpoint = await serve(partial(PiperHandler, cast(Speaker, BreaksOff()), worker, Resting(worker), Info()))
    synthesizer = Synthesizer(endpoint, deadline_s=30)
    heard = bytearray()
    async with asyncio.timeout(30):
        with pytest.raises(EngineBroke, match="RuntimeError"):
            await collect(synthesizer.speak("fine.break"), heard)
        assert heard == SECOND, "what was ready before is not lost"
        assert await synthesizer.whole("fine") == SECOND
    assert SECRET not in caplog.text


async def test_a_client_that_leaves_costs_nothing(
        serve: Serve, worker: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture) -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Waits(Breaks):
        def decode(self, audio: Audio, *, audio_ctx: int, max_tokens: int, cancelled: Callable[[], bool]) -> Decode:
            begun.set()
            go_on.wait(60)
            return super().decode(audio, audio_ctx=audio_ctx, max_tokens=max_tokens, cancelled=cancelled)

    endpoint = await serve(partial(WhisperHandler, Waits(), worker, Info(), threading.Event()))
    transcriber = Transcriber(endpoint, language="en", deadline_s=30)
    leaving = asyncio.create_task(transcriber.transcribe(2 * SECOND))
    await asyncio.to_thread(begun.wait, 30)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    go_on.set()
    async with asyncio.timeout(30):
        assert await transcriber.transcribe(SECOND) == "fine"
    assert "failed" not in caplog.text


async def test_memory_is_given_back_once_when_nothing_was_spoken_for_a_moment(
        serve: Serve, worker: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(piper, "REST_S", 0.1)
    given: list[int] = []
    resting = Resting(worker, lambda: given.append(1))
    synthesizer = Synthesizer(await serve(partial(PiperHandler, cast(Speaker, BreaksOff()), worker, resting, Info())),
                              deadline_s=30)
    assert await synthesizer.whole("fine") == SECOND
    await until(lambda: len(given) == 1)
    with resting.interrupted():
        with resting.interrupted():
            pass
        await asyncio.sleep(0.3)
        assert len(given) == 1, "one of them is still spoken"
    with pytest.raises(EngineBroke):
        await synthesizer.whole("break")
    await until(lambda: len(given) == 2)
    await asyncio.sleep(0.3)
    assert len(given) == 2


async def test_a_text_that_is_read_out_leaves_half_of_the_time_to_others(
        serve: Serve, worker: ThreadPoolExecutor) -> None:
    piece_s, pieces = 0.1, 4

    class Computes(BreaksOff):
        def speak(self, text: str, gone: threading.Event) -> Iterator[bytes]:
            for _ in range(pieces):
                threading.Event().wait(piece_s)
                yield SECOND

    synthesizer = Synthesizer(await serve(partial(PiperHandler, cast(Speaker, Computes()), worker, Resting(worker),
                                                  Info())), deadline_s=30)
    began = time.monotonic()
    assert await synthesizer.read_out("fine") == pieces * SECOND
    assert time.monotonic() - began >= 2 * pieces * piece_s


async def test_the_largest_buffers_are_warmed_when_nobody_asks(worker: ThreadPoolExecutor) -> None:
    asked, windows = threading.Event(), list[int]()

    class Disturbed(Breaks):
        def decode(self, audio: Audio, *, audio_ctx: int, max_tokens: int, cancelled: Callable[[], bool]) -> Decode:
            windows.append(audio_ctx)
            if len(windows) == 1:
                asked.set()
            return Decode("", 0.0)

    async with asyncio.timeout(30):
        await warm_largest(Disturbed(), worker, asked, quiet_s=0.01)
    assert windows == [FULL_WINDOW, FULL_WINDOW], "given up for a question, and done after it"
