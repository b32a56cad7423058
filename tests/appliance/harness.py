"""Starts the real daemon as a process of its own, on loopback, with a state of its own and no announcement."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.places import TOP

START_S = 120.0


class Daemon:
    """A running ``hotpind``."""

    def __init__(self, settings: Mapping[str, str] | None = None, *, toml: str = "", prefix: list[str] | None = None,
                 root: Path | None = None, wait: bool = True, arguments: Sequence[str] = ()) -> None:
        """Start it with environment settings (``SERVER__PORT`` ...) and a TOML file; wait until it serves."""
        self.root = root or Path(tempfile.mkdtemp(prefix="hotpin-test-"))
        self.config = self.root / "hotpin.toml"
        self.config.write_text(toml)
        # The socket's path must be short; the test's own directory may be deep.
        self.runtime = Path(tempfile.mkdtemp(prefix="hp-"))
        environ = {name: value for name, value in os.environ.items()
                   if not name.startswith(("HOTPIN_", "GROQ_")) or name == "HOTPIN_PATHS__MODELS"}
        environ |= {"HOTPIN_SERVER__HOST": "127.0.0.1", "HOTPIN_SERVER__PORT": "0", "HOTPIN_AUTH__MODE": "open",
                    "HOTPIN_DISCOVERY__ENABLED": "false", "HOTPIN_PATHS__STATE": str(self.root / "state"),
                    "HOTPIN_PATHS__RUNTIME": str(self.runtime)}
        environ |= {(name if name.startswith("GROQ_") else f"HOTPIN_{name}"): value
                    for name, value in (settings or {}).items()}
        self.environ = environ
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [*(prefix or []), sys.executable, "-m", "hotpind", "--config", str(self.config), *arguments], cwd=TOP,
            env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._serves = threading.Event()
        self.url = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if wait:
            self.wait_until_serving()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            match = re.search(r"serves (https?://\S+)", line)
            if match:
                self.url = match.group(1)
                self._serves.set()

    def wait_until_serving(self, seconds: float = START_S) -> None:
        """Wait until the daemon says that it serves."""
        deadline = time.monotonic() + seconds
        while not self._serves.wait(0.1):
            assert self.process.poll() is None, f"hotpind ended with {self.process.poll()}:\n" + self.log
            assert time.monotonic() < deadline, f"hotpind does not serve after {seconds} s:\n" + self.log

    def wait_for_output(self, seconds: float = 10.0) -> None:
        """Wait until everything that an ended daemon printed has been read."""
        self._reader.join(seconds)

    @property
    def log(self) -> str:
        """Everything the daemon printed."""
        return "\n".join(self.lines)

    @property
    def main(self) -> psutil.Process:
        """The daemon's own process."""
        return psutil.Process(self.process.pid)

    def engines(self) -> dict[str, psutil.Process]:
        """The engine processes that run now, by name; `family` shows what else there is."""
        found = {}
        for child in self.main.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, IndexError):
                match = re.search(r"hotpind\.engines\.(\w+)", " ".join(child.cmdline()))
                if match:
                    found[match.group(1)] = child
        return found

    def family(self) -> list[str]:
        """Every process below the daemon: an engine by its name, anything else by its command, the dead as zombies."""
        found = []
        for child in self.main.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.status() == psutil.STATUS_ZOMBIE:
                    found.append("zombie")
                    continue
                command = " ".join(child.cmdline())
                match = re.search(r"hotpind\.engines\.(\w+)", command)
                found.append(match.group(1) if match else command)
        return sorted(found)

    def memory_mb(self) -> float:
        """Resident memory of the daemon and its engines, in megabytes.

        A page that several of them map is counted once, and one that programs elsewhere map too is not divided.
        """
        private = 0
        shared: dict[tuple[str, str], int] = {}
        for process in [self.main, *self.engines().values()]:
            for mapping, sizes in mappings(process.pid):
                private += sizes["Private_Clean"] + sizes["Private_Dirty"]
                common = sizes["Shared_Clean"] + sizes["Shared_Dirty"]
                shared[mapping] = max(shared.get(mapping, 0), common)
        return (private + sum(shared.values())) * 1024 / 1e6

    def ctl(self, *arguments: str, check: bool = True, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run hotpinctl against this daemon."""
        return subprocess.run([sys.executable, "-m", "hotpind.cli.ctl", "--config", str(self.config), *arguments],
                              cwd=TOP, env=self.environ, text=True, capture_output=True, timeout=120, check=check,
                              input=stdin)

    def fetch(self, method: str, path: str, body: bytes = b"", kind: str = "application/json") -> bytes:
        """Ask the daemon's API over its control socket."""
        connection = http.client.HTTPConnection("localhost", timeout=60)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(60)
        connection.sock.connect(str(self.runtime / "control.sock"))
        with contextlib.closing(connection):
            connection.request(method, path, body, {"Content-Type": kind})
            answer = connection.getresponse()
            data = answer.read()
        assert answer.status == 200, data
        return data

    def call(self, method: str, path: str, body: bytes = b"", kind: str = "application/json") -> dict[str, Any]:
        """Ask the daemon's API for JSON."""
        data: dict[str, Any] = json.loads(self.fetch(method, path, body, kind))
        return data

    def say(self, text: str) -> bytes:
        """Have the daemon's voice say something; returns a WAV file."""
        return self.fetch("POST", "/api/v1/say", json.dumps({"text": text}).encode())

    def status(self) -> dict[str, Any]:
        """Return the daemon's status."""
        return self.call("GET", "/api/v1/status")

    def transcribe(self, wav: bytes) -> str:
        """Have the daemon write down what is said in a WAV file."""
        return str(self.call("POST", "/api/v1/transcribe", wav, "audio/wav")["text"])

    def stop(self, seconds: float = 40.0) -> int:
        """End it with SIGTERM and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


def mappings(pid: int) -> Iterator[tuple[tuple[str, str], dict[str, int]]]:
    """Read /proc/PID/smaps (proc(5)): of each mapping the file with its offset, and its sizes in kilobytes."""
    name, sizes = ("", ""), dict[str, int]()
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if words[0].endswith(":"):
            if words[-1] == "kB":
                sizes[words[0][:-1]] = int(words[1])
            continue
        if sizes:
            yield name, sizes
        # Memory without a file is nobody else's, whatever it is called.
        is_file = len(words) > 5 and words[5].startswith("/")
        name, sizes = (words[5], words[2]) if is_file else (str(pid), words[0]), {}
    if sizes:
        yield name, sizes


@contextlib.contextmanager
def running(settings: Mapping[str, str] | None = None, *, toml: str = "") -> Iterator[Daemon]:
    """Run a daemon; it must end in order, without a traceback and without leaving a process."""
    daemon = Daemon(settings, toml=toml)
    engines: list[psutil.Process] = []
    try:
        yield daemon
        engines = list(daemon.engines().values())
    finally:
        status = daemon.stop()
    assert status == 0, daemon.log
    assert "Traceback" not in daemon.log, daemon.log
    assert not [engine for engine in engines if engine.is_running()]
