"""`hotpinctl models`, run as a process of its own."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hotpind.models.store import ModelStore
from tests.models.conftest import Run, command
from tests.models.hub_server import Hub
from tests.models.samples import a_gguf, a_wheel, hub_model, wheel_model

REPO = "someone/models"


@pytest.fixture
def two(store_of: Callable[[str], ModelStore], hub: Hub, tmp_path: Path) -> ModelStore:
    """A catalogue with ``good`` in a wheel and ``bad`` that the hub serves wrongly."""
    hub.files[f"{REPO}/bad.gguf"] = a_gguf(tmp_path / "bad.gguf", values=1 << 18)
    hub.faults.serve[f"{REPO}/bad.gguf"] = bytes(len(hub.files[f"{REPO}/bad.gguf"]))
    wheel = a_wheel(tmp_path / "wheels", "test-good", {"good.gguf": a_gguf(tmp_path / "good.gguf")})
    return store_of(wheel_model("good", "test-good", wheel, '{ name = "good.gguf", about_mb = 1 }')
                    + hub_model("bad", REPO, "bad.gguf"))


def test_list_shows_what_is_installed(two: ModelStore, cli: Run) -> None:
    two.ensure("good")
    lines = {line.split("\t")[0]: line.split("\t") for line in cli("list").stdout.splitlines()}
    assert lines["good"][2] == "installed"
    assert lines["whisper-tiny.en"][2:5] == ["-", "78 MB", "172 MB of memory"]
    told = json.loads(cli("list", "--json").stdout)
    assert told["directory"] == str(two.root)
    assert {model["name"]: model["installed"] for model in told["models"]} == {
        name: name == "good" for name in two.catalogue}


def test_pull_verify_remove(two: ModelStore, cli: Run) -> None:
    done = cli("pull", "good")
    assert (done.returncode, done.stdout) == (0, "good: installed\n")
    assert "good: downloading test-good 1.0 100 % of" in done.stderr
    told = json.loads(cli("pull", "good", "--json").stdout)
    assert told["models"] == [{"name": "good", "role": "llm", "fetched": False,
                               "files": [str(two.root / "good" / "good.gguf")]}]
    assert cli("verify").stdout == "good: intact\n"
    os.truncate(two.root / "good" / "good.gguf", 100)
    broken = cli("verify", "--json")
    assert broken.returncode == 1
    (model,) = json.loads(broken.stdout)["models"]
    assert (model["name"], model["ok"]) == ("good", False)
    assert "found 100" in model["problem"]
    done = cli("remove", "good", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["models"][0]["freed_bytes"] > 0
    assert cli("verify").stdout == ""


def test_an_error_is_one_sentence_and_a_status(two: ModelStore, cli: Run) -> None:
    done = cli("pull", "bad")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("hotpinctl: bad.gguf as received from 127.0.0.1 is broken")
    assert "Traceback" not in done.stderr
    done = cli("pull", "good", "bad", "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 1
    assert [model["name"] for model in told["models"]] == ["good"]
    assert "expected SHA-256" in told["error"]
    done = cli("pull", "goood")
    assert done.stderr == "hotpinctl: there is no model named 'goood'; did you mean good?\n"
    done = cli("remove", "whisper-base")
    assert (done.returncode, "is not installed" in done.stderr) == (1, True)


def test_a_broken_catalogue_is_one_sentence(root: Path, cli: Run) -> None:
    (root / "catalogue.toml").write_text("[[model")
    done = cli("list")
    assert done.returncode == 1
    assert done.stderr.startswith(f"hotpinctl: {root}/catalogue.toml is not valid TOML")


def test_without_names_the_settings_models_are_pulled_to_the_settings_directory(
        two: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "hotpin.toml"
    config.write_text(f'[paths]\nmodels = "{two.root}"\n[stt]\nuri = "tcp://nas:10300"\n[tts]\nvoice = "/srv/v.onnx"\n'
                      f'[chat.local]\nmodel = "good"\n')
    arguments = command(two.root, "pull", "--json", "--config", str(config))[:-2]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True)
    told = json.loads(done.stdout)
    assert told["directory"] == str(two.root)
    assert [model["name"] for model in told["models"]] == ["good"]


def test_a_wrong_setting_is_told(tmp_path: Path) -> None:
    config = tmp_path / "hotpin.toml"
    config.write_text("[paths]\nmodel = 1\n")
    done = subprocess.run([*command(tmp_path, "list", "--config", str(config))[:-2]], capture_output=True, text=True,
                          timeout=60, check=False)
    assert done.returncode == 1
    assert f"hotpinctl: {config}, line 2: paths.model" in done.stderr


def test_on_a_terminal_there_are_bars(two: ModelStore, hub: Hub) -> None:
    hub.faults.serve.clear()
    hub.faults.delay_s = 0.03
    terminal, theirs = pty.openpty()
    process = subprocess.Popen(command(two.root, "pull", "bad"), stdin=subprocess.DEVNULL, stdout=theirs,
                               stderr=theirs, env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "120"})
    os.close(theirs)
    seen = b""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                seen += os.read(terminal, 65536)
            except OSError:
                break
    process.wait(30)
    os.close(terminal)
    assert process.returncode == 0
    assert "━".encode() in seen
    assert b"downloading bad.gguf" in seen
    assert b"bad: installed" in seen
