"""The life of the package: upgrade, downgrade, removal, purge."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

import hotpind
from tests.lan import Lan
from tests.systemd.conftest import (
    CONNECTED_S,
    OLDER,
    QUESTION,
    SETTINGS,
    URL,
    Installed,
    MachineMaker,
    apt_install,
    journal,
    prop,
    rebuilt,
    wait_until,
)
from tests.systemd.machine import Machine, machine
from tests.systemd.wearer import Wearer

pytestmark = [pytest.mark.systemd, pytest.mark.timeout(1200)]

KEY = "gsk_0123456789abcdefghijklmnopqrstuvwxyz"
PATIENCE_S = 12
"""How long the package's script is told to wait for a start that something stands in the way of; else two minutes."""
KEEP_MINE = ("-o", "DPkg::Options::=--force-confold")
"""As scripts/install.sh does, where nobody is there to be asked."""


def version(host: Machine) -> str:
    return host.run("/opt/hotpind/venv/bin/hotpind", "--version").stdout.split()[-1]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_downgrade_upgrade_remove_and_purge(scratch: Path, installed: Installed, older: Path, current: Path,
                                            home: Lan, tmp_path: Path) -> None:
    with machine(scratch / "package", *installed.layers, name="package",
                 netns=home.namespace_path("appl").name) as host:
        settings = host.root / SETTINGS
        settings.write_text(settings.read_text() + "\n# mine\n")
        key = host.root / "etc/hotpin/groq_api_key"
        key.write_text(KEY)
        models = {path: path.stat().st_mtime_ns for path in (host.root / "var/cache/hotpin/models").rglob("*.bin")}

        def check(expected: str) -> dict[str, object]:
            assert version(host) == expected
            host.run("systemctl", "is-active", "hotpind")
            with Wearer(home.prefix("wear"), tmp_path, URL) as pin:
                pin.wait("connected", timeout=CONNECTED_S)
                pin.answer(QUESTION)
            assert "# mine" in settings.read_text()
            assert key.read_text() == KEY
            assert {path: path.stat().st_mtime_ns for path in models} == models
            (device,) = json.loads(host.run("hotpinctl", "devices", "list", "--json").stdout)["devices"]
            return {name: device[name] for name in ("device_id", "created")}

        host.run("systemctl", "start", "hotpind")
        paired = check(hotpind.__version__)
        apt_install(host, older)
        # A pin that had to pair anew would have been created anew.
        assert check(OLDER) == paired
        apt_install(host, current)
        assert check(hotpind.__version__) == paired
        assert (key.stat().st_mode & 0o777, key.stat().st_uid) == (0o600, 0)

        host.run("apt-get", "remove", "-y", "hotpind", timeout=400)
        assert prop(host, "ActiveState") == "inactive"
        assert not (host.root / "opt/hotpind").exists()
        assert "# mine" in settings.read_text()
        assert key.read_text() == KEY
        apt_install(host, current)
        assert check(hotpind.__version__) == paired

        host.run("apt-get", "purge", "-y", "hotpind", timeout=400)
        assert host.run("find", "/", "-xdev", "-iname", "*hotpin*").stdout.split() == []
        assert "hotpin" not in (host.root / "etc/passwd").read_text() + (host.root / "etc/group").read_text()
        assert "hotpin" not in host.run("systemctl", "list-units", "--all", "--plain", "--no-legend").stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_apt_returns_although_the_port_is_taken(boot: MachineMaker, older: Path) -> None:
    host = boot()
    host.run("systemctl", "stop", "hotpind")
    host.run("systemd-run", "--unit=squatter", "python3", "-m", "http.server", "8000")
    begun = time.monotonic()
    said = apt_install(host, older, patience_s=PATIENCE_S)
    took = time.monotonic() - begun
    print(f"apt took {took:.0f} s")
    assert "still starting" in said
    assert "8000" in said
    assert prop(host, "ActiveState") == "activating"
    # Somebody who was not stopped by a held lock mends it, and it serves.
    host.run("systemctl", "stop", "squatter")
    wait_until(lambda: prop(host, "ActiveState") == "active", 120, lambda: journal(host))
    assert version(host) == OLDER
    assert PATIENCE_S < took < PATIENCE_S + 240


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_what_its_administrator_does_not_want_running_is_not_started(boot: MachineMaker, older: Path) -> None:
    host = boot()
    host.run("systemctl", "disable", "--now", "hotpind")
    # Without models it would be left to start for a while, which is another way to start it.
    host.run("rm", "-r", "/var/cache/hotpin/models")
    apt_install(host, older)
    assert prop(host, "ActiveState") == "inactive"

    host.run("systemctl", "enable", "hotpind")
    policy = host.root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    apt_install(host, older, "--reinstall")
    assert prop(host, "ActiveState") == "inactive"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_changed_settings_survive_a_package_that_ships_others(boot: MachineMaker, current: Path, scratch: Path) -> None:
    host = boot()
    settings = host.root / SETTINGS
    shipped = settings.read_text()
    mine = shipped.replace("#port = 8000", "port = 8123")
    assert "\nport = 8123" in mine
    settings.write_text(mine)
    newer = rebuilt(current, scratch, "9.9.9", shipped + "\n# theirs\n")
    apt_install(host, newer, *KEEP_MINE)
    assert settings.read_text() == mine
    assert "# theirs" in settings.with_name("hotpin.toml.dpkg-dist").read_text()
    assert "8123" in json.loads(host.run("hotpinctl", "status", "--json").stdout)["url"]
    assert "valid" in host.run("hotpind", "--check-config").stdout
    # And back: the previous package ships what it always did.
    apt_install(host, current, *KEEP_MINE)
    assert settings.read_text() == mine
    assert "8123" in json.loads(host.run("hotpinctl", "status", "--json").stdout)["url"]


def test_the_daemon_checks_settings_for_anybody(boot: MachineMaker) -> None:
    host = boot()
    anybody = ("runuser", "-u", "nobody", "--")
    assert "valid" in host.run(*anybody, "hotpind", "--check-config").stdout
    with (host.root / SETTINGS).open("a") as settings:
        settings.write('\n[servre]\nport = 8001\n')
    refused = host.run(*anybody, "hotpind", "--check-config", check=False)
    assert refused.returncode == 78
    assert "servre" in refused.stderr
    assert "/etc/hotpin/hotpin.toml" in refused.stderr
