"""Puts files in place so that neither a kill, a full disk nor a second process leaves a half one behind."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from hotpind.errors import ModelFileError
from hotpind.files import sync_directory

CHUNK_BYTES = 1 << 20
RESERVE_BYTES = 32_000_000
"""Bytes left free on the disk: devices, secrets and logs need room as well."""
LOCK_WAIT_S = 6 * 3600.0
"""How long a second process waits for the first: a gigabyte over a slow line takes hours."""
LOCK_POLL_S = 0.2

GIT_SHA1 = "git-sha1"
"""How git, and so the Hugging Face hub, names small files: SHA-1 of ``blob <size>\\0`` and the bytes."""

SERVICE_WRITES = "for the service, also name it in ReadWritePaths=: see Install in README.md"
"""The unit's sandbox leaves the rest of the file system read-only."""

_FULL = {errno.ENOSPC, errno.EDQUOT}


def megabytes(size: int) -> str:
    """Write a number of bytes for people."""
    if size < 1_000_000:
        return f"{size / 1e3:.0f} kB"
    return f"{size / 1e6:.1f} MB" if size < 10_000_000 else f"{size / 1e6:.0f} MB"


def digests_of(path: Path, algorithms: Iterable[str],
               report: Callable[[int, int], None] = lambda _done, _total: None) -> dict[str, str]:
    """Read a file once and return its hexadecimal digests by algorithm.

    ``algorithms`` are names of hashlib, or `GIT_SHA1`. ``report`` takes the bytes read and the size. Raises
    `OSError`.
    """
    size = path.stat().st_size
    hashes = {name: hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False) if name == GIT_SHA1
              else hashlib.new(name, usedforsecurity=False) for name in algorithms}
    done = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            for state in hashes.values():
                state.update(chunk)
            done += len(chunk)
            report(done, size)
    return {name: state.hexdigest() for name, state in hashes.items()}


def check_content(path: Path, *, shown: str, size: int | None, digests: Mapping[str, str], remedy: str,
                  report: Callable[[int, int], None] = lambda _done, _total: None) -> str:
    """Compare a file with what is known of it; return its SHA-256.

    ``shown`` names the file in the message and ``remedy`` says what to do. Raises `ModelFileError` with what
    was expected and what was found, and `OSError`.
    """
    found_size = path.stat().st_size
    if size is not None and found_size != size:
        raise ModelFileError(f"{shown} is broken: expected {size} bytes, found {found_size}; {remedy}")
    found = digests_of(path, {"sha256", *digests}, report)
    for name, expected in digests.items():
        if found[name] != expected:
            raise ModelFileError(f"{shown} is broken or was tampered with: expected {_label(name)} {expected}, "
                                 f"found {found[name]}; {remedy}")
    return found["sha256"]


def _label(algorithm: str) -> str:
    return {"sha256": "SHA-256", "sha1": "SHA-1", "md5": "MD5", GIT_SHA1: "git SHA-1"}.get(algorithm, algorithm)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing; when the block ends, it is on the disk. Raises `OSError`."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def place(part: Path, final: Path) -> None:
    """Give a complete file its final name, in one step that survives a power cut. Raises `OSError`."""
    final.parent.mkdir(parents=True, exist_ok=True)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(final)
    sync_directory(final.parent)


def need_space(directory: Path, needed: int, model: str) -> None:
    """See that ``needed`` bytes fit on the disk of ``directory``. Raises `ModelFileError`, and `OSError`."""
    free = shutil.disk_usage(directory).free
    if needed + RESERVE_BYTES > free:
        raise ModelFileError(
            f"there is not enough room for {model} in {directory}: {megabytes(needed + RESERVE_BYTES)} are needed "
            f"and {megabytes(free)} are free; make room or set paths.models to a directory on another disk "
            f"({SERVICE_WRITES})")


@contextmanager
def storage_errors(directory: Path, model: str) -> Iterator[None]:
    """Turn what the disk under ``directory`` refuses into a `ModelFileError`."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            free = shutil.disk_usage(directory if directory.exists() else directory.parent).free
            raise ModelFileError(
                f"the disk of {directory} became full while {model} was stored ({megabytes(free)} are free); "
                f"what was received is kept: make room and run the same command again") from None
        if error.errno == errno.EFBIG:
            raise ModelFileError(
                f"{error.filename or model} in {directory} grew past the largest file that may be written there "
                f"(RLIMIT_FSIZE or the file system's limit); raise it and run the same command again") from None
        where = error.filename or directory
        advice = SERVICE_WRITES if error.errno == errno.EROFS else "check paths.models and its owner"
        raise ModelFileError(f"{model} cannot be stored: {where}: {error.strerror or error}; {advice}") from None


@contextmanager
def locked(path: Path, on_wait: Callable[[str], None], *, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
    """Hold the lock file ``path`` against other processes and threads.

    ``on_wait`` is told once, in a sentence, when somebody else has it. The kernel frees it when its holder
    dies. Raises `ModelFileError` after ``wait_s`` seconds, and `OSError`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _acquire(handle, path, on_wait, wait_s)
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


def _acquire(handle: int, path: Path, on_wait: Callable[[str], None], wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    told = False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 20, 0).decode(errors="replace") or "unknown"
            if not told:
                told = True
                on_wait(f"waiting for process {holder}, which works on the same model")
            if time.monotonic() >= deadline:
                raise ModelFileError(f"process {holder} has held {path} for {wait_s:.0f} seconds; "
                                     f"end it and run the same command again") from None
            time.sleep(LOCK_POLL_S)
        else:
            return
