"""`hotpinctl doctor` on this machine, with made-up faults."""

from __future__ import annotations

import asyncio
import json
import socket
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from hotpind.cli.doctor import (
    doctor,
    key_findings,
    model_findings,
    one_for_each_disk,
    port_findings,
    register,
    running_findings,
    wav_findings,
)
from hotpind.config import Config
from hotpind.config.paths import control_socket, models_dir
from hotpind.system.findings import Finding, Verdict
from hotpind.web.tls import load_tls
from tests.wav import write_wav

KEY = "gsk_0123456789abcdef"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    for name in ("GROQ_API_KEY", "HOTPIN_CONFIG", "CREDENTIALS_DIRECTORY", "STATE_DIRECTORY", "CACHE_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


class Page(BaseHTTPRequestHandler):
    """Answers every GET with the server's text."""

    def do_GET(self) -> None:
        body: bytes = self.server.body  # type: ignore[attr-defined]  # set by the fixture
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def page() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port where nobody listens, and which nobody else gets."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def at_port(port: int) -> Config:
    return Config.model_validate({"server": {"port": port}})


def only(found: Iterator[Finding]) -> Finding:
    (finding,) = found
    return finding


def test_the_port_of_the_appliance_and_of_another(page: HTTPServer) -> None:
    page.body = b'{"status":"ok","service":"hotpin"}'  # type: ignore[attr-defined]  # read by Page
    assert only(port_findings(at_port(page.server_port))).verdict is Verdict.FINE
    page.body = b"welcome to my wiki"  # type: ignore[attr-defined]  # read by Page
    assert "another program" in only(port_findings(at_port(page.server_port))).text


def test_a_port_where_nobody_or_no_http_is(silent_port: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def greet() -> None:
            connection, _ = server.accept()
            connection.sendall(b"220 mail.example ESMTP\r\n")
            connection.close()

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        assert "does not speak HTTP" in only(port_findings(at_port(port))).text
        thread.join(5)
    assert "nothing listens" in only(port_findings(at_port(silent_port))).text


def test_the_encrypted_port(page: HTTPServer, tmp_path: Path, silent_port: int) -> None:
    page.body = b'{"status":"ok","service":"hotpin"}'  # type: ignore[attr-defined]  # read by Page
    plain = Config.model_validate({"tls": {"enabled": True, "port": page.server_port}})
    assert only(port_findings(plain, encrypted=True)) == Finding(
        "tls port", Verdict.FAULT, f"whatever listens on 127.0.0.1:{page.server_port} does not speak HTTPS",
        f"another program has the port: sudo ss -ltnp 'sport = :{page.server_port}'")
    tls = asyncio.run(load_tls(tmp_path, "hotpin-kitchen.local"))
    with HTTPServer(("127.0.0.1", 0), Page) as server:
        server.body = page.body  # type: ignore[attr-defined]  # as above
        server.socket = tls.context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        encrypted = Config.model_validate({"server": {"host": "127.0.0.1"},
                                           "tls": {"enabled": True, "port": server.server_port}})
        assert only(port_findings(encrypted, encrypted=True)).verdict is Verdict.FINE
        server.shutdown()
    nobody = Config.model_validate({"server": {"host": "127.0.0.1"}, "tls": {"enabled": True, "port": silent_port}})
    assert "nothing listens" in only(port_findings(nobody, encrypted=True)).text


def test_every_disk_is_looked_at_once(tmp_path: Path) -> None:
    assert one_for_each_disk(tmp_path / "models", tmp_path / "state") == [tmp_path / "models"]
    assert one_for_each_disk(tmp_path / "models", Path("/proc/not/there")) == [tmp_path / "models",
                                                                              Path("/proc/not/there")]


def test_keys_are_found_and_never_shown(home: Path) -> None:
    assert only(key_findings(Config(), home, None)).verdict is Verdict.HINT
    packaged = home / "packaged"
    packaged.write_text(KEY)
    packaged.chmod(0o644)
    loose = only(key_findings(Config(), home, packaged))
    assert "others can read" in loose.text
    packaged.chmod(0o600)
    good = only(key_findings(Config(), home, packaged))
    assert good.verdict is Verdict.FINE
    assert KEY not in loose.text + good.text
    named = Config.model_validate({"chat": {"groq": {"key_file": str(home / "mine")}}})
    missing = only(key_findings(named, home, None))
    assert missing.verdict is Verdict.FAULT
    assert "take chat.groq.key_file out of the settings" in missing.advice
    off = Config.model_validate({"chat": {"groq": {"enabled": False}}})
    assert only(key_findings(off, home, None)).verdict is Verdict.FINE


class AtSocket(Page):
    """The same on a unix socket, whose clients have no address."""

    def address_string(self) -> str:
        return ""


@pytest.fixture
def daemon(home: Path) -> Iterator[tuple[socketserver.UnixStreamServer, Config]]:
    """Answer on a control socket as an appliance would."""
    config = Config.model_validate({"paths": {"runtime": str(home)}})
    with socketserver.UnixStreamServer(str(control_socket(config)), AtSocket) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server, config
        server.shutdown()


def backends(*rows: dict[str, str]) -> bytes:
    return json.dumps({"backends": list(rows)}).encode()


REJECTED = "groq rejected the API key (401); set another one with `hotpinctl key set`"


def test_a_key_that_a_service_refuses_is_a_fault(daemon: tuple[socketserver.UnixStreamServer, Config]) -> None:
    server, config = daemon
    well = {"name": "local", "state": "online", "fault": ""}
    server.body = backends({"name": "groq", "state": "online", "fault": ""}, well)  # type: ignore[attr-defined]
    assert list(running_findings(config)) == []
    server.body = backends(  # type: ignore[attr-defined]
        {"name": "groq", "state": "key-rejected", "fault": REJECTED}, well)
    assert list(running_findings(config)) == [Finding("key", Verdict.FAULT, REJECTED)]


def test_a_key_file_that_cannot_be_used_is_told_once(daemon: tuple[socketserver.UnixStreamServer, Config]) -> None:
    server, config = daemon
    known = [Finding("key", Verdict.FAULT, "/mine: this file does not hold an API key")]
    problem = f"groq: {known[0].text}"
    server.body = backends({"name": "groq", "state": "off", "fault": problem})  # type: ignore[attr-defined]
    assert list(running_findings(config, known)) == []
    assert [finding.text for finding in running_findings(config)] == [problem]
    both = f"{problem}; {REJECTED}"
    server.body = backends({"name": "groq", "state": "key-rejected", "fault": both})  # type: ignore[attr-defined]
    assert [finding.text for finding in running_findings(config, known)] == [both]


def test_what_the_appliance_calls_a_fault_is_one(daemon: tuple[socketserver.UnixStreamServer, Config]) -> None:
    server, config = daemon
    broken = "the piper engine: /models/voice.onnx is broken"
    rows = [{"name": "groq", "state": "key-rejected", "fault": REJECTED}]
    server.body = json.dumps({"faults": [broken, REJECTED], "backends": rows}).encode()  # type: ignore[attr-defined]
    assert list(running_findings(config)) == [Finding("service", Verdict.FAULT, broken),
                                              Finding("key", Verdict.FAULT, REJECTED)]
    shown = Finding("service", Verdict.FAULT, f"running: local, 0 devices, fault: {broken}")
    assert list(running_findings(config, [shown])) == [Finding("key", Verdict.FAULT, REJECTED)]
    server.body = b'{"faults": [], "backends": []}'  # type: ignore[attr-defined]  # read by AtSocket
    assert list(running_findings(config)) == []


def test_without_an_appliance_nothing_is_said_of_refused_keys(home: Path) -> None:
    assert list(running_findings(Config.model_validate({"paths": {"runtime": str(home)}}))) == []


def test_recordings(tmp_path: Path) -> None:
    path = tmp_path / "question.wav"
    tone = (np.sin(np.arange(16000) / 10) * 16000).astype(np.int16)
    path.write_bytes(write_wav(tone, 16000))
    assert [finding.verdict for finding in wav_findings(path)] == [Verdict.FINE]
    path.write_bytes(write_wav(tone, 44100))
    assert [finding.verdict for finding in wav_findings(path)] == [Verdict.FINE, Verdict.HINT]
    path.write_bytes(write_wav(tone // 1000, 16000))
    assert "silent" in list(wav_findings(path))[-1].text
    path.write_bytes(b"not a recording")
    assert only(wav_findings(path)).verdict is Verdict.FAULT
    assert only(wav_findings(tmp_path / "nothing.wav")).verdict is Verdict.FAULT


def test_models_that_are_missing_or_changed(tmp_path: Path) -> None:
    missing = list(model_findings(Config(), tmp_path))
    assert [finding.verdict for finding in missing] == [Verdict.FAULT] * 3
    assert missing[0].advice == "hotpinctl models pull smollm2-135m-instruct"
    elsewhere = Config.model_validate({"stt": {"uri": "tcp://nas:10300"}, "tts": {"uri": "tcp://nas:10200"},
                                       "chat": {"local": {"model": str(tmp_path / "no.gguf")}}})
    assert str(tmp_path / "no.gguf") in only(model_findings(elsewhere, tmp_path)).text


@pytest.mark.models
def test_models_that_are_there() -> None:
    assert only(model_findings(Config(), models_dir(Config()))).verdict is Verdict.FINE


def test_the_command_prints_json_and_fails_when_something_is_at_fault(home: Path, silent_port: int) -> None:
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)
    settings = home / "hotpin.toml"
    settings.write_text(f"[server]\nport = {silent_port}\n")
    result = CliRunner().invoke(app, ["doctor", "--json"], env={"HOTPIN_CONFIG": str(settings)})
    assert result.exit_code == 1, result.output
    found = {(finding["topic"], finding["verdict"]) for finding in json.loads(result.output)}
    assert ("port", "fault") in found
    assert ("settings", "fine") in found
    readable = CliRunner().invoke(app, ["doctor"], env={"HOTPIN_CONFIG": str(settings)})
    assert f"nothing listens on 127.0.0.1:{silent_port}" in readable.output
    assert "-> start the appliance" in readable.output


def test_broken_settings_are_a_finding_not_the_end(home: Path) -> None:
    app = typer.Typer()
    app.command()(doctor)
    settings = home / "hotpin.toml"
    settings.write_text("[server]\nprot = 1\n")
    result = CliRunner().invoke(app, ["--json"], env={"HOTPIN_CONFIG": str(settings)})
    assert result.exit_code == 1
    first = json.loads(result.output)[0]
    assert (first["topic"], first["verdict"]) == ("settings", "fault")
    assert "prot" in first["text"]
