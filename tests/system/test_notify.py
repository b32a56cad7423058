"""The service manager's side of the notification socket."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotpind.system.notify import LONGEST_STATUS, Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(1)
        yield listener


def make(manager: socket.socket) -> Notifier:
    return Notifier.from_environ({"NOTIFY_SOCKET": manager.getsockname()})


def test_every_message_byte_for_byte(manager: socket.socket) -> None:
    notifier = Notifier(manager.getsockname(), monotonic_ns=lambda: 12_345_678_999)
    notifier.ready("online")
    assert manager.recv(999) == b"READY=1\nSTATUS=online"
    notifier.status("offline")
    assert manager.recv(999) == b"STATUS=offline"
    notifier.reloading()
    assert manager.recv(999) == b"RELOADING=1\nMONOTONIC_USEC=12345678"
    notifier.ready()
    assert manager.recv(999) == b"READY=1"
    notifier.watchdog()
    assert manager.recv(999) == b"WATCHDOG=1"
    notifier.extend_timeout(1.5)
    assert manager.recv(999) == b"EXTEND_TIMEOUT_USEC=1500000"
    notifier.stopping("finishing a turn")
    assert manager.recv(999) == b"STOPPING=1\nSTATUS=finishing a turn"


def test_the_same_status_is_sent_once(manager: socket.socket) -> None:
    notifier = make(manager)
    notifier.status("online")
    notifier.status("online")
    notifier.status("offline")
    assert [manager.recv(999), manager.recv(999)] == [b"STATUS=online", b"STATUS=offline"]


def test_a_status_cannot_smuggle_in_another_assignment(manager: socket.socket) -> None:
    make(manager).status("last turn\nREADY=1\n" + "x" * 999)
    message = manager.recv(9999)
    assert message.startswith(b"STATUS=last turn READY=1 xxx")
    assert b"\n" not in message
    assert len(message) == len("STATUS=") + LONGEST_STATUS


def test_abstract_address() -> None:
    name = f"hotpin-test-{os.getpid()}-{secrets.token_hex(4)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        listener.settimeout(1)
        Notifier.from_environ({"NOTIFY_SOCKET": f"@{name}"}).ready()
        assert listener.recv(999) == b"READY=1"


def test_without_a_service_manager_nothing_happens() -> None:
    notifier = Notifier.from_environ({})
    assert not notifier.enabled
    notifier.ready("online")


def test_a_manager_that_does_not_read_blocks_nobody(manager: socket.socket) -> None:
    notifier = make(manager)
    for _ in range(5000):  # far more than a datagram queue holds
        notifier.watchdog()
    manager.setblocking(False)
    held = 0
    while True:
        try:
            manager.recv(999)
        except BlockingIOError:
            break
        held += 1
    assert 0 < held < 5000
    notifier.status("again")
    assert manager.recv(999) == b"STATUS=again"


def test_a_status_that_was_lost_is_said_again(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    notifier = Notifier(str(path))
    notifier.status("online")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(1)
        notifier.status("online")
        assert listener.recv(999) == b"STATUS=online"
