"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from hotpind.files import write_durably


def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note in which order things reach the disk."""
    noted: list[str] = []
    really_sync, really_replace = os.fsync, Path.replace

    def sync(descriptor: int) -> None:
        noted.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        really_sync(descriptor)

    def replace(self: Path, target: Path) -> Path:
        noted.append("name")
        return really_replace(self, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", replace)
    return noted


def test_the_bytes_are_on_the_disk_before_the_name_and_the_name_before_it_returns(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted = calls(monkeypatch)
    write_durably(tmp_path / "a", b"whole", 0o600)
    assert noted == ["file", "name", "directory"]
    assert (tmp_path / "a").read_bytes() == b"whole"


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_its_permissions_are_those_asked_for_whatever_the_umask(tmp_path: Path, mode: int) -> None:
    before = os.umask(0o077)
    try:
        write_durably(tmp_path / "a", b"", mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


def test_a_draft_left_by_a_power_cut_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".a.new").write_text("half")
    write_durably(tmp_path / "a", b"whole", 0o600)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_link_in_the_draft_s_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("untouched")
    (tmp_path / ".a.new").symlink_to(tmp_path / "theirs")
    write_durably(tmp_path / "a", b"whole", 0o600)
    assert (tmp_path / "theirs").read_text() == "untouched"
    assert not (tmp_path / "a").is_symlink()


def test_what_was_there_stays_when_writing_fails_and_nothing_else(tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_durably(tmp_path / "a", b"new", 0o600)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_its_owner_is_the_one_asked_for(tmp_path: Path) -> None:
    write_durably(tmp_path / "a", b"", 0o600, owner=(65534, 65533))
    info = (tmp_path / "a").stat()
    assert (info.st_uid, info.st_gid) == (65534, 65533)
