"""One daemon for each runtime directory: a second one would take the sockets away from the first."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from hotpind.errors import OperatorError

LOCK_FILE = "hotpind.lock"


def claim(directory: Path) -> int:
    """Take a directory for this process; closing the returned file descriptor, or any end of it, gives it back.

    Raises `OperatorError` when another process has it.
    """
    path = directory / LOCK_FILE
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise OperatorError(f"{path} cannot be opened ({error.strerror}); set paths.runtime to a directory that this "
                            "user may write to") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        other = os.read(descriptor, 32).decode(errors="replace").strip()
        os.close(descriptor)
        raise OperatorError(f"{directory} is in use by another hotpind{f' (process {other})' if other else ''}; stop "
                            "that one, or give this one directories of its own (paths.runtime, paths.state)") from None
    # The file stays when it is given back: one that is removed could be held by two.
    with contextlib.suppress(OSError):  # the disk may be full, and the number is only for people
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor
