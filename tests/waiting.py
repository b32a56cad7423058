"""Waits for something that happens meanwhile, with a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

STEP_S = 0.01


async def until(condition: Callable[[], object], seconds: float = 10.0,
                message: Callable[[], str] = lambda: "") -> None:
    """Wait for something that happens on this event loop or in another process; AssertionError when it does not."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"it did not happen within {seconds:g} s: {message()}"
        await asyncio.sleep(STEP_S)


def wait_until(condition: Callable[[], object], seconds: float = 10.0, message: Callable[[], str] = lambda: "", *,
               step_s: float = 0.05) -> float:
    """Wait for something that happens in another thread or process; return after how many seconds it was so."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"it did not happen within {seconds:g} s: {message()}"
        time.sleep(step_s)
    return time.monotonic() - began
