"""The installed service on a network: it answers, survives being killed and stopped, and writes little."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytest

from hotpind.conversation.prompts import CANNED
from hotpind.engines.fleet import NICE
from hotpind.pin.reconnect import COOL_DOWN_S
from hotpind.system.logs import FIELD_STAGE, TURN_STAGE
from tests.lan import WEARABLE_IP
from tests.systemd.conftest import (
    CONNECTED_S,
    QUESTION,
    URL,
    Household,
    Installed,
    drop_in,
    journal,
    prop,
    wait_until,
)
from tests.systemd.machine import Machine
from tests.systemd.pin_process import certain

pytestmark = [pytest.mark.systemd, pytest.mark.timeout(1200)]

HEARD = "he was not an ill disposed young man"
BACK_S = 10.0
"""In the better one of two tries, with the processor to itself."""
BUSY_S = 45.0
"""How much later it may be in one of them, with all that runs beside it."""
WATCHDOG_S = 10.0
"""What the unit gives the watchdog."""
ABORT_S = 3.0
"""What it gives a process that hangs to end by itself."""


def words(text: str) -> list[str]:
    return "".join(letter if letter.isalpha() else " " for letter in text.lower()).split()


def understood(transcript: str) -> bool:
    """At most two words of the recording are missing: the smallest model takes "ill" for "old" now and then."""
    return len(set(words(HEARD)) - set(words(transcript))) <= 2


def test_installing_starts_it(installed: Installed) -> None:
    print(f"apt took {installed.install_s:.1f} s, the first start included")
    assert installed.state == "active"


def test_start_returns_when_it_answers_and_a_person_is_answered_aloud(household: Household, tmp_path: Path) -> None:
    host, home = household.host, household.home
    host.run("systemctl", "stop", "hotpind")
    begun = time.monotonic()
    host.run("systemctl", "start", "hotpind")
    took = time.monotonic() - begun
    health = home.run("wear", [sys.executable, "-c", "import sys, urllib.request; "
                               f"print(urllib.request.urlopen('{URL}/health', timeout=10).read().decode())"])
    assert "hotpin" in health.stdout
    household.pin.wait("connected", timeout=CONNECTED_S)

    # hotpinctl pairs as a pin of its own while the window is open for it.
    host.run("hotpinctl", "pair", "--no-wait")
    answer = tmp_path / "answer.wav"
    asked = subprocess.run(
        [*home.prefix("wear"), "env", f"XDG_STATE_HOME={tmp_path}", f"XDG_CONFIG_HOME={tmp_path}",
         str(Path(sys.executable).with_name("hotpinctl")), "ask", "--wav", str(QUESTION), "--url", URL,
         "--out", str(answer), "--json"],
        capture_output=True, text=True, timeout=240, check=False)
    assert asked.returncode == 0, asked.stdout + asked.stderr
    turn = json.loads(asked.stdout)
    turn = turn.get("turn", turn)
    print(f"start {took:.1f} s; first audio {turn['timings']['first_audio']} s after the end of speech")
    assert understood(turn["transcript"])
    assert certain(turn["violations"]) == []
    assert answer.stat().st_size > 44 + 22050


@pytest.mark.parametrize(("signal", "back_s", "answer_s"), [
    ("KILL", BACK_S, BACK_S), ("STOP", WATCHDOG_S + BACK_S, WATCHDOG_S + ABORT_S + BACK_S)])
def test_a_daemon_that_dies_or_hangs_comes_back(household: Household, signal: str, back_s: float,
                                                answer_s: float) -> None:
    host, pin = household.host, household.pin
    # Once more when something else had the processor.
    for last in (False, True):
        old = prop(host, "MainPID")
        with host.first_in_line():
            begun = time.monotonic()
            host.run("kill", f"-{signal}", old)
            # The pin comes back by itself, tries once five seconds after it was lost, and then less and less often.
            pin.wait("connected", timeout=back_s + BUSY_S + CONNECTED_S)
            connected = time.monotonic() - begun
            turn = pin.answer(QUESTION)
        answered = connected + turn["timings"]["first_audio"]
        assert prop(host, "ActiveState") == "active"
        assert prop(host, "MainPID") not in {"0", old}
        # The machine's clock is this one's.
        back = int(prop(host, "ActiveEnterTimestampMonotonic")) / 1e6 - begun
        print(f"{signal}: back after {back:.1f} s, the pin connected again after {connected:.1f} s and heard an answer "
              f"after {answered:.1f} s")
        assert understood(turn["transcript"])
        wait_until(lambda: host.run("pgrep", "-fc", "hotpind.engines", check=False).stdout.strip() == "3", 30)
        assert back < back_s + BUSY_S
        if back <= back_s and answered <= answer_s:
            break
        assert not last
        time.sleep(COOL_DOWN_S)


def test_speaking_goes_before_thinking_before_listening_ahead(household: Household) -> None:
    host, pin = household.host, household.pin
    pin.answer(QUESTION)
    own = int(prop(host, "Nice"))
    assert own == -5
    assert nice(host, prop(host, "MainPID")) == own
    assert {engine: nice(host, host.run("pgrep", "-f", f"hotpind.engines.{engine}").stdout.strip())
            for engine in NICE} == {engine: own + more for engine, more in NICE.items()}
    assert NICE["piper"] < NICE["llama"] < NICE["whisper"]


def test_the_sandbox_lets_each_thread_of_the_voice_have_a_core(household: Household) -> None:
    host, pin = household.host, household.pin
    pin.answer(QUESTION)
    pid = host.run("pgrep", "-f", "hotpind.engines.piper").stdout.strip()
    found = host.run("sh", "-c", f"cat /proc/{pid}/task/*/status").stdout
    allowed = [line.split()[1] for line in found.splitlines() if line.startswith("Cpus_allowed_list:")]
    cores = sorted(os.sched_getaffinity(0))
    if not 2 <= len(cores) <= 4:
        assert len(set(allowed)) == 1, "the scheduler has room, or there is one core only"
        return
    # The one that computes, and for both halves of the voice one on each other core.
    assert allowed.count(str(cores[0])) == 1, allowed
    assert [allowed.count(str(core)) for core in cores[1:]] == [2] * (len(cores) - 1), allowed


def nice(host: Machine, pid: str) -> int:
    """The nice value of a process's first thread, see proc(5)."""
    return int(host.run("cat", f"/proc/{pid}/stat").stdout.rpartition(") ")[2].split()[16])


