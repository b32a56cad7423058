"""The package's small scripts, run with stand-ins for what they call; needs no container."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.places import TOP


def wrapped(folder: Path, *arguments: str, uid: int = 0) -> str:
    """Run packaging/hotpinctl with its neighbours replaced, and return what it would have run."""
    for name, text in {"id": f"echo {uid}", "setpriv": 'echo setpriv "$@"'}.items():
        program = folder / name
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    script = (TOP / "packaging/hotpinctl").read_text()
    assert "exec /opt/hotpind/venv/bin/hotpinctl" in script
    script = script.replace("exec /opt/hotpind/venv/bin/hotpinctl", "echo hotpinctl")
    done = subprocess.run(["sh", "-c", script, "hotpinctl", *arguments], check=True, capture_output=True, text=True,
                          timeout=60, env={"PATH": f"{folder}:/usr/bin:/bin"})
    return done.stdout


@pytest.mark.parametrize("arguments", [
    ("models", "pull"), ("--config", "/etc/f.toml", "models", "pull"), ("--config=/etc/f.toml", "models", "pull"),
    ("--config", "status", "models", "list"),
])
def test_what_root_does_with_models_is_done_as_the_service(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = wrapped(tmp_path, *arguments)
    assert done.startswith("setpriv --reuid=hotpin --regid=hotpin")
    assert done.rstrip().endswith(" ".join(arguments))
    assert wrapped(tmp_path, *arguments, uid=1000) == f"hotpinctl {' '.join(arguments)}\n"


@pytest.mark.parametrize("arguments", [
    ("status",), ("--config", "models", "status"), ("ask", "--text", "models"), ("devices", "add", "models"), (),
])
def test_everything_else_is_done_as_who_calls(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert wrapped(tmp_path, *arguments).rstrip() == " ".join(("hotpinctl", *arguments))
