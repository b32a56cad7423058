"""Settings: files, the environment, and mistakes that are named by key, line and expectation."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from hotpind.cli.daemon import command
from hotpind.config import Config, load_config, load_config_file
from hotpind.config.changes import changed_keys, merged
from hotpind.config.paths import models_dir, runtime_dir, state_dir
from hotpind.errors import ConfigError
from tests.places import TOP


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "hotpin.toml"
    file.write_text(text)
    return file


def test_no_file_and_no_environment_give_the_defaults() -> None:
    assert load_config_file(None, {}) == Config()


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "[server]\nport = 9000\nhost = \"::1\"\n[chat.groq]\nenabled = false\n")
    config = load_config_file(file, {"HOTPIN_SERVER__PORT": "9001", "HOTPIN_CHAT__GROQ__BASE_URL": "http://x",
                                     "HOTPIN_AUTH__MODE": "open", "HOTPIN_DISCOVERY__NAME": "5",
                                     "HOTPIN_DISCOVERY__INTERFACES": '["eth0"]', "HOTPIN_PYTHON": "ignored"})
    assert (config.server.port, config.server.host) == (9001, "::1")
    assert config.chat.groq.base_url == "http://x"
    assert not config.chat.groq.enabled
    assert config.auth.mode == "open"
    assert config.discovery.name == "5"
    assert config.discovery.interfaces == ["eth0"]


@pytest.mark.parametrize("uri", ["", "tcp://nas:10300", "tcp://[fd00::1]:10300", "unix:///run/whisper.sock"])
def test_addresses_of_speech_servers(uri: str) -> None:
    assert load_config_file(None, {"HOTPIN_STT__URI": uri}).stt.uri == uri


def test_the_file_can_be_named_in_the_environment(tmp_path: Path) -> None:
    file = write(tmp_path, "[log]\nlevel = \"debug\"\n")
    assert load_config(None, {"HOTPIN_CONFIG": str(file)}).log.level == "debug"


TWO_BACKENDS = ("[[chat.backend]]\nname = \"{}\"\nurl = \"http://a/v1\"\nmodel = \"m\"\n"
                "[[chat.backend]]\nname = \"{}\"\nurl = \"http://b/v1\"\nmodel = \"m\"\n")


@pytest.mark.parametrize(("text", "line", "key", "words"), [
    ("[server]\n\nport = \"x\"\n", 3, "server.port", "valid integer"),
    ("[server]\nport = 70000\n", 2, "server.port", "less than or equal to 65535"),
    ("[server]\nprot = 1\n", 2, "server.prot", "no such key"),
    ("[sever]\nport = 1\n", 1, "sever", "no such key"),
    ("server.port = true\n", 1, "server.port", "valid integer"),
    ("[auth]\nmode = \"closed\"\n", 2, "auth.mode", "'paired' or 'open'"),
    ("[chat]\nfirst_token_deadline_s = 30.5\n", 2, "chat.first_token_deadline_s", "less than or equal to 30"),
    ("[stt]\ndeadline_s = 0\n", 2, "stt.deadline_s", "greater than 0"),
    ("[stt]\nuri = \"nas:10300\"\n", 2, "stt.uri", "'nas:10300' is no address of a Wyoming server; write tcp://"),
    ("[stt]\nuri = \"http://nas:10300\"\n", 2, "stt.uri", "write tcp://host:port or unix:///path"),
    ("[tts]\nuri = \"tcp://nas\"\n", 2, "tts.uri", "write tcp://host:port"),
    ("[tts]\nuri = \"tcp://nas:99999\"\n", 2, "tts.uri", "write tcp://host:port"),
    ("[tts]\nuri = \"stdio://\"\n", 2, "tts.uri", "write tcp://host:port"),
    ("[tts]\nuri = \"unix://run/x\"\n", 2, "tts.uri", "write tcp://host:port"),
    ("[tls]\nenabled = true\ncertificate = \"a.pem\"\n", 1, "tls", "belong together"),
    ("[[chat.backend]]\nname = \"a\"\nurl = \"b\"\nmodel = \"c\"\n"
     "[[chat.backend]]\nname = \"d\"\nurl = 5\nmodel = \"e\"\n",
     7, "chat.backend.1.url", "valid string"),
    ("[[chat.backend]]\nname = \"a\"\n", 1, "chat.backend.0.url", "required"),
    (TWO_BACKENDS.format("a", "a"), 1, "chat.backend", 'the name "a" of a [[chat.backend]] table is taken'),
    (TWO_BACKENDS.format("a", "groq"), 1, "chat.backend", 'the name "groq"'),
    (TWO_BACKENDS.format("local", "a"), 1, "chat.backend", 'the name "local"'),
])
def test_a_mistake_is_named_by_key_line_and_expectation(tmp_path: Path, text: str, line: int, key: str,
                                                        words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config_file(write(tmp_path, text), {})
    first = str(caught.value).splitlines()[0]
    assert f"hotpin.toml, line {line}: {key}: " in first
    assert words in first


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config_file(write(tmp_path, "[server]\nport = \"x\"\nfoo = 1\n"), {"HOTPIN_LOG__LEVEL": "loud"})
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert lines[-1].startswith("HOTPIN_LOG__LEVEL: log.level: ")


@pytest.mark.parametrize(("name", "words"), [
    ("HOTPIN_SERVER_PORT", "here HOTPIN_SERVER__PORT"),
    ("HOTPIN_CHAT_GROQ_BASE_URL", "here HOTPIN_CHAT__GROQ__BASE_URL"),
    ("HOTPIN_PORT", "such as HOTPIN_SERVER__PORT")])
def test_a_variable_that_is_no_setting_is_named_with_what_was_meant(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config_file(None, {name: "8001"})
    assert str(caught.value).startswith(f"{name}: there is no such setting; ")
    assert str(caught.value).endswith(words)
    # Beside other mistakes, not in their place.
    with pytest.raises(ConfigError) as caught:
        load_config_file(write(tmp_path, "[server]\nport = \"x\"\n"), {name: "8001"})
    assert len(str(caught.value).splitlines()) == 2


def test_variables_of_the_scripts_and_the_package_are_no_settings() -> None:
    """Every name with the prefix that they use, so that a new one is not forgotten here."""
    used: set[str] = set()
    for file in [*(TOP / "scripts").iterdir(), *(TOP / "packaging").iterdir(), *(TOP / "systemd").glob("*.*")]:
        used.update(re.findall(r"\bHOTPIN_[A-Z]+(?:_[A-Z]+)*\b(?!_)", file.read_text(encoding="utf-8")))
    assert {"HOTPIN_PYTHON", "HOTPIN_START_PATIENCE"} <= used
    assert load_config_file(None, dict.fromkeys(used, "x")) == Config()


@pytest.mark.parametrize(("content", "words"), [
    (b"[server\n", "not valid TOML"), (b"\xff\xfe", "not UTF-8"), (None, "no such file")])
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path, content: bytes | None, words: str) -> None:
    file = tmp_path / "x.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        load_config_file(file, {})


def test_check_config_tells_by_its_exit_status(tmp_path: Path) -> None:
    daemon = typer.Typer()
    daemon.command()(command)
    good = CliRunner().invoke(daemon, ["--check-config", "--config", str(write(tmp_path, "[server]\nport = 8001\n"))])
    assert good.exit_code == 0, good.output
    file = str(write(tmp_path, "[server]\nport = \"x\"\n"))
    bad = subprocess.run([sys.executable, "-m", "hotpind", "--check-config", "--config", file],
                         capture_output=True, text=True, timeout=60, check=False)
    assert bad.returncode == 78
    assert "line 2: server.port" in bad.stderr
    assert "Traceback" not in bad.stderr


def test_paths_follow_the_settings_then_systemd_then_xdg() -> None:
    config = Config()
    assert state_dir(config, {"HOME": "/home/a"}) == Path("/home/a/.local/state/hotpin")
    assert models_dir(config, {"HOME": "/home/a"}) == Path("/home/a/.cache/hotpin/models")
    assert state_dir(config, {"HOME": "/h", "XDG_STATE_HOME": "/s"}) == Path("/s/hotpin")
    assert state_dir(config, {"HOME": "/h", "XDG_STATE_HOME": "relative"}) == Path("/h/.local/state/hotpin")
    unit = {"HOME": "/h", "STATE_DIRECTORY": "/var/lib/hotpin", "CACHE_DIRECTORY": "/var/cache/hotpin",
            "RUNTIME_DIRECTORY": "/run/hotpin"}
    assert state_dir(config, unit) == Path("/var/lib/hotpin")
    assert models_dir(config, unit) == Path("/var/cache/hotpin/models")
    assert runtime_dir(config, unit) == Path("/run/hotpin")
    chosen = Config.model_validate({"paths": {"state": "/x/state"}})
    assert state_dir(chosen, unit) == Path("/x/state")


def test_a_directory_too_long_for_a_socket_is_refused() -> None:
    with pytest.raises(ConfigError, match="too long for a unix socket"):
        runtime_dir(Config.model_validate({"paths": {"runtime": "/tmp/" + "x" * 90}}), {})


def test_a_reload_takes_over_what_can_change_and_names_the_rest() -> None:
    old = Config()
    new = Config.model_validate({"chat": {"history_turns": 3, "local": {"model": "other"}}, "server": {"port": 1},
                                 "limits": {"image_bytes": 20_000}})
    live, later = changed_keys(old, new)
    assert live == ["chat.history_turns", "limits.image_bytes"]
    assert later == ["server.port", "chat.local.model"]
    applied = merged(old, new, live)
    assert (applied.chat.history_turns, applied.limits.image_bytes) == (3, 20_000)
    assert (applied.server.port, applied.chat.local.model) == (old.server.port, old.chat.local.model)
    assert changed_keys(old, old) == ([], [])
