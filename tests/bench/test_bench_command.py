"""`hotpinctl bench` and `top` with real engines; the times themselves are not judged here, the machine is shared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from tests.appliance.harness import running
from tests.appliance.recordings import DATA
from tests.pictures import plain
from tests.wav import write_wav

pytestmark = [pytest.mark.models, pytest.mark.timeout(600)]
DEVICES = TURNS = 2
SHORT = ("--wav", str(DATA / "cards" / "002.wav"))
GAP = "The sound stopped"
LATE_ACK = "The acknowledgement"
IDLE_PERCENT = 20
"""Of a core, in all; less than one on a machine that does nothing else."""
BENCH_S = 500
"""For one benchmark; the longest takes 50 s on a machine that does nothing else."""


def bench(*arguments: str) -> tuple[int, dict[str, Any]]:
    environ = {name: value for name, value in os.environ.items()
               if not name.startswith(("HOTPIN_", "GROQ_")) or name == "HOTPIN_PATHS__MODELS"}
    done = subprocess.run([sys.executable, "-m", "hotpind.cli.ctl", "bench", "--json", *arguments], text=True,
                          capture_output=True, timeout=BENCH_S, check=False, env=environ)
    assert "Traceback" not in done.stderr, done.stderr
    data: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, data


def test_two_devices_of_two_turns_add_up(tmp_path: Path) -> None:
    chart = tmp_path / "turn.svg"
    status, data = bench("--devices", str(DEVICES), "--turns", str(TURNS), "--pause", "0.2", "--local", "--floor",
                         "--idle", "1", "--chart", str(chart), *SHORT, "--wav", str(DATA / "cards" / "005.wav"))
    assert status == 0, data["problems"]
    samples = data["samples"]
    assert len(samples) == DEVICES * TURNS == data["turns"]["answered"]
    assert {sample["device"] for sample in samples} == {"bench-001", "bench-002"}
    assert data["turns"]["backends"] == {"local": 4}
    # The machine is shared, so playback may run dry and a frame's acknowledgement be late; nothing else is wrong, and
    # gaps are counted the same everywhere.
    assert all(sentence.startswith((GAP, LATE_ACK)) for sentence in data["violations"]), data["violations"]
    gaps = sum(times for sentence, times in data["violations"].items() if sentence.startswith(GAP))
    assert gaps == data["playback"]["underruns"]
    for sample in samples:
        stages = sample["stages"]
        assert (0 <= stages["transcript"] <= stages["first_token"] <= stages["first_clause"]
                <= stages["first_audio_ready"] <= sample["first_audio"] + 0.1)
    assert 0 <= data["machine"]["stolen"] < 1
    first_audio = sorted(sample["first_audio"] for sample in samples)
    assert data["first_audio"]["p50"] == pytest.approx((first_audio[1] + first_audio[2]) / 2, abs=1e-3)
    assert data["first_audio"]["most"] == pytest.approx(first_audio[-1], abs=1e-3)
    assert {spread["count"] for spread in data["took"].values()} == {4}
    # The appliance sends at most 3 s ahead by its own clock; a pin that is kept waiting begins to play later than that.
    assert data["playback"]["most_ahead_s"] <= 6
    cpu, memory = data["cpu"], data["memory"]
    assert set(cpu["per_turn_s"]) >= {"hotpind", "whisper", "piper", "llama"}
    assert sum(cpu["per_turn_s"].values()) == pytest.approx(cpu["per_turn_total_s"], abs=1e-3)
    assert min(cpu["per_turn_s"][engine] for engine in ("whisper", "piper", "llama")) > 0
    assert max(memory["peak_pss"].values()) < memory["peak_pss_total"] <= sum(memory["peak_pss"].values())
    idle = data["idle"]
    assert idle["seconds"] == 1
    assert sum(idle["percent_of_a_core"].values()) == pytest.approx(idle["percent_total"], abs=5e-3)
    floor = data["floor"]
    assert floor["hearing_left"]["p50"] <= floor["hearing"]["p50"]
    assert floor["first_word"]["p50"] <= floor["thinking"]["p50"]
    assert floor["ratio"]["engines"] == pytest.approx(data["first_audio"]["p50"] / floor["engines"]["p50"], abs=5e-3)
    assert floor["after_speech"]["most"] <= floor["engines"]["most"]
    root = ET.parse(chart).getroot()
    assert "Engines alone" in [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_an_appliance_that_nobody_asks_leaves_the_machine_alone() -> None:
    measured = []
    for _ in range(2):
        status, data = bench(*SHORT, "--turns", "1", "--warm-up", "0", "--local", "--fast", "--idle", "5")
        assert status == 0, data["problems"]
        measured.append(data["idle"])
        if data["idle"]["percent_total"] < IDLE_PERCENT:
            break
    print("idle, percent of a core:", *(each["percent_total"] for each in measured))
    assert measured[-1]["percent_total"] < IDLE_PERCENT, measured
    assert set(measured[-1]["percent_of_a_core"]) >= {"hotpind", "whisper", "piper", "llama"}


def test_a_question_without_speech_is_a_failed_turn(tmp_path: Path) -> None:
    silence = tmp_path / "silence.wav"
    silence.write_bytes(write_wav(np.zeros(16_000, dtype=np.int16), 16_000))
    status, data = bench("--wav", str(silence), "--turns", "1", "--warm-up", "0", "--local", "--fast")
    assert status == 1
    assert data["turns"] == {"wanted": 1, "answered": 0, "failed": 1, "backends": {}, "with_picture": 0,
                             "transcript_ready": 0}
    assert data["first_audio"] is None
    assert sum(data["problems"].values()) == 1


def test_the_cloud_s_stand_in_answers_in_the_cloud_s_place(tmp_path: Path) -> None:
    picture = tmp_path / "photo.jpg"
    picture.write_bytes(plain(800, 600, "teal"))
    status, data = bench(*SHORT, "--turns", "1", "--warm-up", "0",
                         "--cloud-latency", "0.3", "--answer-words", "5", "--fresh", "--picture", str(picture))
    assert status == 0, data["problems"]
    assert data["turns"]["backends"] == {"groq": 1}
    assert data["turns"]["with_picture"] == 1
    [sample] = data["samples"]
    assert sample["stages"]["first_token"] - sample["stages"]["transcript"] >= 0.3


def test_a_running_appliance_is_measured_and_watched() -> None:
    with running() as daemon:
        done = daemon.ctl("bench", "--url", daemon.url, "--turns", "1", "--warm-up", "0", "--json", "--fast",
                          *SHORT)
        data = json.loads(done.stdout)
        assert data["turns"]["answered"] == 1
        assert data["appliance"] == {"own": False}
        assert data["memory"]["peak_pss_total"] > 100_000_000
        seen = json.loads(daemon.ctl("top", "--once", "--json").stdout)
        assert seen["turns"] == {"answered": {"local": 1}}
        assert seen["first_audio"]["since_start"]["count"] == 1
        assert seen["first_audio"]["while_watching"]["count"] == 0
        assert {engine["name"]: engine["state"] for engine in seen["engines"]} == dict.fromkeys(
            ("whisper", "piper", "llama"), "ready")
        assert all(engine["pss"] > 10_000_000 for engine in seen["engines"])
        assert seen["daemon"]["pss"] > 10_000_000
        table = daemon.ctl("top", "--once").stdout
        assert "time to first audio" in table
        assert "whisper  ready" in table


@pytest.mark.parametrize(("arguments", "sentence"), [
    (("--url", "http://127.0.0.1:9", "--cloud-latency", "0.2"), "settings of the benchmark's own appliance"),
    (("--url", "http://192.0.2.1:8000", "--floor"), "on the appliance's own machine"),
    (("--local", "--cloud-latency", "0.2"), "choose one of them"),
    (("--chart", "/no/such/directory/a.svg"), "no such directory"),
    (("--wav", "/no/such.wav"), "cannot be read"),
])
def test_what_cannot_be_done_is_one_sentence(arguments: tuple[str, ...], sentence: str) -> None:
    status, data = bench(*arguments)
    assert status == 1
    assert sentence in data["error"]
    assert "\n" not in data["error"]
