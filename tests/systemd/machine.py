"""A small Debian that systemd-nspawn boots: the appliance's machine, with a power switch.

The file system is made once by mmdebstrap and kept in the user's cache; every machine gets an overlay of its own.
Commands run inside through nsenter. Works on a host without systemd, with either generation of cgroups.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "libpam-systemd", "libnss-systemd", "systemd-timesyncd", "init-system-helpers",
    "python3", "libstdc++6", "libgomp1", "libsystemd0", "ca-certificates",  # what hotpind depends on
    "iproute2", "procps", "libfaketime",
)
"""Everything a test needs inside: there is no network to install more from."""

BOOT_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 180.0
BEHIND_OTHERS = {"cpu.shares": "512", "cpu.weight": "50"}
BEFORE_OTHERS = {"cpu.shares": "8192", "cpu.weight": "800"}
"""What the machine's processes get together, by the file of either generation of cgroups; others have 1024, or 100."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


HOST_NETWORK = "/"
"""In place of a network namespace's name: the machine shares the host's. No namespace can be called so."""


def base_root(release: str = "") -> Path:
    """The file system shared by all machines, made on first use (half a minute).

    ``release`` is a Debian release by its code name, else the host's.
    """
    other = release not in {"", _release()}
    release = release or _release()
    key = hashlib.sha256(" ".join((release, *PACKAGES)).encode()).hexdigest()[:12]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hotpin" / "test-root"
    root = folder / f"{release}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{release}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            for stale in folder.glob(f"{release}-*"):
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
            making = folder / f"{root.name}.new"
            subprocess.run(["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase",
                            f"--include={','.join(PACKAGES)}", release, str(making),
                            *([_mirror()] if other else _sources())],
                           check=True, timeout=600)
            making.rename(root)
    return root


def sweep() -> None:
    """End what machines of test runs that are gone have left behind."""
    for hierarchy in _hierarchies():
        for cgroup in hierarchy.glob("hotpin-*"):
            if Path(f"/proc/{cgroup.name.rsplit('-', 1)[-1]}").exists():
                continue
            for processes in cgroup.rglob("cgroup.procs"):
                with contextlib.suppress(OSError):
                    for pid in processes.read_text().split():
                        os.kill(int(pid), signal.SIGKILL)
            _remove_cgroup(cgroup)
    for line in Path("/proc/mounts").read_text().splitlines():
        kind, where = line.split()[0], Path(line.split()[1])
        owner = where.parent / "owner"
        if kind == "overlay" and owner.exists() and not Path(f"/proc/{owner.read_text()}").exists():
            subprocess.run(["umount", "--lazy", str(where)], check=False)


