"""What the machine's condition means for the appliance, and what to do about it; for `hotpinctl doctor`."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from hotpind.system.machine import Machine, Storage

UNIT = "hotpind.service"

NEEDED_MEMORY = 700_000_000
"""Bytes: the appliance with its default models, loaded and after many turns."""
HOT_C = 80.0
"""Degrees at which a Raspberry Pi begins to slow down."""
LITTLE_DISK = 200_000_000
"""Bytes below which an update or a log may fill the disk."""
SLOW_GOVERNOR = "powersave"
WORN_PERCENT = 80
BUILT_YEAR = 2025
"""A clock that shows an earlier year has not been set since the machine was switched on."""
FAULT_MARK = "fault: "
"""What follows in the status line of a running service has to be mended."""
MOST_EXPOSED = 1.5
"""systemd's exposure score of the packaged unit is below this."""


class Verdict(StrEnum):
    """How bad it is."""

    FINE = "fine"
    HINT = "hint"
    """It works, and could be better."""
    FAULT = "fault"
    """Something does not work, or soon will not."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    topic: str
    verdict: Verdict
    text: str
    """What is the case."""
    advice: str = ""
    """What to do; empty when there is nothing to do."""


def fine(topic: str, text: str) -> Finding:
    """Make a finding that needs nothing done."""
    return Finding(topic, Verdict.FINE, text)


def machine_findings(machine: Machine, year: int, *, running: bool) -> Iterator[Finding]:
    """Judge the hardware and the clock; ``running`` tells that the appliance already uses its memory."""
    yield fine("machine", f"{machine.model}, {machine.cores} cores, {_gb(machine.memory_bytes)} memory")
    if not running and machine.memory_available_bytes < NEEDED_MEMORY:
        yield Finding("memory", Verdict.FAULT, f"only {_gb(machine.memory_available_bytes)} are free, and the "
                      f"appliance needs {_gb(NEEDED_MEMORY)}", "stop other programs or choose smaller models")
    else:
        yield fine("memory", f"{_gb(machine.memory_available_bytes)} free")
    if machine.governor == SLOW_GOVERNOR:
        yield Finding("processor", Verdict.HINT, "the frequency governor is powersave, so answers take longer",
                      "echo ondemand | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor")
    if machine.temperature_c is not None and machine.temperature_c >= HOT_C:
        yield Finding("temperature", Verdict.HINT, f"the processor has {machine.temperature_c:.0f} degrees",
                      "give it a heat sink or a fan")
    yield from _power_findings(machine)
    if year < BUILT_YEAR:
        yield Finding("clock", Verdict.FAULT, _clock_shows(year), _SET_CLOCK)
    elif machine.clock_synchronised is False:
        yield Finding("clock", Verdict.HINT, "the clock follows no time server",
                      "sudo timedatectl set-ntp true")
    else:
        yield fine("clock", "set" if machine.clock_synchronised is None else "set by a time server")


def clock_fault(year: int) -> str:
    """Return one sentence about a clock that cannot be right; empty when it can."""
    return f"{_clock_shows(year)}; {_SET_CLOCK}" if year < BUILT_YEAR else ""


def _clock_shows(year: int) -> str:
    return f"the clock shows the year {year}, so secure connections fail"


_SET_CLOCK = "connect the network once, or set it: sudo timedatectl set-time 'YYYY-MM-DD HH:MM'"


def _power_findings(machine: Machine) -> Iterator[Finding]:
    power = machine.throttling
    if power is None:
        return
    if power.under_voltage or power.under_voltage_since_boot:
        when = "now" if power.under_voltage else "at some time since it was switched on"
        yield Finding("power", Verdict.FAULT if power.under_voltage else Verdict.HINT,
                      f"the supply voltage is too low ({when}), which corrupts SD cards",
                      "use the official power supply and a short cable")
    if power.throttled or power.throttled_since_boot:
        when = "now" if power.throttled else "at some time since it was switched on"
        yield Finding("power", Verdict.HINT, f"the processor is slowed down ({when})",
                      "cool it, or use a stronger power supply")
    if not (power.under_voltage_since_boot or power.throttled_since_boot):
        yield fine("power", "no under-voltage, no throttling")


def disk_findings(path: Path, storage: Storage | None) -> Iterator[Finding]:
    """Judge the space and the medium under ``path``, or under the nearest folder that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    usage = shutil.disk_usage(path)
    text = f"{_gb(usage.free)} of {_gb(usage.total)} free at {path}"
    if usage.free < LITTLE_DISK:
        yield Finding("disk", Verdict.FAULT, text, "delete what is not needed; `hotpinctl models list` shows "
                      "which models are installed")
    else:
        yield fine("disk", text)
    if storage is None:
        return
    if storage.wear_percent is not None and storage.wear_percent >= WORN_PERCENT:
        yield Finding("disk", Verdict.FAULT, f"{storage.device} has used up to {storage.wear_percent} % of its "
                      "life", "replace it soon; a copy of /etc/hotpin and /var/lib/hotpin is a full backup")
    elif storage.kind == "sd-card":
        yield Finding("disk", Verdict.HINT, f"{storage.device} is an SD card, to which this machine has written "
                      f"{_gb(storage.written_bytes)} since it was switched on",
                      "cards wear out: keep a copy of /etc/hotpin and /var/lib/hotpin; the appliance itself "
                      "writes nothing per turn")


