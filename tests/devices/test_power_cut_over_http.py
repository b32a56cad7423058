"""kill -9 while devices pair and are revoked over HTTP, and right after the start: what was answered holds."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hotpind.devices.device import describe
from hotpind.devices.registry import DeviceRegistry
from tests.devices.served import SECRET
from tests.places import TOP

KILLS = 15
CHANGES = 100
EARLY_KILLS = 12

pytestmark = pytest.mark.slow


@dataclass
class Answered:
    """What the appliance has answered so far."""

    valid: dict[str, str] = field(default_factory=dict)
    invalid: set[str] = field(default_factory=set)
    doubtful: str = ""
    """The device whose change was under way when the process died: it may have happened or not."""
    changes: int = 0

    async def check(self, state: Path) -> None:
        """Open the database and compare."""
        registry = await DeviceRegistry.open(state)
        assert registry.notices == ()
        for device_id, token in self.valid.items():
            if device_id != self.doubtful:
                device = registry.authenticate(token)
                assert device is not None, f"{device_id} was answered and is lost"
                assert device.id == device_id
        assert not [token for token in self.invalid if registry.authenticate(token)], "a revoked token works"
        if self.doubtful in self.valid and registry.authenticate(self.valid[self.doubtful]) is None:
            self.invalid.add(self.valid.pop(self.doubtful))
        self.doubtful = ""
        await registry.close()


class Served:
    """The appliance's doors in a process."""

    def __init__(self, state: Path) -> None:
        self.process = subprocess.Popen([sys.executable, "-m", "tests.devices.served", str(state)],
                                        stdout=subprocess.PIPE, text=True, cwd=TOP)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "opening\n"

    def port(self) -> int:
        """Wait until it listens."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("ready "), line
        return int(line.split()[1])

    def kill_in(self, seconds: float) -> threading.Timer:
        timer = threading.Timer(seconds, self.process.kill)
        timer.start()
        return timer

    def end(self) -> str:
        """Kill it; return what it printed after all."""
        self.process.kill()
        output, _ = self.process.communicate(timeout=20)
        return output


def ask(port: int, number: int, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    """Make one request from an address of its own, since rates are counted by address."""
    address = f"127.0.{100 + number // 200 % 100}.{1 + number % 200}"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20, source_address=(address, 0))
    with contextlib.closing(connection):
        connection.request(method, path, json.dumps(body) if body is not None else None,
                           {"Authorization": f"Bearer {SECRET}"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def change(port: int, chance: random.Random, answered: Answered, number: int) -> None:
    """Pair a device or revoke one, and note the answer."""
    revoked = chance.random() < 0.45 and bool(answered.valid)
    device_id = chance.choice(sorted(answered.valid)) if revoked else f"pin-{chance.randrange(30)}"
    if not revoked:
        status, _ = ask(port, number, "POST", "/api/v1/pairing", {"minutes": 1})
        assert status == 200
    answered.doubtful = device_id
    if revoked:
        status, answer = ask(port, number, "DELETE", f"/api/v1/devices/{device_id}")
    else:
        status, answer = ask(port, number, "POST", "/pair", {"device_id": device_id})
    if status == 429:
        answered.doubtful = ""
        return
    assert status == 200, answer
    if device_id in answered.valid:
        answered.invalid.add(answered.valid.pop(device_id))
    if not revoked:
        answered.valid[device_id] = answer["token"]
    answered.doubtful = ""
    answered.changes += 1


async def test_what_was_answered_over_http_survives_a_kill(tmp_path: Path) -> None:
    chance = random.Random(5)
    answered = Answered()
    killed = number = 0
    while killed < KILLS or answered.changes < CHANGES:
        assert killed < 20 * KILLS, "too slow a machine to get anywhere"
        served = Served(tmp_path)
        port = served.port()
        timer = served.kill_in(chance.uniform(0.02, 0.5))
        with contextlib.suppress(OSError, http.client.HTTPException, json.JSONDecodeError):
            while True:
                number += 1
                change(port, chance, answered, number)
        timer.join()
        killed += 1
        assert "!" not in served.end()
        await answered.check(tmp_path)
    print(f"{answered.changes} answered changes, {killed} kills")


@pytest.mark.parametrize("fresh", [True, False], ids=["a new database", "one with devices"])
async def test_a_kill_right_after_the_start_does_no_harm(tmp_path: Path, fresh: bool) -> None:
    """Within 50 ms of its opening, so while the database is made, checked or migrated."""
    chance = random.Random(6)
    answered = Answered()
    if not fresh:
        registry = await DeviceRegistry.open(tmp_path / "state")
        for number in range(20):
            device_id = f"pin-{number}"
            answered.valid[device_id] = await registry.add(describe(device_id))
        await registry.close()
    for number in range(EARLY_KILLS):
        state = tmp_path / (f"state-{number}" if fresh else "state")
        served = Served(state)
        served.kill_in(chance.uniform(0, 0.05)).join()
        assert "!" not in served.end()
        await answered.check(state)
    served = Served(tmp_path / "state")
    status, _ = ask(served.port(), 1, "POST", "/pair", {"device_id": "pin-new"})
    assert status == (200 if fresh else 202), "only a new appliance lets the first one in by itself"
    served.end()
