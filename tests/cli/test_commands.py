"""All commands of `hotpinctl`: what each of them has to have, and what none of them may cost."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from hotpind.cli.control import call_now
from hotpind.cli.ctl import COMMANDS, app
from hotpind.config import Config
from hotpind.config.schema import PathsSection
from hotpind.errors import ControlDenied
from hotpind.speech.audio import PIN_RATE
from tests.places import TOP
from tests.wav import write_wav

if TYPE_CHECKING:
    from typer import _click as click

HEAVY = ("numpy", "groq", "PIL", "onnxruntime", "hotpind.bench", "hotpind.app")
NOBODY = 65534


def leaves(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Walk to the commands that do something."""
    if not isinstance(command, typer.core.TyperGroup):
        yield path, command
        return
    context = typer.Context(command)
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None, name
        yield from leaves(found, (*path, name))


def test_every_command_prints_json_when_asked() -> None:
    found = dict(leaves(typer.main.get_command(app)))
    assert len(found) > 20
    assert [" ".join(path) for path, command in found.items()
            if not any("--json" in parameter.opts for parameter in command.params)] == []


def test_the_list_of_commands_says_what_they_say_themselves() -> None:
    group = typer.main.get_group(app)
    for name, home in COMMANDS.items():
        command = group.get_command(typer.Context(group), name)
        assert command is not None
        assert " ".join((command.help or "").split("\n\n")[0].split()) == home.summary
        assert command.name == name


def test_every_command_is_in_the_documentation() -> None:
    text = (TOP / "docs/cli.md").read_text()
    for path, _ in leaves(typer.main.get_command(app)):
        assert f"`hotpinctl {' '.join(path)}" in text


@pytest.mark.parametrize("arguments", [["--help"], ["status"], ["key", "status"], ["logs", "--help"]])
def test_a_command_imports_nothing_that_it_does_not_use(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "hotpind.cli.ctl", *arguments], check=False,
                          capture_output=True, text=True, timeout=120,
                          env={**os.environ, "HOTPIN_PATHS__RUNTIME": str(tmp_path)})
    imported = set(re.findall(r"\| +(\S+)$", done.stderr, re.MULTILINE))
    assert "hotpind.errors" in imported
    assert [name for name in HEAVY if name in imported] == []


def test_an_unknown_command_is_named() -> None:
    result = CliRunner().invoke(app, ["stauts"])
    assert result.exit_code == 2
    assert "stauts" in result.output


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("arguments", [
    ["status"], ["say", "x"], ["top", "--once"], ["ask", "--wav", "QUESTION"],
    ["simulate", "--wav", "QUESTION", "--spread", "0"]])
def test_who_may_not_talk_to_the_daemon_is_told_about_sudo(arguments: list[str], tmp_path: Path) -> None:
    # Others reach it, unlike pytest's own.
    runtime = Path(tempfile.mkdtemp(prefix="hotpin-test-", dir="/tmp"))
    runtime.chmod(0o755)
    question = runtime / "question.wav"
    try:
        tone = 9000 * np.sin(2 * np.pi * 300 * np.arange(PIN_RATE) / PIN_RATE)
        question.write_bytes(write_wav(tone.astype(np.int16), PIN_RATE))
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(runtime / "control.sock"))
            listening.listen()
            (runtime / "control.sock").chmod(0o600)
            began = time.monotonic()
            done = subprocess.run(
                [sys.executable, "-m", "hotpind.cli.ctl",
                 *(str(question) if each == "QUESTION" else each for each in arguments)],
                check=False, capture_output=True, text=True, timeout=120, cwd=TOP, user=NOBODY, group=NOBODY,
                extra_groups=[], env={**os.environ, "HOTPIN_PATHS__RUNTIME": str(runtime), "HOME": "/nonexistent",
                                      "XDG_STATE_HOME": str(runtime / "none")})
    finally:
        for file in runtime.iterdir():
            file.unlink()
        runtime.rmdir()
    assert done.returncode == 1
    assert "try with sudo" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    # Nobody was looked for in the network.
    assert time.monotonic() - began < 20


def test_it_is_said_to_a_program_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("socket.socket.connect", denied)
    (tmp_path / "control.sock").touch()
    with pytest.raises(ControlDenied, match="try with sudo"):
        call_now("GET", "/", config=Config(paths=PathsSection(runtime=str(tmp_path))))
