"""Starting when something is wrong: a state that a person can read, and recovery once the cause is gone."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.systemd.conftest import MachineMaker, drop_in, journal, prop, wait_until
from tests.systemd.machine import Machine

pytestmark = pytest.mark.systemd

NOTICED_S = 20
RECOVERED_S = 30
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


def answers(host: Machine) -> bool:
    """Speak and listen: both speech engines work."""
    said = host.run("hotpinctl", "say", "Good morning", "--out", "/tmp/said.wav", check=False)
    heard = host.run("hotpinctl", "transcribe", "/tmp/said.wav", check=False)
    return said.returncode == 0 and "good morning" in heard.stdout.lower()


def test_the_port_is_taken(boot: MachineMaker) -> None:
    host = boot()
    host.run("systemctl", "stop", "hotpind")
    host.run("systemd-run", "--unit=squatter", "python3", "-m", "http.server", "8000")
    start(host)
    wait_until(shows(host, "8000"), NOTICED_S, lambda: journal(host))
    daemon = prop(host, "MainPID")
    print(prop(host, "StatusText"))
    host.run("systemctl", "stop", "squatter")
    took = wait_until(lambda: active(host), RECOVERED_S, lambda: journal(host))
    assert answers(host)
    assert prop(host, "MainPID") == daemon
    print(f"active {took:.1f} s after the port was free")


def test_a_corrupt_model(boot: MachineMaker) -> None:
    host = boot()
    host.run("systemctl", "stop", "hotpind")
    (model,) = (host.root / MODELS).rglob("*.onnx")
    whole = model.read_bytes()
    model.write_bytes(whole[:len(whole) // 2])
    start(host)
    wait_until(shows(host, model.name), NOTICED_S, lambda: f"{prop(host, 'StatusText')}\n{journal(host)}")
    daemon = prop(host, "MainPID")
    print(prop(host, "StatusText"))
    model.write_bytes(whole)
    took = wait_until(lambda: active(host), RECOVERED_S, lambda: f"{prop(host, 'StatusText')}\n{journal(host)}")
    assert answers(host)
    assert (prop(host, "MainPID"), prop(host, "NRestarts")) == (daemon, "0")
    print(f"active {took:.1f} s after the model was whole again")


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
    host.run("rm", f"/{STATE}/full")
    took = wait_until(lambda: active(host), RECOVERED_S, lambda: f"{prop(host, 'StatusText')}\n{journal(host)}")
    assert answers(host)
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
    assert answers(host)


def test_the_clock_is_at_1970(boot: MachineMaker) -> None:
    host = boot()
    (library,) = host.root.glob("usr/lib/*/faketime/libfaketime.so.1")
    drop_in(host, f"Environment=LD_PRELOAD=/{library.relative_to(host.root)}",
            'Environment="FAKETIME=@1970-01-01 00:01:00"', "Environment=FAKETIME_DONT_FAKE_MONOTONIC=1")
    start(host)
    wait_until(lambda: active(host), RECOVERED_S, lambda: journal(host))
    assert library.name in host.run("cat", f"/proc/{prop(host, 'MainPID')}/maps").stdout
    assert answers(host)


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
    assert answers(host)
