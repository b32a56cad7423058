"""One question, from being asked to somebody's first word: who of the line is asked when, and who gets the floor.

`hotpind.chat.race` decides; this starts the backends and listens to them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hotpind.chat.backend import Backend
from hotpind.chat.messages import ChatRequest
from hotpind.chat.race import Standing, head_start, to_start, winner
from hotpind.chat.router import phrase
from hotpind.chat.runner import Answer, Pace, Runner
from hotpind.config.schema import ChatSection
from hotpind.errors import BackendError, BackendTooLate, NoAnswer

PATIENCE_S = 45.0
"""How long a question waits for the local model's first word: a slow machine may have to load it first. The
wearer's own patience ends at 60 s, and the apology has to be spoken before."""
LAST_HOPE_S = 10.0
"""How long it waits for a late backend when the local model has failed."""
SLOW_S = 0.5
"""A healthy cloud speaks within this time; past it a local model that is not loaded is loaded, which takes seconds."""
FAIR_SHARE = 0.8
"""Part of the deadline that a backend must have had before its silence counts as lateness: the second in line
is asked later than the first."""


@dataclass(frozen=True, slots=True)
class Line:
    """Who may be asked, best first."""

    backends: Sequence[Backend]
    last_resort: Backend | None
    """The one of them (the local model) that is waited for the longest and never counts as late."""
    passed_over: str
    """Why the best backend of all is not among them, as one short phrase; empty when it is."""


@dataclass(frozen=True, slots=True)
class Notes:
    """Who is told what became of the backends."""

    began: Callable[[Runner], None]
    """A backend is at work; who is told sees to it that it ends."""
    answered: Callable[[str], None]
    """The backend of that name spoke in time."""
    failed: Callable[[str, BackendError], None]
    """The backend of that name failed, was late, or broke off."""
    slow: Callable[[], None]
    """Nobody has spoken for `SLOW_S`; the local model may be needed."""


class Contest:
    """The backends of a line at one question."""

    def __init__(self, request: ChatRequest, line: Line, config: ChatSection, notes: Notes) -> None:
        self._request = request
        self._line = line
        self._config = config
        self._notes = notes
        self._begun = _now()
        self._runners: list[Runner | None] = [None] * len(line.backends)
        self._reason = line.passed_over
        self._changed = asyncio.Event()
        self._winner: Runner | None = None

    async def run(self) -> Answer:
        """Return the winner's answer; raises `NoAnswer`."""
        deadline = self._begun + self._config.first_token_deadline_s
        hedge_at = self._begun + head_start(self._config.first_token_deadline_s)
        slow_at = min(self._begun + SLOW_S, hedge_at)
        told = False
        while True:
            self._changed.clear()
            now = _now()
            if now >= slow_at and not told:
                told = True
                self._notes.slow()
            self._note_failures(now)
            standings = [runner.standing if runner else Standing.IDLE for runner in self._runners]
            first = winner(standings, past_deadline=now >= deadline)
            if first is not None:
                return self._give_floor(first)
            for index in to_start(standings, hedge=now >= hedge_at):
                self._start(index)
            pending = {runner.backend for runner in self._runners if runner and runner.standing is Standing.PENDING}
            limit = self._begun + (PATIENCE_S if self._line.last_resort in pending else self._last_hope_s)
            if not pending or now >= limit:
                raise self._no_answer()
            until = min((at for at in (slow_at, hedge_at, deadline) if at > now), default=limit)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._changed.wait()

    def dismiss_losers(self) -> None:
        """Stop everybody but the winner, without waiting for them."""
        for runner in self._runners:
            if runner is not None and runner is not self._winner:
                runner.task.cancel()

    @property
    def _last_hope_s(self) -> float:
        """`LAST_HOPE_S`, but never less than the deadline that somebody set for a slow line."""
        return max(LAST_HOPE_S, self._config.first_token_deadline_s)

    def _start(self, index: int) -> None:
        backend = self._line.backends[index]
        last = backend is self._line.last_resort
        pace = Pace(first_s=PATIENCE_S if last else self._last_hope_s, next_s=self._config.next_token_deadline_s,
                    steady=not last)
        runner = Runner(backend, self._request, pace=pace, max_words=self._config.max_answer_words,
                        changed=self._changed.set, broke=lambda error: self._notes.failed(backend.name, error))
        self._runners[index] = runner
        self._notes.began(runner)

    def _note_failures(self, now: float) -> None:
        for runner in self._runners:
            if runner is None or runner.noted:
                continue
            error = runner.error or self._lateness(runner, now)
            if error is not None:
                runner.noted = True
                self._reason = self._reason or phrase(runner.backend.name, error)
                self._notes.failed(runner.backend.name, error)

    def _lateness(self, runner: Runner, now: float) -> BackendTooLate | None:
        deadline_s = self._config.first_token_deadline_s
        if (runner.standing is not Standing.PENDING or runner.backend is self._line.last_resort
                or now < self._begun + deadline_s or now - runner.begun < deadline_s * FAIR_SHARE):
            return None
        return BackendTooLate(f"{runner.backend.name} gave no first word within {deadline_s:g} s")

    def _give_floor(self, index: int) -> Answer:
        runner = self._runners[index]
        if runner is None:
            raise AssertionError("only who was started can have spoken")
        self._winner = runner
        if not runner.noted:
            self._notes.answered(runner.backend.name)
        if index == 0 and not self._line.passed_over:
            self._reason = ""
        elif not self._reason:
            self._reason = f"{self._line.backends[0].name} was late"
        return Answer(runner, self._reason)

    def _no_answer(self) -> NoAnswer:
        errors = [str(runner.error) for runner in self._runners if runner and runner.error]
        return NoAnswer("no language model could answer: " + ("; ".join(errors) or self._reason or "none is set up"))


def _now() -> float:
    return asyncio.get_running_loop().time()
