"""Installs this clone as its README says, on a freshly booted Debian of another release or architecture.

Run by scripts/install-check. The container has the host's network, its name server and its certificates: packages come
from where the host's do. Another architecture is emulated by QEMU, fifty times slower, and without the system calls for
systemd's credentials: there the appliance is given more patience and no key, and nothing else is changed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.places import TOP
from tests.systemd.machine import HOST_NETWORK, Machine, base_root, machine

CLONE = "/srv/hotpind"
QUESTION = "What is the capital of France?"
INSTALL_S, COMMAND_S = 3600, 300
EMULATED = 10
"""Times longer that each step may take when it is emulated."""
PATIENCE = """[Service]
TimeoutStartSec=3600
WatchdogSec=600
TimeoutStopSec=120
LoadCredential=
SetCredential=
Environment=HOTPIN_STT__DEADLINE_S=600 HOTPIN_TTS__DEADLINE_S=600 HOTPIN_SPEAKING__TURN_DEADLINE_S=600
"""
OF_THE_HOST = ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt")


def step(what: str, began: float) -> None:
    """Tell what is done."""
    print(f"{time.monotonic() - began:6.0f} s  {what}", flush=True)


def clone(host: Machine) -> None:
    """Put the files that git knows into the machine, as a clone would have them."""
    names = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=TOP,
                           capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        target = host.root / CLONE.lstrip("/") / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (TOP / name).exists():
            shutil.copy2(TOP / name, target)


def connect(host: Machine) -> None:
    """Give the machine what the host reaches the internet with."""
    for name in OF_THE_HOST:
        target = host.root / name.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.write_bytes(Path(name).read_bytes())
    # Written to the disk at once, a package takes three times as long.
    (host.root / "etc/dpkg/dpkg.cfg.d/test").write_text("force-unsafe-io\n")


def emulate(host: Machine, wheels: Path) -> None:
    """Give an emulated machine the packages that were built for it, and the appliance on it patience."""
    cache = host.root / "root/.cache/hotpin/wheels"
    shutil.copytree(wheels, cache)
    patience = host.root / "etc/systemd/system/hotpind.service.d/emulated.conf"
    patience.parent.mkdir(parents=True)
    patience.write_text(PATIENCE)


def command(host: Machine, *words: str, timeout: float = COMMAND_S, shown: bool = True) -> str:
    """Run a command in the machine and show what it says; ends the program when it fails."""
    pip = {name: value for name, value in os.environ.items() if name in {"PIP_CERT", "PIP_DEFAULT_TIMEOUT"}}
    if host.emulated:
        pip["HOTPIN_STILL_S"] = "1800"
        timeout *= EMULATED
    done = host.run(*words, check=False, timeout=timeout, environ=pip)
    if shown or done.returncode:
        print("".join(f"        {line}\n" for line in (done.stdout + done.stderr).splitlines()), end="", flush=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: exit status {done.returncode}")
    return done.stdout


def check(host: Machine, began: float) -> None:
    """Install, ask, install again, purge."""
    connect(host)
    clone(host)
    command(host, "apt-get", "update", shown=False)
    step(command(host, "sh", "-c", ". /etc/os-release; python3 -V | tr '\\n' ' '; echo \"$PRETTY_NAME\"",
                 shown=False).strip(), began)
    command(host, f"{CLONE}/scripts/install.sh", timeout=INSTALL_S)
    step("scripts/install.sh", began)
    command(host, "hotpinctl", "ask", "--text", QUESTION, "--out", "/tmp/answer.wav")
    step("hotpinctl ask", began)
    command(host, "hotpinctl", "doctor")
    command(host, f"{CLONE}/scripts/install.sh", timeout=INSTALL_S, shown=False)
    command(host, "hotpinctl", "ask", "--text", QUESTION, shown=False)
    step("installed once more, and asked", began)
    command(host, "apt-get", "purge", "-y", "hotpind", shown=False)
    left = [path for path in ("opt/hotpind", "etc/hotpin", "var/lib/hotpin", "var/cache/hotpin")
            if (host.root / path).exists()]
    if left:
        sys.exit(f"after the purge there is still {' '.join(left)}")
    step("purged", began)


def main() -> None:
    """Take the release from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("release", nargs="?", default="trixie")
    parser.add_argument("--architecture", default="", help="Debian's name of one that QEMU emulates")
    parser.add_argument("--wheels", type=Path, help="packages built for it")
    args = parser.parse_args()
    name = f"{args.release} {args.architecture}".strip()
    began = time.monotonic()
    root = base_root(args.release, args.architecture)
    step(f"file system of Debian {name}", began)
    with (tempfile.TemporaryDirectory(prefix="hotpin-install-", dir=root.parent, ignore_cleanup_errors=True) as folder,
          machine(Path(folder), root, name=args.release, netns=HOST_NETWORK,
                  emulated=bool(args.architecture)) as host):
        step("booted", began)
        if args.wheels:
            emulate(host, args.wheels)
        check(host, began)
    print(f"Debian {name}: it installs, answers, upgrades and goes away")


if __name__ == "__main__":
    main()
