"""How `hotpinctl` talks to the running daemon: HTTP over its unix control socket."""

from __future__ import annotations

import asyncio
import contextlib
import json as json_format
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hotpind.config import Config, load_config
from hotpind.config.paths import SYSTEM_RUNTIME, control_socket
from hotpind.errors import ControlDenied, HotpinError, OperatorError

if TYPE_CHECKING:
    import aiohttp

CALL_SECONDS = 30.0
"""Time for one call; the daemon's own deadlines are shorter."""
_FORBIDDEN = 403


def settings_of(ctx: typer.Context) -> Config:
    """Return the settings that `hotpinctl` has read, or read them for a command that runs by itself.

    Raises `ConfigError`.
    """
    return ctx.find_object(Config) or load_config()


def find_socket(config: Config, environ: Mapping[str, str] = os.environ, *,
                system: Path = SYSTEM_RUNTIME) -> Path:
    """Return the socket of the daemon to talk to, whether it is there or not.

    Unless a directory is configured, that is the packaged service's when it runs, else that of a daemon which
    this user runs. Raises `OperatorError` when that one's directory is somebody else's, who may have been there first.
    """
    mine = control_socket(config, environ)
    packaged = system / mine.name
    if config.paths.runtime or environ.get("RUNTIME_DIRECTORY"):
        return mine
    try:
        if packaged.is_socket():
            return packaged
    except PermissionError:
        return packaged
    with contextlib.suppress(OSError):
        owner = mine.parent.lstat().st_uid
        if owner != os.geteuid():
            raise OperatorError(f"{mine.parent}: the directory for sockets belongs to user {owner}, not to this one "
                                f"({os.geteuid()}); remove it, or set paths.runtime to a directory of your own")
    return mine


async def fetch(method: str, path: str, json: Mapping[str, Any] | None = None, *, config: Config,
                socket: Path | None = None, body: bytes | None = None) -> bytes:
    """Ask the daemon and return its answer's body.

    Raises `OperatorError` with the sentence to show: the daemon does not run or said no; `ControlDenied` when this
    user may not ask it.
    """
    # It takes longer to import than most commands take to run.
    import aiohttp

    where = socket or find_socket(config)
    try:
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(where)),
                                  timeout=aiohttp.ClientTimeout(total=CALL_SECONDS)) as session,
            session.request(method, f"http://localhost{path}", json=json, data=body) as response,
        ):
            content = await response.read()
            status = response.status
    except aiohttp.ClientConnectorError as error:
        raise _why_not(where, error) from None
    except (aiohttp.ClientError, TimeoutError):
        raise _unexpected(where) from None
    if status >= 400:
        kind = ControlDenied if status == _FORBIDDEN else OperatorError
        raise kind(str(_parsed(content, where).get("message") or f"hotpind refused (HTTP status {status})"))
    return content


async def call(method: str, path: str, json: Mapping[str, Any] | None = None, *, config: Config,
               socket: Path | None = None) -> dict[str, Any]:
    """Ask the daemon and return its JSON answer. Raises what `fetch` raises."""
    where = socket or find_socket(config)
    return _parsed(await fetch(method, path, json, config=config, socket=where), where)


def call_now(method: str, path: str, json: Mapping[str, Any] | None = None, *,
             config: Config) -> dict[str, Any]:
    """Do the same as `call`, outside an event loop."""
    return asyncio.run(call(method, path, json, config=config))


def ask_daemon(ctx: typer.Context, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Ask the daemon over its control socket; a failure is one sentence and exit status 1."""
    try:
        return call_now(method, path, body, config=settings_of(ctx))
    except HotpinError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


def _parsed(content: bytes, where: Path) -> dict[str, Any]:
    try:
        data = json_format.loads(content)
    except ValueError:
        raise _unexpected(where) from None
    if not isinstance(data, dict):
        raise _unexpected(where)
    return data


def _unexpected(where: Path) -> OperatorError:
    return OperatorError(f"hotpind did not answer as expected on {where}; see its log with `journalctl -u hotpind`")


def _why_not(where: Path, error: aiohttp.ClientConnectorError) -> OperatorError:
    if isinstance(error.os_error, PermissionError):
        return ControlDenied(f"{where}: only root and the appliance's own user may talk to hotpind; try with sudo")
    if isinstance(error.os_error, FileNotFoundError | ConnectionRefusedError):
        return OperatorError(f"hotpind is not running (nothing listens on {where}); start it with "
                             "`systemctl start hotpind` or scripts/run, or name its settings with --config")
    return OperatorError(f"{where}: hotpind cannot be reached: {error.os_error.strerror}")
