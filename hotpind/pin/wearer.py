"""Somebody who wears a pin: asks again and again, listens to the end, and comes back when the connection is lost."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from hotpind.errors import PinError, PinOfflineError
from hotpind.pin.client import Pin
from hotpind.pin.reconnect import Reconnect
from hotpind.pin.tally import Tally

Reach = Callable[[], Awaitable[Pin]]
Moved = Callable[[Pin], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Habits:
    """How a wearer uses the pin; times in seconds."""

    turns: int
    pause_s: float = 1.0
    """Between an answer's end and the next question."""
    realtime: bool = True
    listen: bool = True
    """Hear the answer out before going on."""
    tail_silence_s: float = 0.4
    patience_s: float = 180.0
    """Without an appliance for this long, the wearer gives up."""


class Wearer:
    """One wearer with one pin."""

    def __init__(self, questions: Sequence[bytes], habits: Habits, tally: Tally, *, plan: Reconnect | None = None,
                 clock: Callable[[], float] = time.monotonic,
                 sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Will ask ``questions`` (16 kHz 16-bit mono PCM) in order, round and round, and count in ``tally``."""
        self._questions = questions
        self._habits = habits
        self._tally = tally
        self._plan = plan or Reconnect(random.random)
        self._clock = clock
        self._sleep = sleep
        self._asked = 0
        self._pausing = False
        self._progress_at = clock()

    async def run(self, reach: Reach, moved: Moved | None = None) -> None:
        """Ask all questions; ``reach`` returns a connected pin, again after each lost connection.

        ``moved`` waits until a pin's appliance is known to be elsewhere; the pin then reconnects at once. Returns
        early when the appliance stays away or refuses the pin; never raises for a failure of the appliance.
        """
        self._progress_at = self._clock()
        again = False
        while self._asked < self._habits.turns:
            try:
                pin = await reach()
            except PinOfflineError as error:
                self._tally.problem(str(error))
            except PinError as error:
                self._tally.problem(str(error))
                return
            else:
                self._plan.connected(self._clock(), again=again)
                self._tally.connects += 1
                self._tally.reconnects += again
                again = True
                if await self._use(pin, moved):
                    continue
            if self._asked < self._habits.turns and not await self._wait_for_next_try():
                return

    async def _use(self, pin: Pin, moved: Moved | None) -> bool:
        """Talk, and close the pin; True when its appliance moved meanwhile."""
        news = asyncio.ensure_future(moved(pin)) if moved is not None else None
        talk = asyncio.create_task(self._talk(pin), name=f"{pin.session_id} talks")
        try:
            await asyncio.wait({talk, news} if news is not None else {talk}, return_when=asyncio.FIRST_COMPLETED)
            has_moved = news is not None and news.done() and not talk.done()
            if has_moved:
                await pin.close()
            if not (has_moved and self._pausing):
                await talk
            return has_moved
        finally:
            for task in (talk, news):
                if task is not None:
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
            await pin.close()

    async def _talk(self, pin: Pin) -> None:
        """Ask until all is asked or the connection is lost."""
        habits = self._habits
        self._pausing = False
        try:
            while self._asked < habits.turns and pin.connected:
                turn = await pin.ask(self._questions[self._asked % len(self._questions)], realtime=habits.realtime,
                                     tail_silence_s=habits.tail_silence_s, drain="model" if habits.listen else "fast")
                self._tally.add(turn)
                self._asked += 1
                self._progress_at = self._clock()
                if self._asked < habits.turns:
                    self._pausing = True
                    await self._sleep(habits.pause_s)
                    self._pausing = False
        except PinOfflineError as error:
            self._tally.problem(str(error))

    async def _wait_for_next_try(self) -> bool:
        """Wait as the firmware does before it connects again; False when patience is at its end."""
        now = self._clock()
        due = self._plan.next_try(now)
        if due - self._progress_at > self._habits.patience_s:
            return False
        await self._sleep(due - now)
        return True
