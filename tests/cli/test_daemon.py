"""The command `hotpind`: what ends its start, what a signal does in every part of it, and its exit status."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from wyoming.event import async_read_event, async_write_event
from wyoming.info import Attribution, Describe, Info, TtsProgram, TtsVoice
from wyoming.tts import Synthesize

from tests.appliance.harness import Daemon
from tests.fakes.groq import FakeGroq
from tests.waiting import until

pytestmark = [pytest.mark.models, pytest.mark.slow]

STARTED_S = 200.0
GONE_S = 15.0
"""The engines have 5 s to end, and the interpreter takes its time on a busy machine."""
NOBODY = Attribution(name="nobody", url="")
PROGRAM = Info(tts=[TtsProgram(name="mute", attribution=NOBODY, installed=True, description=None, version=None, voices=[
    TtsVoice(name="mute", attribution=NOBODY, installed=True, description=None, version=None, languages=["en"])])])


@contextlib.asynccontextmanager
async def begun(settings: dict[str, str], arguments: Sequence[str]) -> AsyncIterator[Daemon]:
    """Run a daemon without waiting for anything; it is killed in the end."""
    daemon = Daemon(settings, arguments=arguments, wait=False)
    try:
        yield daemon
    finally:
        if daemon.process.poll() is None:
            daemon.process.kill()
        await asyncio.to_thread(daemon.process.wait)


async def ended(daemon: Daemon, seconds: float = STARTED_S) -> int:
    status = await asyncio.to_thread(daemon.process.wait, seconds)
    await asyncio.to_thread(daemon.wait_for_output)
    return status


async def test_a_refused_key_does_not_end_a_start_that_is_to_be_proved() -> None:
    async with FakeGroq(key="gsk_another0123456789abcdefghijklmnopqrstuvw") as fake:
        settings = {"GROQ_API_KEY": "gsk_stale0123456789abcdefghijklmnopqrstuvwxy", "CHAT__GROQ__BASE_URL": fake.url}
        async with begun(settings, ["--once"]) as daemon:
            status = await ended(daemon)
        assert fake.requests, "the key was not even tried"
    assert status == 0, daemon.log
    assert f"ready: {daemon.url}" in daemon.log
    for row in ("asked", "understood", "answered", "by", "first audio at the pin", "answer complete"):
        assert [line for line in daemon.lines if f"│ {row} " in line], daemon.log


@pytest.mark.parametrize(("settings", "words"), [
    ({"STT__MODEL": "/nowhere/ears.bin"}, "hotpind: the whisper engine: there is no file /nowhere/ears.bin"),
    ({"TTS__URI": "unix:///nowhere/voice.sock"}, "hotpind: the text-to-speech server at unix:///nowhere/voice.sock"),
    ({"CHAT__LOCAL__MODEL": "/nowhere/brain.gguf"}, "the self-test failed: no language model answered")])
async def test_speech_or_a_brain_that_cannot_work_ends_it_with_a_sentence(settings: dict[str, str],
                                                                          words: str) -> None:
    async with begun(settings, ["--once"]) as daemon:
        assert await ended(daemon) == 1
    assert words in " ".join(daemon.log.split()), daemon.log
    assert "ready:" not in daemon.log
    assert "Traceback" not in daemon.log


@contextlib.asynccontextmanager
async def mute_voice(socket: Path) -> AsyncIterator[asyncio.Event]:
    """Run a voice that tells what it is, and never says a word when asked to; gives what is set when it was asked."""
    asked = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while (event := await async_read_event(reader)) is not None:
                if Describe.is_type(event.type):
                    await async_write_event(PROGRAM.event(), writer)
                elif Synthesize.is_type(event.type):
                    asked.set()
        writer.close()

    async with await asyncio.start_unix_server(serve, socket):
        yield asked


@pytest.mark.parametrize(("arguments", "number", "expected"), [
    (["--self-test"], signal.SIGINT, 0), (["--once"], signal.SIGTERM, 1)])
async def test_it_ends_at_once_in_the_middle_of_the_self_test(tmp_path: Path, arguments: list[str],
                                                              number: signal.Signals, expected: int) -> None:
    voice = tmp_path / "v"
    async with mute_voice(voice) as asked, begun({"TTS__URI": f"unix://{voice}"}, arguments) as daemon:
        await until(lambda: daemon.url and asked.is_set(), STARTED_S, lambda: daemon.log)
        asked_at = time.monotonic()
        await asyncio.sleep(0.3)
        assert daemon.process.poll() is None
        daemon.process.send_signal(number)
        assert await ended(daemon, 60) == expected, daemon.log
        assert time.monotonic() - asked_at < GONE_S
    assert "Traceback" not in daemon.log
    assert "ready:" not in daemon.log
