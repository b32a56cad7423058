"""Keeps one engine process alive: starts it, watches it, replaces it, and leaves none behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar, cast

import aiohttp

from hotpind.engines.backoff import Backoff
from hotpind.engines.child import EXIT_UNUSABLE
from hotpind.errors import EngineUnavailable, HotpinError

_LOG = logging.getLogger(__name__)

START_DEADLINE_S = 120.0
"""A 1.5 B model on a Pi 4's SD card loads in about a minute; past two it is stuck."""
STOP_DEADLINE_S = 2.0
"""All engines have to be gone within 5 s of SIGTERM; they have nothing to save."""
BEAT_IDLE_S = 10.0
"""How often an idle engine is asked whether it lives."""
BEAT_BUSY_S = 1.0
"""How often while a request waits for it: a stopped process is found before the wearer loses patience."""
BEAT_DEADLINE_S = 3.0
"""A living engine answers in milliseconds even in the middle of a decode; a swapping Pi may need a second."""
WRONG_PROCESSOR = ": it was built for another processor; set the appliance up again on this machine"
KEPT_LINES = 20
DYING_S = 1.0
"""A dying process closes its socket before its parent learns of its end: how long the news may take."""
WANTED_S = 1.0
"""How long an engine that crashed again and again rests at most when somebody waits for it."""
MEND_S = 15.0
"""How often an engine that a person has to mend is tried again."""
DOUBTFUL_LIVES = 3
"""After so many lives in a row that ended early, the files of the engine's model are read and compared."""
EARLY_S = 60.0
"""A life shorter than this ended early."""
LONGEST_REASON = 300
"""Characters of a library's message that are shown as the reason."""

_T = TypeVar("_T")


class EngineState(StrEnum):
    """Where an engine is in its life."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting to restart"
    UNUSABLE = "unusable"
    """It cannot work until a person mends something (a model file, a package); tried again after `MEND_S`."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """How to start an engine and how to ask whether it lives."""

    name: str
    arguments: Callable[[], Sequence[str]]
    """Finds what the engine needs and returns the arguments after the interpreter; ``--socket PATH --parent PID`` are
    added. Asked in a thread before each start, since it may fetch a model. Raises `HotpinError`."""
    socket: Path
    alive: Callable[[Path], Awaitable[None]]
    """Asks the engine for a sign of life over its socket; raises when there is none."""
    nice: int = 0
    """Added to the daemon's own nice value: speaking before thinking before listening ahead."""
    environ: Mapping[str, str] = field(default_factory=dict)
    check: Callable[[], object] | None = None
    """Reads the model's files and compares them with what was installed: a worn card changes them without a trace in
    size or time. Asked in a thread when the engine does not live. Raises `HotpinError`."""