class Machine:
    """One machine: `start`, then `run` commands in it, then `power_off` or `power_cut`; startable again."""

    def __init__(self, name: str, folder: Path, *layers: Path, netns: str = "") -> None:
        """``layers`` are read-only file systems, topmost first; what the machine writes goes to ``folder``.

        ``netns`` names a network namespace made with ip-netns(8); without one there is only loopback.
        """
        self.name = name
        self.disk = folder / "disk"
        """What the machine changed on its file system (the overlay's upper directory)."""
        self.root = folder / "root"
        """Its whole file system, seen from the host, while it is mounted."""
        self._work = folder / "work"
        self._console = folder / "console.log"
        self._layers = layers
        self._netns = netns
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def __enter__(self) -> Machine:
        for path in (self.disk, self.root, self._work):
            path.mkdir(parents=True, exist_ok=True)
        (self.root.parent / "owner").write_text(str(os.getpid()))
        lower = ":".join(str(layer) for layer in self._layers)
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o",
                        f"lowerdir={lower},upperdir={self.disk},workdir={self._work}", str(self.root)], check=True)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._nspawn is not None:
                self.power_cut()
        finally:
            subprocess.run(["umount", "--lazy", str(self.root)], check=False)
            for cgroup in self._cgroups():
                _remove_cgroup(cgroup)

    @property
    def running(self) -> bool:
        """Whether it is powered."""
        return self._nspawn is not None and self._nspawn.poll() is None

    def start(self) -> None:
        """Boot, and wait until systemd has started everything."""
        network = ([] if self._netns == HOST_NETWORK else [f"--network-namespace-path=/run/netns/{self._netns}"]
                   if self._netns else ["--private-network"])
        for cgroup in self._cgroups():
            cgroup.mkdir(exist_ok=True)
        self._weigh(BEHIND_OTHERS)
        # A shell that moves itself into the cgroups and becomes nspawn: systemd inside manages what is below.
        move = "".join(f"echo $$ >{cgroup}/cgroup.procs && " for cgroup in self._cgroups())
        with self._console.open("ab") as console:
            self._nspawn = subprocess.Popen(
                ["/bin/sh", "-c", move + 'exec "$@"', "sh", "systemd-nspawn", "--quiet", f"--directory={self.root}",
                 f"--machine={self.name}", "--register=no", "--keep-unit", *network, "--link-journal=no",
                 "--resolv-conf=off", "--timezone=off", "--console=pipe", "--boot"],
                stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True)
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        self._leader = self._find_leader(deadline)
        while time.monotonic() < deadline:
            state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
            if state in {"running", "degraded"}:
                return
            time.sleep(0.1)
        raise TimeoutError(f"{self.name} did not boot:\n{self.console()}")

    def run(self, *command: str, check: bool = True, timeout: float = 180, stdin: str = "",
            environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command inside; with ``check``, raises AssertionError with all it said when it fails."""
        done = subprocess.run(["nsenter", "-t", str(self._leader), "-a", "--", *command], input=stdin,
                              capture_output=True, text=True, timeout=timeout, check=False,
                              env={"PATH": _PATH, "LANG": "C.UTF-8", "HOME": "/root", **(environ or {})})
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    @contextlib.contextmanager
    def first_in_line(self) -> Iterator[None]:
        """Let the machine go before what runs beside it: for a moment in which it is timed."""
        self._weigh(BEFORE_OTHERS)
        try:
            yield
        finally:
            self._weigh(BEHIND_OTHERS)

    def power_off(self) -> None:
        """Shut down in good order."""
        self.run("systemctl", "poweroff", check=False)
        self._wait_off()

    def power_cut(self) -> None:
        """End everything at once, as when the plug is pulled (but the host keeps what was written without fsync)."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._leader, signal.SIGKILL)
        self._wait_off()

    def console(self) -> str:
        """What the machine printed while booting and stopping."""
        return self._console.read_text(errors="replace")[-8000:] if self._console.exists() else ""

    def _find_leader(self, deadline: float) -> int:
        nspawn = self._nspawn
        assert nspawn is not None
        children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children")
        while time.monotonic() < deadline and nspawn.poll() is None:
            for child in children.read_text().split():
                # nspawn's outer child makes way for the container's init, which has a pid namespace of its own.
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                        return int(child)
            time.sleep(0.02)
        raise TimeoutError(f"{self.name} did not start:\n{self.console()}")

    def _wait_off(self) -> None:
        assert self._nspawn is not None
        try:
            self._nspawn.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.kill(self._leader, signal.SIGKILL)
            self._nspawn.wait(30)
            raise
        finally:
            self._nspawn = None

    def _weigh(self, weight: Mapping[str, str]) -> None:
        for cgroup in self._cgroups():
            for name, value in weight.items():
                if (cgroup / name).exists():
                    (cgroup / name).write_text(value)

    def _cgroups(self) -> list[Path]:
        return [path / f"hotpin-{self.name}" for path in _hierarchies()]


@contextlib.contextmanager
def machine(folder: Path, *layers: Path, name: str = "appliance", netns: str = "") -> Iterator[Machine]:
    """Give a machine that is switched on, and clear it away afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    with Machine(f"{name}-{os.getpid()}", folder, *layers, netns=netns) as made:
        made.start()
        yield made


def _hierarchies() -> list[Path]:
    top = Path("/sys/fs/cgroup")
    found = [top] if (top / "cgroup.procs").exists() else [top / "systemd", top / "unified", top / "cpu"]
    return [path for path in found if os.access(path, os.W_OK)]


def _remove_cgroup(cgroup: Path) -> None:
    for below, _, _ in os.walk(cgroup, topdown=False):
        with contextlib.suppress(OSError):
            Path(below).rmdir()


def _release() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.removeprefix("VERSION_CODENAME=").strip('"')
    return "bookworm"


def _sources() -> Sequence[str]:
    """The host's own package sources for Debian: whatever mirror works there works for the machine."""
    found = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("debian.*")]
    return [str(path) for path in found if path.exists() and path.suffix in {".list", ".sources"}]


def _mirror() -> str:
    """The address that the host takes Debian's packages from."""
    text = "\n".join(Path(source).read_text() for source in _sources())
    found = re.search(r"https?://\S+/debian/?(?=\s)", text)
    return found.group() if found else "http://deb.debian.org/debian"
