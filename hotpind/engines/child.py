"""What every engine process does around its model: die with its parent, report readiness, serve one unix socket.

The child tells the supervisor one JSON line on standard output: ``{"ready": true, ...facts}`` once it serves, or
``{"error": "<one sentence>"}`` before it exits with status 3 when it never will.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import logging
import os
import signal
import sys
import traceback
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any, NoReturn

from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong
from wyoming.server import AsyncEventHandler, AsyncUnixServer

from hotpind.errors import HotpinError

PATIENT = "patient"
"""In the context of our own speech requests: nobody waits for it as one does for an answer."""
EXIT_UNUSABLE = 3
"""Exit status of an engine that restarting cannot help (a broken model, a missing package)."""

_PR_SET_PDEATHSIG = 1  # prctl(2)
_LOG = logging.getLogger(__name__)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however it ends (prctl(2), PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        # The parent was gone before the request was in force.
        sys.exit(0)


def cores() -> int:
    """Return how many threads an engine gets: the cores this process may use, at most four."""
    return min(4, len(os.sched_getaffinity(0)))


def core_of_each(threads: int) -> list[int]:
    """Return the core for each of an engine's threads when it uses all there are, else nothing.

    Threads that meet after every operator are as slow as the one that waits longest. When the scheduler puts two of
    them on one core, because something unimportant computes on another, it takes up to a tenth of a second to see
    that. Measured on two cores, a clause of the voice beside one thread of nice 10: 88 ms, 170 ms of 95 %, left to the
    scheduler; 80 ms and 100 ms with a core for each.
    """
    own = sorted(os.sched_getaffinity(os.getpid()))
    return own if 1 < threads == len(own) else []


def stay_on(cores: Collection[int]) -> None:
    """Keep the calling thread on these cores, if any are named and it may."""
    if cores:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, cores)


def report(**facts: Any) -> None:
    """Write one line for the supervisor."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def refuse(sentence: str) -> NoReturn:
    """Tell the supervisor why this engine can never serve, and end."""
    report(error=" ".join(sentence.split()))
    sys.exit(EXIT_UNUSABLE)


def run_engine(serve: Callable[[], Awaitable[None]], *, parent: int) -> None:
    """Run an engine's main coroutine until SIGTERM, with its refusals turned into one sentence."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    die_with_parent(parent)
    # SIGINT of a terminal reaches the whole process group; stopping engines is the daemon's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    async def main() -> None:
        task = asyncio.ensure_future(serve())
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        await task

    try:
        asyncio.run(main())
    except asyncio.CancelledError:
        # A native call may still hold a thread; nothing here needs to be saved.
        os._exit(0)
    except (HotpinError, ImportError, OSError) as error:
        refuse(str(error))


class EngineHandler(AsyncEventHandler):
    """A Wyoming connection that answers ping and describe at once and hands everything else to `on_event`."""

    info: Info

    async def handle_event(self, event: Event) -> bool:
        """Answer one event; returning False closes the connection."""
        if Ping.is_type(event.type):
            await self.write_event(Pong(text=Ping.from_event(event).text).event())
            return True
        if Describe.is_type(event.type):
            await self.write_event(self.info.event())
            return True
        return await self.on_event(event)

    async def run(self) -> None:
        """Serve until the client leaves; a client that breaks the protocol loses its connection, nothing else."""
        try:
            await super().run()
        except (ConnectionError, asyncio.IncompleteReadError, ValueError, KeyError, TypeError) as error:
            _LOG.debug("connection ended: %r", error)

    async def carry_out(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do the work of a request, which writes its events; when it fails, say so and close the connection.

        A client that is told nothing waits its whole deadline, and takes the engine for hung.
        """
        try:
            await work()
        except ConnectionError as error:
            _LOG.debug("the client left: %r", error)
        except Exception as error:  # noqa: BLE001 - a binding raises what it likes, and the client has to be told
            # Without the error's message: libraries put into it what they were given, and a person said that.
            last = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
            _LOG.error("a request failed: %s", what)
            with contextlib.suppress(ConnectionError):
                await self.write_event(Error(text=f"the request failed inside the engine ({what})",
                                             code="failed").event())
            await self.stop()

    @abstractmethod
    async def on_event(self, event: Event) -> bool:
        """Answer an event of the engine's own kind."""


async def serve_wyoming(
    socket: Path, factory: Callable[[asyncio.StreamReader, asyncio.StreamWriter], AsyncEventHandler],
    then: Callable[[], Awaitable[None]] | None = None, **facts: Any,
) -> None:
    """Serve a private unix socket (mode 0600) until cancelled; says ready when it can be connected to.

    ``then`` is what nobody has to wait for.
    """
    server = AsyncUnixServer(socket)
    before = os.umask(0o177)
    try:
        await server.start(factory)
    finally:
        os.umask(before)
    report(ready=True, **facts)
    try:
        if then is not None:
            await then()
        await asyncio.Event().wait()
    finally:
        await server.stop()
