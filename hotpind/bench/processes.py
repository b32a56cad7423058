"""What the daemon and its engines take from the machine: CPU time and memory, read from procfs (proc(5))."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

SAMPLE_S = 2.0
"""How often memory is looked at: reading it takes the kernel a millisecond for each process."""
DAEMON = "hotpind"


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU time and memory of one process at one moment."""

    cpu_s: float
    """User and system time since it started; for the daemon with that of engines that have ended."""
    pss: int | None
    """Proportional set size in bytes: what it has for itself, and its share of what it has with others. None when
    it may not be read."""


def read_usage(daemon: int, proc: Path = Path("/proc"), *, memory: bool = True) -> dict[str, Usage]:
    """Read the daemon's and its engines' usage by name ("hotpind", "whisper", ...); empty when it is gone.

    Takes milliseconds with ``memory``: call it in a thread.
    """
    found: dict[str, Usage] = {}
    for pid in (daemon, *_children(daemon, proc)):
        with contextlib.suppress(OSError, ValueError, IndexError):
            name = DAEMON if pid == daemon else _name(pid, proc)
            found[name] = Usage(_cpu_s(proc / str(pid) / "stat", ended_children=pid == daemon),
                                _pss(proc / str(pid) / "smaps_rollup") if memory else None)
    return found


def cpu_between(before: dict[str, Usage], after: dict[str, Usage]) -> dict[str, float]:
    """Return the CPU seconds spent between two readings, by process."""
    return {name: max(0.0, usage.cpu_s - (before[name].cpu_s if name in before else 0.0))
            for name, usage in after.items()}


def stolen_s(proc: Path = Path("/proc")) -> float:
    """Return the CPU seconds, of all cores, that the host of this virtual machine gave to others since it started.

    The eighth number of /proc/stat (proc(5)); 0 where there is none.
    """
    try:
        ticks = int((proc / "stat").read_text().split("\n", 1)[0].split()[8])
    except (OSError, ValueError, IndexError):
        return 0.0
    return ticks / os.sysconf("SC_CLK_TCK")


def peer_pid(control: Path) -> int | None:
    """Return the process that listens on a unix socket (SO_PEERCRED, unix(7)); None when nobody does."""
    try:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(2.0)
            link.connect(str(control))
            pid: int = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    except OSError:
        return None
    return pid or None


@dataclass(slots=True)
class MemoryPeak:
    """The most memory seen, in bytes of PSS; empty when it may not be read."""

    each: dict[str, int] = field(default_factory=dict)
    total: int = 0

    def see(self, usage: dict[str, Usage]) -> None:
        """Take a reading into account."""
        known = {name: each.pss for name, each in usage.items() if each.pss is not None}
        for name, pss in known.items():
            self.each[name] = max(self.each.get(name, 0), pss)
        self.total = max(self.total, sum(known.values()))


@contextlib.asynccontextmanager
async def watching_memory(daemon: int | None) -> AsyncIterator[MemoryPeak]:
    """Look at the memory of the daemon and its engines every `SAMPLE_S` seconds."""
    peak = MemoryPeak()

    async def watch(pid: int) -> None:
        while True:
            peak.see(await asyncio.to_thread(read_usage, pid))
            await asyncio.sleep(SAMPLE_S)

    task = None if daemon is None else asyncio.create_task(watch(daemon), name="watch memory")
    try:
        yield peak
    finally:
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _children(pid: int, proc: Path) -> list[int]:
    found: list[int] = []
    for file in (proc / str(pid) / "task").glob("*/children"):
        with contextlib.suppress(OSError, ValueError):
            for child in map(int, file.read_text().split()):
                found += [child, *_children(child, proc)]
    return found


def _name(pid: int, proc: Path) -> str:
    command = (proc / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    engine = re.search(r"hotpind\.(?:engines\.(\w+)|\w+\.(\w+_worker))", command)
    return (engine[1] or engine[2]) if engine else f"process {pid}"


def _cpu_s(stat: Path, *, ended_children: bool) -> float:
    # The name in parentheses may itself hold spaces and parentheses; utime is the 12th field after it.
    fields = stat.read_text().rpartition(")")[2].split()
    ticks = fields[11:15] if ended_children else fields[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def _pss(rollup: Path) -> int | None:
    try:
        match = re.search(r"^Pss:\s+(\d+) kB$", rollup.read_text(), re.M)
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None
