"""The command ``hotpind``: runs the appliance in the foreground, under systemd or on a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from hotpind import __version__
from hotpind.app import Appliance
from hotpind.config import Config, load_config
from hotpind.engines.supervisor import EngineState
from hotpind.errors import ConfigError, HotpinError, OperatorError
from hotpind.models.catalogue import ModelEntry
from hotpind.models.hints import Machine, better_model_hint
from hotpind.selftest import DEVICE, SelfTest, self_test
from hotpind.system.logs import Log, on_journal
from hotpind.system.notify import Notifier
from hotpind.system.watchdog import Watchdog, watchdog_interval

_LOG = logging.getLogger(__name__)

EX_CONFIG = 78
"""Exit status for a configuration error (sysexits.h); the unit does not restart after it."""
EX_UNPROVEN = 1
"""Exit status of --once when the self-test failed, or was stopped before it had a result."""
START_EXTENSION_S = 30.0
"""systemd is asked for this much more time, again and again, while models load or a person has to mend something."""
INSIST_S = 2.0
STATUS_S = 5.0

ConfigOption = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Settings (TOML).")]


def command(
    config: ConfigOption = None,
    check_config: Annotated[bool, typer.Option("--check-config", help="Check the settings and end.")] = False,
    run_self_test: Annotated[bool, typer.Option("--self-test", help="Prove with a spoken question that all "
                                                "works, then go on serving.")] = False,
    once: Annotated[bool, typer.Option("--once", help="End after the self-test, with its result.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    """Run the Hotpin appliance."""
    if version:
        print(f"hotpind {__version__}")
        return
    try:
        settings = load_config(config)
    except ConfigError as error:
        complain(error)
        raise typer.Exit(EX_CONFIG) from None
    if check_config:
        print(f"{config or 'the settings'}: valid")
        return
    log = Log(settings.log.level)
    daemon = Daemon(settings, config, log, show_self_test=run_self_test or once, once=once)
    try:
        status = asyncio.run(daemon.run())
    except OperatorError as error:
        complain(error)
        status = EX_CONFIG if isinstance(error, ConfigError) else 1
    log.close()
    # Threads of native libraries may be in the middle of a call; nothing is left to be saved.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def complain(error: Exception) -> None:
    """Say on standard error why the daemon ends; as an error, where that is the journal (sd-daemon(3))."""
    mark = "<3>" if on_journal(sys.stderr) else ""
    for line in str(error).splitlines():
        print(f"{mark}hotpind: {line}", file=sys.stderr)


class Daemon:
    """The appliance between its start and the signal that ends it."""

    def __init__(self, config: Config, config_file: Path | None, log: Log, *, show_self_test: bool,
                 once: bool) -> None:
        """Take what the command line said."""
        self._config = config
        self._config_file = config_file
        self._log = log
        self._show_self_test = show_self_test
        self._once = once
        self._notify = Notifier.from_environ()
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT; return the exit status. Raises `OperatorError` for a failed start."""
        began = time.monotonic()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        loop.add_signal_handler(signal.SIGHUP, self._reload.set)
        appliance = Appliance(self._config)
        status = 0
        try:
            starting = asyncio.create_task(self._start(appliance), name="start")
            if not await self._unless_stopped(starting):
                return EX_UNPROVEN if self._once else 0
            print(f"hotpind {__version__} serves {appliance.url()} after {time.monotonic() - began:.1f} s", flush=True)
            if self._show_self_test:
                proving = asyncio.create_task(self._prove(appliance), name="self-test")
                if not await self._unless_stopped(proving):
                    return EX_UNPROVEN if self._once else 0
                status = 0 if proving.result().passed else EX_UNPROVEN
                if self._once:
                    return status
            await self._serve(appliance)
            return status if not self._show_self_test else 0
        finally:
            self._notify.stopping("finishing the answer under way" if appliance_is_speaking(appliance) else "stopping")
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await appliance.stop()

    def _interrupt(self) -> None:
        if self._stop.is_set():
            # Whoever presses Ctrl-C again does not want to wait; the engines end with this process.
            os._exit(128 + signal.SIGINT)
        self._stop.set()

    async def _unless_stopped(self, task: asyncio.Task[Any]) -> bool:
        """Wait for a task, or for the signal to stop, which cancels it; tell whether it was done."""
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if task.done():
            task.result()
            return True
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return False

    async def _start(self, appliance: Appliance) -> None:
        await self._insist(appliance.build)
        await self._insist(appliance.listen)
        waiting = asyncio.create_task(appliance.working(), name="engines")
        try:
            while not waiting.done():
                await asyncio.wait({waiting}, timeout=1.0)
                self._notify.extend_timeout(START_EXTENSION_S)
                fault = speech_fault(appliance)
                self._notify.status(appliance.status.line())
                if fault and not self._notify.enabled and self._once:
                    raise OperatorError(fault)
        finally:
            waiting.cancel()
        appliance.status.ready = True
        self._notify.ready(appliance.status.line())

    async def _insist(self, step: Callable[[], Awaitable[None]]) -> None:
        """Do a step of the start; under systemd, wait for a person to mend what stands in its way."""
        said = ""
        while True:
            try:
                await step()
                return
            except OperatorError as error:
                if not self._notify.enabled or isinstance(error, ConfigError):
                    raise
                if str(error) != said:
                    _LOG.error("%s", error)
                    said = str(error)
                self._notify.status(f"waiting: {error}")
                self._notify.extend_timeout(START_EXTENSION_S)
                await asyncio.sleep(INSIST_S)

    async def _serve(self, appliance: Appliance) -> None:
        self._tasks.append(asyncio.create_task(self._report(appliance), name="status line"))
        interval = watchdog_interval()
        if interval is not None:
            async def healthy() -> bool:
                return appliance.speech_works()

            self._tasks.append(asyncio.create_task(
                Watchdog(self._notify, interval, healthy).run(), name="watchdog"))
        # What is here now stays: collections while somebody waits for an answer need not look at it.
        gc.freeze()
        hint = hint_for(self._config, appliance.store.catalogue, await asyncio.to_thread(Machine.this))
        if hint:
            _LOG.info("Hint: %s", hint)
        while not self._stop.is_set():
            waiters = {asyncio.create_task(self._stop.wait()), asyncio.create_task(self._reload.wait())}
            await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
            for waiter in waiters:
                waiter.cancel()
            if self._reload.is_set() and not self._stop.is_set():
                self._reload.clear()
                await self._reread(appliance)

    async def _report(self, appliance: Appliance) -> None:
        while True:
            self._notify.status(appliance.status.line())
            await asyncio.sleep(STATUS_S)

    async def _reread(self, appliance: Appliance) -> None:
        self._notify.reloading()
        try:
            config = await asyncio.to_thread(load_config, self._config_file)
        except ConfigError as error:
            _LOG.error("The settings were not reloaded, the old ones stay in force: %s", error)
            appliance.reload_refused = " ".join(str(error).split())
            self._notify.ready(f"reload refused: {error}")
            return
        appliance.reload_refused = ""
        await appliance.reconfigure(config)
        self._log.set_level(config.log.level)
        self._notify.ready(appliance.status.line())

    async def _prove(self, appliance: Appliance) -> SelfTest:
        token = appliance.gatekeeper.issue_temporary(DEVICE)
        try:
            result = await self_test(appliance.url(), token, appliance.voice, appliance.fingerprint())
        finally:
            appliance.gatekeeper.withdraw_temporary(DEVICE)
            appliance.assistant.memory.forget(DEVICE)
        show(result, appliance.url())
        return result


