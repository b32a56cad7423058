"""What the machine's condition is taken to mean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hotpind.system.findings import (
    Finding,
    Verdict,
    clock_fault,
    disk_findings,
    machine_findings,
    parse_properties,
    sandbox_findings,
    unit_findings,
)
from hotpind.system.machine import Machine, Storage, Throttling

PI = Machine(model="Raspberry Pi 4 Model B Rev 1.4", architecture="aarch64", cores=4, memory_bytes=4_000_000_000,
             memory_available_bytes=3_000_000_000, governor="ondemand", temperature_c=50.0,
             throttling=Throttling(False, False, False, False), clock_synchronised=True)


def verdicts(findings: list[Finding]) -> dict[str, Verdict]:
    return {finding.topic: finding.verdict for finding in findings if finding.verdict is not Verdict.FINE}


def judge(machine: Machine, *, year: int = 2026, running: bool = False) -> dict[str, Verdict]:
    found = list(machine_findings(machine, year, running=running))
    assert all(finding.advice for finding in found if finding.verdict is not Verdict.FINE)
    return verdicts(found)


def test_a_good_machine_has_nothing_to_complain_of() -> None:
    assert judge(PI) == {}


@pytest.mark.parametrize(("change", "expected"), [
    ({"memory_available_bytes": 300_000_000}, {"memory": Verdict.FAULT}),
    ({"governor": "powersave"}, {"processor": Verdict.HINT}),
    ({"temperature_c": 82.0}, {"temperature": Verdict.HINT}),
    ({"temperature_c": None}, {}),
    ({"throttling": Throttling(True, False, True, False)}, {"power": Verdict.FAULT}),
    ({"throttling": Throttling(False, False, True, False)}, {"power": Verdict.HINT}),
    ({"throttling": Throttling(False, True, False, True)}, {"power": Verdict.HINT}),
    ({"throttling": None}, {}),
    ({"clock_synchronised": False}, {"clock": Verdict.HINT}),
    ({"clock_synchronised": None}, {}),
])
def test_one_thing_wrong(change: dict[str, object], expected: dict[str, Verdict]) -> None:
    assert judge(replace(PI, **change)) == expected  # type: ignore[arg-type]  # the table's values fit the fields


def test_memory_that_the_appliance_itself_uses_is_no_fault() -> None:
    assert judge(replace(PI, memory_available_bytes=300_000_000), running=True) == {}


def test_a_clock_at_1970() -> None:
    assert judge(PI, year=1970) == {"clock": Verdict.FAULT}
    assert "the clock shows the year 1970" in clock_fault(1970)
    assert clock_fault(2026) == ""


def test_disk(tmp_path: Path) -> None:
    card = Storage("mmcblk0", "sd-card", 5_000_000_000, None)
    worn = Storage("mmcblk0", "emmc", 0, 90)
    assert verdicts(list(disk_findings(tmp_path / "not" / "yet", None))) == {}
    assert verdicts(list(disk_findings(tmp_path, card))) == {"disk": Verdict.HINT}
    assert verdicts(list(disk_findings(tmp_path, worn))) == {"disk": Verdict.FAULT}


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hotpind.system.findings.LITTLE_DISK", 10**18)
    assert verdicts(list(disk_findings(tmp_path, None))) == {"disk": Verdict.FAULT}


@pytest.mark.parametrize(("properties", "expected"), [
    ("LoadState=not-found\nActiveState=inactive\n", []),
    ("LoadState=loaded\nActiveState=active\nStatusText=online, 2 devices\nNRestarts=0\n",
     [(Verdict.FINE, "online, 2 devices")]),
    ("LoadState=loaded\nActiveState=active\nStatusText=local, 1 device, fault: the database was damaged\nNRestarts=0\n",
     [(Verdict.FAULT, "running: local, 1 device, fault: the database was damaged")]),
    ("LoadState=loaded\nActiveState=failed\nResult=watchdog\nNRestarts=3\n",
     [(Verdict.FAULT, "failed (watchdog)"), (Verdict.HINT, "systemd had to restart it, 3 times")]),
    ("LoadState=loaded\nActiveState=activating\nStatusText=loading models\n",
     [(Verdict.HINT, "activating: loading models")]),
    ("LoadState=loaded\nActiveState=inactive\n", [(Verdict.FAULT, "it is not running")]),
    ("", []),
])
def test_unit(properties: str, expected: list[tuple[Verdict, str]]) -> None:
    found = unit_findings(parse_properties(properties))
    assert [(finding.verdict, finding.text) for finding in found] == expected


def test_sandbox() -> None:
    line = "→ Overall exposure level for hotpind.service: {} OK"
    assert [finding.verdict for finding in sandbox_findings(line.format("1.1"))] == [Verdict.FINE]
    assert [finding.verdict for finding in sandbox_findings(line.format("9.2"))] == [Verdict.HINT]
    assert list(sandbox_findings("Failed to connect to bus")) == []
