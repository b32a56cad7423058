from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from hotpind.bench.processes import MemoryPeak, Usage, cpu_between, peer_pid, read_usage, stolen_s, watching_memory

BUSY = "import time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\ntime.sleep(60)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BUSY!r}, 'hotpind.engines.whisper'])"


@contextlib.contextmanager
def process(code: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as started:
        try:
            yield started
        finally:
            for child in psutil.Process(started.pid).children(recursive=True):
                child.kill()
            started.kill()


def test_an_engine_is_found_by_name_with_its_cpu_time_and_memory() -> None:
    with process(PARENT) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "done\n"
        [child] = psutil.Process(started.pid).children()
        before = child.memory_full_info().pss
        usage = read_usage(started.pid)
        after = child.memory_full_info().pss
        assert set(usage) == {"hotpind", "whisper"}
        assert 0.25 <= usage["whisper"].cpu_s < 5
        # The interpreter's pages are shared with every other test that runs one, so its part of them changes.
        pss = usage["whisper"].pss
        assert pss is not None
        assert 0.8 * min(before, after) <= pss <= 1.2 * max(before, after)
        assert read_usage(started.pid, memory=False)["whisper"].pss is None


def test_time_of_an_ended_engine_stays_counted() -> None:
    busy = "import time\nwhile time.process_time() < 0.3: pass"
    with process(f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {busy!r}]); "
                 "print('done', flush=True); time.sleep(60)") as started:
        assert started.stdout is not None
        started.stdout.readline()
        # The kernel counts in ticks of a hundredth of a second, for user and system time each.
        assert read_usage(started.pid)["hotpind"].cpu_s >= 0.27


def test_a_process_that_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as started:
        started.wait()
    assert read_usage(started.pid) == {}


def test_names_with_spaces_and_parentheses(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    ticks = os.sysconf("SC_CLK_TCK")
    (tmp_path / "7" / "stat").write_text(f"7 (a) b (c) S 1 7 7 0 -1 0 1 2 3 4 {2 * ticks} {ticks} 0 0 20 0 9 0 1 1")
    assert read_usage(7, tmp_path)["hotpind"] == Usage(3.0, None)


def test_cpu_between_two_readings() -> None:
    before = {"hotpind": Usage(1.0, None), "whisper": Usage(9.0, None)}
    after = {"hotpind": Usage(1.5, None), "whisper": Usage(0.25, None), "llama": Usage(2.0, None)}
    # whisper was started anew; what it used before is in the daemon's own count.
    assert cpu_between(before, after) == {"hotpind": 0.5, "whisper": 0.0, "llama": 2.0}


def test_the_peak_of_the_whole_is_not_the_sum_of_the_peaks() -> None:
    peak = MemoryPeak()
    peak.see({"a": Usage(0, 100), "b": Usage(0, 10), "c": Usage(0, None)})
    peak.see({"a": Usage(0, 20), "b": Usage(0, 80)})
    assert peak.each == {"a": 100, "b": 80}
    assert peak.total == 110


def test_what_the_host_gave_to_others(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    (tmp_path / "stat").write_text(f"cpu  9 8 7 6 5 4 3 {2 * ticks} 1 0\ncpu0 1 1 1 1 1 1 1 1 1 0\n")
    assert stolen_s(tmp_path) == 2.0
    (tmp_path / "stat").write_text("cpu  9 8 7\n")
    assert stolen_s(tmp_path) == 0.0
    assert stolen_s(tmp_path / "nowhere") == 0.0


async def test_memory_is_watched_until_the_end() -> None:
    async with watching_memory(os.getpid()) as peak:
        deadline = time.monotonic() + 60
        while not peak.total:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
    assert peak.each["hotpind"] > 10_000_000
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "watch memory"]


def test_who_listens_on_a_socket(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        assert peer_pid(path) == os.getpid()
    assert peer_pid(path) is None
    assert peer_pid(tmp_path / "none.sock") is None
