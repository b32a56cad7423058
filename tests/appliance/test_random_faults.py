"""Turns with random faults of the cloud and the local model; ``scripts/soak faults`` does hundreds."""

from __future__ import annotations

import random

import pytest

from tests.appliance.soak import faults

TURNS = 28


@pytest.mark.slow
async def test_whatever_fails_every_turn_ends_and_nothing_is_left() -> None:
    soak = await faults(TURNS, random.randrange(1_000_000))
    assert soak.outcomes["groq"] >= 3
    assert soak.outcomes["local"] >= 3
