"""What the tests in the booted machine share: the packages built in this run, and a machine with them installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

import hotpind
from hotpind.config import Config
from hotpind.config.paths import models_dir
from tests.appliance.recordings import letter_error_rate
from tests.lan import APPLIANCE_IP, Lan, lan
from tests.systemd.machine import Machine, base_root, machine, sweep
from tests.systemd.wearer import Wearer

TOP = Path(__file__).parents[2]
URL = f"http://{APPLIANCE_IP}:8000"
SPEECH = Path("/usr/share/pocketsphinx/test/data/librivox")
SETTINGS = "etc/hotpin/hotpin.toml"
QUESTION = SPEECH / "sense_and_sensibility_01_austen_64kb-0880.wav"
"""Human speech, 3 s: "he was not an ill disposed young man"."""
OLDER = "0.0.1"
"""Version given to the same source, to upgrade from and to go back to."""
BUILD_TIMEOUT_S = 1800
CONNECTED_S = 60
"""Until a pin has reached an appliance that is there, on a machine with more to do."""
SENTENCE = "The library opens at nine in the morning and closes in the evening."
"""Long enough for the smallest model to make something of it when a voice has read it aloud."""


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A folder for file systems: larger than what pytest should keep of past runs."""
    if os.geteuid() != 0:
        pytest.skip("booting a container needs root")
    sweep()
    with tempfile.TemporaryDirectory(prefix="hotpin-test-", dir="/var/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def current(scratch: Path) -> Path:
    """The package of this tree, built now."""
    return build(scratch, hotpind.__version__)


@pytest.fixture(scope="session")
def older(scratch: Path) -> Path:
    """The same under a lower version number."""
    return build(scratch, OLDER)


@dataclass(frozen=True)
class Installed:
    """A file system on which the package was installed and the machine then switched off."""

    layers: tuple[Path, ...]
    install_s: float
    """How long apt took, the first start of the service included."""
    state: str
    """What systemctl said when apt had ended."""


@pytest.fixture(scope="session")
def installed(scratch: Path, current: Path) -> Installed:
    """Install the current package, with the models already in place, as somebody who copied them would."""
    root = base_root()
    folder = scratch / "installed"
    with machine(folder, root, name="install") as host:
        put_models(host)
        begun = time.monotonic()
        apt_install(host, current)
        took = time.monotonic() - begun
        state = host.run("systemctl", "is-active", "hotpind", check=False).stdout.strip()
        if state != "active":
            print(journal(host))
        host.power_off()
        disk = host.disk
    return Installed((disk, root), took, state)


MachineMaker = Callable[..., Machine]


@pytest.fixture
def boot(scratch: Path, installed: Installed) -> Iterator[MachineMaker]:
    """Boot machines with the package installed; each gets a disk of its own."""
    with ExitStack() as stack, tempfile.TemporaryDirectory(dir=scratch) as folder:
        count = 0

        def start(netns: str = "") -> Machine:
            nonlocal count
            count += 1
            return stack.enter_context(machine(Path(folder) / str(count), *installed.layers,
                                               name=f"m{count}", netns=netns))

        yield start
        stack.close()


@pytest.fixture
def home() -> Iterator[Lan]:
    """A network with the appliance's place and the pin's place on it."""
    with lan() as made:
        yield made


@dataclass(frozen=True)
class Household:
    """An appliance on a network, and a pin on it that is paired and connected."""

    host: Machine
    pin: Wearer
    home: Lan


@pytest.fixture(scope="module")
def house(scratch: Path, installed: Installed) -> Iterator[tuple[Machine, Lan, Path]]:
    """A machine on a network for all tests of a module, and a folder where its pins remember it."""
    with lan() as home, tempfile.TemporaryDirectory(dir=scratch) as folder, \
            machine(Path(folder) / "house", *installed.layers, name="house",
                    netns=home.namespace_path("appl").name) as host:
        yield host, home, Path(folder)


@pytest.fixture
def household(house: tuple[Machine, Lan, Path]) -> Iterator[Household]:
    """The module's machine with the service freshly started with its first settings, and a pin in its network."""
    host, home, folder = house
    settings = host.root / SETTINGS
    first = folder / "settings"
    if not first.exists():
        shutil.copy(settings, first)
    if settings.read_text() != first.read_text():
        shutil.copy(first, settings)
    host.run("systemctl", "restart", "hotpind")
    with Wearer(home.prefix("wear"), folder, URL) as pin:
        pin.wait("connected", timeout=CONNECTED_S)
        yield Household(host, pin, home)


def build(folder: Path, version: str) -> Path:
    """Build a package from this tree."""
    done = subprocess.run([TOP / "scripts/build-deb.sh", "--fast", "--version", version, "--output", folder],
                          capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (package,) = folder.glob(f"hotpind_{version}_*.deb")
    return package


def prop(host: Machine, name: str) -> str:
    """Read a property of the service."""
    return host.run("systemctl", "show", "--property", name, "--value", "hotpind").stdout.strip()


def journal(host: Machine) -> str:
    """All that the service and systemd said about it."""
    return host.run("journalctl", "--unit=hotpind", "--no-pager", "--output=short-precise", check=False).stdout


def wait_until(what: Callable[[], bool], seconds: float, message: Callable[[], str] = lambda: "") -> float:
    """Wait for something to be so; returns after how many seconds it was."""
    begun = time.monotonic()
    while not what():
        if time.monotonic() - begun > seconds:
            raise AssertionError(f"not so within {seconds} s: {message()}")
        time.sleep(0.1)
    return time.monotonic() - begun


def speaks_and_listens(host: Machine, tries: int = 3) -> bool:
    """Have the installed commands say a sentence and write it down: both speech engines work."""
    for _ in range(tries):
        said = host.run("hotpinctl", "say", SENTENCE, "--out", "/tmp/said.wav", check=False)
        heard = host.run("hotpinctl", "transcribe", "/tmp/said.wav", check=False)
        if said.returncode == heard.returncode == 0 and letter_error_rate(SENTENCE, heard.stdout) <= 0.35:
            return True
        print(said.stdout, said.stderr, heard.stdout, heard.stderr)
    return False


def drop_in(host: Machine, *lines: str) -> None:
    """Add lines to the service's section of the unit."""
    folder = host.root / "etc/systemd/system/hotpind.service.d"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "test.conf").write_text("\n".join(("[Service]", *lines, "")))
    host.run("systemctl", "daemon-reload")


def put_models(host: Machine) -> None:
    """Copy the default models of this user to where the service looks for them."""
    shutil.copytree(models_dir(Config()), host.root / "var/cache/hotpin/models", dirs_exist_ok=True)


def rebuilt(package: Path, folder: Path, version: str, settings: str) -> Path:
    """Make the package of another version out of one, with other settings shipped in it."""
    tree = folder / f"tree-{version}"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True, timeout=400)
    (tree / SETTINGS).write_text(settings)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub("^Version: .*$", f"Version: {version}", control.read_text(), flags=re.MULTILINE))
    made = folder / f"hotpind_{version}_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, made], check=True, timeout=900,
                   stdout=subprocess.DEVNULL)
    shutil.rmtree(tree)
    return made


def apt_install(host: Machine, package: Path, *options: str, patience_s: int = 120) -> str:
    """Install a package file as its user would; returns what apt said."""
    target = host.root / "root" / package.name
    shutil.copy(package, target)
    try:
        return host.run("apt-get", "install", "-y", "--allow-downgrades", "-o", "DPkg::Options::=--force-unsafe-io",
                        *options, f"/root/{package.name}", timeout=900,
                        environ={"DEBIAN_FRONTEND": "noninteractive", "HOTPIN_START_PATIENCE": str(patience_s)}).stdout
    finally:
        target.unlink()
