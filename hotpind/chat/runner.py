"""One backend at work on one question: its text made speakable, in a queue, under deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from hotpind.chat.backend import DRAIN_S, Aside, Backend, Ended, Event, Using, Words
from hotpind.chat.messages import ChatRequest
from hotpind.chat.race import Standing
from hotpind.chat.speakable import Speakable
from hotpind.errors import BackendError, BackendTooLate, BackendUnreachable, BadAnswer, StreamBroke

_LOG = logging.getLogger(__name__)

QUEUED = 64
"""Pieces that wait to be spoken; a model that is ahead of the speech by more is held back."""
UNCLAIMED_S = 60.0
"""How long a full queue may stand still before the listener is taken for gone; no turn lasts longer."""
SLOWEST_WORDS_PER_S = 0.7
"""Speech takes two to three words a second; a service slower than this would keep its listener in silence."""
SLOW_GRACE_S = 8.0
"""How long after its first word a service may be slower than that."""
SPOKEN_WORDS_PER_S = 2.8
"""How fast a voice is, to tell when what was given out has been heard."""
HOLD_S = 1.5
"""A sentence is held until it is whole, but no longer than its listener has been in silence for this long."""
SILENCE_S = 5.0
"""How long a listener may be in silence before the answer is broken off: a pin takes an answer without audio for 10 s
for dead, and has up to 4 s of it in advance."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a backend may take, in seconds."""

    first_s: float
    """Until the first sign of thought."""
    next_s: float
    """Between one piece of text and the next."""
    steady: bool
    """Whether it must also be faster than `SLOWEST_WORDS_PER_S`; the last of the chain need not."""


class _UnclaimedError(Exception):
    """Nobody takes the answer."""


