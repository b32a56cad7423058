"""Installs this clone as its README says, on a freshly booted Debian of another release; run by scripts/install-check.

The container has the host's network, its name server and its certificates: packages come from where the host's do.
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


def command(host: Machine, *words: str, timeout: float = COMMAND_S, shown: bool = True) -> str:
    """Run a command in the machine and show what it says; ends the program when it fails."""
    pip = {name: value for name, value in os.environ.items() if name in {"PIP_CERT", "PIP_DEFAULT_TIMEOUT"}}
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
    release = parser.parse_args().release
    began = time.monotonic()
    root = base_root(release)
    step(f"file system of Debian {release}", began)
    with (tempfile.TemporaryDirectory(prefix="hotpin-install-", dir=root.parent, ignore_cleanup_errors=True) as folder,
          machine(Path(folder), root, name=release, netns=HOST_NETWORK) as host):
        check(host, began)
    print(f"Debian {release}: it installs, answers, upgrades and goes away")


if __name__ == "__main__":
    main()
