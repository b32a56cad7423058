"""One daemon for all tests that do not change it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.appliance.harness import Daemon, running

pytestmark = pytest.mark.models


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs the models."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.models)


@pytest.fixture(scope="session")
def daemon() -> Iterator[Daemon]:
    """A daemon with the default models and no cloud."""
    with running() as daemon:
        yield daemon
