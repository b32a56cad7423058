"""kill -9 at random points of pairings and revocations: what was answered holds."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hotpind.devices.registry import DeviceRegistry
from tests.places import TOP

KILLS = 25
CHANGES = 200


@pytest.mark.slow
async def test_what_was_answered_survives_a_kill(tmp_path: Path) -> None:
    """Many kills among at least 200 answered changes.

    A change that was under way when the process died may have happened or not; both are right.
    """
    chance = random.Random(4)
    valid: dict[str, str] = {}
    invalid: set[str] = set()
    answered = killed = 0
    while killed < KILLS or answered < CHANGES:
        lines = run_and_kill(tmp_path, killed, chance.uniform(0.02, 0.4))
        killed += 1
        doubtful = ""
        for line in lines:
            mark, device_id, *token = line.split()
            assert mark != "!", line
            doubtful = device_id if mark == "?" else ""
            if mark in "+-" and device_id in valid:
                invalid.add(valid.pop(device_id))
            if mark == "+":
                valid[device_id] = token[0]
            answered += mark in "+-"
        registry = await DeviceRegistry.open(tmp_path)
        assert registry.notices == ()
        for device_id, token_ in valid.items():
            if device_id != doubtful:
                device = registry.authenticate(token_)
                assert device is not None, f"{device_id} was answered and is lost"
                assert device.id == device_id
        assert not [token_ for token_ in invalid if registry.authenticate(token_)], "a revoked token works"
        if doubtful in valid and registry.authenticate(valid[doubtful]) is None:
            invalid.add(valid.pop(doubtful))
        await registry.close()
    print(f"{answered} answered changes, {killed} kills")


def run_and_kill(state: Path, seed: int, seconds: float) -> list[str]:
    """Let the registry change for so long after its first answer, then kill it; return the whole lines it printed."""
    process = subprocess.Popen([sys.executable, "-m", "tests.devices.churn", str(state), str(seed)],
                               stdout=subprocess.PIPE, text=True, cwd=TOP)
    assert process.stdout is not None
    first = [process.stdout.readline(), process.stdout.readline()]
    time.sleep(seconds)
    process.kill()
    output = "".join(first) + process.stdout.read()
    process.stdout.close()
    process.wait(10)
    return output[:output.rfind("\n") + 1].splitlines()
