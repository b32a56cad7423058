"""Facts read from a made-up sysfs, and from this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hotpind.system.machine import (
    Throttling,
    parse_meminfo,
    parse_throttled,
    read_machine,
    read_throttling,
    storage_of,
    tool_output,
)


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_this_machine() -> None:
    machine = read_machine()
    assert machine.cores >= 1
    assert machine.memory_bytes > machine.memory_available_bytes > 0
    assert machine.architecture == os.uname().machine
    assert machine.model


def test_a_raspberry_pi(tmp_path: Path) -> None:
    write(tmp_path, {
        "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
        "proc/meminfo": "MemTotal:   3884376 kB\nMemAvailable:   3000000 kB\nHugePages_Total:  0\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
        "sys/class/thermal/thermal_zone0/temp": "61342\n",
        "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
        "run/systemd/timesync/synchronized": "",
    })
    machine = read_machine(tmp_path)
    assert machine.model == "Raspberry Pi 4 Model B Rev 1.4"
    assert machine.memory_bytes == 3_977_601_024
    assert machine.governor == "ondemand"
    assert machine.temperature_c == pytest.approx(61.342)
    assert machine.clock_synchronised is True
    assert machine.throttling == Throttling(under_voltage=True, throttled=True, under_voltage_since_boot=True,
                                            throttled_since_boot=True)


@pytest.mark.parametrize(("text", "expected"), [
    ("throttled=0x0\n", Throttling(False, False, False, False)),
    ("throttled=0x50000", Throttling(False, False, True, True)),
    ("throttled=0x2", Throttling(False, True, False, False)),
    ("throttled=0x8", Throttling(False, True, False, False)),
    ("1", Throttling(True, False, False, False)),
    ("", None),
    ("VCHI initialization failed", None),
])
def test_throttled_flags(text: str, expected: Throttling | None) -> None:
    assert parse_throttled(text) == expected


def test_no_firmware_no_throttling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_throttling(tmp_path) is None


def test_vcgencmd_is_asked_where_sysfs_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "vcgencmd"
    tool.write_text("#!/bin/sh\n[ \"$1\" = get_throttled ] && echo throttled=0x50000\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert read_throttling(tmp_path) == Throttling(False, False, True, True)


@pytest.mark.parametrize(("name", "files", "kind", "wear"), [
    ("mmcblk0", {"device/type": "SD\n"}, "sd-card", None),
    ("mmcblk0", {"device/type": "MMC\n", "device/life_time": "0x02 0x01\n"}, "emmc", 20),
    ("mmcblk0", {"device/type": "MMC\n", "device/life_time": "0x00 0x00\n"}, "emmc", None),
    ("nvme0n1", {}, "nvme", None),
    ("vda", {}, "disk", None),
])
def test_storage(tmp_path: Path, name: str, files: dict[str, str], kind: str, wear: int | None) -> None:
    device = tmp_path / "sys/block" / name
    write(device, {"stat": "  10 0 80 5 20 0 4096 9 0 0 0\n", **files})
    write(device / "part", {"partition": "2\n"})
    number = tmp_path.stat().st_dev
    link = tmp_path / f"sys/dev/block/{os.major(number)}:{os.minor(number)}"
    link.parent.mkdir(parents=True)
    link.symlink_to(device / "part")
    storage = storage_of(tmp_path, tmp_path)
    assert storage is not None
    assert (storage.device, storage.kind, storage.wear_percent) == (name, kind, wear)
    assert storage.written_bytes == 4096 * 512


def test_no_block_device(tmp_path: Path) -> None:
    assert storage_of(tmp_path, tmp_path) is None


def test_meminfo_of_nothing() -> None:
    assert parse_meminfo("") == {}


def test_a_tool_that_fails_says_nothing() -> None:
    assert tool_output("false") == ""
    assert tool_output("no-such-tool-here") == ""