def test_an_engine_that_hangs_is_replaced_without_restarting_the_daemon(household: Household) -> None:
    host, pin = household.host, household.pin
    daemon = prop(host, "MainPID")
    pin.answer(QUESTION)
    for engine in ("whisper", "piper", "llama"):
        stopped = engines(host)[engine]
        host.run("kill", "-STOP", str(stopped["pid"]))
        begun = time.monotonic()
        pin.ask(QUESTION)
        turn = pin.wait("turn", "failed", timeout=120)
        took = time.monotonic() - begun
        assert turn["event"] == "turn", turn
        assert turn["violations"] == []
        print(f"{engine} stopped: {'answered' if turn['answered'] else turn['error']} after {took:.1f} s")
        # An engine that nobody needed yet is found out within its idle interval.
        wait_until(partial(replaced, host, engine, stopped["pid"]), 120, lambda: journal(host))
        again = pin.answer(QUESTION)
        assert again["complete"]["backend"] == "local"
        assert again["response"] not in CANNED
        assert prop(host, "MainPID") == daemon
        assert {each["state"] for each in engines(host).values()} == {"ready"}
    assert prop(host, "NRestarts") == "0"


def replaced(host: Machine, engine: str, pid: int) -> bool:
    """Tell whether an engine works, as another process than that one."""
    now = engines(host)[engine]
    return now["state"] == "ready" and now["pid"] not in {None, pid}


def engines(host: Machine) -> dict[str, dict[str, Any]]:
    """What the appliance says of its engines, by name."""
    return {row["name"]: row for row in json.loads(host.run("hotpinctl", "status", "--json").stdout)["engines"]}


