"""The cable is pulled, and put back: in network namespaces, with the real schedule of probes."""

from __future__ import annotations

import json
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.lan import WEARABLE_IP, Lan, lan
from tests.places import TOP

pytestmark = [pytest.mark.netns, pytest.mark.slow]

LATE_S = 2.5
BACK_S = 30.0


class Asker:
    """Questions being asked in the appliance's namespace."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._lines: queue.Queue[dict[str, Any]] = queue.Queue()
        self.rows: list[dict[str, Any]] = []

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                self._lines.put(json.loads(line))

        threading.Thread(target=read, daemon=True).start()

    def until(self, condition: Callable[[dict[str, Any]], bool], seconds: float) -> list[dict[str, Any]]:
        """Return the rows up to the first that fulfils the condition."""
        rows = []
        end = time.monotonic() + seconds
        while True:
            try:
                rows.append(self._lines.get(timeout=max(0.01, end - time.monotonic())))
            except queue.Empty:
                raise AssertionError(f"it did not happen in {seconds} s: {rows[-5:]}") from None
            self.rows.append(rows[-1])
            if condition(rows[-1]):
                return rows

    def some(self, count: int) -> list[dict[str, Any]]:
        """Return the next ``count`` rows."""
        return [self.until(lambda _: True, 30)[0] for _ in range(count)]


@pytest.fixture
def network() -> Iterator[Lan]:
    with lan() as made:
        yield made


@pytest.fixture
def cloud(network: Lan) -> Iterator[tuple[subprocess.Popen[str], str]]:
    with subprocess.Popen(
            [*network.prefix("wear"), sys.executable, "-m", "tests.fakes.groq", "--host", WEARABLE_IP],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=TOP) as process:
        assert process.stdout is not None
        yield process, f"http://{WEARABLE_IP}:{process.stdout.readline().strip()}"


@pytest.fixture
def asker(network: Lan, cloud: tuple[subprocess.Popen[str], str]) -> Asker:
    directory = tempfile.mkdtemp(prefix="hp-")
    return Asker(network.start("appl", [sys.executable, "-m", "tests.chat.asker", cloud[1], directory]))


def behave(cloud: tuple[subprocess.Popen[str], str], **behaviour: Any) -> dict[str, int]:
    process, _ = cloud
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(behaviour) + "\n")
    process.stdin.flush()
    return dict(json.loads(process.stdout.readline()))


def median(rows: list[dict[str, Any]]) -> float:
    return statistics.median(float(row["taken"]) for row in rows)


def test_the_chain_knows_at_once_and_for_as_long_as_the_line_is_dead(
        network: Lan, cloud: tuple[subprocess.Popen[str], str], asker: Asker) -> None:
    """Packets vanish without a word from anybody: the harder case. The whole appliance is tested with both."""
    asker.until(lambda row: row["backend"] == "groq", 40)
    # A turn is under way: its words have begun when the line dies.
    behave(cloud, kind="drip", every=0.3)
    time.sleep(1.0)
    network.drop(100)
    pulled = time.monotonic()
    # What answers the test's own commands is in another namespace and is not concerned.
    behave(cloud, kind="ok")
    rows = asker.until(lambda row: row["backend"] == "local", 40)
    first = rows[-1]
    broken = [row for row in rows if row["broke"]]
    assert all(row["words"] > 0 for row in broken), "what was said stays said"
    assert all(row["over"] - pulled < 15 for row in broken)
    assert first["taken"] < LATE_S + 2
    local = asker.some(15)
    assert {row["backend"] for row in local} == {"local"}
    later = [row["taken"] for row in local]
    print(f"the turn under way {'broke' if broken else 'was late'}, first local after {first['taken']:.2f} s "
          f"({first['reason']}), later ones median {median(local) * 1000:.0f} ms, worst {max(later) * 1000:.0f} ms")
    assert median(local) < 0.5
    assert max(later) < LATE_S - 0.5, "no question waits for a probe"
    time.sleep(22)
    network.drop(0)
    back = time.monotonic()
    rows = asker.until(lambda row: row["backend"] == "groq" and row["at"] > back - 0.5, BACK_S)
    print(f"back {rows[-1]['at'] - back:.1f} s after the cable")
    assert rows[-1]["at"] - back < BACK_S
    assert max(row["taken"] for row in rows if row["backend"] == "local") < LATE_S - 0.5
    assert {row["backend"] for row in asker.some(10)} == {"groq"}
    assert not [row for row in asker.rows if row["backend"] == "nobody"]
