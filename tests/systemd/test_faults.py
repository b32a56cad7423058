"""Starting when something is wrong: a state that a person can read, and recovery once the cause is gone."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from hotpind.engines.fleet import PREPARED
from tests.lan import Avahi, Lan
from tests.systemd.conftest import (
    CONNECTED_S,
    QUESTION,
    URL,
    MachineMaker,
    drop_in,
    journal,
    prop,
    speaks_and_listens,
    wait_until,
)
from tests.systemd.machine import Machine
from tests.systemd.wearer import Wearer

pytestmark = [pytest.mark.systemd, pytest.mark.timeout(1800)]

NOTICED_S = 60
RECOVERED_S = 120
UNDERSTOOD_S = 180
"""Until an engine that cannot live has had its model read."""
NETWORK_S = 90
PATIENCE_S = 15
OUTLIVED_S = 35
MANY = 25
"""More failed starts in a row than any limit of the unit's would allow."""
MODELS = "var/cache/hotpin/models"
STATE = "var/lib/hotpin"


def start(host: Machine) -> None:
    """Start the service anew, without waiting: it may not become ready."""
    host.run("systemctl", "stop", "hotpind")
    host.run("systemctl", "reset-failed", "hotpind", check=False)
    host.run("systemctl", "start", "--no-block", "hotpind")


def shows(host: Machine, *parts: str) -> Callable[[], bool]:
    """Tell whether the status line that `systemctl status` shows has all these parts."""
    return lambda: all(part in prop(host, "StatusText") for part in parts)


def active(host: Machine) -> bool:
    return prop(host, "ActiveState") == "active"


def life(host: Machine) -> tuple[str, str, str]:
    """The service's state, its process and how often systemd restarted it."""
    return prop(host, "ActiveState"), prop(host, "MainPID"), prop(host, "NRestarts")


def faults(host: Machine) -> list[str]:
    """What `hotpinctl status` calls faults; nothing before the service can be asked."""
    done = host.run("hotpinctl", "status", "--json", check=False)
    return list(json.loads(done.stdout)["faults"]) if done.returncode == 0 else []


def calls_a_fault(host: Machine, *parts: str) -> bool:
    """Tell whether `hotpinctl status` has a fault with all these parts."""
    return any(all(part in fault for part in parts) for fault in faults(host))


def test_the_port_is_taken(boot: MachineMaker) -> None:
    host = boot()
    host.run("systemctl", "stop", "hotpind")
    host.run("systemd-run", "--unit=squatter", "python3", "-m", "http.server", "8000")
    # systemd's patience is asked for again and again, so the start outlives it.
    drop_in(host, f"TimeoutStartSec={PATIENCE_S}")
    start(host)
    begun = time.monotonic()
    wait_until(shows(host, "8000"), NOTICED_S, lambda: journal(host))
    daemon = prop(host, "MainPID")
    print(prop(host, "StatusText"))
    time.sleep(max(0.0, OUTLIVED_S - (time.monotonic() - begun)))
    assert life(host) == ("activating", daemon, "0"), journal(host)
    host.run("systemctl", "stop", "squatter")
    took = wait_until(lambda: active(host), RECOVERED_S, lambda: journal(host))
    assert speaks_and_listens(host)
    assert life(host) == ("active", daemon, "0")
    print(f"active {took:.1f} s after the port was free")


