"""scripts/install.sh from a clone, in the booted machine; only the building of the package is replaced."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.places import TOP
from tests.systemd.conftest import SETTINGS, journal, prop, put_models
from tests.systemd.machine import Machine, base_root, machine

pytestmark = [pytest.mark.systemd, pytest.mark.slow, pytest.mark.timeout(1800)]

CLONE = "srv/clone"
BUILT = "srv/built"
"""Where the stand-in for scripts/build-deb.sh finds what it "builds"."""
BUILD = f"""#!/bin/sh
[ "$1 $2" = "--fast --output" ] && mkdir -p "$3" && cp /{BUILT}/*.deb "$3/"
"""
PATIENCE_S = 20
CHANGED = "usr/lib/tmpfiles.d/hotpind.conf"


@pytest.fixture(scope="module")
def host(scratch: Path, current: Path) -> Iterator[Machine]:
    """A machine with a clone and without hotpind; models are there, as somebody who copied them would have it."""
    with machine(scratch / "clone", base_root(), name="clone") as made:
        put_models(made)
        # Written to the disk at once, a package takes three times as long.
        (made.root / "etc/dpkg/dpkg.cfg.d/test").write_text("force-unsafe-io\n")
        scripts = made.root / CLONE / "scripts"
        scripts.mkdir(parents=True)
        for name, old, new in (
                ("install.sh", "STILL_S=120\n", f"STILL_S={PATIENCE_S}\n"),
                ("lib.sh", 'BUILD_PACKAGES=("${RUN_PACKAGES[@]}" "dpkg|builds the package")', "BUILD_PACKAGES=()")):
            text = (TOP / "scripts" / name).read_text()
            assert old in text
            (scripts / name).write_text(text.replace(old, new))
            (scripts / name).chmod(0o755)
        (scripts / "build-deb.sh").write_text(BUILD)
        (scripts / "build-deb.sh").chmod(0o755)
        (made.root / BUILT).mkdir()
        shutil.copy(current, made.root / BUILT)
        yield made


def install(host: Machine, path: str = "") -> subprocess.CompletedProcess[str]:
    """Run the script as root; ``path`` is looked in for programs first."""
    return host.run("sh", "-c", f'PATH={path}:$PATH exec /{CLONE}/scripts/install.sh' if path else
                    f"/{CLONE}/scripts/install.sh", check=False, timeout=900,
                    environ={"HOTPIN_START_PATIENCE": str(PATIENCE_S)})


def test_a_32_bit_system_is_refused_before_anything_is_done(host: Machine) -> None:
    stub = host.root / "srv/armhf/dpkg"
    stub.parent.mkdir()
    stub.write_text("#!/bin/sh\necho armhf\n")
    stub.chmod(0o755)
    done = install(host, "/srv/armhf")
    assert done.returncode == 1
    assert "64-bit" in done.stderr
    assert "armhf" in done.stderr
    assert not (host.root / CLONE / "dist").exists()


def test_it_builds_installs_and_waits_for_the_service(host: Machine) -> None:
    begun = time.monotonic()
    done = install(host)
    assert done.returncode == 0, done.stdout + done.stderr + journal(host)
    assert prop(host, "ActiveState") == "active"
    assert host.run("systemctl", "is-enabled", "hotpind").stdout.strip() == "enabled"
    assert "hotpinctl ask" in done.stdout.splitlines()[-1]
    print(f"installed in {time.monotonic() - begun:.0f} s")


def test_a_changed_clone_of_the_same_version_is_installed(host: Machine, scratch: Path) -> None:
    (package,) = (host.root / BUILT).glob("*.deb")
    tree = scratch / "changed"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True, timeout=400)
    with (tree / CHANGED).open("a") as file:
        file.write("# changed\n")
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, package], check=True, timeout=900,
                   stdout=subprocess.DEVNULL)
    shutil.rmtree(tree)
    before = prop(host, "MainPID")
    done = install(host)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (host.root / CHANGED).read_text().endswith("# changed\n"), done.stdout
    assert prop(host, "ActiveState") == "active"
    assert prop(host, "MainPID") != before


def test_what_stands_in_the_way_is_said_and_ends_the_wait(host: Machine) -> None:
    host.run("systemctl", "stop", "hotpind")
    host.run("systemd-run", "--unit=squatter", "python3", "-m", "http.server", "8000")
    try:
        done = install(host)
    finally:
        host.run("systemctl", "stop", "squatter")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "8000" in done.stderr.splitlines()[-1]
    assert "goes on trying" in done.stderr


def test_settings_that_are_wrong_are_shown_from_the_journal(host: Machine) -> None:
    settings = host.root / SETTINGS
    whole = settings.read_text()
    host.run("systemctl", "stop", "hotpind")
    settings.write_text('[server]\nport = "eight thousand"\n')
    try:
        done = install(host)
    finally:
        settings.write_text(whole)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "did not start" in done.stderr
    assert "hotpin.toml" in done.stdout
    assert "server.port" in done.stdout
