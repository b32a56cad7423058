"""Has N devices ask their questions through a running appliance, and notes what each turn took."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field

from hotpind.bench.processes import MemoryPeak, Usage, cpu_between, read_usage, stolen_s, watching_memory
from hotpind.bench.recordings import Recording, with_room_silence
from hotpind.bench.sample import Sample, sample_of
from hotpind.errors import PinError
from hotpind.pin.client import Pin
from hotpind.pin.tally import Tally

QUIET_S = 3.0
"""Between the last turn and the measurement of idling, for what is still being put away."""

Reach = Callable[[str], AbstractAsyncContextManager[Pin]]
"""Connects a pin of the given session id and leaves at the end."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Who asks what and how; times in seconds."""

    devices: int = 1
    turns: int = 30
    """Measured turns of each device."""
    warm_up: int = 1
    """Turns of each device before those that count."""
    tail_silence_s: float = 0.4
    pause_s: float = 1.0
    spread_s: float = 0.0
    """The devices begin within this time."""
    realtime: bool = True
    fresh: bool = False
    """Begin a new conversation with every question."""
    picture: bytes = b""
    """A JPEG sent with each question, as it begins."""
    idle_s: float = 0.0
    """How long the appliance is watched doing nothing, afterwards."""


@dataclass(slots=True)
class Outcome:
    """What came of a plan."""

    samples: list[Sample] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    cpu_s: dict[str, float] = field(default_factory=dict)
    """CPU seconds by process over all measured turns, pauses included; empty when it cannot be seen."""
    idle_cpu_s: dict[str, float] = field(default_factory=dict)
    memory: MemoryPeak = field(default_factory=MemoryPeak)
    wall_s: float = 0.0
    stolen_s: float = 0.0
    """CPU seconds, of all cores together, that the host of a virtual machine gave to others meanwhile."""


async def drive(plan: Plan, said: Sequence[Recording], reach: Reach, daemon: int | None,
                on_turn: Callable[[Sample], None] = lambda _: None) -> Outcome:
    """Carry the plan out; ``daemon`` is the appliance's process when it runs here.

    Raises `hotpind.errors.PinError` when a device cannot connect to begin with; later failures are counted.
    """
    outcome, said = Outcome(), list(said)
    clock = asyncio.get_running_loop().time
    async with AsyncExitStack() as stack, watching_memory(daemon) as outcome.memory:
        devices = [_Device(plan, await stack.enter_async_context(reach(f"bench-{number + 1:03}")), number,
                           said[number % len(said):] + said[:number % len(said)])
                   for number in range(plan.devices)]
        async with asyncio.TaskGroup() as warming:
            for device in devices:
                warming.create_task(device.talk(plan.warm_up, lambda _: None, Tally()))

        def note(sample: Sample) -> None:
            outcome.samples.append(sample)
            on_turn(sample)

        before, stolen, began = await _usage(daemon), await asyncio.to_thread(stolen_s), clock()
        async with asyncio.TaskGroup() as asking:
            for device in devices:
                asking.create_task(device.talk(plan.turns, note, outcome.tally))
        outcome.wall_s = clock() - began
        outcome.stolen_s = await asyncio.to_thread(stolen_s) - stolen
        outcome.cpu_s = cpu_between(before, await _usage(daemon))
        if plan.idle_s:
            await asyncio.sleep(QUIET_S)
            before = await _usage(daemon)
            await asyncio.sleep(plan.idle_s)
            outcome.idle_cpu_s = cpu_between(before, await _usage(daemon))
    return outcome


class _Device:
    def __init__(self, plan: Plan, pin: Pin, number: int, said: Sequence[Recording]) -> None:
        self._plan = plan
        self._pin = pin
        self._late_s = plan.spread_s * number / plan.devices
        self._said = itertools.cycle([(recording.name, with_room_silence(recording.pcm, plan.tail_silence_s))
                                      for recording in said])

    async def talk(self, turns: int, on_sample: Callable[[Sample], None], tally: Tally) -> None:
        await asyncio.sleep(self._late_s)
        for _ in range(turns):
            name, pcm = next(self._said)
            on_sample(await self._ask(name, pcm, tally))
            await asyncio.sleep(self._plan.pause_s)

    async def _ask(self, name: str, pcm: bytes, tally: Tally) -> Sample:
        pin = self._pin
        try:
            if not pin.connected:
                tally.reconnects += 1
                await pin.connect()
            if self._plan.fresh:
                await pin.reset()
            showing = asyncio.create_task(self._show(tally), name="picture")
            try:
                turn = await pin.ask(pcm, realtime=self._plan.realtime)
                await showing
            finally:
                showing.cancel()
        except PinError as error:
            tally.failed += 1
            tally.problem(str(error))
            return Sample(pin.session_id, name, answered=False, first_audio=None, complete=None, error=str(error))
        tally.add(turn)
        sample = sample_of(turn, pin.session_id, name)
        if sample.error and not turn.error:
            tally.problem(sample.error)
        return sample

    async def _show(self, tally: Tally) -> None:
        if not self._plan.picture:
            return
        reply = await self._pin.send_image(self._plan.picture)
        if not reply.ok:
            tally.problem(f"The picture was not taken ({reply.status}): {reply.message}")


async def _usage(daemon: int | None) -> dict[str, Usage]:
    return {} if daemon is None else await asyncio.to_thread(read_usage, daemon, memory=False)

