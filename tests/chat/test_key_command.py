"""`hotpinctl key`: set, status, remove."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from hotpind.chat.key import CREDENTIAL, KeySource, Secret, store_key
from hotpind.cli import key as key_command
from hotpind.cli.ctl import app
from hotpind.cli.key import Places, places
from hotpind.config.schema import Config
from hotpind.errors import OperatorError
from tests.fakes.groq import KEY, FakeGroq
from tests.waiting import wait_until


@pytest.fixture
def cloud_url() -> Iterator[str]:
    """A fake service in a thread of its own, as the command runs its own event loop."""
    ready, over = threading.Event(), threading.Event()
    url: list[str] = []

    def serve() -> None:
        async def run() -> None:
            async with FakeGroq() as fake:
                url.append(fake.url)
                ready.set()
                await asyncio.to_thread(over.wait)
        asyncio.run(run())

    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(60)
    yield url[0]
    over.set()
    thread.join(10)


@pytest.fixture
def settings(tmp_path: Path, cloud_url: str) -> Path:
    path = tmp_path / "hotpin.toml"
    path.write_text(f'[paths]\nstate = "{tmp_path / "state"}"\nruntime = "{tmp_path / "run"}"\n'
                    f'[chat.groq]\nbase_url = "{cloud_url}"\n')
    return path


def run(settings: Path, *arguments: str, text: str = "") -> Result:
    return CliRunner().invoke(app, ["--config", str(settings), "key", *arguments], input=text,
                              env={"GROQ_API_KEY": "", "CREDENTIALS_DIRECTORY": "", "STATE_DIRECTORY": ""})


def test_a_key_is_set_shown_to_be_there_and_removed(settings: Path, tmp_path: Path) -> None:
    stored = tmp_path / "state" / CREDENTIAL
    assert run(settings, "status").exit_code == 1
    result = run(settings, "set", text=f"{KEY}\n")
    assert (result.exit_code, result.exception) == (0, None)
    assert "no restart" not in result.output
    assert stored.read_text().strip() == KEY
    assert stored.stat().st_mode & 0o777 == 0o600
    shown = run(settings, "status", "--check")
    assert shown.exit_code == 0
    assert "from the state directory" in shown.output
    assert "takes the key" in shown.output
    assert "does not run" in shown.output
    assert KEY not in result.output + shown.output
    assert "The key is removed." in run(settings, "remove").output
    assert not stored.exists()
    assert "There was no stored key." in run(settings, "remove").output


def test_a_key_that_is_not_used_for_another_one_is_said_to_be_so(settings: Path, tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    other.write_text(KEY.replace("fake", "othr"))
    other.chmod(0o600)
    plain = settings.read_text()
    settings.write_text(f'{plain}key_file = "{other}"\n')
    result = run(settings, "set", text=f"{KEY}\n")
    assert result.exit_code == 0
    assert "not used, since the one from chat.groq.key_file comes first" in result.output
    assert "within five seconds" not in result.output
    assert json.loads(run(settings, "set", "--json", text=f"{KEY}\n").output)["shadowed_by"] == "chat.groq.key_file"
    other.write_text(KEY)
    assert "within five seconds" in run(settings, "set", text=f"{KEY}\n").output, "it is the same key"

    settings.write_text(plain)
    monkeypatch.setenv("GROQ_API_KEY", KEY.replace("fake", "envi"))
    result = CliRunner().invoke(app, ["--config", str(settings), "key", "set"], input=f"{KEY}\n")
    assert "$GROQ_API_KEY is set here and comes first" in result.output
    assert "envi0" not in result.output


def test_a_rejected_key_is_not_stored(settings: Path, tmp_path: Path) -> None:
    result = run(settings, "set", text="gsk_wrong\n")
    assert isinstance(result.exception, OperatorError)
    assert "rejects this key" in str(result.exception)
    assert "gsk_wrong" not in str(result.exception) + result.output
    assert not (tmp_path / "state").exists()
    assert run(settings, "set", "--no-check", text="gsk_wrong\n").exit_code == 0
    assert (tmp_path / "state" / CREDENTIAL).read_text() == "gsk_wrong\n"


@pytest.mark.parametrize("text", ["", "\n", "two words\n"])
def test_what_is_no_key_is_refused(settings: Path, tmp_path: Path, text: str) -> None:
    result = run(settings, "set", text=text)
    assert isinstance(result.exception, OperatorError)
    assert not (tmp_path / "state").exists()


def test_a_key_can_be_set_without_the_internet(tmp_path: Path) -> None:
    settings = tmp_path / "hotpin.toml"
    settings.write_text(f'[paths]\nstate = "{tmp_path / "state"}"\n[chat.groq]\nbase_url = "http://127.0.0.1:9"\n')
    result = run(settings, "set", text=f"{KEY}\n")
    assert result.exit_code == 0
    assert "could not be checked" in result.output
    assert (tmp_path / "state" / CREDENTIAL).exists()


def test_the_terminal_does_not_show_it(settings: Path, tmp_path: Path) -> None:
    """Typed at a real terminal, by the real command."""
    parent, child = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "hotpind.cli.ctl", "--config", str(settings), "key", "set"],
                               stdin=child, stdout=child, stderr=child,
                               env={**os.environ, "GROQ_API_KEY": "", "STATE_DIRECTORY": ""}, start_new_session=True)
    os.close(child)
    seen = b""
    end = time.monotonic() + 60
    while b"not shown" not in seen and time.monotonic() < end:
        seen += os.read(parent, 1024)
    # The prompt appears a moment before the echo is switched off, and what was typed before that is dropped.
    wait_until(lambda: not termios.tcgetattr(parent)[3] & termios.ECHO, 30)
    os.write(parent, f"{KEY}\n".encode())
    while True:
        try:
            piece = os.read(parent, 1024)
        except OSError:
            break
        if not piece:
            break
        seen += piece
    os.close(parent)
    assert process.wait(60) == 0
    assert b"is stored" in seen
    assert KEY.encode() not in seen
    assert (tmp_path / "state" / CREDENTIAL).read_text().strip() == KEY


def test_the_key_is_never_taken_from_the_arguments(settings: Path) -> None:
    assert run(settings, "set", KEY).exit_code == 2


def test_where_the_key_goes(tmp_path: Path) -> None:
    etc, var = tmp_path / "etc", tmp_path / "var"
    mine = {"HOME": str(tmp_path)}
    alone = Places(tmp_path / ".local/state/hotpin", None)
    assert places(Config(), mine, settings=etc, state=var) == alone
    etc.mkdir()
    assert places(Config(), mine, settings=etc, state=var) == alone
    var.mkdir()
    assert places(Config(), mine, settings=etc, state=var) == Places(var, etc)
    configured = Config.model_validate({"paths": {"state": "/srv/state"}})
    assert places(configured, mine, settings=etc, state=var) == Places(Path("/srv/state"), None)
    assert places(Config(), {"STATE_DIRECTORY": "/x"}, settings=etc, state=var) == Places(Path("/x"), None)
    # What the packaged hotpinctl sets, whatever the settings say.
    packaged = {"STATE_DIRECTORY": str(var)}
    assert places(Config(), packaged, settings=etc, state=var) == Places(var, etc)
    assert places(configured, packaged, settings=etc, state=var) == Places(Path("/srv/state"), etc)


def test_what_scripts_read(settings: Path, tmp_path: Path) -> None:
    def said(*arguments: str, code: int = 0, text: str = "") -> dict[str, object]:
        result = run(settings, *arguments, "--json", text=text)
        assert result.exit_code == code, result.output
        assert KEY not in result.output
        content = json.loads(result.stdout)
        assert isinstance(content, dict)
        return content

    assert said("status", code=1) == {"key": False, "source": "", "problem": "", "daemon": ""}
    assert "rejects this key" in str(said("set", code=1, text="gsk_wrong\n")["error"])
    stored = tmp_path / "state" / CREDENTIAL
    assert said("set", text=f"{KEY}\n") == {"stored": [str(stored)], "shadowed_by": "", "accepted": True, "note": ""}
    assert said("set", "--no-check", text=f"{KEY}\n")["accepted"] is None
    assert said("status", "--check") == {"key": True, "source": "the state directory", "problem": "", "daemon": "",
                                         "accepted": True, "note": ""}
    assert said("remove") == {"removed": True, "left": ""}
    assert said("remove")["removed"] is False


def test_a_running_service_with_a_credential_takes_a_new_key_and_loses_a_removed_one(
        settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    etc, var, credentials = tmp_path / "etc", tmp_path / "var", tmp_path / "credentials"
    for directory in (etc, var, credentials):
        directory.mkdir()
    monkeypatch.setattr(key_command, "places", lambda _: Places(var, etc))
    # What systemd gave the service when it was started with an older key.
    (credentials / CREDENTIAL).write_text("gsk_old")
    os.utime(credentials / CREDENTIAL, (1000, 1000))
    service = KeySource("", var, {"CREDENTIALS_DIRECTORY": str(credentials)})
    assert service.read().key == Secret("gsk_old")
    assert run(settings, "set", text=f"{KEY}\n").exit_code == 0
    assert service.read().key == Secret(KEY)
    assert (etc / CREDENTIAL).read_text().strip() == KEY, "what the next start loads"
    assert str(etc / CREDENTIAL) in run(settings, "status").output
    assert run(settings, "remove").exit_code == 0
    assert service.read().key is None
    assert not (etc / CREDENTIAL).exists()


def test_a_key_from_elsewhere_is_named_after_removal(settings: Path, tmp_path: Path) -> None:
    store_key(tmp_path / "state", Secret(KEY))
    result = CliRunner().invoke(app, ["--config", str(settings), "key", "remove"],
                                env={"GROQ_API_KEY": "gsk_other", "STATE_DIRECTORY": "", "CREDENTIALS_DIRECTORY": ""})
    assert "Another key is still there, from $GROQ_API_KEY" in result.output
