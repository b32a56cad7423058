"""Facts about the machine, read from procfs, sysfs and systemd; for `hotpinctl doctor` and the benchmark."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TOOL_TIMEOUT_S = 3.0
"""Seconds a system tool may take; each answers in milliseconds unless its service hangs."""

SECTOR_BYTES = 512
"""The unit of /sys/block/*/stat, whatever the device's own sector size."""

# Bits of the Raspberry Pi firmware's get_throttled, documented with vcgencmd.
_UNDER_VOLTAGE_NOW, _CAPPED_NOW, _THROTTLED_NOW, _HOT_NOW = 0x1, 0x2, 0x4, 0x8
_UNDER_VOLTAGE_SEEN, _THROTTLED_SEEN = 0x10000, 0x40000
_THROTTLED_FILE = "sys/devices/platform/soc/soc:firmware/get_throttled"


@dataclass(frozen=True, slots=True)
class Throttling:
    """What a Raspberry Pi's firmware says about its power supply and temperature."""

    under_voltage: bool
    throttled: bool
    """Slower than it could be at this moment, for whatever reason."""
    under_voltage_since_boot: bool
    throttled_since_boot: bool


@dataclass(frozen=True, slots=True)
class Storage:
    """The block device under a directory."""

    device: str
    """Kernel name such as mmcblk0."""
    kind: str
    """sd-card, emmc, nvme, disk or unknown."""
    written_bytes: int
    """Since boot, by everything on the machine."""
    wear_percent: int | None
    """Upper bound of the life used, which eMMC tells in steps of ten; SD cards tell nothing."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine as far as the appliance cares."""

    model: str
    architecture: str
    cores: int
    memory_bytes: int
    memory_available_bytes: int
    governor: str
    """CPU frequency governor; empty where the frequency is not the kernel's to choose."""
    temperature_c: float | None
    throttling: Throttling | None
    clock_synchronised: bool | None
    """None when nothing on the machine knows."""


def read_machine(root: Path = Path("/")) -> Machine:
    """Collect the facts; ``root`` is where proc and sys are found.

    Runs system tools and so may take seconds: not for the event loop.
    """
    memory = parse_meminfo(_text(root / "proc/meminfo"))
    return Machine(
        model=_model(root), architecture=platform.machine(), cores=len(os.sched_getaffinity(0)),
        memory_bytes=memory.get("MemTotal", 0), memory_available_bytes=memory.get("MemAvailable", 0),
        governor=_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        temperature_c=_temperature(root), throttling=read_throttling(root),
        clock_synchronised=clock_synchronised(root),
    )


def available_memory(root: Path = Path("/")) -> int:
    """Return the bytes that can be had without swapping, as the kernel estimates them; 0 where it does not say."""
    return parse_meminfo(_text(root / "proc/meminfo")).get("MemAvailable", 0)


def parse_meminfo(text: str) -> dict[str, int]:
    """Parse /proc/meminfo into bytes by name."""
    return {name: int(kilobytes) * 1024 for name, kilobytes in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.M)}


def parse_throttled(text: str) -> Throttling | None:
    """Parse the flags as vcgencmd (``throttled=0x50000``) or sysfs (``50000``) gives them."""
    match = re.fullmatch(r"(?:throttled=)?(?:0x)?([0-9a-fA-F]+)", text.strip())
    if match is None:
        return None
    flags = int(match[1], 16)
    return Throttling(
        under_voltage=bool(flags & _UNDER_VOLTAGE_NOW),
        throttled=bool(flags & (_CAPPED_NOW | _THROTTLED_NOW | _HOT_NOW)),
        under_voltage_since_boot=bool(flags & _UNDER_VOLTAGE_SEEN),
        throttled_since_boot=bool(flags & _THROTTLED_SEEN),
    )


def read_throttling(root: Path = Path("/")) -> Throttling | None:
    """Ask a Raspberry Pi's firmware, through sysfs or vcgencmd; None on other machines."""
    if text := _text(root / _THROTTLED_FILE):
        return parse_throttled(text)
    return parse_throttled(tool_output("vcgencmd", "get_throttled"))


def clock_synchronised(root: Path = Path("/")) -> bool | None:
    """Whether the clock follows a time server, as systemd knows it."""
    if (root / "run/systemd/timesync/synchronized").exists():
        return True
    answer = tool_output("timedatectl", "show", "--property=NTPSynchronized", "--value").strip()
    return {"yes": True, "no": False}.get(answer)


def storage_of(path: Path, root: Path = Path("/")) -> Storage | None:
    """Find the block device that holds ``path``; None where there is none (tmpfs, overlay, network)."""
    number = path.stat().st_dev
    link = root / f"sys/dev/block/{os.major(number)}:{os.minor(number)}"
    if not link.exists():
        return None
    folder = link.resolve()
    if (folder / "partition").exists():
        folder = folder.parent
    numbers = _text(folder / "stat").split()
    return Storage(device=folder.name, kind=_storage_kind(folder),
                   written_bytes=int(numbers[6]) * SECTOR_BYTES if len(numbers) > 6 else 0,
                   wear_percent=_emmc_wear(_text(folder / "device/life_time")))


def tool_output(*command: str, environ: Mapping[str, str] = os.environ) -> str:
    """What a system tool prints; empty when it is not there, fails, or takes too long."""
    if shutil.which(command[0], path=environ.get("PATH")) is None:
        return ""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=TOOL_TIMEOUT_S,
                              stdin=subprocess.DEVNULL).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _model(root: Path) -> str:
    for name in ("proc/device-tree/model", "sys/firmware/devicetree/base/model"):
        if model := _text(root / name):
            return model
    match = re.search(r"^model name\s*:\s*(.+)$", _text(root / "proc/cpuinfo"), re.M)
    return match[1] if match else "unknown"


def _temperature(root: Path) -> float | None:
    millidegrees = _text(root / "sys/class/thermal/thermal_zone0/temp")
    return int(millidegrees) / 1000 if re.fullmatch(r"-?\d+", millidegrees) else None


def _storage_kind(folder: Path) -> str:
    if folder.name.startswith("mmcblk"):
        return {"SD": "sd-card", "MMC": "emmc"}.get(_text(folder / "device/type"), "unknown")
    if folder.name.startswith("nvme"):
        return "nvme"
    return "disk" if folder.name.startswith(("sd", "vd", "xvd")) else "unknown"


def _emmc_wear(life_time: str) -> int | None:
    """Read JEDEC's estimate (``0x02 0x01``: 10 to 20 % of one kind of cells, less of the other)."""
    steps = [int(value, 16) for value in re.findall(r"0x[0-9a-fA-F]+", life_time)]
    return min(max(steps) * 10, 100) if steps and max(steps) > 0 else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except OSError:
        return ""