class Runner:
    """Runs one backend's stream in a task of its own, which ends when the stream does or when it is
    cancelled.
    """

    def __init__(self, backend: Backend, request: ChatRequest, *, pace: Pace, max_words: int,
                 changed: Callable[[], None], broke: Callable[[BackendError], None]) -> None:
        """Call ``changed`` when `standing` changes, and ``broke`` when the stream breaks after its first
        words.
        """
        self.backend = backend
        self.model = backend.model
        self.standing = Standing.PENDING
        self.error: BackendError | None = None
        self.noted = False
        """Whether the chain took note of its failure or lateness."""
        self._request = request
        self._pace = pace
        self._filter = Speakable(max_words)
        self._changed = changed
        self._broke = broke
        self.begun = _now()
        self.token_at: float | None = None
        """When the first token came."""
        self._aside = ""
        self._spoke_at = 0.0
        self._given_words = 0
        self._giving = False
        self._heard_until: float | None = None
        """When what was given out will have been heard; None as long as nobody listens."""
        self._release_timer: asyncio.TimerHandle | None = None
        self._ended = False
        self._last: StreamBroke | None = None
        self._queue: asyncio.Queue[str | BackendError | None] = asyncio.Queue(QUEUED)
        self.task = asyncio.create_task(self._run(), name=f"chat {backend.name}")

    async def next(self) -> str | None:
        """Return the next piece of the answer; None at its end. Raises `StreamBroke`."""
        if self._heard_until is None:
            self._heard_until = _now()
            self._count(self._given_words)
        if self._last is not None and self._queue.empty():
            raise self._last
        item = await self._queue.get()
        if isinstance(item, BackendError):
            raise item
        return item

    async def stop(self) -> None:
        """Stop the work and close its connection; one that has said everything finishes by itself, soon, and is not
        waited for.
        """
        if not self._ended:
            await self.cancel()

    async def cancel(self) -> None:
        """End the task, whatever it does, and wait for that."""
        self.task.cancel()
        await asyncio.wait({self.task})

    async def _run(self) -> None:
        try:
            await self._work()
        except _UnclaimedError:
            self._break_off("was not listened to")
        except BackendError as error:
            await self._fail(error)
        except asyncio.CancelledError:
            self.standing = Standing.FAILED
            self._break_off("was stopped")
            self._changed()
            raise
        except Exception as error:  # noqa: BLE001  # a mistake in one backend must not cost the answer of another
            _LOG.error("%s failed in an unforeseen way", self.backend.name, exc_info=error)
            await self._fail(BadAnswer(f"{self.backend.name} failed in an unforeseen way"))
        finally:
            if self._release_timer is not None:
                self._release_timer.cancel()

    async def _work(self) -> None:
        quiet_s = max(self._pace.first_s, self._pace.next_s)
        async with contextlib.aclosing(self.backend.stream(self._request, quiet_s=quiet_s)) as events:
            limit = self._pace.first_s
            while (event := await self._event(events, limit)) is not None:
                if isinstance(event, Using):
                    self.model = event.model
                elif isinstance(event, Aside):
                    self._aside = event.text + " "
                    self._filter.introduce(event.text)
                elif isinstance(event, Words):
                    if self.token_at is None and event.text:
                        self.token_at = _now()
                    limit = self._pace.next_s
                    await self._give(self._filter.feed(event.text))
                    self._check_pace()
                    if self._filter.done:
                        await self._end()
                        return
                elif isinstance(event, Ended):
                    await self._give(self._filter.finish(truncated=event.truncated) or self._echo())
                    await self._end()
                    await self._drain(events)
                    return
        raise BackendUnreachable(f"{self.backend.name} ended in the middle of its answer")

    async def _drain(self, events: AsyncIterator[Event]) -> None:
        """Let the stream read the rest of its body and close itself, so that its connection is kept."""
        # The stream's own bound comes first: being cut off here costs the connection.
        with contextlib.suppress(TimeoutError, BackendError):
            async with asyncio.timeout(2 * DRAIN_S):
                async for _ in events:
                    pass

    async def _event(self, events: AsyncIterator[Event], limit: float) -> Event | None:
        # Nobody can be in silence over an answer that is not listened to, and its beginning may come at any time.
        patience = limit if self._heard_until is None else min(limit, self._heard_until + SILENCE_S - _now())
        silence = BackendTooLate(f"{self.backend.name} left its listener in silence" if patience < limit else
                                 f"{self.backend.name} was silent for {limit:g} s")
        if patience <= 0:
            raise silence
        try:
            async with asyncio.timeout(patience):
                return await anext(events, None)
        except TimeoutError:
            raise silence from None

    def _echo(self) -> str:
        """Return what is said first, when the model said nothing else."""
        if self.standing is not Standing.PENDING or not self._filter.echoed:
            return ""
        text, self._aside = self._aside.strip(), ""
        return text

    async def _give(self, text: str) -> None:
        if not text and self._held_too_long():
            text = self._filter.release()
        if not text:
            return
        if self.standing is Standing.PENDING:
            text = self._aside + text
            self.standing = Standing.SPOKE
            self._spoke_at = _now()
            self._queue.put_nowait(text)
            self._count(len(text.split()))
            self._changed()
            return
        self._giving = True
        try:
            await self._put(text)
        finally:
            self._giving = False
        self._count(len(text.split()))

    def _count(self, words: int) -> None:
        """Note that so many more words were given out, and when a sentence that is held has to follow."""
        if self._heard_until is None:
            self._given_words += words
            return
        self._heard_until = max(self._heard_until, _now()) + words / SPOKEN_WORDS_PER_S
        if self._release_timer is not None:
            self._release_timer.cancel()
        loop = asyncio.get_running_loop()
        self._release_timer = loop.call_at(self._heard_until + HOLD_S, self._release)

    def _held_too_long(self) -> bool:
        return self._heard_until is not None and _now() >= self._heard_until + HOLD_S

    def _release(self) -> None:
        """Give out the words that are held, since the listener has nothing else to listen to."""
        if self._giving or self._queue.full() or self._ended:
            return  # there is enough to listen to
        if text := self._filter.release():
            self._queue.put_nowait(text)
            self._count(len(text.split()))

    async def _put(self, item: str | BackendError | None) -> None:
        try:
            async with asyncio.timeout(UNCLAIMED_S):
                await self._queue.put(item)
        except TimeoutError:
            raise _UnclaimedError from None

    def _break_off(self, why: str) -> None:
        """Let nobody who still listens, or begins to, wait for ever."""
        error = StreamBroke(f"{self.backend.name} {why}")
        if self._queue.full():
            self._last = error  # comes after what is waiting
        else:
            self._queue.put_nowait(error)

    def _check_pace(self) -> None:
        if not self._pace.steady or self.standing is not Standing.SPOKE:
            return
        taken = _now() - self._spoke_at
        if taken > SLOW_GRACE_S and self._filter.words < taken * SLOWEST_WORDS_PER_S:
            raise BackendTooLate(f"{self.backend.name} speaks too slowly to be listened to")

    async def _end(self) -> None:
        if self.standing is not Standing.SPOKE:
            raise BadAnswer(f"{self.backend.name} answered with nothing that can be spoken")
        await self._put(None)
        self._ended = True

    async def _fail(self, error: BackendError) -> None:
        if self._ended:
            return  # the answer is whole: nobody lost a word
        if self.standing is Standing.PENDING:
            self.error = error
            self.standing = Standing.FAILED
            self._changed()
            return
        broken = StreamBroke(f"{self.backend.name} broke off in the middle of its answer ({error})")
        self._broke(broken)
        try:
            await self._put(broken)
        except _UnclaimedError:
            self._last = broken


class Answer:
    """The answer of the backend that got the floor; see `hotpind.chat.messages.AnswerStream`."""

    def __init__(self, runner: Runner, reason: str) -> None:
        self._runner = runner
        self.backend = runner.backend.name
        self.model = runner.model
        self.reason = reason
        self.token_at = runner.token_at
        self._over = False

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> str:
        if self._over:
            raise StopAsyncIteration
        try:
            piece = await self._runner.next()
        except BackendError:
            self._over = True
            raise
        if piece is None:
            self._over = True
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """Stop generating; may be called at any time and more than once."""
        self._over = True
        await self._runner.stop()


def _now() -> float:
    return asyncio.get_running_loop().time()
