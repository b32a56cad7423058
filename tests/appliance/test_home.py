"""A home of network namespaces: the daemon and pins are switched on, nothing is typed, and the daemon moves."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.appliance.harness import Daemon
from tests.appliance.recordings import DATA
from tests.appliance.strangers import PAIRED
from tests.discovery.conftest import Watcher
from tests.lan import APPLIANCE_IP, Avahi, Lan
from tests.lan import lan as make_lan
from tests.systemd.wearer import Wearer

pytestmark = [pytest.mark.netns, pytest.mark.slow]

OTHER_IP = "198.51.100.77"
QUESTION = DATA / "cards" / "001.wav"
SESSION = "esp32-cam-hotpin-001"
RUNS = 10
_VISITS = itertools.count()


@dataclass
class Home:
    """A network with a daemon, and the pin that was switched on with it."""

    lan: Lan
    daemon: Daemon
    folder: Path
    first_turn: dict[str, Any]
    first_sound_s: float
    """From switching both on to the first sound of the first answer."""

    def connected_at(self, address: str, seconds: float) -> float:
        """Wait until a pin is connected to this address of the daemon; return when that was."""
        deadline = time.monotonic() + seconds
        while not self.lan.run("appl", ["ss", "-Htn", "state", "established", "src", address]).stdout:
            assert time.monotonic() < deadline, f"nobody at {address} within {seconds} s:\n{self.daemon.log}"
            time.sleep(0.05)
        return time.monotonic()

    def pin(self, *arguments: object) -> subprocess.Popen[str]:
        """Start a command of hotpinctl on another machine of the network."""
        environ = {**os.environ, "XDG_STATE_HOME": str(self.folder / "pins"),
                   "HOTPIN_PATHS__RUNTIME": str(self.folder / "nothing")}
        return self.lan.start("wear", [sys.executable, "-m", "hotpind.cli.ctl", *map(str, arguments)], env=environ)


@contextlib.contextmanager
def switched_on(folder: Path) -> Iterator[Home]:
    """Make a network and switch a daemon and a pin on in it, which asks as soon as it can."""
    with make_lan() as lan:
        on = time.monotonic()
        daemon = Daemon(PAIRED | {"SERVER__HOST": "", "DISCOVERY__ENABLED": "true"}, prefix=lan.prefix("appl"),
                        wait=False)
        try:
            with Wearer(lan.prefix("wear"), folder, "", SESSION) as wearer:
                wearer.ask(QUESTION, slowly=True)
                turn = wearer.wait("turn", timeout=120)
                over = time.monotonic() - on
                timings = turn["timings"]
                # The pin tells of a turn once it is over, so this is never less than it was.
                first_sound = over - (timings["complete"] - timings["first_audio"]) if turn["answered"] else over
            daemon.wait_until_serving()
            yield Home(lan, daemon, folder, turn, first_sound)
        finally:
            status = daemon.stop()
        assert status == 0, daemon.log
        assert "Traceback" not in daemon.log


@pytest.fixture
def fresh_home(tmp_path: Path) -> Iterator[Home]:
    """A home of the test's own, which may end it, and which is made anew when the test is run again."""
    with switched_on(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with switched_on(tmp_path_factory.mktemp("home")) as made:
        yield made


def test_from_power_on_to_the_first_answer_nothing_is_typed(fresh_home: Home) -> None:
    home = fresh_home
    print(f"power-on to first spoken answer: {home.first_sound_s:.1f} s, of which "
          f"{home.first_turn['timings']['first_audio']:.1f} s after the question's end; "
          f"asked {home.first_turn['transcript']!r}, answered {home.first_turn['response']!r}")
    assert home.first_turn["answered"], home.first_turn
    assert home.first_sound_s < 15
    memory = json.loads((home.folder / f"{SESSION}.json").read_text())
    assert memory["address"].startswith(f"http://{APPLIANCE_IP}:")
    assert len(memory["token"]) == 64
    (device,) = home.daemon.call("GET", "/api/v1/devices")["devices"]
    assert device["device_id"] == SESSION
    status = home.daemon.status()
    assert (status["auth"], status["pairing_open_s"], status["announced_on"]) == ("paired", 0, ["wlan0"])
    assert memory["token"] not in home.daemon.log


def test_avahi_sees_the_daemon_and_its_window_live(home: Home, tmp_path: Path) -> None:
    with Avahi(home.lan, "appl", tmp_path, host="raspberrypi"), Avahi(home.lan, "wear", tmp_path) as avahi:
        began = time.monotonic()
        found = next(each for each in avahi.browse() if each["protocol"] == "IPv4")
        assert time.monotonic() - began < 3, "two for being found, one for the browser's own end"
        txt = dict(item.strip('"').split("=", 1) for item in found["txt"].split())
        identity = (home.daemon.root / "state" / "appliance-id").read_text().strip()
        assert (found["name"], found["host"], found["address"]) == ("Hotpin", f"hotpin-{identity}.local", APPLIANCE_IP)
        version = home.daemon.status()["version"]
        assert txt == {"txtvers": "1", "id": identity, "ver": version, "proto": "2", "path": "/ws", "img": "/image",
                       "auth": "paired", "pair": "closed", "tls": "0"}
        assert avahi.resolve("raspberrypi.local") == APPLIANCE_IP
        home.daemon.call("POST", "/api/v1/pairing", b'{"minutes": 1}')
        deadline = time.monotonic() + 15
        while '"pair=open"' not in next(each for each in avahi.browse() if each["protocol"] == "IPv4")["txt"]:
            assert time.monotonic() < deadline
        home.daemon.call("DELETE", "/api/v1/pairing")


def test_a_connected_pin_follows_the_daemon_to_its_new_address(home: Home) -> None:
    home.daemon.ctl("pair", "--no-wait")
    pin = home.pin("simulate", "--count", 1, "--turns", 8, "--wav", QUESTION, "--fast", "--pause", 1, "--spread", 0,
                   "--json")
    watcher = Watcher(home.lan.start("wear", [sys.executable, "-m", "tests.discovery.stranger", "watch"]))
    home.connected_at(APPLIANCE_IP, 60)
    watcher.wait(lambda event: APPLIANCE_IP in event.get("addresses", ()), 15)
    time.sleep(2)
    home.lan.remove_address("appl", APPLIANCE_IP)
    home.lan.add_address("appl", OTHER_IP)
    moved = time.monotonic()
    try:
        announced = watcher.wait(lambda event: OTHER_IP in event.get("addresses", ()), 15)["at"]
        back = home.connected_at(OTHER_IP, 40)
        print(f"announced anew {announced - moved:.2f} s after the address changed, reconnected {back - moved:.2f} s "
              "after it")
        assert announced - moved < 5
        assert back - moved < 5
        output, _ = pin.communicate(timeout=200)
    finally:
        home.lan.add_address("appl", APPLIANCE_IP)
        home.lan.remove_address("appl", OTHER_IP)
    sums = json.loads(output)
    assert sums["reconnects"] >= 1
    assert sums["answered"] >= 7, sums
    assert [each["device_id"] for each in home.daemon.call("GET", "/api/v1/devices")["devices"]] == [SESSION, "sim-001"]


@pytest.mark.timeout(900)
def test_pins_find_pair_and_connect_on_a_bad_link(home: Home) -> None:
    """The pin's own code against the whole daemon, with 30 % of all packets lost each way."""
    took: list[float | None] = []
    names = [f"lossy-{next(_VISITS)}" for _ in range(RUNS)]
    for name in names:
        home.daemon.call("POST", "/api/v1/pairing", b'{"minutes": 2}')
        home.lan.drop(30)
        done = home.lan.run("wear", [sys.executable, "-m", "tests.pin.reaching", name,
                                     str(home.folder / f"{name}.json")], timeout=90, check=False)
        home.lan.drop(0)
        print(done.stderr)
        took.append(json.loads(done.stdout)["seconds"] if done.returncode == 0 else None)
    print("seconds until found, paired and connected at 30 % loss each way:", took)
    assert sum(each is not None and each < 30 for each in took) >= RUNS - 1, took
    known = {each["device_id"] for each in home.daemon.call("GET", "/api/v1/devices")["devices"]}
    assert {name for name, each in zip(names, took, strict=True) if each is not None} <= known


def test_goodbye_is_said_when_the_daemon_stops(fresh_home: Home) -> None:
    home = fresh_home
    watcher = Watcher(home.lan.start("wear", [sys.executable, "-m", "tests.discovery.stranger", "watch"]))
    watcher.wait(lambda event: event["change"] == "Added", 15)
    began = time.monotonic()
    assert home.daemon.stop() == 0
    gone = watcher.wait(lambda event: event["change"] == "Removed", 15)["at"]
    print(f"goodbye {gone - began:.2f} s after SIGTERM, ended after {time.monotonic() - began:.2f} s")
    assert gone - began < 5
