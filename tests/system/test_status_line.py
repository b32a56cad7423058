"""What the status line says of the machine around the appliance."""

from __future__ import annotations

from hotpind.system.findings import Verdict, parse_properties, unit_findings
from hotpind.web.status import Status


def test_without_a_network_it_says_so_and_that_is_no_fault() -> None:
    connected = False
    status = Status(engines=[], backends=list, devices=list, faults=list, facts=dict, network=lambda: connected)
    status.ready = True
    assert status.line() == "local, 0 devices, no network for pins"
    assert status.faults() == []
    connected = True
    assert status.line() == "local, 0 devices"


def test_a_fault_in_the_line_is_one_for_doctor() -> None:
    status = Status(engines=[], backends=list, devices=list, faults=lambda: ["the disk is full"], facts=dict)
    status.ready = True
    shown = parse_properties(f"LoadState=loaded\nActiveState=active\nStatusText={status.line()}\n")
    assert [finding.verdict for finding in unit_findings(shown)] == [Verdict.FAULT]
