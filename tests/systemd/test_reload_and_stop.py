"""Reloading and stopping the service while a pin is being answered."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from hotpind.bench.stand_in import MODEL
from hotpind.conversation.prompts import STOPPING
from tests.lan import Avahi
from tests.systemd.conftest import CONNECTED_S, QUESTION, SETTINGS, URL, Household, journal, prop, wait_until
from tests.systemd.wearer import Wearer

pytestmark = [pytest.mark.systemd, pytest.mark.timeout(1200)]

LONG_QUESTION = QUESTION.with_name("sense_and_sensibility_01_austen_64kb-0870.wav")
HOLE_S = 2.0
"""A longer pause would be a disturbance wherever it is heard; shorter ones a busy machine makes by itself."""
STOP_LIMIT_S = 25
"""After this systemd kills."""
GONE_S = 60
ENDS_S = 120
TRIES = 3


def change(household: Household, text: str) -> None:
    (household.host.root / SETTINGS).write_text(text)


def whole(turn: dict[str, Any]) -> bool:
    """Tell whether all of an answer was heard."""
    played = turn["playback"]
    return bool(played["ended"] and not played["dropped_bytes"] and not played["cut_bytes"]
                and all(hole["duration"] <= HOLE_S for hole in played["underruns"]))


def test_a_reload_in_mid_turn_applies_what_it_can_and_disturbs_nobody(household: Household) -> None:
    host, pin = household.host, household.pin
    daemon = prop(host, "MainPID")
    change(household, '[log]\nlevel = "debug"\n\n[server]\nport = 8001\n')
    # A busy machine may reload for longer than a short answer is spoken.
    for _ in range(TRIES):
        pin.hear(LONG_QUESTION)
        begun = time.monotonic()
        host.run("systemctl", "reload", "hotpind")
        took = time.monotonic() - begun
        under_way = not pin.arrived("turn", "failed", "lost")
        turn = pin.wait("turn", "failed", "lost", timeout=ENDS_S)
        assert turn["event"] == "turn", turn
        assert turn["answered"]
        assert turn["violations"] == []
        assert whole(turn), turn["playback"]
        if under_way:
            break
    assert under_way, "every turn had ended before the reload returned"
    assert prop(host, "MainPID") == daemon
    wait_until(lambda: prop(host, "ActiveState") == "active", 30)
    said = journal(host)
    assert "log.level" in said
    assert "need a restart: server.port" in said
    assert "server.port" in host.run("hotpinctl", "status").stdout
    assert pin.answer(QUESTION)["violations"] == []
    print(f"reload took {took:.1f} s")


def test_a_broken_file_fails_the_reload_and_changes_nothing(household: Household) -> None:
    host, pin = household.host, household.pin
    daemon = prop(host, "MainPID")
    change(household, "[server]\nprot = 8001\n")
    pin.hear(LONG_QUESTION)
    refused = host.run("systemctl", "reload", "hotpind", check=False)
    assert refused.returncode != 0
    turn = pin.wait("turn", "failed", "lost", timeout=ENDS_S)
    assert turn.get("answered"), turn
    assert turn["violations"] == []
    assert (prop(host, "MainPID"), prop(host, "ActiveState")) == (daemon, "active")
    shown = host.run("systemctl", "status", "--no-pager", "--lines=20", "hotpind", check=False).stdout
    assert "prot" in shown
    assert "hotpin.toml" in shown
    pin.answer(QUESTION)

    # Somebody who sends the signal himself gets the same: the old settings stay in force, and the status says so.
    host.run("kill", "-HUP", daemon)
    wait_until(lambda: "prot" in journal(host).split("not reloaded")[-1], 30, lambda: journal(host))
    assert (prop(host, "MainPID"), prop(host, "ActiveState")) == (daemon, "active")
    pin.answer(QUESTION)


def test_a_stop_in_mid_turn_lets_the_answer_end_and_refuses_new_ones(household: Household, tmp_path: Path) -> None:
    host, pin, home = household.host, household.pin, household.home
    host.run("hotpinctl", "pair", "--no-wait")
    with Wearer(home.prefix("wear"), tmp_path, URL, "esp32-cam-second") as late, \
            Avahi(home, "wear", tmp_path) as avahi:
        late.wait("connected", timeout=CONNECTED_S)
        browser = avahi.watch()
        assert browser.stdout is not None
        while not browser.stdout.readline().startswith("="):
            pass
        pin.hear(LONG_QUESTION)
        begun = time.monotonic()
        host.run("systemctl", "stop", "--no-block", "hotpind")
        wait_until(lambda: prop(host, "ActiveState") != "active", 10)
        late.ask(QUESTION)
        refused = late.wait("turn", "failed", timeout=60)
        assert refused["event"] == "turn", refused
        assert not refused["answered"]
        assert refused["error"] == STOPPING
        assert refused["violations"] == []
        turn = pin.wait("turn", "failed", "lost", timeout=ENDS_S)
        assert turn.get("answered"), turn
        assert turn["violations"] == []
        assert whole(turn), turn["playback"]
        wait_until(lambda: prop(host, "ActiveState") in {"inactive", "failed"}, GONE_S)
        took = time.monotonic() - begun
        while not (line := browser.stdout.readline()).startswith("-"):
            assert line, "avahi-browse ended without having seen the service go"
        home.stop(browser)
    assert prop(host, "Result") == "success"
    assert host.run("pgrep", "-fc", "hotpind.engines", check=False).stdout.strip() == "0"
    print(f"stopped after {took:.1f} s; the other pin heard: {refused['error']}")


LONG_WORDS = 120
SHORTEST_S = 20.0
"""What so many words take to be spoken, at least."""
DRAIN_S = 10.0
"""How long an answer under way may go on after the stop."""
CLOUD = f"""
import asyncio
from pathlib import Path
from hotpind.bench.stand_in import StandIn
async def serve():
    async with StandIn(0.1, answer_words={LONG_WORDS}).serving() as cloud:
        Path("/run/cloud.url").write_text(cloud.url)
        await asyncio.Event().wait()
