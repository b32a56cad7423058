"""Processes in a test LAN: appliances, and strangers that watch them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import pytest

from tests.lan import Lan
from tests.lan import lan as make_lan


@pytest.fixture
def lan() -> Iterator[Lan]:
    with make_lan() as made:
        yield made


class Appliance:
    """A `tests.discovery.appliance` that runs in a namespace."""

    def __init__(self, lan: Lan, role: str, state: Path, arguments: tuple[str, ...]) -> None:
        self._lan = lan
        self._log = (state.parent / f"{state.name}.log").open("a+")
        self.process = lan.start(role, [sys.executable, "-m", "tests.discovery.appliance", str(state), *arguments],
                                 stderr=self._log)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().split()[1])

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def stop(self) -> None:
        assert self._lan.stop(self.process) == 0, self.log()


class Watcher:
    """A stranger that watches, and what it has seen."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._lines: Queue[str] = Queue()
        self._stream = process.stdout
        self.seen: list[dict[str, Any]] = []
        self._browsing = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._stream is not None
        for line in self._stream:
            if '"change": "Browsing"' in line:
                self._browsing.set()
            else:
                self._lines.put(line)

    def wait_until_browsing(self, seconds: float = 30) -> None:
        """Wait until the stranger has started."""
        assert self._browsing.wait(seconds), f"the stranger did not start within {seconds} s"

    def wait(self, wanted: Callable[[dict[str, Any]], bool], seconds: float) -> dict[str, Any]:
        """Return the first event from now on that is wanted."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                event = json.loads(self._lines.get(timeout=max(0.01, deadline - time.monotonic())))
            except Empty:
                raise AssertionError(f"not seen within {seconds} s, only {self.seen}") from None
            self.seen.append(event)
            if wanted(event):
                return dict(event)

    def collect(self, seconds: float) -> list[dict[str, Any]]:
        """Return all events of the next seconds."""
        time.sleep(seconds)
        events = []
        while not self._lines.empty():
            events.append(json.loads(self._lines.get()))
        self.seen += events
        return events


@pytest.fixture
def start_appliance(lan: Lan, tmp_path: Path) -> Callable[..., Appliance]:
    def start(*arguments: str, role: str = "appl", state: str = "state") -> Appliance:
        return Appliance(lan, role, tmp_path / state, arguments)

    return start


@pytest.fixture
def start_watcher(lan: Lan) -> Callable[..., Watcher]:
    def start(role: str = "wear") -> Watcher:
        watcher = Watcher(lan.start(role, [sys.executable, "-m", "tests.discovery.stranger", "watch"]))
        watcher.wait_until_browsing()
        return watcher

    return start