class Engine:
    """One supervised engine process.

    `start` makes a task that owns the process; `stop` ends both. Callers wait for `ready`, count their requests with
    `request` so that liveness is watched closely, and call `replace` when a request passed its deadline.
    """

    def __init__(self, spec: EngineSpec, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Prepare; nothing runs before `start`."""
        self.spec = spec
        self.state = EngineState.STOPPED
        self.detail = ""
        """Why the engine is not ready, one sentence."""
        self.facts: dict[str, Any] = {}
        self.restarts = 0
        self._clock = clock
        self._backoff = Backoff()
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        """Supervisions that were stopped and whose process may not have ended yet."""
        self._changed = asyncio.Event()
        self._wanted = asyncio.Event()
        """Somebody waits, or waited, for the end of this rest."""
        self._requests = 0
        self._busy = asyncio.Event()
        self._busy_until = 0.0
        self._replace_reason = ""
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)

    @property
    def pid(self) -> int | None:
        """Process id while a process runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    def start(self) -> None:
        """Begin to keep the engine alive; does nothing when that is under way.

        A new life waits for the end of one that is being stopped, since both use one socket.
        """
        if self._task is None or self._task.done():
            self._set(EngineState.STARTING)
            self._task = asyncio.create_task(self._keep_alive(frozenset(self._ending)),
                                             name=f"supervise {self.spec.name}")

    async def stop(self) -> None:
        """End the process and the supervision, within `STOP_DEADLINE_S`; a `start` meanwhile is not undone."""
        task, self._task = self._task, None
        if task is not None:
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
            task.cancel()
        try:
            if self._ending:
                # Not awaited themselves: a cancellation of this would cut short how they end their process.
                await asyncio.wait(frozenset(self._ending))
        finally:
            if self._task is None:
                self._set(EngineState.STOPPED)

    async def ready(self, deadline_s: float, *, refused: bool = False) -> Path:
        """Wait until the engine serves, and return its socket.

        ``refused`` says that the socket given out before took no connection: the engine is probably dying, and the
        next one is waited for. Raises `EngineUnavailable` when there is none within ``deadline_s`` seconds, or never
        will be.
        """
        if refused:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DYING_S):
                    while self.state is EngineState.READY:
                        self._changed.clear()
                        await self._changed.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                while self.state in {EngineState.STARTING, EngineState.WAITING}:
                    self._wanted.set()
                    self._changed.clear()
                    await self._changed.wait()
        if self.state is not EngineState.READY:
            raise EngineUnavailable(f"the {self.spec.name} engine is {self.state.value}"
                                    + (f": {self.detail}" if self.detail else ""))
        return self.spec.socket

    async def until_ready(self) -> None:
        """Wait until the engine serves, however long that takes."""
        while self.state is not EngineState.READY:
            self._changed.clear()
            await self._changed.wait()

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Count a request under way, so that its engine's liveness is watched every second."""
        self._requests += 1
        self._busy.set()
        try:
            yield
        finally:
            self._requests -= 1
            if not self._requests and self._clock() >= self._busy_until:
                self._busy.clear()

    def expect_use(self, seconds: float) -> None:
        """Watch liveness closely for some seconds: a request whose end is not told here is on its way."""
        self._busy_until = self._clock() + seconds
        self._busy.set()

    def replace(self, reason: str) -> None:
        """Kill the process now (it hangs); a new one is started at once."""
        if self._process is not None and self._process.returncode is None and not self._replace_reason:
            self._replace_reason = reason
            _kill(self._process, signal.SIGKILL)
            self._set(EngineState.WAITING, reason)

    def _set(self, state: EngineState, detail: str = "") -> None:
        self.state, self.detail = state, detail
        self._changed.set()

    async def _keep_alive(self, before: Collection[asyncio.Task[None]]) -> None:
        name = self.spec.name
        if before:
            await asyncio.wait(before)
        early = 0
        while True:
            started = self._clock()
            try:
                arguments = await off_loop(self.spec.arguments, f"find {name}")
                if early >= DOUBTFUL_LIVES:
                    await self._check()
                    early, started = 0, self._clock()
                why, mendable = await self._one_life(arguments)
                if mendable:
                    # What it stumbled over may be the model, and then the better sentence says what to do about it.
                    await self._check()
            except HotpinError as error:
                why, mendable = str(error), True
            except OSError as error:
                why, mendable = _one_line(f"it cannot be started: {error.strerror or error}"), False
            except Exception as error:  # noqa: BLE001 - a library's (a proxy it has no support for) ends no supervision
                why, mendable = _one_line(f"it cannot be started: {type(error).__name__}: {error}"), True
                _LOG.debug("The start of the %s engine failed", name, exc_info=True)
            if mendable:
                if self.detail != why:
                    _LOG.error("The %s engine cannot be used: %s", name, why)
                self._set(EngineState.UNUSABLE, why)
                await asyncio.sleep(MEND_S)
                continue
            lived = self._clock() - started
            early = early + 1 if lived < EARLY_S else 0
            delay = self._backoff.after_life_of(lived)
            self.restarts += 1
            _LOG.warning("The %s engine ended (%s); starting it again in %.1f s", name, why, delay)
            self._set(EngineState.WAITING, why)
            await self._rest(delay)
            self._set(EngineState.STARTING)

    async def _rest(self, seconds: float) -> None:
        """Wait before the next life, at most `WANTED_S` when somebody waits for it."""
        self._wanted.clear()
        await asyncio.sleep(min(seconds, WANTED_S))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds - WANTED_S)):
                await self._wanted.wait()

    async def _check(self) -> None:
        if self.spec.check is not None:
            await off_loop(self.spec.check, f"check {self.spec.name}")

    async def _one_life(self, arguments: Sequence[str]) -> tuple[str, bool]:
        """Run one process to its end; return why it ended and whether a person has to mend something."""
        self.spec.socket.unlink(missing_ok=True)
        self._lines.clear()
        self._replace_reason = ""
        process = self._process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, "--socket", str(self.spec.socket), "--parent", str(os.getpid()),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **self.spec.environ}, limit=64 * 1024,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        readers = [asyncio.create_task(self._collect(process.stderr), name=f"stderr of {self.spec.name}")]
        beats: asyncio.Task[None] | None = None
        try:
            self._set_priority(process.pid)
            word = await self._first_word(process.stdout)
            readers.append(asyncio.create_task(_drain(process.stdout), name=f"stdout of {self.spec.name}"))
            if "error" in word:
                return str(word["error"]), True
            if word.get("ready"):
                self.facts = word
                self._set(EngineState.READY)
                beats = asyncio.create_task(self._watch(), name=f"liveness of {self.spec.name}")
            else:
                self._replace_reason = str(word.get("fault", ""))
                _kill(process, signal.SIGKILL)
            await process.wait()
            return self._obituary(process.returncode), process.returncode == EXIT_UNUSABLE
        finally:
            if beats is not None:
                beats.cancel()
            await asyncio.shield(_end(process))
            for reader in readers:
                reader.cancel()
            self.spec.socket.unlink(missing_ok=True)

    async def _first_word(self, stdout: asyncio.StreamReader) -> dict[str, Any]:
        try:
            async with asyncio.timeout(START_DEADLINE_S):
                line = await stdout.readline()
            word = json.loads(line) if line else {}
            return word if isinstance(word, dict) else {"fault": "it did not say whether it is ready"}
        except TimeoutError:
            return {"fault": f"it was not ready within {START_DEADLINE_S:.0f} s"}
        except ValueError:
            return {"fault": "it did not say whether it is ready"}

    async def _watch(self) -> None:
        """Ask for signs of life, often while requests wait, and kill the process when there are none."""
        while True:
            if not self._busy.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(BEAT_IDLE_S):
                        await self._busy.wait()
            if self._busy.is_set():
                await asyncio.sleep(BEAT_BUSY_S)
                if not self._requests and self._clock() >= self._busy_until:
                    self._busy.clear()
            try:
                async with asyncio.timeout(BEAT_DEADLINE_S):
                    await self.spec.alive(self.spec.socket)
            except EngineUnavailable as error:
                self.replace(str(error))
                return
            except (TimeoutError, OSError, aiohttp.ClientError):
                self.replace(f"no sign of life within {BEAT_DEADLINE_S:.0f} s")
                return

    def _set_priority(self, pid: int) -> None:
        try:
            os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 0) + self.spec.nice)
        except ProcessLookupError:
            pass  # it ended at once, and that is told elsewhere
        except OSError as error:
            _LOG.warning("The %s engine runs at the daemon's own priority (%s), so with several devices speech may "
                         "stutter; let the service set it (see systemd/hotpind.service)", self.spec.name,
                         error.strerror)

    async def _collect(self, stream: asyncio.StreamReader) -> None:
        """Drain standard error: native libraries write there; the last lines explain a crash."""
        while True:
            try:
                line = await stream.readline()
            except ValueError:
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            self._lines.append(text)
            _LOG.debug("%s: %s", self.spec.name, text)

    def _obituary(self, status: int | None) -> str:
        if self._replace_reason:
            return self._replace_reason
        if status is not None and status < 0:
            with contextlib.suppress(ValueError):
                name = signal.Signals(-status).name
                return f"killed by {name}" + (WRONG_PROCESSOR if name == "SIGILL" else "")
        last = next((line for line in reversed(self._lines) if line.strip()), "")
        return f"exit status {status}" + (f", last words: {last[:200]}" if last else "")


async def _drain(stream: asyncio.StreamReader) -> None:
    """Read standard output after the first word: a library that prints there would block on a full pipe."""
    while await stream.read(64 * 1024):
        pass


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        _kill(process, signal.SIGTERM)
        # A stopped process acts on SIGTERM only after SIGCONT.
        _kill(process, signal.SIGCONT)
        try:
            async with asyncio.timeout(STOP_DEADLINE_S):
                await process.wait()
        except TimeoutError:
            _kill(process, signal.SIGKILL)
            await process.wait()


def _kill(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:LONGEST_REASON]


async def off_loop(work: Callable[[], _T], name: str) -> _T:
    """Do blocking work in a thread that nobody waits for when this is cancelled, not even the interpreter's end.

    Finding a model may mean fetching it for an hour; what was fetched is kept and gone on with.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[_T] = loop.create_future()

    def settle(value: _T | None, error: BaseException | None) -> None:
        if result.done():
            return
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(cast(_T, value))

    def run() -> None:
        value: _T | None = None
        trouble: BaseException | None = None
        try:
            value = work()
        except BaseException as error:  # noqa: BLE001 - it belongs to who awaits this
            trouble = error
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(settle, value, trouble)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await result