def hint_for(config: Config, catalogue: Mapping[str, ModelEntry], machine: Machine) -> str | None:
    """Tell which better models this machine could run than those of the settings, if any."""
    return better_model_hint(catalogue, machine, stt=config.stt.model if not config.stt.uri else None,
                             llm=config.chat.local.model, tts=config.tts.voice if not config.tts.uri else None,
                             language=config.stt.language, stt_quantised=config.stt.engine == "pywhispercpp")


def speech_fault(appliance: Appliance) -> str:
    """Return what keeps the engines for speech from working, one sentence; empty while nothing does.

    Nothing else is waited for at the start: without a cloud, say, the local model answers.
    """
    for engine in (appliance.stt_engine, appliance.tts_engine):
        if engine is not None and engine.state in {EngineState.UNUSABLE, EngineState.WAITING} and engine.detail:
            return f"the {engine.spec.name} engine: {engine.detail}"
    return next((server.fault for server in appliance.remotes if server.fault), "")


def appliance_is_speaking(appliance: Appliance) -> bool:
    """Tell whether a turn is under way."""
    return hasattr(appliance, "assistant") and appliance.assistant.turns_running > 0


def show(result: SelfTest, url: str) -> None:
    """Print the self-test as a table, and ready or what is wrong."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title="Self-test: a spoken question through the device protocol", show_header=False)
    for label, value in result.rows():
        table.add_row(label, value)
    if result.rows():
        console.print(table)
    if result.passed:
        console.print(f"[bold green]ready[/]: {url}", highlight=False)
    else:
        console.print(f"[bold red]the self-test failed[/]: {result.trouble}", highlight=False)


def main() -> None:
    """Run the command."""
    try:
        typer.run(command)
    except HotpinError as error:
        complain(error)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
