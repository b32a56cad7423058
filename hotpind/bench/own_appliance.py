"""An appliance of the benchmark's own: the real daemon with the current settings, on loopback, with its own state."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotpind.cli.control import call
from hotpind.config import Config
from hotpind.config.paths import models_dir
from hotpind.errors import OperatorError

START_S = 180.0
"""Models load in seconds; on a Pi's SD card in a minute."""
STOP_S = 20.0
SETTLE_S = 1.0
"""After the engines say that they are ready, the sentences kept for emergencies are still being spoken."""
POLL_S = 0.25

# The daemon must not outlive a benchmark that was killed.
_BOOT = """
import sys
from hotpind.engines.child import die_with_parent
die_with_parent(int(sys.argv.pop(1)))
from hotpind.cli.daemon import main
main()
"""


@dataclass(frozen=True, slots=True)
class RunningAppliance:
    """Where the appliance is, and what of it can be looked at."""

    url: str
    control: Path | None
    """Its control socket when it runs on this machine and we may use it; the engines' sockets lie beside it."""
    pid: int | None


def environment(config: Config, home: Path, runtime: Path, overrides: Mapping[str, Any],
                environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the daemon's environment: the current one, with what makes it a private appliance on loopback.

    ``overrides`` are further settings by key ("server.busy_turns"). Pure.
    """
    settings: dict[str, Any] = {
        "server.host": "127.0.0.1", "server.port": 0, "auth.mode": "open", "discovery.enabled": False,
        "tls.enabled": False, "tls.required": False, "paths.state": str(home / "state"),
        "paths.runtime": str(runtime), "paths.models": str(models_dir(config, environ)), **overrides}
    found = {name: value for name, value in environ.items() if name not in {"NOTIFY_SOCKET", "WATCHDOG_USEC"}}
    for key, value in settings.items():
        name = "HOTPIN_" + key.upper().replace(".", "__")
        found[name] = value if isinstance(value, str) else _toml(value)
    return found


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    # TOML writes these as JSON does.
    return json.dumps(value)


@contextlib.asynccontextmanager
async def own_appliance(config: Config, config_file: Path | None, overrides: Mapping[str, Any], *,
                        environ: Mapping[str, str] = os.environ) -> AsyncIterator[RunningAppliance]:
    """Start the daemon, wait until all its engines are ready, and end it with everything it wrote.

    Raises `OperatorError` when it does not come up.
    """
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hotpin-bench-")))
        # A socket's path must be short, whatever TMPDIR is.
        runtime = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hpb-", dir="/tmp")))
        log = stack.enter_context((home / "log").open("w+b"))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _BOOT, str(os.getpid()), *(["--config", str(config_file)] if config_file else []),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=log,
            env=environment(config, home, runtime, overrides, environ))
        assert process.stdout is not None
        draining: asyncio.Task[None] | None = None
        try:
            try:
                async with asyncio.timeout(START_S):
                    url = await _serving(process.stdout)
                    if url:
                        draining = asyncio.create_task(_drain(process.stdout), name="daemon's output")
                        await _engines_ready(config, runtime / "control.sock")
            except TimeoutError:
                raise OperatorError(f"the benchmark's own appliance is not ready after {START_S:.0f} s"
                                    f"{await asyncio.to_thread(last_line, home / 'log')}") from None
            if not url:
                raise OperatorError("the benchmark's own appliance ended before it served"
                                    f"{await asyncio.to_thread(last_line, home / 'log')}")
            yield RunningAppliance(url, runtime / "control.sock", process.pid)
        finally:
            await asyncio.shield(_end(process, draining))


async def _serving(output: asyncio.StreamReader) -> str:
    while line := await output.readline():
        if match := re.search(rb"serves (http://\S+)", line):
            return match[1].decode()
    return ""


async def _engines_ready(config: Config, control: Path) -> None:
    while True:
        status = await call("GET", "/api/v1/status", config=config, socket=control)
        # One that was not started has a cloud before it, and is loaded after its first answer or when it fails.
        if status["ready"] and all(engine["state"] in {"ready", "stopped"} for engine in status["engines"]):
            break
        broken = next((each for each in status["engines"] if each["state"] == "unusable"), None)
        if broken is not None:
            raise OperatorError(f"the {broken['name']} engine cannot be used: {broken['detail']}")
        await asyncio.sleep(POLL_S)
    await asyncio.sleep(SETTLE_S)


async def _drain(output: asyncio.StreamReader) -> None:
    while await output.read(65536):
        pass


async def _end(process: asyncio.subprocess.Process, draining: asyncio.Task[None] | None) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
    if draining is not None:
        await draining


def last_line(log: Path) -> str:
    """Return the last line of a log, to be put behind a sentence; nothing when it has none. Blocks."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f": {lines[-1][:300]}" if lines else ""
