"""Engines that crash, hang, refuse and outlive their parent, as real processes."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import psutil
import pytest
from wyoming.event import Event
from wyoming.ping import Ping, Pong

from hotpind.engines import supervisor
from hotpind.engines.backoff import CAP_S, FIRST_S, Backoff
from hotpind.engines.fleet import ping_wyoming
from hotpind.engines.supervisor import Engine, EngineSpec, EngineState
from hotpind.errors import EngineTimeout, EngineUnavailable, ModelFileError
from hotpind.speech.endpoint import EngineEndpoint, conversation

ENGINE = textwrap.dedent("""
    import argparse, asyncio, os, sys
    from functools import partial
    from pathlib import Path
    from wyoming.info import Info
    from hotpind.engines.child import EngineHandler, refuse, run_engine, serve_wyoming

    class Handler(EngineHandler):
        info = Info()
        async def on_event(self, event):
            if event.type == "crash":
                os.abort()
            if event.type == "die slowly":
                os.unlink(args.socket)
                asyncio.get_running_loop().call_later(1.5, os._exit, 1)
                return False
            if event.type == "chatter":
                print("x" * 2 ** 20, flush=True)
            return True

    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=Path)
    parser.add_argument("--parent", type=int)
    parser.add_argument("--refuse", default="")
    parser.add_argument("--crash", action="store_true")
    args = parser.parse_args()
    if args.crash:
        os.abort()
    if args.refuse:
        refuse(args.refuse)
    run_engine(partial(serve_wyoming, args.socket, Handler, colour="blue"), parent=args.parent)