def test_a_turn_writes_one_summary_to_the_journal_and_nothing_to_the_disk(household: Household) -> None:
    host, pin = household.host, household.pin
    pin.answer(QUESTION)
    turns = 5
    # When devices were last seen is written every 10 minutes at most: into one of two rounds, and that is a few pages.
    for round_ in range(2):
        before, entries, _ = written_at_last(host)
        for _ in range(turns):
            pin.answer(QUESTION)
        after, entries_after, size = written_at_last(host)
        print(f"written per turn: {(after - before) / turns:.0f} bytes by the service, "
              f"one journal entry of about {size} bytes")
        assert entries_after - entries == turns
        if after == before:
            break
        assert round_ == 0, "two rounds wrote"
        assert after - before <= 64 * 1024


def written_at_last(host: Machine) -> tuple[int, int, int]:
    """As `written`, when nothing more comes: a turn's entry is written after the pin has its answer."""
    latest = written(host)
    for _ in range(30):
        # Nothing tells that no entry is on its way but that none comes for a while.
        time.sleep(1.0)
        before, latest = latest, written(host)
        if before == latest:
            break
    return latest


def written(host: Machine) -> tuple[int, int, int]:
    """Bytes that the service's processes have had written to disk, and how many turns the journal tells of, with
    the size of the last one's entry.

    The journal's own count of written bytes says nothing: it maps its file, and the kernel counts half a megabyte
    for each page that is touched.
    """
    service = host.run("cat", "/sys/fs/cgroup/systemd/system.slice/hotpind.service/cgroup.procs", check=False)
    if service.returncode != 0:
        service = host.run("cat", "/sys/fs/cgroup/system.slice/hotpind.service/cgroup.procs")
    lines = host.run("cat", *(f"/proc/{pid}/io" for pid in service.stdout.split())).stdout.splitlines()
    host.run("journalctl", "--sync")
    export = host.run("journalctl", "--unit=hotpind", f"{FIELD_STAGE}={TURN_STAGE}", "--output=export",
                      "--no-pager").stdout
    return (sum(int(line.split()[1]) for line in lines if line.startswith("write_bytes")),
            export.count("__CURSOR="), len(export.rstrip("\n").split("\n\n")[-1]))


def test_the_tools_see_the_service(household: Household) -> None:
    host, pin = household.host, household.pin
    turn = pin.answer(QUESTION)["complete"]["turn"]
    host.run("journalctl", "--sync")
    logged = host.run("hotpinctl", "logs", "--json").stdout.splitlines()
    entry = json.loads(logged[-1])
    assert entry["turn"] == turn
    assert entry["device"] == "esp32-cam-hotpin-001"
    assert float(entry["first_audio_ms"]) > 0
    assert turn in host.run("hotpinctl", "logs").stdout

    found = json.loads(host.run("hotpinctl", "doctor", "--json", check=False).stdout)
    topics = {finding["topic"]: finding["verdict"] for finding in found}
    assert topics["service"] == topics["sandbox"] == topics["port"] == topics["settings"] == "fine", found
    assert not [finding for finding in found if finding["topic"] == "models" and finding["verdict"] != "fine"], found

    said = journal(host) + "".join(logged)
    for word in (each for each in words(HEARD)[3:] if len(each) > 2):
        assert word not in said.lower().split()


KEY = "gsk_0123456789abcdefghijklmnopqrstuvwxyz"
NEW_KEY = "gsk_zyxwvutsrqponmlkjihgfedcba9876543210"
CREDENTIAL = "/run/credentials/hotpind.service/groq_api_key"
CLOUD = """
import http.server
class Cloud(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print(self.headers.get("Authorization"), flush=True)
        self.send_response(503)
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.HTTPServer(("", 9000), Cloud).serve_forever()
"""


