"""Virtual environments beside the project's own, for programs that tests run but the project does not depend on.

They are made on first need in the cache directory (``$XDG_CACHE_HOME/hotpin``) and kept; without a package index the
test that needs one is skipped.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

INSTALL_SECONDS = 300


def side_venv(name: str, *packages: str, with_ours: bool = False) -> Path:
    """Return the Python of the environment ``name`` with ``packages`` installed; skips the test if that fails.

    ``with_ours``: it also sees the packages of the project's own environment, after its own.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hotpin" / f"test-{name}"
    python = root / "bin" / "python"
    mark = root / "installed"
    wanted = "\n".join(packages)
    root.mkdir(parents=True, exist_ok=True)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not mark.exists() or mark.read_text() != wanted:
            commands = [[sys.executable, "-m", "venv", str(root)],
                        [str(python), "-m", "pip", "install", "--quiet", "--only-binary", ":all:", *packages]]
            for command in commands:
                done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
                if done.returncode:
                    pytest.skip(f"{root} could not be set up: {done.stderr.strip().splitlines()[-1:]}")
            mark.write_text(wanted)
    if with_ours:
        (packages_of(root) / "ours.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python


def packages_of(root: Path) -> Path:
    """Return the directory of a virtual environment's packages."""
    return root / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
