"""Where things are kept: the configured directory, else systemd's, else the XDG base directory.

XDG defaults follow the XDG Base Directory Specification 0.8; systemd's variables are those of systemd.exec(5).
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from hotpind.config.schema import Config
from hotpind.errors import ConfigError, OperatorError

SUN_PATH_BYTES = 107
"""Longest unix socket path that Linux takes, without the closing zero byte (unix(7))."""

SYSTEM_RUNTIME = Path("/run/hotpin")
"""Where the packaged service keeps its sockets."""


def state_dir(config: Config, environ: Mapping[str, str] = os.environ) -> Path:
    """Directory of devices, identity and secrets."""
    return _choose(config.paths.state, environ.get("STATE_DIRECTORY"),
                   _xdg(environ, "XDG_STATE_HOME", ".local/state") / "hotpin")


def models_dir(config: Config, environ: Mapping[str, str] = os.environ) -> Path:
    """Directory of model files."""
    cache = environ.get("CACHE_DIRECTORY")
    return _choose(config.paths.models, f"{cache.split(':')[0]}/models" if cache else None,
                   _xdg(environ, "XDG_CACHE_HOME", ".cache") / "hotpin" / "models")


def runtime_dir(config: Config, environ: Mapping[str, str] = os.environ) -> Path:
    """Directory of the sockets.

    Raises `ConfigError` when a socket in it could not have an address.
    """
    xdg = environ.get("XDG_RUNTIME_DIR")
    fallback = Path(xdg) / "hotpin" if xdg else Path(tempfile.gettempdir()) / f"hotpin-{os.getuid()}"
    path = _choose(config.paths.runtime, environ.get("RUNTIME_DIRECTORY"), fallback)
    longest = os.fsencode(path / "engine-whisper-000000.sock")
    if len(longest) > SUN_PATH_BYTES:
        raise ConfigError(f"paths.runtime: {path} is too long for a unix socket's address ({len(longest)} bytes with "
                          f"the socket's name, at most {SUN_PATH_BYTES}); choose a shorter directory")
    return path


def make_private(path: Path) -> None:
    """Make the directory of the sockets unless it is there, and make sure that nobody else can put things into it.

    Raises `OperatorError`.
    """
    remedy = "remove it, or set paths.runtime to a directory of your own"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        # In /tmp anybody may have been there first, with a directory or with a link to one.
        found = path.lstat()
    except FileExistsError:
        raise OperatorError(f"{path}: the directory for sockets is something else; {remedy}") from None
    except OSError as error:
        raise OperatorError(f"{path}: the directory for sockets cannot be made ({error.strerror}); "
                            "set paths.runtime") from None
    if not stat.S_ISDIR(found.st_mode):
        raise OperatorError(f"{path}: the directory for sockets is a symbolic link; {remedy}")
    if found.st_uid != os.geteuid():
        raise OperatorError(f"{path}: the directory for sockets belongs to user {found.st_uid}, not to this one "
                            f"({os.geteuid()}); {remedy}")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OperatorError(f"{path}: others may write to the directory for sockets; run chmod go-w {path}")


def control_socket(config: Config, environ: Mapping[str, str] = os.environ) -> Path:
    """Unix socket on which `hotpinctl` talks to the daemon."""
    return runtime_dir(config, environ) / "control.sock"


def _choose(configured: str, systemd: str | None, fallback: Path) -> Path:
    if configured:
        return Path(configured).expanduser().absolute()
    if systemd:
        return Path(systemd.split(":")[0])
    return fallback


def _xdg(environ: Mapping[str, str], name: str, default: str) -> Path:
    value = environ.get(name, "")
    # The specification says that relative paths are to be ignored.
    if value and Path(value).is_absolute():
        return Path(value)
    return Path(environ.get("HOME") or "/root") / default
