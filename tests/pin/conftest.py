"""Fixtures of the pin's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.pin.appliance import Appliance


@pytest.fixture
async def appliance() -> AsyncIterator[Appliance]:
    """A running appliance that behaves unless told otherwise."""
    async with Appliance() as server:
        yield server
