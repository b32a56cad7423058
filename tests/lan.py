"""A network at home, made of network namespaces: for tests of discovery, pairing, load and attack (needs root).

Three namespaces: ``appl`` (the appliance) and ``wear`` (a pin) have an interface ``wlan0`` each, joined by a bridge
in the third, ``air``, where packets can be dropped. Addresses are of 198.51.100.0/24 (RFC 5737) and link-local IPv6.
Nothing touches the machine's own network. Everything is gone when the `Lan` is closed, whatever happened.

Debian packages: iproute2, nftables; for `Avahi` avahi-daemon, avahi-utils and dbus.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import pytest

from tests.places import TOP

APPLIANCE_IP = "198.51.100.10"
WEARABLE_IP = "198.51.100.20"
PREFIX = 24
COMMAND_SECONDS = 20.0
"""Processes run here, so that ``python -m tests.area.module`` works in a namespace."""

_AVAHI_CONF = """[server]
host-name={host}
use-ipv4=yes
use-ipv6=yes
enable-dbus=yes
ratelimit-interval-usec=0
[publish]
publish-workstation=no
[rlimits]
"""


def require_lan() -> None:
    """Skip the test unless namespaces can be made here."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    missing = [tool for tool in ("ip", "nft") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


class Lan:
    """The namespaces, as a context manager. Namespace arguments are "air", "appl", "wear" or one that was added."""

    def __init__(self) -> None:
        self._suffix = secrets.token_hex(3)
        self._names: dict[str, str] = {}
        self._processes: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Lan:
        try:
            self.add_namespace("air")
            self.add_bridge("lan0")
            for role, address in (("appl", APPLIANCE_IP), ("wear", WEARABLE_IP)):
                self.add_namespace(role)
                # Looking for duplicates takes IPv6 two seconds; interfaces that are added later do it.
                self._set_duplicate_detection(role, on=False)
                self.attach(role, "wlan0", address)
                self._set_duplicate_detection(role, on=True)
            self.wait_for_links("appl", "wear")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def add_namespace(self, role: str) -> None:
        """Make a namespace with its loopback up."""
        name = f"hp{self._suffix}-{role}"
        subprocess.run(["ip", "netns", "add", name], check=True, timeout=COMMAND_SECONDS)
        self._names[role] = name
        self.ip(role, "link", "set", "lo", "up")

    def _set_duplicate_detection(self, role: str, *, on: bool) -> None:
        script = f"echo {int(on)} > /proc/sys/net/ipv6/conf/default/accept_dad"
        self.run(role, ["sh", "-c", f"{script}; echo {int(on)} > /proc/sys/net/ipv6/conf/all/accept_dad"])

    def add_bridge(self, bridge: str) -> None:
        """Make another network: a bridge in ``air``, which floods multicast as a simple access point does."""
        self.ip("air", "link", "add", bridge, "type", "bridge", "mcast_snooping", "0")
        self.ip("air", "link", "set", bridge, "up")

    def attach(self, role: str, interface: str, address: str, *, bridge: str = "lan0") -> None:
        """Give a namespace an interface on a network, with an address of its own."""
        port = f"p{secrets.token_hex(4)}"
        self.ip("air", "link", "add", port, "type", "veth", "peer", "name", interface, "netns", self._names[role])
        self.ip("air", "link", "set", port, "master", bridge, "up")
        self.add_address(role, address, interface)
        self.ip(role, "link", "set", interface, "up")

    def wait_for_links(self, *roles: str) -> None:
        """Wait until every address is usable (IPv6 first makes sure that nobody else has it)."""
        deadline = time.monotonic() + COMMAND_SECONDS
        while any("tentative" in self.ip(role, "addr") for role in roles):
            if time.monotonic() > deadline:
                raise TimeoutError("an address stayed tentative")
            time.sleep(0.05)

    def ip(self, role: str, *arguments: str) -> str:
        """Run ip(8) in a namespace and return its output."""
        return subprocess.run(["ip", "-n", self._names[role], *arguments], check=True, capture_output=True, text=True,
                              timeout=COMMAND_SECONDS).stdout

    def add_address(self, role: str, address: str, interface: str = "wlan0") -> None:
        """Give an interface a further address."""
        self.ip(role, "addr", "add", f"{address}/{PREFIX}", "dev", interface)

    def remove_address(self, role: str, address: str, interface: str = "wlan0") -> None:
        """Take an address away."""
        self.ip(role, "addr", "del", f"{address}/{PREFIX}", "dev", interface)

    def cable(self, role: str, *, plugged: bool, interface: str = "wlan0") -> None:
        """Take an interface down or up, as Wi-Fi that is gone and back; its IPv4 addresses stay."""
        self.ip(role, "link", "set", interface, "up" if plugged else "down")

    def drop(self, percent: int) -> None:
        """Lose so many of a hundred packets in each direction, on the air; 0 loses none again."""
        rules = "table bridge hotpintest\ndelete table bridge hotpintest\n"
        chance = f"numgen random mod 100 < {percent}" if percent < 100 else ""
        if percent:
            rules += ("table bridge hotpintest {\nchain forward {\ntype filter hook forward priority 0\n"
                      f"{chance} drop\n}}\n}}\n")
        subprocess.run([*self.prefix("air"), "nft", "-f", "-"], input=rules, text=True, check=True,
                       timeout=COMMAND_SECONDS)

    def prefix(self, role: str) -> list[str]:
        """Return the beginning of a command line that runs in a namespace."""
        return ["ip", "netns", "exec", self._names[role]]

    def namespace_path(self, role: str) -> Path:
        """Return the namespace's file, as systemd-nspawn and setns take it."""
        return Path("/run/netns") / self._names[role]

    def run(self, role: str, command: Sequence[str], *, timeout: float = COMMAND_SECONDS,
            check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in a namespace to its end."""
        return subprocess.run([*self.prefix(role), *command], check=check, capture_output=True, text=True,
                              timeout=timeout)

    def start(self, role: str, command: Sequence[str], *, stdout: int | IO[Any] | None = subprocess.PIPE,
              stderr: int | IO[Any] | None = None, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a process in a namespace; it is ended with the LAN at the latest."""
        process = subprocess.Popen([*self.prefix(role), *command], stdout=stdout, stderr=stderr, text=True, env=env,
                                   cwd=TOP, start_new_session=True)
        self._processes.append(process)
        return process

    def stop(self, process: subprocess.Popen[Any], *, how: signal.Signals = signal.SIGTERM,
             timeout: float = 10.0) -> int:
        """End a process that `start` gave, and everything it started; return its exit code."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait(timeout)
        if process.stdout is not None:
            process.stdout.close()
        if process in self._processes:
            self._processes.remove(process)
        return code

    def close(self) -> None:
        """End the processes and delete the namespaces."""
        for process in list(self._processes):
            with contextlib.suppress(Exception):
                self.stop(process, timeout=3.0)
        for name in reversed(self._names.values()):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True, timeout=COMMAND_SECONDS)
        self._names.clear()


class Avahi:
    """avahi-daemon in a namespace, with a D-Bus and a /run of its own, as a context manager."""

    def __init__(self, lan: Lan, role: str, directory: Path, *, host: str = "stranger") -> None:
        self._lan = lan
        self._role = role
        self._config = directory / f"avahi-{role}.conf"
        self._config.write_text(_AVAHI_CONF.format(host=host))
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Avahi:
        missing = [tool for tool in ("avahi-daemon", "avahi-browse", "dbus-daemon") if shutil.which(tool) is None]
        if missing:
            pytest.skip(f"not installed: {', '.join(missing)}")
        script = ("mount -t tmpfs tmpfs /run && mkdir -p /run/dbus /run/avahi-daemon && "
                  "dbus-daemon --system --nofork --nopidfile & "
                  "until [ -S /run/dbus/system_bus_socket ]; do sleep 0.05; done; "
                  f"avahi-daemon --no-drop-root --no-chroot --no-rlimits -f {self._config} & echo $! > /run/pid; wait")
        self._process = self._lan.start(self._role, ["sh", "-c", script], stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + COMMAND_SECONDS
        while self._run(["avahi-daemon", "--check"]).returncode != 0:
            if time.monotonic() > deadline:
                raise TimeoutError("avahi-daemon did not come up")
            time.sleep(0.1)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._process is not None:
            self._lan.stop(self._process)

    def browse(self, service: str = "_hotpin._tcp", *, timeout: float = COMMAND_SECONDS) -> list[dict[str, str]]:
        """Resolve everything of a type that is found within a moment (``avahi-browse -rpt``)."""
        found = self._run(["avahi-browse", "--resolve", "--parsable", "--terminate", service], timeout)
        keys = ("event", "interface", "protocol", "name", "type", "domain", "host", "address", "port", "txt")
        return [dict(zip(keys, line.split(";", 9), strict=True)) for line in found.stdout.splitlines()
                if line.startswith("=")]

    def watch(self, service: str = "_hotpin._tcp") -> subprocess.Popen[str]:
        """Start a browser that goes on (``avahi-browse -rp``)."""
        return self._lan.start(self._role, [*self._enter(), "stdbuf", "-oL", "avahi-browse", "--resolve",
                                            "--parsable", service])

    def publish(self, name: str, service: str, port: int, *txt: str) -> subprocess.Popen[str]:
        """Publish a service through avahi."""
        return self._lan.start(self._role, [*self._enter(), "avahi-publish-service", name, service, str(port), *txt],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def resolve(self, host: str) -> str:
        """Resolve a host name; empty when it is not found."""
        found = self._run(["avahi-resolve", "-4", "-n", host])
        return found.stdout.split()[-1] if found.returncode == 0 and found.stdout.split() else ""

    def _enter(self) -> list[str]:
        if self._process is None:
            raise RuntimeError("avahi is not started")
        # The namespace's process is a child of `ip netns exec`, which has replaced itself with the shell.
        return ["nsenter", "-t", str(self._process.pid), "-m"]

    def _run(self, command: Sequence[str], timeout: float = COMMAND_SECONDS) -> subprocess.CompletedProcess[str]:
        return self._lan.run(self._role, [*self._enter(), *command], timeout=timeout, check=False)


@contextlib.contextmanager
def lan() -> Iterator[Lan]:
    """Make a LAN for a test, or skip the test where that is not possible."""
    require_lan()
    with Lan() as made:
        yield made
