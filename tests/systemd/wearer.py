"""The test's end of a pin that lives in a process of its own (`tests.systemd.pin_process`)."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.places import TOP


class Wearer:
    """A person with a pin: `ask` questions, `wait` for what happens."""

    def __init__(self, prefix: Sequence[str], folder: Path, url: str, session: str = "esp32-cam-hotpin-001") -> None:
        """``prefix`` begins a command line that runs in the pin's network."""
        self._command = [*prefix, sys.executable, "-m", "tests.systemd.pin_process", session,
                         str(folder / f"{session}.json"), url]
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Wearer:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                         cwd=TOP)
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None,
                 _trace: TracebackType | None) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.communicate()

    def ask(self, wav: Path, *, slowly: bool = False) -> None:
        """Say what a recording holds; the answer is a "turn" or "failed" event."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"slowly {wav}\n" if slowly else f"{wav}\n")
        self._process.stdin.flush()

    def hear(self, wav: Path, *, timeout: float = 60) -> None:
        """Ask, and return as soon as the answer is heard; its "turn" comes later."""
        self.ask(wav)
        found = self.wait("hearing", "turn", "failed", "lost", timeout=timeout)
        assert found["event"] == "hearing", found

    def wait(self, *events: str, timeout: float) -> dict[str, Any]:
        """Return the next of these events, passing others over."""
        deadline = time.monotonic() + timeout
        passed: list[dict[str, Any]] = []
        while True:
            try:
                found = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise TimeoutError(f"no {' or '.join(events)} within {timeout} s, only {passed}") from None
            if found["event"] in events:
                return found
            passed.append(found)

    def arrived(self, *events: str) -> bool:
        """Tell whether one of these events has come that nobody has waited for yet."""
        return any(found["event"] in events for found in list(self._events.queue))

    def answer(self, wav: Path, *, slowly: bool = False, timeout: float = 120) -> dict[str, Any]:
        """Ask and return the turn, which must have been answered."""
        self.ask(wav, slowly=slowly)
        turn = self.wait("turn", "failed", timeout=timeout)
        assert turn.get("answered"), turn
        return turn

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._events.put(json.loads(line))
