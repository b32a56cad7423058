"""Turns with random faults of the cloud and the local model; ``scripts/soak faults`` does hundreds."""

from __future__ import annotations

import os
import random

import pytest

from tests.appliance.soak import SEED_VARIABLE, faults

TURNS = 60


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_whatever_fails_every_turn_ends_and_nothing_is_left() -> None:
    soak = await faults(TURNS, int(os.environ.get(SEED_VARIABLE) or random.randrange(1_000_000)))
    assert soak.outcomes["groq"] >= 3
    assert soak.outcomes["local"] >= 3
    assert soak.kinds["pictures"] >= 1
