from __future__ import annotations

import io
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from rich.console import Console

from hotpind.bench.drive import Outcome, Plan
from hotpind.bench.recordings import Recording
from hotpind.bench.report import Report
from hotpind.bench.sample import Sample
from hotpind.config import Config
from hotpind.system.machine import read_machine


def report(stolen_s: float, load: float = 0.0) -> Report:
    outcome = Outcome([Sample("bench-001", "a", answered=True, first_audio=0.25, complete=1.0)], wall_s=100.0,
                      stolen_s=stolen_s)
    return Report(datetime.now(UTC), "hotpinctl bench", replace(read_machine(), cores=2), load, Config(), True,
                  Plan(turns=1), [Recording("a", bytes(32_000))], None, outcome, None)


def text(found: Report) -> str:
    shown = io.StringIO()
    Console(width=200, highlight=False, file=shown).print(found.tables())
    return shown.getvalue()


@pytest.mark.parametrize(("stolen_s", "said"), [(0.0, False), (1.9, False), (2.2, True)])
def test_a_host_that_took_a_part_of_the_cores_is_named(stolen_s: float, said: bool) -> None:
    found = report(stolen_s)
    assert found.as_json()["machine"]["stolen"] == pytest.approx(stolen_s / 200)
    assert ("The host of this virtual machine took 1.1 %" in text(found)) == said


def test_work_of_others_is_named() -> None:
    assert "Others are at work" in text(report(0.0, load=1.2))
    assert "Others are at work" not in text(report(0.0, load=0.8))
