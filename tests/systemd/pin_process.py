"""A pin in a process of its own, so that it can live in the test network: asks when told, reconnects by itself.

Run as ``python -m tests.systemd.pin_process SESSION MEMORY URL``. Each line of standard input is a WAV file to ask
with, sent as fast as the flow control lets, or as it was spoken after "slowly ". Each line of standard output is a
JSON object: ``{"event": "reaching" | "connected" | "lost" | "hearing" | "turn" | "failed", ...}``; "hearing" tells that
the answer's first sound is there, before its "turn".
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from hotpind.errors import PinError
from hotpind.pin.client import Pin
from hotpind.pin.home import Wishes, reach
from hotpind.pin.question import read_question
from hotpind.pin.reconnect import Reconnect
from hotpind.pin.turn import TurnRecord
from tests.appliance.pins import breaches

PAIR_S = 20.0
TAIL_S = 0.4
SLOWLY = "slowly"
LOOK_S = 0.01
LATE = ("The acknowledgement of frame", "The transcription stage came")


def tell(event: str, **values: object) -> None:
    """Write one line for the test."""
    print(json.dumps({"event": event, **values}), flush=True)


def certain(violations: Iterable[str]) -> list[str]:
    """Leave out acknowledgements later than 100 ms and stages later than 1.5 s: here a container boots and apt installs
    beside the appliance, and a pin bears with it. That they are quick while engines are busy is tested where nothing
    else is.
    """
    return [each for each in breaches(violations) if not each.startswith(LATE)]


async def tell_of_sound(pin: Pin, last: TurnRecord | None) -> None:
    """Tell when the answer of the turn after that one is heard."""
    while (turn := pin.model.turn) is None or turn is last or turn.first_audio_at is None:
        await asyncio.sleep(LOOK_S)
    tell("hearing")


async def live(session: str, memory: Path, url: str) -> None:
    """Be a pin until standard input ends."""
    questions: asyncio.Queue[str] = asyncio.Queue()
    reader = asyncio.create_task(read_lines(questions))
    reconnect = Reconnect(random.random)
    again = False
    while not reader.done():
        tell("reaching")
        try:
            pin = await reach(Wishes(session, memory, url=url, pair_wait_s=PAIR_S))
        except PinError as error:
            tell("failed", error=str(error))
            await asyncio.sleep(reconnect.next_try(time.monotonic()) - time.monotonic())
            continue
        reconnect.connected(time.monotonic(), again=again)
        tell("connected", again=again)
        again = True
        while pin.connected and not reader.done():
            asking = asyncio.create_task(questions.get())
            gone = asyncio.create_task(pin.closed.wait())
            await asyncio.wait({asking, gone, reader}, return_when=asyncio.FIRST_COMPLETED)
            gone.cancel()
            if not asking.done():
                asking.cancel()
                continue
            try:
                how, _, file = asking.result().rpartition(" ")
                pcm = await asyncio.to_thread(read_question, Path(file))
                hearing = asyncio.create_task(tell_of_sound(pin, pin.model.turn))
                try:
                    turn = await pin.ask(pcm, realtime=how == SLOWLY, tail_silence_s=TAIL_S)
                finally:
                    hearing.cancel()
                if turn.answered and not hearing.done():
                    tell("hearing")
                tell("turn", **{**turn.as_json(), "violations": certain(turn.violations)})
            except PinError as error:
                tell("failed", error=str(error))
        await pin.close()
        if not reader.done():
            tell("lost")
            await asyncio.sleep(reconnect.next_try(time.monotonic()) - time.monotonic())


async def read_lines(questions: asyncio.Queue[str]) -> None:
    """Take questions from standard input to its end."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        questions.put_nowait(line.strip())


if __name__ == "__main__":
    asyncio.run(live(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
