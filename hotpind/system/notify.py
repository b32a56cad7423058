"""Tells the service manager how the daemon is: the datagrams of sd_notify(3).

Written out here rather than taken from systemd-python, which is optional: a datagram on a socket that never
blocks is all there is to it, and the event loop must not wait for a service manager that is busy.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping

LONGEST_STATUS = 500
"""Characters; `systemctl status` shows one line, which has to hold a fault with two digests and the advice."""


class Notifier:
    """Sends the daemon's condition to the service manager; does nothing when there is none."""

    def __init__(self, address: str | None, *, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        """``address`` is a socket path, or ``@name`` for an abstract one, as in $NOTIFY_SOCKET."""
        self._address = "\0" + address[1:] if address and address.startswith("@") else address
        self._monotonic_ns = monotonic_ns
        self._status = ""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> Notifier:
        """Take the address that the service manager put into $NOTIFY_SOCKET."""
        return cls(environ.get("NOTIFY_SOCKET") or None)

    @property
    def enabled(self) -> bool:
        """Whether there is a service manager that listens."""
        return self._address is not None

    def ready(self, status: str = "") -> None:
        """Start-up, or a reload, is finished."""
        self._send("READY=1", *self._status_line(status))

    def status(self, text: str) -> None:
        """Set the line that `systemctl status` shows; saying the same again costs nothing."""
        if _one_line(text) != self._status:
            self._send(*self._status_line(text))

    def reloading(self) -> None:
        """A reload begins; `ready` ends it. Both values in one datagram, as systemd 253 and later require."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={self._monotonic_ns() // 1000}")

    def stopping(self, status: str = "") -> None:
        """Shutdown begins."""
        self._send("STOPPING=1", *self._status_line(status))

    def watchdog(self) -> None:
        """The daemon is well: the service manager's patience starts again."""
        self._send("WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> None:
        """Ask for ``seconds`` from now for the start, reload or stop that is under way."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def _status_line(self, text: str) -> tuple[str, ...]:
        line = _one_line(text)
        if not line:
            return ()
        self._status = line
        return (f"STATUS={line}",)

    def _send(self, *assignments: str) -> None:
        if self._address is None:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            try:
                sender.sendto("\n".join(assignments).encode(), self._address)
            except OSError:
                # Full queue or no listener: the next message says the same or something newer.
                self._status = ""


def _one_line(text: str) -> str:
    return " ".join(text.split())[:LONGEST_STATUS]
