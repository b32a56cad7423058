"""A pin's memory is private, durable and never silently wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotpind.errors import PinError
from hotpind.pin.memory import Memory, load_memory, memory_file, save_memory

MEMORY = Memory(address="http://192.0.2.1:8000/", appliance_id="0123456789ab", name="Hotpin Küche", token="secret",
                fingerprint="ab" * 32)


def test_what_is_saved_is_read_back_and_private(tmp_path: Path) -> None:
    path = tmp_path / "a" / "pins" / "x.json"
    save_memory(path, MEMORY)
    save_memory(path, MEMORY)
    assert load_memory(path) == MEMORY
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o077 == 0
    assert [file.name for file in path.parent.iterdir()] == ["x.json"]


def test_nothing_is_remembered_at_first(tmp_path: Path) -> None:
    assert load_memory(tmp_path / "x.json") == Memory()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"5", b"\xff\xfe"])
def test_a_broken_memory_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(PinError, match="delete it and pair the pin again"):
        load_memory(path)


def test_a_newer_memory_is_read_as_far_as_it_is_known(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"token": "t", "colour": "red", "address": 5}')
    assert load_memory(path) == Memory(token="t")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PinError, match="cannot be written"):
        save_memory(tmp_path / "file" / "x.json", MEMORY)


def test_where_it_is(tmp_path: Path) -> None:
    assert memory_file("a/../b", {"XDG_STATE_HOME": str(tmp_path)}) == tmp_path / "hotpin/pins/a%2F..%2Fb.json"
    assert memory_file("a", {"HOME": "/home/u", "XDG_STATE_HOME": "relative"}) == Path(
        "/home/u/.local/state/hotpin/pins/a.json")
