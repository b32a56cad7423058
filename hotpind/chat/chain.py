"""The brain: backends in order, the router that knows which of them are alive, and who watches over them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from hotpind.chat.backend import Backend, Probe, RemoteBackend
from hotpind.chat.contest import Contest, Line, Notes
from hotpind.chat.groq_backend import GroqBackend
from hotpind.chat.key import KeySource, file_mark
from hotpind.chat.lan_backend import LanBackend
from hotpind.chat.local_backend import NAME as LOCAL
from hotpind.chat.local_backend import LocalBackend, LocalEngine
from hotpind.chat.lookup import NameLookup
from hotpind.chat.messages import AnswerStream, BackendStatus, ChatRequest, Picture
from hotpind.chat.ocr import PictureReader
from hotpind.chat.router import Change, Circuit, Router, State
from hotpind.chat.runner import Runner
from hotpind.config.schema import ChatSection
from hotpind.errors import BackendError, BackendTooLate, BadAnswer

_LOG = logging.getLogger(__name__)

PROBE_PATIENCE_S = 15.0
"""How long a probe may take; a server that has to load its model is given the chance to."""
KEY_POLL_S = 5.0
"""How often the files that may hold a key are looked at."""
LIST_EVERY_S = 6 * 3600.0
"""How often the list of models is asked for while nothing else is wrong."""
FRESH_S = 20.0
"""A backend heard from within this time needs no check before a question."""
DOUBT_S = 1.0
"""A new connection and a request over it take this long on a slow line; past it the local model is loaded."""


class Chain:
    """Answers questions with the first backend that can; see `hotpind.chat.messages.Brain`.

    `start` before use, `close` after it.
    """

    def __init__(self, config: ChatSection, backends: Sequence[RemoteBackend], local: LocalBackend | None,
                 *, key_marks: Callable[[], object] = lambda: None) -> None:
        """``backends`` in their order, without the local one; ``key_marks`` (called in a thread) tells, by
        another result, that a key may have changed.
        """
        self._config = config
        self._remote = {backend.name: backend for backend in backends}
        self._local = local
        self.waiting = 0
        """Questions that wait for somebody's first word."""
        self._router = Router([Circuit(backend.name, on=backend.ready) for backend in backends])
        self._key_marks = key_marks
        self._marks: object = None
        self._look_for_keys = False
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._runners: set[Runner] = set()
        self._heard: dict[str, float] = {}
        self._next_poll = 0.0
        self._next_list = 0.0
        self._waking = False
        self._closed = False

    @classmethod
    def from_config(cls, config: ChatSection, *, state: Path, local: LocalEngine | None,
                    environ: Mapping[str, str] = os.environ) -> Chain:
        """Build the chain that the settings describe; ``state`` is the state directory."""
        lookup = NameLookup()
        keys = KeySource(config.groq.key_file, state, environ)
        connect_s = config.groq.connect_timeout_s
        tables = [(table.before_groq, LanBackend(table, lookup=lookup, connect_timeout_s=connect_s))
                  for table in config.backend]
        backends: list[RemoteBackend] = [backend for first, backend in tables if first]
        if config.groq.enabled:
            clock = asyncio.get_running_loop().time
            backends.append(GroqBackend(config.groq, keys, lookup=lookup, clock=clock))
        backends += [backend for first, backend in tables if not first]
        reader = PictureReader() if PictureReader.available() else None
        own = LocalBackend(local, config.local, lookup=lookup, reader=reader) if local else None
        files = [Path(table.key_file).expanduser() for table in config.backend if table.key_file]
        return cls(config, backends, own, key_marks=lambda: (keys.fingerprint(), *map(file_mark, files)))

    async def start(self) -> None:
        """Read the keys, and begin to watch over the backends."""
        self._marks = await asyncio.to_thread(self._key_marks)
        await self._refresh_keys()
        self._next_poll = self._now() + KEY_POLL_S
        self._next_list = self._now() + LIST_EVERY_S
        self._spawn(self._watch(), "chat watch")
        for name in self._remote:
            self._check(name)

    async def close(self) -> None:
        """Stop everything that is under way and close every connection."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, *(runner.cancel() for runner in list(self._runners)),
                             return_exceptions=True)
        for backend in self._everybody():
            await backend.close()

    async def ask(self, request: ChatRequest) -> AnswerStream:
        """Return the stream of the first backend that gave its first words; see
        `hotpind.chat.messages.Brain`.
        """
        self._tick()
        now = self._now()
        usable = [self._remote[name] for name in self._router.usable(now)]
        line = Line([*usable, *([self._local] if self._local else [])], self._local, self._router.reason(now))
        contest = Contest(request, line, self._config, Notes(self._began, self._answered, self._failed, self._slow))
        self.waiting += 1
        try:
            return await contest.run()
        finally:
            self.waiting -= 1
            contest.dismiss_losers()

    def prepare(self, pictures: Sequence[Picture] = ()) -> None:
        """Get ready for a question that is being asked just now: connect, or load what will be needed.

        Costs the turn nothing, and what it finds out about a dead line saves the question from finding it out.
        ``pictures``: the question's own, or the earlier one that it may be about, on which whoever would be asked
        begins to work.
        """
        now = self._now()
        for name in self._router.usable(now)[:1]:
            self._remote[name].expect(pictures)
            if now - self._heard.get(name, 0.0) > FRESH_S and self._check(name):
                self._spawn(self._wake_local_unless_heard(name, now), "chat doubt")
            return
        if self._local:
            self._local.expect(pictures)
            self._wake_local(self._local)

    def key_changed(self) -> None:
        """Look for keys now, not at the next poll."""
        self._look_for_keys = True
        self._wake.set()

    def interface_up(self) -> None:
        """Probe what was out of reach: a network interface or an address came up."""
        self._router.interface_up(self._now())
        self._wake.set()

    def reconfigure(self, config: ChatSection) -> None:
        """Take the settings that may change while running (deadlines, the length of answers)."""
        self._config = config

    def status(self) -> list[BackendStatus]:
        """Return the condition of every backend, in order."""
        self._tick()
        rows = []
        for name, backend in self._remote.items():
            circuit = self._router.circuits[name]
            rows.append(BackendStatus(name, circuit.state.value, backend.model, circuit.detail or backend.note,
                                      backend.retired, _key_fault(backend, circuit)))
        if self._local:
            rows.append(BackendStatus(LOCAL, self._local.state, self._local.model))
        return rows

    def _everybody(self) -> list[Backend]:
        return [*self._remote.values(), *([self._local] if self._local else [])]

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        if self._closed:
            work.close()
            return
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch(self) -> None:
        """Do what is due, until cancelled: probes, ends of rate limits, the list of models, changed keys."""
        while True:
            self._wake.clear()
            try:
                await self._do_what_is_due()
            except Exception as problem:  # noqa: BLE001  # without the watch no backend would ever come back
                _LOG.error("watching the language models failed in an unforeseen way", exc_info=problem)
            until = min(self._next_poll, self._next_list, self._router.wakes_at() or self._next_poll)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._wake.wait()

    async def _do_what_is_due(self) -> None:
        now = self._now()
        if now >= self._next_poll or self._look_for_keys:
            self._next_poll = now + KEY_POLL_S
            await self._poll_keys()
        self._tick()
        if now >= self._next_list:
            self._next_list = now + LIST_EVERY_S
            for name in self._router.usable(now):
                self._check(name)
        for circuit in self._router.probes_due(self._now()):
            self._begin_probe(circuit)

    async def _poll_keys(self) -> None:
        marks = await asyncio.to_thread(self._key_marks)
        if marks != self._marks or self._look_for_keys:
            self._marks, self._look_for_keys = marks, False
            await self._refresh_keys()

    async def _refresh_keys(self) -> None:
        for name, backend in self._remote.items():
            changed = await backend.refresh_key()
            circuit = self._router.circuits[name]
            if changed or backend.ready == (circuit.state is State.OFF):
                self._note(circuit.renewed(self._now(), on=backend.ready, verify=True))
        self._wake.set()

    def _check(self, name: str) -> bool:
        """See in the background whether a backend that is thought well is; tells whether that begins now."""
        circuit = self._router.circuits[name]
        if circuit.state is not State.ONLINE or circuit.probing:
            return False
        self._begin_probe(circuit)
        return True

    def _begin_probe(self, circuit: Circuit) -> None:
        circuit.probe_begun()
        self._spawn(self._probe(circuit), f"chat probe {circuit.name}")

    async def _probe(self, circuit: Circuit) -> None:
        kind, epoch = circuit.probe, circuit.epoch
        error: BackendError | None = None
        try:
            async with asyncio.timeout(PROBE_PATIENCE_S):
                taken = await self._remote[circuit.name].probe(kind, quiet_s=self._quiet_s())
            if kind is Probe.ANSWER and taken > self._config.first_token_deadline_s:
                error = BackendTooLate(f"{circuit.name} needs {taken:.1f} s to answer")
        except TimeoutError:
            error = BackendTooLate(f"{circuit.name} was silent for {PROBE_PATIENCE_S:g} s")
        except BackendError as problem:
            error = problem
        except asyncio.CancelledError:
            circuit.probe_dropped(self._now())
            raise
        except Exception as problem:  # noqa: BLE001  # whatever happens, the probes must go on
            _LOG.error("the probe of %s failed in an unforeseen way", circuit.name, exc_info=problem)
            error = BadAnswer(f"the probe of {circuit.name} failed in an unforeseen way")
        now = self._now()
        if circuit.epoch != epoch:
            # A question or a new key has told more meanwhile.
            circuit.probe_dropped(now)
        elif error is None:
            self._heard[circuit.name] = now
            self._note(circuit.probe_succeeded())
        else:
            self._note(circuit.probe_failed(error, now))
        self._wake.set()

    async def _wake_local_unless_heard(self, name: str, asked: float) -> None:
        """Load the local model if a backend that was checked is still silent after `DOUBT_S`."""
        await asyncio.sleep(DOUBT_S)
        if self._local and self._heard.get(name, 0.0) < asked:
            self._wake_local(self._local)

    def _wake_local(self, local: LocalBackend) -> None:
        """Load the local model in the background, unless that is under way."""
        async def load() -> None:
            try:
                await local.probe(Probe.REACH, quiet_s=self._quiet_s())
            except BackendError as error:
                _LOG.debug("%s", error)
            finally:
                self._waking = False

        if not self._waking and not self._closed:
            self._waking = True
            self._spawn(load(), "chat wake local")

    def _quiet_s(self) -> float:
        return max(self._config.first_token_deadline_s, self._config.next_token_deadline_s)

    def _tick(self) -> None:
        for change in self._router.tick(self._now()):
            self._note(change)

    def _began(self, runner: Runner) -> None:
        self._runners.add(runner)
        runner.task.add_done_callback(lambda _: self._runners.discard(runner))

    def _slow(self) -> None:
        if self._local:
            self._wake_local(self._local)

    def _answered(self, name: str) -> None:
        if circuit := self._router.circuits.get(name):
            self._heard[name] = self._now()
            self._note(circuit.answered())

    def _failed(self, name: str, error: BackendError) -> None:
        if circuit := self._router.circuits.get(name):
            self._note(circuit.failed(error, self._now()))
            self._wake.set()
        else:
            _LOG.warning("%s", error)

    def _note(self, change: Change | None) -> None:
        if change is None:
            return
        if self._local and change.after is not State.OFF and not self._router.usable(self._now()):
            # The next question is the local model's: it is loaded before that comes.
            self._wake_local(self._local)
        if change.after in (State.ONLINE, State.OFF):
            _LOG.info("%s is %s (was %s)", change.name, change.after, change.before)
        else:
            _LOG.warning("%s is %s (was %s): %s", change.name, change.after, change.before, change.detail)


def _key_fault(backend: RemoteBackend, circuit: Circuit) -> str:
    """Return what a person should mend about a backend's key; the file that is passed over first, as the rest may
    follow from it.
    """
    problem = f"{backend.name}: {backend.key_problem}" if backend.key_problem else ""
    rejected = circuit.detail if circuit.state is State.KEY_REJECTED else ""
    return "; ".join(filter(None, (problem, rejected)))
