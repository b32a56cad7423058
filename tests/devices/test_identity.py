"""The appliance's id and the administrator's secret."""

from __future__ import annotations

import logging
import stat
from pathlib import Path

import pytest

from hotpind.devices.identity import ID_FILE, SECRET_FILE, load_identity
from hotpind.errors import StateError


def test_it_is_made_once(tmp_path: Path) -> None:
    state = tmp_path / "new" / "state"
    first = load_identity(state)
    assert load_identity(state) == first
    assert first.host_name == f"hotpin-{first.appliance_id}.local"
    assert len(first.appliance_id) == 12
    assert len(first.admin_secret) == 64


def test_two_appliances_differ(tmp_path: Path) -> None:
    assert load_identity(tmp_path / "a") != load_identity(tmp_path / "b")


def test_the_secret_is_for_its_owner_only(tmp_path: Path) -> None:
    load_identity(tmp_path)
    assert stat.S_IMODE((tmp_path / SECRET_FILE).stat().st_mode) == 0o600


def test_a_mode_that_was_loosened_is_tightened(tmp_path: Path) -> None:
    first = load_identity(tmp_path)
    (tmp_path / SECRET_FILE).chmod(0o644)
    assert load_identity(tmp_path) == first
    assert stat.S_IMODE((tmp_path / SECRET_FILE).stat().st_mode) == 0o600


def test_a_person_may_choose_the_secret(tmp_path: Path) -> None:
    (tmp_path / SECRET_FILE).write_text("correct-horse-battery-staple\n")
    assert load_identity(tmp_path).admin_secret == "correct-horse-battery-staple"


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"ABC", b"../../etc\n", b"\xff" * 12])
def test_a_broken_id_is_made_anew_with_a_warning(
        tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes) -> None:
    (tmp_path / ID_FILE).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        identity = load_identity(tmp_path)
    assert ID_FILE in caplog.text
    assert load_identity(tmp_path) == identity


def test_an_unusable_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(StateError, match="file"):
        load_identity(tmp_path / "file")
