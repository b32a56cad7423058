"""A key that somebody wrote by hand, while the service has its copy of the one before."""

from __future__ import annotations

import os
from pathlib import Path

from hotpind.system.credential import CREDENTIAL, waits_for_restart


def put(path: Path, second: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("gsk_0123456789abcdef")
    os.utime(path, (second, second))
    return path


def test_a_key_newer_than_the_services_copy_waits_for_a_restart(tmp_path: Path) -> None:
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path / "credentials")}
    state = tmp_path / "state"
    file = tmp_path / "etc" / CREDENTIAL
    put(tmp_path / "credentials" / CREDENTIAL, 100)
    assert not waits_for_restart(file, state, environ), "there is no file"
    put(file, 90)
    assert not waits_for_restart(file, state, environ), "the service got this one"
    put(file, 110)
    assert waits_for_restart(file, state, environ)
    # As `hotpinctl key set` leaves them: the running service reads the other one.
    put(state / CREDENTIAL, 111)
    assert not waits_for_restart(file, state, environ)


def test_without_systemd_there_is_no_copy(tmp_path: Path) -> None:
    assert not waits_for_restart(put(tmp_path / "etc" / CREDENTIAL, 110), tmp_path, {})
