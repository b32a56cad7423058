"""When the watchdog is fed and when it is not."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hotpind.app import Appliance
from hotpind.cli import daemon
from hotpind.config import Config
from hotpind.engines.supervisor import EngineState
from hotpind.system.logs import Log
from hotpind.system.notify import Notifier
from hotpind.system.watchdog import Watchdog, watchdog_interval
from tests.waiting import until


class Clock:
    """Seconds that pass when the test says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        yield listener


def pings(manager: socket.socket) -> int:
    count = 0
    while True:
        try:
            assert manager.recv(999) == b"WATCHDOG=1"
        except BlockingIOError:
            return count
        count += 1


def answers(*values: bool) -> Callable[[], Awaitable[bool]]:
    iterator = iter(values)

    async def healthy() -> bool:
        return next(iterator)

    return healthy


async def test_unhealthy_within_the_grace_still_pings_and_beyond_it_does_not(manager: socket.socket) -> None:
    clock = Clock()
    healthy = answers(True, False, False, True)
    dog = Watchdog(Notifier(manager.getsockname()), 3, healthy, grace_s=60, clock=clock)
    assert await dog.beat()
    clock.now += 60
    assert await dog.beat()
    clock.now += 1
    assert not await dog.beat()
    assert await dog.beat()
    assert pings(manager) == 3


class Speech:
    """As much of an appliance as the daemon serves with."""

    def __init__(self) -> None:
        self.stt_engine: Any = SimpleNamespace(state=EngineState.READY)
        self.tts_engine: Any = SimpleNamespace(state=EngineState.READY)
        self.status = SimpleNamespace(line=lambda: "local, 0 devices")
        self.store = SimpleNamespace(catalogue={})

    speech_works = Appliance.speech_works


@pytest.mark.parametrize("engine", ["stt_engine", "tts_engine"])
async def test_the_daemon_pings_while_the_speech_engines_answer(
        manager: socket.socket, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.getsockname())
    monkeypatch.setenv("WATCHDOG_USEC", "300000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    defaults = Watchdog.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "grace_s", 0.3)
    monkeypatch.setattr(daemon, "hint_for", lambda *_: None)

    def heard() -> int:
        count = 0
        with contextlib.suppress(BlockingIOError):
            while message := manager.recv(999):
                count += message == b"WATCHDOG=1"
        return count

    async def pings_come() -> None:
        heard()
        count = 0
        async with asyncio.timeout(10):
            while count < 5:
                await asyncio.sleep(0.01)
                count += heard()

    serving = daemon.Daemon(Config(), None, cast(Log, None), show_self_test=False, once=False)
    appliance: Any = Speech()
    task = asyncio.create_task(serving._serve(appliance))
    try:
        await pings_come()
        getattr(appliance, engine).state = EngineState.WAITING
        await asyncio.sleep(0.6)
        heard()
        await asyncio.sleep(0.5)
        assert heard() == 0
        getattr(appliance, engine).state = EngineState.READY
        await pings_come()
    finally:
        serving._stop.set()
        await task
        for each in serving._tasks:
            each.cancel()
        await asyncio.gather(*serving._tasks, return_exceptions=True)


async def test_engines_that_never_answer_get_no_ping_after_the_grace(manager: socket.socket) -> None:
    clock = Clock()
    dog = Watchdog(Notifier(manager.getsockname()), 3, answers(False), grace_s=10, clock=clock)
    clock.now += 11
    assert not await dog.beat()
    assert pings(manager) == 0


async def test_a_check_that_hangs_is_given_up_in_time(manager: socket.socket) -> None:
    cancelled = asyncio.Event()

    async def hang() -> bool:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return True

    dog = Watchdog(Notifier(manager.getsockname()), 0.15, hang, grace_s=0)
    begun = time.monotonic()
    assert not await dog.beat()
    assert time.monotonic() - begun < 10
    assert cancelled.is_set()


async def test_a_check_that_breaks_is_no_health(manager: socket.socket) -> None:
    async def breaks() -> bool:
        raise OSError("no socket")

    clock = Clock()
    dog = Watchdog(Notifier(manager.getsockname()), 3, breaks, grace_s=5, clock=clock)
    clock.now += 6
    assert not await dog.beat()


async def test_it_pings_three_times_an_interval_and_not_while_the_loop_stands(manager: socket.socket) -> None:
    async def healthy() -> bool:
        return True

    task = asyncio.create_task(Watchdog(Notifier(manager.getsockname()), 0.3, healthy).run())
    begun = time.monotonic()
    count = 0
    while count < 5:
        await asyncio.sleep(0.01)
        count += pings(manager)
        took = time.monotonic() - begun
        assert took < 10
    assert count <= took / 0.1 + 2
    time.sleep(0.5)  # noqa: ASYNC251 - a blocked event loop is what this is about
    assert pings(manager) == 0
    await until(lambda: pings(manager) >= 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(("environ", "expected"), [
    ({}, None),
    ({"WATCHDOG_USEC": "30000000"}, 30.0),
    ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "77"}, 30.0),
    ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "78"}, None),
    ({"WATCHDOG_USEC": "0", "WATCHDOG_PID": "77"}, None),
    ({"WATCHDOG_USEC": "soon"}, None),
])
def test_interval_from_the_environment(environ: dict[str, str], expected: float | None) -> None:
    assert watchdog_interval(environ, pid=77) == expected
