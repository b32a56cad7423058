"""Noticing that the network changed."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import AsyncIterator

import pytest

from hotpind.discovery import netlink, network
from hotpind.discovery.netlink import Link, LinkFlag, Snapshot
from hotpind.discovery.network import NetworkChange, NetworkWatch
from tests.waiting import until

BEFORE, AFTER = Snapshot((Link(1, "eth0", LinkFlag.UP),)), Snapshot((Link(2, "wlan0", LinkFlag.UP),))


class Machine:
    """A machine whose sleep and interfaces are played."""

    def __init__(self) -> None:
        self.asleep = 0.0
        self.now: Snapshot | OSError = BEFORE
        self.looks = 0
        self.changes: list[NetworkChange] = []

    def look(self) -> Snapshot:
        self.looks += 1
        if isinstance(self.now, OSError):
            raise self.now
        return self.now


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "SETTLE_SECONDS", 0.01)
    monkeypatch.setattr(network, "TICK_SECONDS", 0.05)
    monkeypatch.setattr(network, "CHECK_SECONDS", 0.15)


@pytest.fixture
async def machine(quick: None) -> AsyncIterator[Machine]:
    played = Machine()
    watch = NetworkWatch(slept=lambda: played.asleep, snapshot=played.look)
    watch.subscribe(played.changes.append)
    watch.start()
    yield played
    await watch.close()


async def test_the_state_at_the_start_is_told_and_then_changes_only(machine: Machine) -> None:
    await until(lambda: machine.looks >= 3)
    assert machine.changes == [NetworkChange(BEFORE, resumed=False)]
    machine.now = AFTER
    await until(lambda: len(machine.changes) == 2)
    assert machine.changes[1] == NetworkChange(AFTER, resumed=False)


async def test_waking_up_is_told_although_nothing_else_changed(machine: Machine) -> None:
    await until(lambda: len(machine.changes) == 1)
    machine.asleep = 3600.0
    await until(lambda: len(machine.changes) == 2)
    assert machine.changes[1] == NetworkChange(BEFORE, resumed=True)
    await asyncio.sleep(0.3)
    assert len(machine.changes) == 2, "once"


async def test_a_machine_that_cannot_list_its_interfaces_says_so_once(
        machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    await until(lambda: len(machine.changes) == 1)
    machine.now = OSError(1, "Operation not permitted")
    looks = machine.looks
    await until(lambda: machine.looks > looks + 3)
    assert caplog.text.count("Operation not permitted") == 1
    machine.now = AFTER
    await until(lambda: len(machine.changes) == 2)


async def test_without_netlink_changes_are_found_by_looking(
        quick: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse() -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(network, "open_monitor", refuse)
    monkeypatch.setattr(network, "CHECK_SECONDS", 3600.0)
    played = Machine()
    watch = NetworkWatch(slept=lambda: 0.0, snapshot=played.look)
    watch.subscribe(played.changes.append)
    with caplog.at_level(logging.WARNING):
        watch.start()
        await until(lambda: len(played.changes) == 1)
    played.now = AFTER
    await until(lambda: len(played.changes) == 2)
    looks = played.looks
    await until(lambda: played.looks > looks + 3)
    assert caplog.text.count("does not report network changes") == 1
    await watch.close()


async def test_a_monitor_that_fails_is_opened_anew(
        quick: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A pair of sockets stands for the kernel's; reading from it fails once, and for good."""
    monkeypatch.setattr(network, "CHECK_SECONDS", 3600.0)
    pairs: list[tuple[socket.socket, socket.socket]] = []

    def open_one() -> socket.socket:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        here.setblocking(False)
        pairs.append((here, there))
        return here

    def drain(monitor: socket.socket) -> None:
        if monitor is pairs[0][0]:
            raise OSError(errno.EBADF, "Bad file descriptor")
        netlink.drain(monitor)

    monkeypatch.setattr(network, "open_monitor", open_one)
    monkeypatch.setattr(network, "drain", drain)
    played = Machine()
    watch = NetworkWatch(slept=lambda: 0.0, snapshot=played.look)
    watch.subscribe(played.changes.append)
    watch.start()
    await until(lambda: len(played.changes) == 1)
    pairs[0][1].send(b"x")
    await until(lambda: len(pairs) == 2)
    assert pairs[0][0].fileno() == -1
    await asyncio.sleep(0.3)
    played.now = AFTER
    pairs[1][1].send(b"x")
    await until(lambda: len(played.changes) == 2)
    assert len(pairs) == 2
    await watch.close()
    assert pairs[1][0].fileno() == -1
    for _, there in pairs:
        there.close()


def test_a_monitor_that_will_not_work_again_is_not_read_for_ever() -> None:
    monitor = netlink.open_monitor()
    netlink.drain(monitor)
    os.close(monitor.detach())
    with pytest.raises(OSError, match="Bad file descriptor"):
        netlink.drain(monitor)


async def test_a_listener_that_fails_does_not_stop_the_others(quick: None, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: NetworkChange) -> None:
        raise ZeroDivisionError

    played = Machine()
    watch = NetworkWatch(slept=lambda: 0.0, snapshot=played.look)
    watch.subscribe(fail)
    watch.subscribe(played.changes.append)
    watch.start()
    await until(lambda: len(played.changes) == 1)
    assert "listener" in caplog.text
    await watch.close()


async def test_closing_ends_everything() -> None:
    before = asyncio.all_tasks()
    watch = NetworkWatch()
    watch.start()
    await asyncio.sleep(0.1)
    await watch.close()
    await watch.close()
    assert asyncio.all_tasks() == before
