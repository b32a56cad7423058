"""`hotpinctl logs` over what journalctl gives; the real journal is read in the booted container."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from hotpind.cli.logs import parse_entries, register

TURN = {"__REALTIME_TIMESTAMP": "1700000000000000", "PRIORITY": "6", "MESSAGE": "turn 4f2a answered", "HOTPIN_TURN":
        "4f2a", "HOTPIN_DEVICE": "kitchen", "HOTPIN_STAGE": "turn", "HOTPIN_OUTCOME": "answered", "HOTPIN_BACKEND":
        "local", "HOTPIN_TRANSCRIPT_MS": "120", "HOTPIN_FIRST_AUDIO_MS": "480", "_PID": "7"}


def test_parsing() -> None:
    (entry,) = parse_entries([json.dumps(TURN), "", "not json", "[1]"])
    assert entry.time == 1_700_000_000
    assert entry.fields["device"] == "kitchen"
    assert list(entry.timings.items()) == [("transcript", 120), ("first_audio", 480)]


def test_fields_that_are_bytes_or_repeated() -> None:
    data = {"MESSAGE": list("é\n".encode()), "HOTPIN_TURN": ["a", "b"], "PRIORITY": "3"}
    (entry,) = parse_entries([json.dumps(data)])
    assert entry.message == "é\n"
    assert entry.fields["turn"] == "b"
    assert entry.priority == 3


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tool = tmp_path / "journalctl"
    tool.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/asked\ncat {tmp_path}/answer\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "answer").write_text(json.dumps(TURN) + "\n")
    return tmp_path


def run(*arguments: str) -> str:
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)
    result = CliRunner().invoke(app, ["logs", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_table_of_turns(journal: Path) -> None:
    output = run("-n", "5")
    asked = (journal / "asked").read_text().split()
    assert "HOTPIN_STAGE=turn" in asked
    assert "--lines=5" in asked
    heads, row = output.strip().splitlines()
    assert heads.split()[-4:] == ["(ms)", "first", "audio", "(ms)"]
    assert row.split()[2:] == ["4f2a", "kitchen", "answered", "local", "120", "480"]


def test_one_turn_problems_and_json(journal: Path) -> None:
    assert "turn 4f2a answered" in run("--turn", "4f2a")
    assert "HOTPIN_TURN=4f2a" in (journal / "asked").read_text()
    run("--problems", "--device", "kitchen")
    assert "--priority=4" in (journal / "asked").read_text()
    assert "HOTPIN_DEVICE=kitchen" in (journal / "asked").read_text()
    assert json.loads(run("--json"))["first_audio_ms"] == "480"


def test_an_empty_journal(journal: Path) -> None:
    (journal / "answer").write_text("")
    assert "nothing in the journal" in run()


def test_no_journal_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)
    result = CliRunner().invoke(app, ["logs"])
    assert result.exit_code == 1
    assert "no journal" in result.output
