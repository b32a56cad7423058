"""`hotpinctl` as a pin on a real LAN of namespaces: nothing typed, nothing lost when the appliance moves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, Queue

import numpy as np
import pytest

from tests.lan import APPLIANCE_IP, WEARABLE_IP, Lan
from tests.lan import lan as make_lan
from tests.waiting import wait_until
from tests.wav import write_wav

pytestmark = [pytest.mark.netns, pytest.mark.slow]

OTHER_IP = "198.51.100.77"
APPLIANCE_V6, WEARABLE_V6 = "fd98:51:100::10", "fd98:51:100::20"
"""Unique local addresses (RFC 4193), as a router at home gives them."""
FOUND_S = 30
FOLLOWS_S = 15
"""Eight and five seconds on a machine with nothing else to do; what it took is printed."""
HELLO = "{"


@pytest.fixture
def lan() -> Iterator[Lan]:
    with make_lan() as made:
        yield made


class Process:
    """A process whose lines are read as they come."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._lines: Queue[str] = Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.strip())

    def line(self, start: str, seconds: float) -> None:
        """Wait for the next line that starts so."""
        deadline = time.monotonic() + seconds
        try:
            while not self._lines.get(timeout=max(0.0, deadline - time.monotonic())).startswith(start):
                pass
        except Empty:
            raise AssertionError(f"no {start!r} within {seconds} s") from None


@pytest.fixture
def appliance(lan: Lan, tmp_path: Path) -> Process:
    made = Process(lan.start("appl", [sys.executable, "-m", "tests.pin.lan_appliance", str(tmp_path / "appliance")]))
    made.line("ready", 30)
    return made


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "XDG_STATE_HOME": str(tmp_path / "pin"), "HOTPIN_PATHS__RUNTIME": str(tmp_path / "run")}


@pytest.fixture
def question(tmp_path: Path) -> Path:
    path = tmp_path / "question.wav"
    path.write_bytes(write_wav(np.zeros(4000, np.int16), 16000))
    return path


def command(*arguments: object) -> list[str]:
    """A command line of the two commands under test, without waiting for all the others to be imported."""
    program = ("import typer; from hotpind.cli import ask, simulate; app = typer.Typer(); "
               "ask.register(app); simulate.register(app); app()")
    return [sys.executable, "-c", program, *[str(each) for each in arguments]]


def ask(lan: Lan, question: Path, environment: dict[str, str]) -> tuple[float, subprocess.CompletedProcess[str]]:
    began = time.monotonic()
    result = subprocess.run([*lan.prefix("wear"), *command("ask", "--wav", question, "--fast")], env=environment,
                            capture_output=True, text=True, timeout=120, check=False)
    return time.monotonic() - began, result


def move(lan: Lan) -> None:
    lan.remove_address("appl", APPLIANCE_IP)
    lan.add_address("appl", OTHER_IP)


def test_found_paired_and_answered_with_nothing_typed(lan: Lan, appliance: Process, question: Path,
                                                      environment: dict[str, str]) -> None:
    took, first = ask(lan, question, environment)
    assert first.returncode == 0, first.stderr
    assert first.stderr.splitlines() == [f"Found Hotpin Test at http://{APPLIANCE_IP}:8000/.", "Pairing.",
                                         "Paired with Hotpin Test."]
    print(f"answered after {took:.1f} s")
    assert took < FOUND_S
    _, second = ask(lan, question, environment)
    assert (second.returncode, second.stderr) == (0, "")
    move(lan)
    took, third = ask(lan, question, environment)
    assert third.returncode == 0, third.stderr
    assert f"Found Hotpin Test at http://{OTHER_IP}:8000/." in third.stderr
    assert "Pairing." not in third.stderr
    print(f"answered after {took:.1f} s at its new address")
    assert took < FOUND_S


def test_found_where_there_is_ipv6_alone(lan: Lan, appliance: Process) -> None:
    for role, address in (("appl", APPLIANCE_V6), ("wear", WEARABLE_V6)):
        lan.ip(role, "addr", "add", f"{address}/64", "dev", "wlan0", "nodad")
    lan.remove_address("appl", APPLIANCE_IP)
    lan.remove_address("wear", WEARABLE_IP)
    program = "import asyncio; from hotpind.pin.find import find; print(asyncio.run(find()).urls[0])"
    # It may still be telling its old address when it is asked first.
    wait_until(lambda: lan.run("wear", [sys.executable, "-c", program], timeout=60).stdout.strip()
               == f"http://[{APPLIANCE_V6}]:8000/", 30)


def test_a_connected_pin_follows_its_appliance_at_once(lan: Lan, appliance: Process, question: Path,
                                                      environment: dict[str, str]) -> None:
    pin = lan.start("wear", command("simulate", "--count", 1, "--turns", 7, "--wav", question, "--fast", "--pause", 1,
                                    "--spread", 0, "--json"), env=environment)
    appliance.line(HELLO, 30)
    appliance.line("answered", 30)
    # An announcement does not replace what was heard less than a second before it (RFC 6762, 10.2).
    time.sleep(2)
    move(lan)
    moved = time.monotonic()
    appliance.line(HELLO, 60)
    took = time.monotonic() - moved
    print(f"reconnected {took:.2f} s after the address changed")
    assert took < FOLLOWS_S
    output, _ = pin.communicate(timeout=180)
    sums = json.loads(output)
    assert sums["reconnects"] >= 1
    assert sums["answered"] >= 7 - sums["reconnects"], "at most the question of the moment is lost"
