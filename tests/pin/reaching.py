"""A pin that has to reach its appliance, in a process of its own: ``python -m tests.pin.reaching SESSION MEMORY``.

Tries again and again, as the firmware does, with what `hotpind.pin.home.reach` does each time. Prints a JSON line once
it is connected: its address, and the seconds that finding, pairing and connecting took.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path

from hotpind.errors import PinError, PinOfflineError
from hotpind.pin.home import Wishes, reach

PAUSE_S = 0.5


async def go(session: str, memory: Path, seconds: float) -> dict[str, object]:
    """Reach an appliance within so many seconds."""
    began = time.monotonic()
    wishes = Wishes(session, memory, pair_wait_s=seconds)
    async with asyncio.timeout(seconds):
        while True:
            try:
                pin = await reach(wishes, say=lambda sentence: print(sentence, file=sys.stderr, flush=True))
            except PinOfflineError as error:
                print(error, file=sys.stderr, flush=True)
                await asyncio.sleep(PAUSE_S)
                continue
            took = time.monotonic() - began
            await pin.close()
            return {"base": str(pin.base), "seconds": took}


def main() -> None:
    """Read the arguments and go."""
    parser = argparse.ArgumentParser()
    parser.add_argument("session")
    parser.add_argument("memory", type=Path)
    parser.add_argument("--seconds", type=float, default=30.0)
    arguments = parser.parse_args()
    try:
        print(json.dumps(asyncio.run(go(arguments.session, arguments.memory, arguments.seconds))), flush=True)
    except TimeoutError:
        sys.exit("not within that time")
    except PinError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