def unit_findings(properties: Mapping[str, str]) -> Iterator[Finding]:
    """Judge what ``systemctl show`` says of the unit; nothing when it is not installed."""
    if properties.get("LoadState") != "loaded":
        return
    state, status = properties.get("ActiveState", ""), properties.get("StatusText", "")
    restarts = int(properties.get("NRestarts") or 0)
    if state == "active" and FAULT_MARK in status:
        yield Finding("service", Verdict.FAULT, f"running: {status}", "`hotpinctl status` names every fault")
    elif state == "active":
        yield fine("service", status or "running")
    elif state in {"activating", "reloading", "deactivating"}:
        yield Finding("service", Verdict.HINT, f"{state}: {status}" if status else state,
                      "wait, or follow it with `journalctl -fu hotpind`")
    elif state == "failed":
        yield Finding("service", Verdict.FAULT, f"failed ({properties.get('Result', 'unknown')})"
                      + (f": {status}" if status else ""),
                      "see why with `journalctl -eu hotpind`, then `systemctl restart hotpind`")
    else:
        yield Finding("service", Verdict.FAULT, "it is not running", "systemctl start hotpind")
    if restarts:
        yield Finding("service", Verdict.HINT, f"systemd had to restart it, {restarts} times",
                      "`journalctl -u hotpind -p warning` tells why")


def parse_properties(text: str) -> dict[str, str]:
    """Parse the ``Name=value`` lines of ``systemctl show``."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def fault_findings(status: Mapping[str, Any], known: Collection[Finding] = ()) -> Iterator[Finding]:
    """Take over what the running appliance calls a fault; ``status`` is that of `hotpinctl status --json`.

    What is among the ``known`` findings is not told again, but for a key that a service refuses: only the appliance
    knows that.
    """
    rows = {str(row.get("fault", "")): str(row.get("state", "")) for row in status.get("backends", [])}
    faults = [*map(str, status.get("faults", [])), *rows]
    for fault in filter(None, dict.fromkeys(faults)):
        told = any(finding.text in fault or fault in finding.text for finding in known
                   if finding.verdict is not Verdict.FINE)
        if rows.get(fault) == "key-rejected" or not told:
            yield Finding("key" if fault in rows else "service", Verdict.FAULT, fault)


def sandbox_findings(text: str) -> Iterator[Finding]:
    """Judge the last line of ``systemd-analyze security``; nothing when it could not tell."""
    match = re.search(r"Overall exposure level for \S+: (\d+(?:\.\d+)?)", text)
    if match is None:
        return
    if float(match[1]) <= MOST_EXPOSED:
        yield fine("sandbox", f"exposure {match[1]} of 10")
    else:
        yield Finding("sandbox", Verdict.HINT, f"exposure {match[1]} of 10, more than the packaged unit has",
                      "a drop-in loosens it; `systemctl cat hotpind` shows which")


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count < 1e11 else f"{count / 1e9:.0f} GB"