def test_corrupt_models(boot: MachineMaker) -> None:
    host = boot()
    host.run("systemctl", "stop", "hotpind")
    models = [next((host.root / MODELS).glob(f"*/{pattern}")) for pattern in ("*.onnx", "*.bin")]
    whole = {model: (model.read_bytes(), model.stat()) for model in models}

    def cut(data: bytes) -> bytes:
        return data[:len(data) // 2]

    def rotten(data: bytes) -> bytes:
        # Zeros within a matrix would go unnoticed: such a model loads, and talks nonsense.
        return data[:1000] + bytes(len(data) - 1000)

    for spoil, said in ((cut, "bytes, found"), (rotten, "expected SHA-256")):
        # With what it has made of it, the voice would go on without its own file.
        shutil.rmtree(models[0].parent / PREPARED, ignore_errors=True)
        for model, (data, info) in whole.items():
            model.write_bytes(spoil(data))
            if spoil is rotten:
                # A worn card changes what is on it, and neither size nor time tells.
                os.utime(model, ns=(info.st_atime_ns, info.st_mtime_ns))
        start(host)
        for model in models:
            wait_until(partial(calls_a_fault, host, model.name, said), UNDERSTOOD_S,
                       lambda: f"{faults(host)}\n{journal(host)}")
        wait_until(shows(host, said), NOTICED_S, lambda: prop(host, "StatusText"))
        status = prop(host, "StatusText")
        print(status)
        assert any(model.name in status for model in models)
        assert "hotpinctl models pull" in status
        daemon = prop(host, "MainPID")
        for model, (data, info) in whole.items():
            model.write_bytes(data)
            os.utime(model, ns=(info.st_atime_ns, info.st_mtime_ns))
        took = wait_until(lambda: active(host), RECOVERED_S, lambda: f"{prop(host, 'StatusText')}\n{journal(host)}")
        assert speaks_and_listens(host)
        assert life(host) == ("active", daemon, "0")
        print(f"active {took:.1f} s after the models were whole again")


def test_the_disk_is_full(boot: MachineMaker) -> None:
    host = boot()
    host.run("systemctl", "stop", "hotpind")
    host.run("mount", "-t", "tmpfs", "-o", "size=1m,mode=0700,uid=hotpin,gid=hotpin", "tmpfs", f"/{STATE}")
    host.run("dd", "if=/dev/zero", f"of=/{STATE}/full", "bs=4k", check=False)
    start(host)
    wait_until(lambda: active(host) or shows(host, STATE)(), NOTICED_S, lambda: journal(host))
    print(f"{prop(host, 'ActiveState')}: {prop(host, 'StatusText')}")
    status = prop(host, "StatusText")
    assert "space" in status or STATE in status, status
    daemon = prop(host, "MainPID")
    host.run("rm", f"/{STATE}/full")
    took = wait_until(lambda: active(host), RECOVERED_S, lambda: f"{prop(host, 'StatusText')}\n{journal(host)}")
    assert speaks_and_listens(host)
    assert life(host) == ("active", daemon, "0")
    print(f"active {took:.1f} s after there was room")


def test_a_corrupt_database(boot: MachineMaker) -> None:
    host = boot()
    host.run("systemctl", "start", "hotpind")
    host.run("systemctl", "stop", "hotpind")
    databases = [path for path in (host.root / STATE).iterdir() if path.suffix in {".db", ".sqlite", ".sqlite3"}]
    assert len(databases) == 1, list((host.root / STATE).iterdir())
    databases[0].write_bytes(b"this is no database" * 500)
    start(host)
    wait_until(lambda: active(host), RECOVERED_S, lambda: journal(host))
    assert databases[0].name in journal(host)
    kept = [path for path in (host.root / STATE).iterdir() if path.name.startswith(databases[0].name)
            and path.read_bytes().startswith(b"this is no database")]
    assert kept, "the damaged file must be kept for whoever wants to look at it"
    wait_until(shows(host, "damaged", kept[0].name, "pair the devices again"), NOTICED_S,
               lambda: prop(host, "StatusText"))
    found = json.loads(host.run("hotpinctl", "doctor", "--json", check=False).stdout)
    assert [each for each in found if each["verdict"] == "fault" and "pair the devices again" in each["text"]], found
    assert speaks_and_listens(host)


def test_the_clock_is_at_1970(boot: MachineMaker, home: Lan, tmp_path: Path) -> None:
    host = boot(netns=home.namespace_path("appl").name)
    (library,) = host.root.glob("usr/lib/*/faketime/libfaketime.so.1")
    clock = host.root / "etc/clock"
    clock.write_text("@1970-01-01 00:01:00\n")
    drop_in(host, f"Environment=LD_PRELOAD=/{library.relative_to(host.root)}",
            "Environment=FAKETIME_TIMESTAMP_FILE=/etc/clock FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1")
    start(host)
    wait_until(lambda: active(host), RECOVERED_S, lambda: journal(host))
    assert library.name in host.run("cat", f"/proc/{prop(host, 'MainPID')}/maps").stdout
    wait_until(shows(host, "the clock shows the year 1970", "timedatectl"), NOTICED_S,
               lambda: prop(host, "StatusText"))
    daemon = prop(host, "MainPID")
    with Wearer(home.prefix("wear"), tmp_path, URL) as pin:
        pin.wait("connected", timeout=CONNECTED_S)
        assert pin.answer(QUESTION)["violations"] == []
        clock.write_text("+0\n")
        wait_until(lambda: "clock" not in prop(host, "StatusText"), NOTICED_S, lambda: prop(host, "StatusText"))
        assert pin.answer(QUESTION)["violations"] == []
        assert not pin.arrived("lost", "connected")
    assert life(host) == ("active", daemon, "0")


def test_there_is_no_network_at_first(boot: MachineMaker, home: Lan, tmp_path: Path) -> None:
    home.cable("appl", plugged=False)
    host = boot(netns=home.namespace_path("appl").name)
    # Nobody started it: it came up with the machine.
    wait_until(lambda: active(host), RECOVERED_S, lambda: journal(host))
    wait_until(shows(host, "no network"), NOTICED_S, lambda: prop(host, "StatusText"))
    pull = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:8000/health').read().decode())"
    assert "hotpin" in host.run("python3", "-c", pull).stdout
    assert speaks_and_listens(host)
    daemon = prop(host, "MainPID")
    with Avahi(home, "wear", tmp_path) as avahi, Wearer(home.prefix("wear"), tmp_path, URL) as pin:
        home.cable("appl", plugged=True)
        pin.wait("connected", timeout=NETWORK_S)
        pin.answer(QUESTION)
        wait_until(lambda: any("hotpin" in found["name"].lower() for found in avahi.browse()), NETWORK_S)
        wait_until(lambda: "no network" not in prop(host, "StatusText"), NOTICED_S, lambda: prop(host, "StatusText"))
    assert life(host) == ("active", daemon, "0")


def test_however_often_it_failed_it_is_started_again(boot: MachineMaker) -> None:
    host = boot()
    host.run("systemctl", "stop", "hotpind")
    hotpind, tmpfiles = "/opt/hotpind/venv/bin/hotpind", "/usr/bin/systemd-tmpfiles"
    for program in (hotpind, tmpfiles):
        host.run("mount", "--bind", "/bin/false", program)
    drop_in(host, "RestartSec=100ms")
    start(host)
    wait_until(lambda: int(prop(host, "NRestarts")) > MANY, 240, lambda: journal(host))
    host.run("umount", "--lazy", hotpind)
    took = wait_until(lambda: active(host), RECOVERED_S, lambda: journal(host))
    assert speaks_and_listens(host)
    print(f"active {took:.1f} s after it could be started again")


def test_settings_that_are_wrong_are_not_tried_again_and_again(boot: MachineMaker) -> None:
    host = boot()
    settings = host.root / "etc/hotpin/hotpin.toml"
    whole = settings.read_text()
    settings.write_text("[server]\nport = \"eight thousand\"\n")
    start(host)
    wait_until(lambda: prop(host, "ActiveState") == "failed", NOTICED_S, lambda: journal(host))
    shown = host.run("systemctl", "status", "--no-pager", "--lines=20", "hotpind", check=False).stdout
    assert "hotpin.toml" in shown
    assert "port" in shown
    assert prop(host, "NRestarts") == "0"
    settings.write_text(whole)
    host.run("systemctl", "start", "hotpind")
    assert speaks_and_listens(host)
