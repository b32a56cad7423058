"""The database file: durable, migrated, and never silently emptied."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from hotpind.devices.database import APPLICATION_ID, MIGRATIONS, DeviceDatabase
from hotpind.devices.device import describe, hash_token
from hotpind.errors import StateError

ADD_ROOM = ("ALTER TABLE devices ADD COLUMN room TEXT NOT NULL DEFAULT ''",)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "devices.sqlite3"


def fill(path: Path, *ids: str) -> None:
    database = DeviceDatabase.open(path)
    for device_id in ids:
        database.put(describe(device_id), hash_token(device_id), 1.7e9)
    database.close()


def ids(path: Path) -> list[str]:
    database = DeviceDatabase.open(path)
    try:
        return [row.description.device_id for row in database.rows()]
    finally:
        database.close()


def test_it_is_for_its_owner_only(path: Path) -> None:
    fill(path, "pin-1")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_it_is_durable(path: Path) -> None:
    database = DeviceDatabase.open(path)
    connection = database._connection
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    database.close()


def test_a_device_is_replaced_with_its_token(path: Path) -> None:
    fill(path, "pin-1", "pin-1")
    database = DeviceDatabase.open(path)
    database.put(describe("pin-1", "New", "model", "2.0"), hash_token("other"), 1.8e9)
    (row,) = database.rows()
    assert (row.description.name, row.token_hash, row.created) == ("New", hash_token("other"), 1.8e9)
    database.close()


def test_a_name_that_a_person_gave_outlives_another_pairing(path: Path) -> None:
    database = DeviceDatabase.open(path)

    def names() -> list[str]:
        return [row.description.name for row in database.rows()]

    database.put(describe("pin-1", "Factory"), hash_token("a"), 1)
    database.rename("pin-1", "Kitchen")
    database.put(describe("pin-1", "Factory", firmware="2.0"), hash_token("b"), 2)
    assert names() == ["Kitchen"]
    assert database.rows()[0].description.firmware == "2.0"
    database.put(describe("pin-1", "Garage"), hash_token("c"), 3, named=True)
    assert names() == ["Garage"]
    database.put(describe("pin-1", "Factory"), hash_token("d"), 4)
    assert names() == ["Garage"]
    database.delete("pin-1")
    database.put(describe("pin-1", "Factory"), hash_token("e"), 5)
    assert names() == ["Factory"], "who was forgotten begins anew"
    database.close()


def test_a_database_of_the_first_schema_is_brought_up_to_date(path: Path) -> None:
    with sqlite3.connect(path, isolation_level=None) as old:
        for statement in MIGRATIONS[0]:
            old.execute(statement)
        old.execute("INSERT INTO devices VALUES ('pin-1', 'Hall', '', '', ?, 1.0, NULL)", (hash_token("a"),))
        old.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        old.execute("PRAGMA user_version = 1")
    old.close()
    database = DeviceDatabase.open(path)
    assert database.notices == ()
    assert [row.description.name for row in database.rows()] == ["Hall"]
    database.put(describe("pin-1", "Factory"), hash_token("b"), 2)
    assert [row.description.name for row in database.rows()] == ["Factory"], "nobody had renamed it"
    database.close()


def test_it_remembers_that_there_were_devices(path: Path) -> None:
    database = DeviceDatabase.open(path)
    assert not database.ever_paired()
    database.put(describe("pin-1"), hash_token("a"), 1)
    database.delete("pin-1")
    assert database.ever_paired()
    database.close()


def scribble(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xa5" * (path.stat().st_size - 200))


def truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2 + 100)


def overwrite(path: Path) -> None:
    path.write_bytes(b"This is no database, but it is long enough to look at.\n" * 200)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def another_program(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE music (title TEXT)")


def without_a_table(path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("DROP TABLE devices")
    connection.close()


@pytest.mark.parametrize("damage", [scribble, truncate, overwrite, empty, another_program, without_a_table])
def test_a_damaged_database_is_kept_and_named(path: Path, damage: Callable[[Path], None]) -> None:
    fill(path, *[f"pin-{n}" for n in range(50)])
    damage(path)
    before = path.read_bytes()
    database = DeviceDatabase.open(path)
    assert database.rows() == []
    assert database.ever_paired(), "a stranger must not get in because a disk failed"
    (notice,) = database.notices
    database.close()
    (kept,) = [file for file in path.parent.glob("devices.sqlite3.damaged-*") if not file.name.endswith(("wal", "shm"))]
    assert kept.name in notice
    assert str(path) in notice
    assert kept.read_bytes() == before
    again = DeviceDatabase.open(path)
    (notice,) = again.notices
    assert kept.name in notice, "it is told until somebody has looked after it"
    assert again.ever_paired()
    again.close()
    for file in path.parent.glob("devices.sqlite3.damaged-*"):
        file.unlink()
    healed = DeviceDatabase.open(path)
    assert healed.notices == ()
    healed.close()


def test_what_was_set_aside_is_told_of_newest_first_and_bounded(path: Path) -> None:
    stamps = ("20250101T000000", "20260301T000000", "20260201T000000", "20260401T000000")
    for stamp in stamps:
        path.with_name(f"devices.sqlite3.damaged-{stamp}").write_bytes(b"x")
        path.with_name(f"devices.sqlite3.damaged-{stamp}-wal").write_bytes(b"x")
    path.with_name("devices.sqlite3.damaged-by-me.txt").write_bytes(b"x")
    for _ in range(2):
        database = DeviceDatabase.open(path)
        told = [next(stamp for stamp in stamps if stamp in notice) for notice in database.notices]
        assert told == ["20260401T000000", "20260301T000000", "20260201T000000"]
        database.close()


def test_a_newer_database_is_kept_and_named(path: Path) -> None:
    fill(path, "pin-1")
    DeviceDatabase.open(path, migrations=(*MIGRATIONS, ADD_ROOM), readable_from=len(MIGRATIONS) + 1).close()
    database = DeviceDatabase.open(path)
    assert database.rows() == []
    assert "newer hotpind" in database.notices[0]
    database.close()
    (kept,) = path.parent.glob("devices.sqlite3.newer-*")
    kept.replace(path)
    for leftover in path.parent.glob("devices.sqlite3-*"):
        leftover.unlink()
    upgraded = DeviceDatabase.open(path, migrations=(*MIGRATIONS, ADD_ROOM), readable_from=len(MIGRATIONS) + 1)
    assert [row.description.device_id for row in upgraded.rows()] == ["pin-1"]
    upgraded.close()


def test_a_newer_database_that_has_no_facts_is_kept_and_named(path: Path) -> None:
    fill(path, "pin-1")
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("ALTER TABLE facts RENAME TO settings")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    database = DeviceDatabase.open(path)
    assert "newer hotpind (schema 99" in database.notices[0]
    assert database.ever_paired()
    database.close()
    again = DeviceDatabase.open(path)
    (notice,) = again.notices
    assert "update hotpind" in notice
    again.close()


def test_an_upgrade_and_a_downgrade_keep_the_devices(path: Path) -> None:
    fill(path, "pin-1")
    newer = DeviceDatabase.open(path, migrations=(*MIGRATIONS, ADD_ROOM), readable_from=1)
    assert newer._connection.execute("SELECT room FROM devices").fetchall() == [("",)]
    newer.close()
    older = DeviceDatabase.open(path)
    assert older.notices == ()
    older.put(describe("pin-2"), hash_token("pin-2"), 1.8e9)
    older.close()
    newest = DeviceDatabase.open(path, migrations=(*MIGRATIONS, ADD_ROOM), readable_from=1)
    assert [row.description.device_id for row in newest.rows()] == ["pin-1", "pin-2"]
    newest.close()


def test_a_migration_that_fails_changes_nothing(path: Path) -> None:
    fill(path, "pin-1")
    broken = ("ALTER TABLE devices ADD COLUMN room TEXT", "THIS IS NOT SQL")
    with pytest.raises(StateError):
        DeviceDatabase.open(path, migrations=(*MIGRATIONS, broken))
    assert ids(path) == ["pin-1"]


def test_a_log_without_its_database_is_not_replayed(path: Path) -> None:
    database = DeviceDatabase.open(path)
    database.put(describe("pin-1"), hash_token("a"), 1)
    log = path.with_name(path.name + "-wal").read_bytes()
    database.close()
    for times in (1, 2):
        path.unlink()
        path.with_name(path.name + "-wal").write_bytes(log)
        fresh = DeviceDatabase.open(path)
        assert fresh.rows() == []
        assert fresh.ever_paired(), "there was one, so nobody gets in by himself"
        assert len(fresh.notices) == times
        assert all("log of a database" in notice for notice in fresh.notices)
        fresh.close()
    kept = [file for file in path.parent.glob("devices.sqlite3.orphan-*") if file.name.endswith("-wal")]
    assert [file.read_bytes() for file in kept] == [log, log], "neither replaced the other"


def test_a_half_made_database_is_made_again(path: Path) -> None:
    path.with_name(path.name + ".new").write_bytes(b"half")
    fill(path, "pin-1")
    assert ids(path) == ["pin-1"]


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(StateError, match="state"):
        DeviceDatabase.open(tmp_path / "state" / "devices.sqlite3")


def test_a_locked_database_is_not_taken_for_a_damaged_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hotpind.devices.database._BUSY_SECONDS", 0.05)
    fill(path, "pin-1")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StateError, match="locked"):
        DeviceDatabase.open(path)
    other.close()
    assert ids(path) == ["pin-1"]