""")

Make = Callable[..., Engine]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    engines: list[Engine] = []
    script = tmp_path / "engine.py"
    script.write_text(ENGINE)

    def make(*arguments: str, find: Callable[[], None] = lambda: None,
             check: Callable[[], object] | None = None) -> Engine:
        def command() -> list[str]:
            find()
            return [str(script), *arguments]

        engine = Engine(EngineSpec("test", command, tmp_path / "e.sock", ping_wyoming, check=check))
        engines.append(engine)
        return engine

    yield make
    await asyncio.gather(*(engine.stop() for engine in engines))


async def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_it_serves_a_private_socket_and_tells_its_facts(make: Make) -> None:
    engine = make()
    engine.start()
    socket = await engine.ready(60)
    await ping_wyoming(socket)
    assert socket.stat().st_mode & 0o777 == 0o600
    assert engine.facts["colour"] == "blue"


async def test_a_priority_that_cannot_be_set_is_told_and_does_not_stop_it(
        make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def denied(*_: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "setpriority", denied)
    engine = make()
    engine.start()
    await engine.ready(60)
    assert "runs at the daemon's own priority (Operation not permitted)" in caplog.text


async def test_an_engine_built_for_another_processor_says_what_to_do(
        make: Make, caplog: pytest.LogCaptureFixture) -> None:
    engine = make()
    engine.start()
    await engine.ready(60)
    os.kill(engine.pid or 0, signal.SIGILL)
    await until(lambda: "built for another processor; set the appliance up again on this machine" in caplog.text)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
async def test_a_crash_is_followed_by_a_restart(make: Make, number: signal.Signals) -> None:
    engine = make()
    engine.start()
    await engine.ready(60)
    first = engine.pid
    assert first is not None
    os.kill(first, number)
    await until(lambda: engine.restarts >= 1)
    assert engine.detail or engine.state is not EngineState.WAITING
    await engine.ready(60)
    assert engine.pid not in {None, first}
    await ping_wyoming(engine.spec.socket)


async def test_after_many_crashes_it_rests_but_not_while_somebody_waits(make: Make) -> None:
    """One life after the other ends early; whoever asks then is not told to come back later."""
    engine = make()
    engine.start()
    await engine.ready(60)
    engine._backoff = Backoff(CAP_S)
    os.kill(engine.pid or 0, signal.SIGKILL)
    await until(lambda: engine.state is EngineState.WAITING)
    await asyncio.sleep(2 * supervisor.WANTED_S)
    assert engine.state is EngineState.WAITING
    await engine.ready(CAP_S / 2)
    os.kill(engine.pid or 0, signal.SIGKILL)
    await until(lambda: engine.state is EngineState.WAITING)
    await asyncio.sleep(2 * supervisor.WANTED_S)
    assert engine.state is EngineState.WAITING, "who waited last time does not wait now"


async def test_a_request_past_its_deadline_replaces_the_engine(make: Make) -> None:
    engine = make()
    engine.start()
    await engine.ready(60)
    first = engine.pid
    with pytest.raises(EngineTimeout, match="no answer within 0 s"):
        async with conversation(EngineEndpoint(engine), 0.3) as client:
            await client.read_event()
    await engine.ready(60)
    await until(lambda: engine.pid not in {None, first})


async def test_a_request_to_a_dying_engine_waits_for_the_next_one(
        make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "DYING_S", 15.0)
    engine = make()
    endpoint = EngineEndpoint(engine)
    engine.start()
    await engine.ready(60)
    first = engine.pid
    async with conversation(endpoint, 30) as client:
        await client.write_event(Event("die slowly"))
        assert await client.read_event() is None
    assert engine.state is EngineState.READY, "its death is not known yet"
    async with conversation(endpoint, 30) as client:
        await client.write_event(Ping().event())
        event = await client.read_event()
    assert event is not None
    assert Pong.is_type(event.type)
    assert engine.pid not in {None, first}


async def test_a_request_after_a_replacement_waits_for_the_next_one(make: Make) -> None:
    engine = make()
    engine.start()
    await engine.ready(60)
    engine.replace("it hangs")
    async with conversation(EngineEndpoint(engine), 30) as client:
        await client.write_event(Ping().event())
        assert await client.read_event() is not None


async def test_a_stopped_engine_is_found_while_a_request_waits(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "BEAT_BUSY_S", 0.1)
    monkeypatch.setattr(supervisor, "BEAT_DEADLINE_S", 0.5)
    engine = make()
    engine.start()
    await engine.ready(60)
    assert engine.pid is not None
    first = psutil.Process(engine.pid)
    first.suspend()
    with engine.request():
        await until(lambda: engine.restarts >= 1)
    assert not first.is_running()
    await engine.ready(60)


async def test_an_idle_engine_is_found_too(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "BEAT_IDLE_S", 0.2)
    monkeypatch.setattr(supervisor, "BEAT_DEADLINE_S", 0.5)
    engine = make()
    engine.start()
    await engine.ready(60)
    assert engine.pid is not None
    psutil.Process(engine.pid).suspend()
    await until(lambda: engine.restarts >= 1)


async def test_an_engine_that_cannot_be_used_says_why_and_is_tried_again(
        make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "MEND_S", 0.2)
    broken = True

    def find() -> None:
        if broken:
            raise ModelFileError("model.bin: the file is truncated")

    engine = make(find=find)
    engine.start()
    with pytest.raises(EngineUnavailable, match=r"model\.bin: the file is truncated"):
        await engine.ready(60)
    assert engine.state is EngineState.UNUSABLE
    broken = False
    await until(lambda: engine.state is EngineState.READY)


async def test_a_refusal_of_the_child_is_its_sentence(make: Make) -> None:
    engine = make("--refuse", "the voice has\nno speakers")
    engine.start()
    with pytest.raises(EngineUnavailable, match="the voice has no speakers"):
        await engine.ready(60)


ROTTEN = "model.bin is broken: expected SHA-256 11, found 22; fetch it again"


async def test_an_engine_that_does_not_live_has_its_model_read(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "MEND_S", 0.2)
    threads: list[str] = []
    rotten = True

    def check() -> None:
        threads.append(threading.current_thread().name)
        if rotten:
            raise ModelFileError(ROTTEN)

    engine = make("--crash", check=check)
    engine.start()
    with pytest.raises(EngineUnavailable, match="expected SHA-256 11, found 22"):
        await engine.ready(60)
    assert engine.state is EngineState.UNUSABLE
    assert engine.restarts == supervisor.DOUBTFUL_LIVES
    await until(lambda: len(threads) >= 3)
    assert engine.restarts == supervisor.DOUBTFUL_LIVES, "it is not started with a model that is known to be broken"
    assert set(threads) == {"check test"}, "the event loop goes on meanwhile"
    rotten = False
    checked = len(threads)
    await until(lambda: engine.restarts > supervisor.DOUBTFUL_LIVES)
    assert len(threads) <= checked + 1, "a model that was found intact is not read before each life"


async def test_a_refusal_because_of_a_broken_model_says_what_to_do(make: Make) -> None:
    def check() -> None:
        raise ModelFileError(ROTTEN)

    engine = make("--refuse", "the voice cannot be parsed", check=check)
    engine.start()
    with pytest.raises(EngineUnavailable, match="fetch it again"):
        await engine.ready(60)


async def test_an_intact_model_leaves_the_refusal_as_it_is(make: Make) -> None:
    engine = make("--refuse", "the voice has no speakers", check=lambda: None)
    engine.start()
    with pytest.raises(EngineUnavailable, match="the voice has no speakers"):
        await engine.ready(60)


async def test_stopping_ends_even_a_stopped_process_within_its_deadline(make: Make) -> None:
    engine = make()
    engine.start()
    await engine.ready(60)
    assert engine.pid is not None
    process = psutil.Process(engine.pid)
    process.suspend()
    begun = time.monotonic()
    await engine.stop()
    assert time.monotonic() - begun < supervisor.STOP_DEADLINE_S + 10
    assert not process.is_running()
    assert not engine.spec.socket.exists()


async def test_a_start_while_it_is_stopped_begins_a_life_of_its_own(make: Make) -> None:
    engine = make()
    engine.start()
    await engine.ready(60)
    assert engine.pid is not None
    first = psutil.Process(engine.pid)
    stopping = asyncio.create_task(engine.stop())
    await asyncio.sleep(0)
    engine.start()
    await stopping
    assert not first.is_running()
    assert engine.state is EngineState.STARTING
    socket = await engine.ready(60)
    await ping_wyoming(socket)
    assert engine.restarts == 0


@pytest.mark.parametrize("again", [False, True])
async def test_every_stop_waits_for_the_end_of_the_process(make: Make, again: bool) -> None:
    engine = make()
    engine.start()
    await engine.ready(60)
    assert engine.pid is not None
    first = psutil.Process(engine.pid)
    stopping = asyncio.create_task(engine.stop())
    await asyncio.sleep(0)
    if again:
        engine.start()
    await engine.stop()
    assert not first.is_running()
    assert engine.state is EngineState.STOPPED
    await stopping
    assert engine.state is EngineState.STOPPED
    assert not engine.spec.socket.exists()


async def test_a_stop_that_is_cancelled_is_cancelled_and_the_process_ends_all_the_same(make: Make) -> None:
    engine = make()
    engine.start()
    await engine.ready(60)
    assert engine.pid is not None
    first = psutil.Process(engine.pid)
    stopping = asyncio.create_task(engine.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    await until(lambda: not first.is_running())


async def test_a_life_begun_after_a_replacement_and_a_stop_can_be_replaced_too(make: Make) -> None:
    engine = make()
    engine.start()
    await engine.ready(60)
    engine.replace("it hangs")
    await engine.stop()
    engine.start()
    await engine.ready(60)
    engine.replace("it hangs again")
    await until(lambda: engine.restarts >= 1)
    await engine.ready(60)


async def test_what_a_library_prints_does_not_block_the_engine(make: Make) -> None:
    engine = make()
    engine.start()
    await engine.ready(60)
    async with conversation(EngineEndpoint(engine), 30) as client:
        for _ in range(3):
            await client.write_event(Event("chatter"))
        await client.write_event(Ping().event())
        event = await client.read_event()
    assert event is not None
    assert Pong.is_type(event.type)


async def test_garbage_does_not_end_the_engine(make: Make) -> None:
    engine = make()
    engine.start()
    socket = await engine.ready(60)
    for garbage in (b"\0" * 100, b"{}\n", b'{"type": 5}\n', b"[" * 5000 + b"\n", b'{"type":"x","data_length":-1}\n'):
        reader, writer = await asyncio.open_unix_connection(socket)
        writer.write(garbage)
        writer.write_eof()
        async with asyncio.timeout(20):
            await reader.read()
        writer.close()
    await ping_wyoming(socket)
    assert engine.restarts == 0


def test_no_orphan_is_left_when_the_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "engine.py").write_text(ENGINE)
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(f"""
        import asyncio
        from pathlib import Path
        from hotpind.engines.supervisor import Engine, EngineSpec
        async def alive(socket): pass
        async def main():
            script, socket = {str(tmp_path / 'engine.py')!r}, Path({str(tmp_path / 'e')!r})
            engine = Engine(EngineSpec("test", lambda: [script], socket, alive))
            engine.start()
            await engine.ready(60)
            print(engine.pid, flush=True)
            await asyncio.sleep(60)
        asyncio.run(main())
    """)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    engine = psutil.Process(int(parent.stdout.readline()))
    engine.suspend()
    parent.kill()
    parent.wait()
    psutil.wait_procs([engine], timeout=15)
    assert not engine.is_running()


def test_backoff_grows_is_capped_and_forgives() -> None:
    backoff = Backoff()
    delays = [backoff.after_life_of(1.0) for _ in range(12)]
    assert delays[0] == FIRST_S
    assert delays == sorted(delays)
    assert delays[-1] == CAP_S
    assert backoff.after_life_of(3600.0) == FIRST_S




async def test_whatever_a_library_raises_is_told_and_tried_again(
        make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(supervisor, "MEND_S", 0.1)
    tries = 0

    def find() -> None:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise ImportError("Using SOCKS proxy,\nbut the package is not installed")

    engine = make(find=find)
    engine.start()
    with pytest.raises(EngineUnavailable, match="ImportError: Using SOCKS proxy, but the package is not installed"):
        await engine.ready(60)
    assert engine.state is EngineState.UNUSABLE
    await until(lambda: engine.state is EngineState.READY)
    assert sum("SOCKS" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("trouble", [aiohttp.ServerDisconnectedError(), EngineUnavailable("it is stuck")])
async def test_every_kind_of_missing_sign_of_life_replaces_the_engine(
        make: Make, monkeypatch: pytest.MonkeyPatch, trouble: Exception) -> None:
    monkeypatch.setattr(supervisor, "BEAT_IDLE_S", 0.1)
    engine = make()
    failing = True

    async def sick(_: Path) -> None:
        if failing:
            raise trouble

    engine.spec = dataclasses.replace(engine.spec, alive=sick)
    engine.start()
    await engine.ready(60)
    await until(lambda: engine.restarts >= 1)
    failing = False
    await engine.ready(60)


async def test_stopping_does_not_wait_for_what_is_being_fetched(make: Make) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def find() -> None:
        begun.set()
        go_on.wait(60)

    engine = make(find=find)
    engine.start()
    await asyncio.to_thread(begun.wait, 30)
    async with asyncio.timeout(20):
        await engine.stop()
    assert any(thread.name == "find test" and thread.daemon for thread in threading.enumerate())
    go_on.set()
