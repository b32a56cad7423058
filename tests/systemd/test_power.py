"""The plug is pulled, again and again: it boots, starts by itself and answers each time, and forgets nobody."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from tests.lan import Lan
from tests.systemd.conftest import CONNECTED_S, QUESTION, URL, MachineMaker, journal, prop, wait_until
from tests.systemd.machine import Machine
from tests.systemd.wearer import Wearer

pytestmark = pytest.mark.systemd

CUTS = 20
MOST_CUTS = 40
"""So many at most, until both a turn and a pairing were cut."""
SEED = 4
LONGEST_S = (2.5, 0.15)
"""From the moment when the new pin begins to look for the appliance, in turns; the shorter one hits a pairing."""
REVOKE_EVERY = 4
STARTS_WITHIN_S = 90.0
"""Once systemd says that the machine is up, for which it waits for the service."""


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_power_cuts_during_turns_and_pairings(boot: MachineMaker, home: Lan, tmp_path: Path) -> None:
    host = boot(netns=home.namespace_path("appl").name)
    chance = random.Random(SEED)
    begun = time.monotonic()
    starts: list[float] = []
    paired: list[str] = []
    revoked: list[str] = []
    in_a_turn = in_a_pairing = 0
    for number in range(MOST_CUTS + 1):
        if number == 0:
            assert host.run("systemctl", "is-enabled", "hotpind").stdout.strip() == "enabled"
            comes_up_by_itself(host)
        assert prop(host, "NRestarts") == "0", journal(host)
        with Wearer(home.prefix("wear"), tmp_path, URL) as pin:
            pin.wait("connected", timeout=CONNECTED_S)
            assert pin.answer(QUESTION)["violations"] == []
            # Whoever was told before the plug was pulled that it is paired still is.
            if paired:
                with Wearer(home.prefix("wear"), tmp_path, URL, paired[-1]) as back:
                    back.wait("connected", timeout=40)
            # And whoever was revoked stays out.
            assert not set(revoked) & known(host)
            if number == MOST_CUTS or (number >= CUTS and in_a_turn and in_a_pairing):
                break
            name = f"esp32-cam-{number:02}"
            host.run("hotpinctl", "pair", "--no-wait")
            if len(paired) > 1 and number % REVOKE_EVERY == 0:
                revoked.append(paired.pop(0))
                host.run("hotpinctl", "devices", "revoke", revoked[-1])
            with Wearer(home.prefix("wear"), tmp_path, URL, name) as new:
                new.wait("reaching", timeout=60)
                pin.ask(QUESTION)
                time.sleep(chance.uniform(0, LONGEST_S[number % 2]))
                in_a_turn += not pin.arrived("turn", "failed")
                in_a_pairing += not new.arrived("connected", "failed")
                host.power_cut()
        if "token" in memory(tmp_path, name):
            paired.append(name)
        powered = time.monotonic()
        host.start()
        comes_up_by_itself(host)
        starts.append(time.monotonic() - powered)
    print(f"{number} power cuts in {time.monotonic() - begun:.0f} s, {in_a_turn} of them in a turn, {in_a_pairing} in "
          f"a pairing; ready {max(starts):.1f} s after power-on at the latest; {len(paired)} pins were paired on the "
          f"way, {len(revoked)} more were revoked")
    assert paired
    assert in_a_turn
    assert in_a_pairing
    # The token of one that was revoked before a cut opens nothing, and without a person it cannot pair again.
    assert revoked
    with Wearer(home.prefix("wear"), tmp_path, URL, revoked[-1]) as out:
        assert out.wait("connected", "failed", timeout=60)["event"] == "failed"


def known(host: Machine) -> set[str]:
    """The devices that the appliance lets in."""
    listed = json.loads(host.run("hotpinctl", "devices", "list", "--json").stdout)
    return {row["device_id"] for row in listed["devices"]}


def comes_up_by_itself(host: Machine) -> None:
    """Wait for the service that nobody started."""
    wait_until(lambda: prop(host, "ActiveState") == "active", STARTS_WITHIN_S, lambda: journal(host))


def memory(folder: Path, name: str) -> str:
    """What a pin has written down about its appliance."""
    file = folder / f"{name}.json"
    return file.read_text() if file.exists() else ""
