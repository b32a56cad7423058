"""The hint at better models, as the daemon gives it at start."""

from __future__ import annotations

from typing import Any

import pytest

from hotpind.cli.daemon import hint_for
from hotpind.config import Config
from hotpind.models.catalogue import Catalogue, Role
from hotpind.models.hints import Machine

LARGE = Machine(64 * 2**30, 16, "", "x86_64")


def hint(settings: dict[str, Any]) -> str:
    """Return the hint for a machine with room for everything, where all better speech models are quantised."""
    catalogue = Catalogue.load(None)
    offered = {name: entry for name, entry in catalogue.items()
               if entry.role is not Role.STT or entry.default or entry.quantised}
    return hint_for(Config.model_validate(settings), offered, LARGE) or ""


@pytest.mark.parametrize(("engine", "named"), [("pywhispercpp", True), ("whisper-cpp-python", False)])
def test_only_models_that_the_speech_engine_reads_are_named(engine: str, named: bool) -> None:
    assert ("for speech recognition" in hint({"stt": {"engine": engine}})) is named


def test_nothing_is_said_of_hearing_when_that_is_done_elsewhere() -> None:
    assert "for speech recognition" not in hint({"stt": {"uri": "tcp://nas:10300"}})