def test_the_key_reaches_the_service_as_a_credential_and_nobody_else(household: Household) -> None:
    host, home = household.host, household.home
    cloud = home.start("wear", [sys.executable, "-c", CLOUD])
    assert cloud.stdout is not None
    key = host.root / "etc/hotpin/groq_api_key"
    key.write_text(KEY)
    drop_in(host, f"Environment=HOTPIN_CHAT__GROQ__BASE_URL=http://{WEARABLE_IP}:9000")
    try:
        host.run("systemctl", "restart", "hotpind")
        assert cloud.stdout.readline().strip() == f"Bearer {KEY}"
        assert (key.stat().st_mode & 0o777, key.stat().st_uid) == (0o600, 0)
        assert host.run("runuser", "-u", "hotpin", "--", "cat", "/etc/hotpin/groq_api_key",
                        check=False).returncode != 0
        pids = host.run("pgrep", "-f", "hotpind").stdout.split()
        seen = host.run("cat", *(f"/proc/{pid}/{what}" for pid in pids for what in ("environ", "cmdline"))).stdout
        assert KEY not in seen + journal(host) + host.run("systemctl", "show", "hotpind").stdout
        assert host.run("grep", "-r", KEY, "/var/lib/hotpin", "/var/cache/hotpin", "/run/hotpin",
                        check=False).stdout == ""
        # One that is written by hand: systemd 252 gives it to a reload, and where it keeps the one of the start, the
        # status says so.
        key.write_text(NEW_KEY)
        host.run("systemctl", "reload", "hotpind")
        if NEW_KEY in host.run("nsenter", "-t", prop(host, "MainPID"), "-m", "--", "cat", CREDENTIAL).stdout:
            wait_until_said(cloud.stdout, f"Bearer {NEW_KEY}")
        else:
            wait_until(lambda: "the key in /etc/hotpin/groq_api_key" in json.loads(
                host.run("hotpinctl", "status", "--json").stdout)["needs_restart"], 30, lambda: journal(host))
    finally:
        key.unlink()
        shutil.rmtree(host.root / "etc/systemd/system/hotpind.service.d")
        host.run("systemctl", "daemon-reload")
        home.stop(cloud)


def test_the_key_that_was_set_last_is_the_one_after_a_restart(household: Household) -> None:
    host, home = household.host, household.home
    cloud = home.start("wear", [sys.executable, "-c", CLOUD])
    assert cloud.stdout is not None
    key, stored = host.root / "etc/hotpin/groq_api_key", host.root / "var/lib/hotpin/groq_api_key"
    key.write_text(KEY)
    drop_in(host, f"Environment=HOTPIN_CHAT__GROQ__BASE_URL=http://{WEARABLE_IP}:9000")
    try:
        host.run("systemctl", "restart", "hotpind")
        assert cloud.stdout.readline().strip() == f"Bearer {KEY}"
        host.run("hotpinctl", "key", "set", "--no-check", stdin=f"{NEW_KEY}\n")
        wait_until_said(cloud.stdout, f"Bearer {NEW_KEY}")
        host.run("systemctl", "stop", "hotpind")
        home.stop(cloud)
        cloud = home.start("wear", [sys.executable, "-c", CLOUD])
        assert cloud.stdout is not None
        host.run("systemctl", "start", "hotpind")
        assert key_status(host) == (0, True, "/etc/hotpin/groq_api_key")
        assert (key.stat().st_mode & 0o777, key.stat().st_uid) == (0o600, 0)
        assert cloud.stdout.readline().strip() == f"Bearer {NEW_KEY}"

        host.run("hotpinctl", "key", "remove")
        assert key_status(host) == (1, False, "")
        wait_until(lambda: groq(host) == "off", 30)
        host.run("systemctl", "restart", "hotpind")
        assert key_status(host) == (1, False, "")
        assert groq(host) == "off"
        assert host.run("grep", "-rE", f"{KEY}|{NEW_KEY}", "/etc/hotpin", "/var/lib/hotpin",
                        check=False).stdout == ""
    finally:
        key.unlink(missing_ok=True)
        stored.unlink(missing_ok=True)
        shutil.rmtree(host.root / "etc/systemd/system/hotpind.service.d")
        host.run("systemctl", "daemon-reload")
        home.stop(cloud)


def wait_until_said(lines: IO[str], line: str) -> None:
    """Read what was written before to a line; a key is tried within seconds, and the test has a time limit."""
    for said in lines:
        if said.strip() == line:
            return
    raise AssertionError(f"{line} was never said")


def key_status(host: Machine) -> tuple[int, bool, str]:
    """Exit status of `hotpinctl key status`, whether it sees a key, and where."""
    done = host.run("hotpinctl", "key", "status", "--json", check=False)
    shown = json.loads(done.stdout)
    return done.returncode, shown["key"], shown["source"]


def groq(host: Machine) -> str:
    """What the running appliance makes of the cloud."""
    rows = json.loads(host.run("hotpinctl", "status", "--json").stdout)["backends"]
    return str(next(row["state"] for row in rows if row["name"] == "groq"))
