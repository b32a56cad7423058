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
from hotpind.engines.backoff import Backoff
from hotpind.engines.fleet import llama_spec
from hotpind.engines.llama import BATCH, STUCK_S, WAITING, Pulse
from hotpind.engines.supervisor import Engine, EngineSpec, EngineState
from hotpind.models.catalogue import Role
from hotpind.models.store import ModelStore
from tests.places import models_path
from tests.waiting import until

STUCK_SOON_S = 2.0
NEVER_S = 600.0
PATIENCE_S = 60.0
"""For what happens in a moment, unless the machine has other things to do."""
ENGINE = textwrap.dedent("""
    import os, time
    from pathlib import Path
    from aiohttp import web
    from hotpind.engines import llama

    class Model:
        '''Answers with the words it is given; hangs, takes its time or waits for a file, when they say so.'''
        def create_chat_completion(self, messages, stream, **options):
            text = messages[-1]["content"]
            if text == "hang":
                time.sleep(3600)
            for word in text.split():
                if word == "slowly":
                    time.sleep(0.4)
                if word.startswith("until:"):
                    gate = Path(word.removeprefix("until:"))
                    gate.with_suffix(".begun").touch()
                    while not gate.exists():
                        time.sleep(0.01)
                yield {"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]}

    class Server(llama.ChatServer):
        '''Tells how many requests it has clients for, and how many count as waiting.'''
        clients = 0

        async def _chat(self, request):
            self.clients += 1
            try:
                return await super()._chat(request)
            finally:
                self.clients -= 1

        def application(self):
            app = super().application()
            app.router.add_get("/counts", self._counts)
            return app

        async def _counts(self, _):
            return web.json_response([self.clients, self._waiting])

    llama.STUCK_S = float(os.environ["STUCK_S"])
    llama.ChatServer = Server
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
async def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                 request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    """The engine's own program around a model that hangs on request, under the real supervisor.

    A parameter is the seconds without progress after which it counts as hanging.
    """
    monkeypatch.setattr(supervisor, "BEAT_BUSY_S", 0.2)
    script = tmp_path / "engine.py"
    script.write_text(ENGINE)
    spec = llama_spec(Config(), tmp_path, lambda: (Path("none.gguf"), None))
    engine = Engine(EngineSpec("llama", lambda: [str(script), "--model", "none.gguf"], tmp_path / "e.sock", spec.alive,
                               environ=MappingProxyType({"STUCK_S": str(getattr(request, "param", STUCK_SOON_S))})))
    engine.start()
    await engine.ready(PATIENCE_S)
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
    engine.expect_use(PATIENCE_S)
    async with client(engine) as session:
        with pytest.raises((aiohttp.ClientError, TimeoutError)):
            async with asyncio.timeout(PATIENCE_S):
                await ask(session, "hang")
    await engine.ready(PATIENCE_S)
    assert engine.pid not in {None, first}
    assert engine.restarts == 1
    async with client(engine) as session:
        assert (await ask(session, "hello"))[0] == 200


async def test_the_reason_is_told(engine: Engine) -> None:
    engine.expect_use(PATIENCE_S)
    # It is told until the engine is started again, which a busy machine must not miss.
    engine._backoff = Backoff(NEVER_S)
    async with client(engine) as session:
        with pytest.raises((aiohttp.ClientError, TimeoutError)):
            async with asyncio.timeout(PATIENCE_S):
                await ask(session, "hang")
    assert engine.state is EngineState.WAITING
    assert "no progress" in engine.detail


async def test_slow_work_and_a_queue_are_not_taken_for_a_hang(engine: Engine) -> None:
    engine.expect_use(PATIENCE_S)
    async with client(engine) as session:
        begun = time.monotonic()
        answers = await asyncio.gather(*(ask(session, "slowly " * 6) for _ in range(3)))
        assert time.monotonic() - begun > 3 * STUCK_SOON_S
    assert [status for status, _ in answers] == [200] * 3
    assert engine.restarts == 0


async def until_counts(session: aiohttp.ClientSession, clients: int, waiting: int) -> None:
    """Wait until the engine has so many clients, and so many requests count as waiting."""
    found: list[int] = []
    end = time.monotonic() + PATIENCE_S
    while found != [clients, waiting]:
        assert time.monotonic() < end, f"clients and requests waiting are {found}, not {[clients, waiting]}"
        async with session.get("/counts") as response:
            found = await response.json()
        await asyncio.sleep(0.01)


async def one_too_many(session: aiohttp.ClientSession) -> list[asyncio.Task[tuple[int, Any]]]:
    """Ask as many things at once as may wait, of which one must be refused; return all."""
    asking = [asyncio.create_task(ask(session, "hello")) for _ in range(WAITING)]
    done, _ = await asyncio.wait(asking, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
    assert [each.result()[0] for each in done] == [503]
    return asking


@pytest.mark.parametrize("engine", [NEVER_S], indirect=True)
async def test_requests_whose_client_left_count_until_the_worker_has_dropped_them(
        engine: Engine, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    async with client(engine) as session:
        slow = asyncio.create_task(ask(session, f"until:{first}"))
        await until_counts(session, 1, 1)
        crowd = [asyncio.create_task(ask(session, "hello")) for _ in range(WAITING - 1)]
        await until_counts(session, WAITING, WAITING)
        assert (await ask(session, "one too many"))[0] == 503
        for each in crowd:
            each.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
        # Those that had not begun are gone, and make room; the one under way still counts.
        await until_counts(session, 1, 1)
        again = await one_too_many(session)
        first.touch()
        assert sorted([(await each)[0] for each in again]) == [200] * (WAITING - 1) + [503]
        assert (await slow)[0] == 200
        await until_counts(session, 0, 0)

        slow = asyncio.create_task(ask(session, f"until:{second}"))
        await until(second.with_suffix(".begun").exists, PATIENCE_S)
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
        await until_counts(session, 0, 1)
        again = await one_too_many(session)
        second.touch()
        assert sorted([(await each)[0] for each in again]) == [200] * (WAITING - 1) + [503]
        await until_counts(session, 0, 0)


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
