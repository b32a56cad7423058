"""The language model engine when its one worker thread hangs or its clients leave, as a real process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import aiohttp
import pytest

from hotpind.config import Config
from hotpind.engines import supervisor
from hotpind.engines.fleet import llama_spec
from hotpind.engines.llama import BATCH, STUCK_S, WAITING, Pulse
from hotpind.engines.supervisor import Engine, EngineSpec, EngineState
from hotpind.models.catalogue import Role
from hotpind.models.store import ModelStore
from tests.places import models_path

STUCK_SOON_S = 1.0
ENGINE = textwrap.dedent(f"""
    import os, time
    from hotpind.engines import llama

    class Model:
        '''Answers with the words it is given; hangs, or takes its time, when they say so.'''
        def create_chat_completion(self, messages, stream, **options):
            text = messages[-1]["content"]
            if text == "hang":
                time.sleep(3600)
            for word in text.split():
                if word == "slowly":
                    time.sleep(0.4)
                yield {{"choices": [{{"index": 0, "delta": {{"content": word}}, "finish_reason": None}}]}}

    llama.STUCK_S = {STUCK_SOON_S}
    llama.load = lambda *_, **__: Model()
    llama.prompt_of = lambda _: None
    llama.main()
""")

BATCHES = textwrap.dedent("""
    import sys
    from pathlib import Path
    from hotpind.engines.llama import BATCH, Pulse, load

    class Counted(Pulse):
        beats = 0
        def beat(self):
            self.beats += 1

    pulse = Counted()
    llm = load(Path(sys.argv[1]), None, context=1024, threads=2, gpu_layers=0, pulse=pulse)
    llm.eval([1] * (3 * BATCH + 1))
    print(pulse.beats, llm.n_tokens)
""")


@pytest.fixture
async def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Engine]:
    """The engine's own program around a model that hangs on request, under the real supervisor."""
    monkeypatch.setattr(supervisor, "BEAT_BUSY_S", 0.2)
    script = tmp_path / "engine.py"
    script.write_text(ENGINE)
    spec = llama_spec(Config(), tmp_path, lambda: (Path("none.gguf"), None))
    engine = Engine(EngineSpec("llama", lambda: [str(script), "--model", "none.gguf"], tmp_path / "e.sock", spec.alive,
                               environ=MappingProxyType({})))
    engine.start()
    await engine.ready(30)
    yield engine
    await engine.stop()


def client(engine: Engine) -> aiohttp.ClientSession:
    return aiohttp.ClientSession("http://localhost", connector=aiohttp.UnixConnector(str(engine.spec.socket), limit=0))


async def ask(session: aiohttp.ClientSession, text: str) -> tuple[int, Any]:
    async with session.post("/v1/chat/completions",
                            json={"messages": [{"role": "user", "content": text}]}) as response:
        return response.status, await response.json()



async def test_a_stuck_worker_costs_its_process(engine: Engine) -> None:
    first = engine.pid
    engine.expect_use(60)
    async with client(engine) as session:
        with pytest.raises((aiohttp.ClientError, TimeoutError)):
            async with asyncio.timeout(20):
                await ask(session, "hang")
    await engine.ready(30)
    assert engine.pid not in {None, first}
    assert engine.restarts == 1
    async with client(engine) as session:
        assert (await ask(session, "hello"))[0] == 200


async def test_the_reason_is_told(engine: Engine) -> None:
    engine.expect_use(60)
    reasons: list[str] = []

    async def watch() -> None:
        while engine.state is EngineState.READY:
            await asyncio.sleep(0.005)
        reasons.append(engine.detail)

    watching = asyncio.create_task(watch())
    async with client(engine) as session:
        with pytest.raises((aiohttp.ClientError, TimeoutError)):
            async with asyncio.timeout(20):
                await ask(session, "hang")
    async with asyncio.timeout(20):
        await watching
    assert "no progress" in reasons[0]


async def test_slow_work_and_a_queue_are_not_taken_for_a_hang(engine: Engine) -> None:
    engine.expect_use(60)
    async with client(engine) as session:
        begun = time.monotonic()
        answers = await asyncio.gather(*(ask(session, "slowly " * 4) for _ in range(3)))
        assert time.monotonic() - begun > 3 * STUCK_SOON_S
    assert [status for status, _ in answers] == [200] * 3
    assert engine.restarts == 0


async def test_requests_whose_client_left_count_until_the_worker_has_dropped_them(
        engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    async with client(engine) as session:
        slow = asyncio.create_task(ask(session, "slowly slowly"))
        await asyncio.sleep(0.1)
        crowd = [asyncio.create_task(ask(session, "hello")) for _ in range(WAITING - 1)]
        await asyncio.sleep(0.1)
        assert (await ask(session, "one too many"))[0] == 503
        for each in crowd:
            each.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
        await asyncio.sleep(0.1)
        # Those that had not begun are gone, and make room; the one under way still counts.
        again = await asyncio.gather(*(ask(session, "hello") for _ in range(WAITING)))
        assert sorted(status for status, _ in again) == [200] * (WAITING - 1) + [503]
        assert (await slow)[0] == 200
        slow = asyncio.create_task(ask(session, "slowly"))
        await asyncio.sleep(0.1)
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
        again = await asyncio.gather(*(ask(session, "hello") for _ in range(WAITING)))
        assert sorted(status for status, _ in again) == [200] * (WAITING - 1) + [503]


@pytest.mark.models
def test_each_batch_of_a_prompt_is_a_sign_of_progress() -> None:
    model = ModelStore(models_path()).resolve(Config().chat.local.model, Role.LLM).main
    # A process of its own: whisper.cpp's libraries, when they are loaded here, are not llama.cpp's.
    counted = subprocess.run([sys.executable, "-c", BATCHES, str(model)], capture_output=True, text=True, timeout=120,
                             check=True)
    assert counted.stdout.split() == ["4", str(3 * BATCH + 1)]


def test_the_pulse_measures_silence_only_while_there_is_work() -> None:
    now = 100.0
    pulse = Pulse(lambda: now)
    now += STUCK_S
    assert pulse.silent_s() == 0
    pulse.beat()
    now += 3
    assert pulse.silent_s() == 3
    pulse.beat()
    assert pulse.silent_s() == 0
    now += STUCK_S
    assert pulse.silent_s() == STUCK_S
    pulse.rest()
    assert pulse.silent_s() == 0