asyncio.run(serve())
"""


def test_a_stop_in_a_long_answer_cuts_it_cleanly(household: Household) -> None:
    host, pin = household.host, household.pin
    key, url = host.root / "etc/hotpin/groq_api_key", "/run/cloud.url"
    host.run("systemd-run", "--unit=cloud", "/opt/hotpind/venv/bin/python", "-c", CLOUD)
    try:
        wait_until(lambda: host.run("cat", url, check=False).stdout.startswith("http"), 90)
        key.write_text("gsk_long_answers\n")
        change(household, f"""
            [chat.groq]
            base_url = "{host.run("cat", url).stdout}"
            models = [{{ name = "{MODEL}", images = true }}]
            [tts]
            length_scale = 2.5
        """)
        host.run("systemctl", "restart", "hotpind")
        pin.wait("connected", timeout=CONNECTED_S)
        uncut = pin.answer(QUESTION)
        assert uncut["playback"]["received_s"] > SHORTEST_S, uncut
        pin.hear(QUESTION)
        begun = time.monotonic()
        host.run("systemctl", "stop", "--no-block", "hotpind")
        turn = pin.wait("turn", "failed", "lost", timeout=ENDS_S)
        wait_until(lambda: prop(host, "ActiveState") in {"inactive", "failed"}, GONE_S)
        took = time.monotonic() - begun
        print(f"stopped after {took:.1f} s, {turn['playback']['received_s']:.1f} s of "
              f"{uncut['playback']['received_s']:.1f} s were heard")
        assert turn["event"] == "turn", turn
        assert turn["violations"] == []
        assert turn["playback"]["ended"], "the zero-length frame is missing"
        assert turn["playback"]["received_s"] < uncut["playback"]["received_s"] - 2
        assert DRAIN_S - 2 < took < STOP_LIMIT_S + 5
        assert prop(host, "Result") == "success"
        assert "Traceback" not in journal(host)
    finally:
        key.unlink(missing_ok=True)
        host.run("systemctl", "stop", "cloud", check=False)
