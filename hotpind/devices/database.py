"""The SQLite file in which devices are kept: opening, migrating, reading and writing it, all blocking.

Every change is on disk when its method returns (write-ahead log, synchronous=FULL). One connection, used by
the thread that opened it. A file that cannot be used is renamed, never overwritten.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hotpind.devices.device import Description
from hotpind.errors import StateError
from hotpind.files import sync_directory

APPLICATION_ID = 0x486F7450
"""Written into the file's header (SQLite's application_id), to tell it from another program's database."""

READABLE_FROM = 1
"""Oldest schema version whose program can use a file written by this one.

Columns and tables that are only added leave it as it is: the state then survives a downgrade of the package.
"""

_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_COMPANIONS = ("-wal", "-shm", "-journal")
_KEPT = re.compile(r"(damaged|newer|orphan)-\d{8}T\d{6}(-\d+)?")
"""What follows the database's name in that of a file that was set aside; its companions have a suffix more."""
_MOST_NOTICES = 3
_BUSY_SECONDS = 5.0
_COLUMNS = "id, name, model, firmware, token_hash, created, last_seen"

_FIRST = (
    """CREATE TABLE devices (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        model TEXT NOT NULL,
        firmware TEXT NOT NULL,
        token_hash BLOB NOT NULL UNIQUE CHECK (length(token_hash) = 32),
        created REAL NOT NULL,
        last_seen REAL
    ) STRICT""",
    "CREATE TABLE facts (key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT",
    "INSERT INTO facts VALUES ('ever_paired', 0)",
)
_RENAMED = ("ALTER TABLE devices ADD COLUMN renamed INTEGER NOT NULL DEFAULT 0",)

Migration = Sequence[str]
MIGRATIONS: tuple[Migration, ...] = (_FIRST, _RENAMED)
"""The statements that lead from schema version n to n + 1, beginning with an empty file at version 0."""


class _Unusable(Exception):
    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Row:
    """A device as it is stored."""

    description: Description
    token_hash: bytes
    created: float
    last_seen: float | None


class DeviceDatabase:
    """An open database of devices."""

    def __init__(self, connection: sqlite3.Connection, notices: tuple[str, ...]) -> None:
        self._connection = connection
        self.notices = notices
        """Sentences for the operator about what was set aside, now or earlier and still lies there; empty when all is
        well."""

    @classmethod
    def open(cls, path: Path, *, migrations: Sequence[Migration] = MIGRATIONS,
             readable_from: int = READABLE_FROM) -> DeviceDatabase:
        """Open the database, or make it; set it aside when it is damaged or too new.

        Raises `StateError` when the directory cannot be used.
        """
        notices: list[str] = []
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if path.exists():
                try:
                    connection = _open_existing(path, migrations, readable_from)
                except _Unusable as unusable:
                    notices.append(_set_aside(path, unusable))
                else:
                    return cls(connection, _kept(path))
            else:
                _set_aside_companions(path)
            _create(path, migrations, readable_from)
            kept = [each for each in _kept(path) if not notices or _named(each) not in notices[0]]
            return cls(_open_existing(path, migrations, readable_from), (*notices, *kept))
        except _Unusable as unusable:
            raise StateError(f"{path}: {unusable}; check the file system") from None
        except (sqlite3.Error, OSError) as error:
            raise StateError(f"{path}: the database of devices cannot be used ({_words(error)}); "
                             "check the directory's owner, mode and free space") from None

    def close(self) -> None:
        """Write the log back into the file and close it."""
        self._connection.close()

    def rows(self) -> list[Row]:
        """Read every device, oldest first."""
        rows = self._connection.execute(f"SELECT {_COLUMNS} FROM devices ORDER BY created, id")  # noqa: S608 - fixed
        return [Row(Description(*row[:4]), row[4], row[5], row[6]) for row in rows]

    def ever_paired(self) -> bool:
        """Tell whether the appliance has ever had a device, even if none is left."""
        row = self._connection.execute("SELECT value FROM facts WHERE key = 'ever_paired'").fetchone()
        return bool(row and row[0])

    def put(self, description: Description, token_hash: bytes, created: float, *, named: bool = False) -> None:
        """Store a device; one with the same id is replaced, its token with it.

        A name that a person gave it (``named``, or `rename`) is only replaced by another one of that kind.
        """
        with _Transaction(self._connection):
            self._connection.execute(
                "INSERT INTO devices (id, name, model, firmware, token_hash, created, renamed)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET"
                " name = iif(devices.renamed AND NOT excluded.renamed, devices.name, excluded.name),"
                " renamed = max(devices.renamed, excluded.renamed), model = excluded.model,"
                " firmware = excluded.firmware, token_hash = excluded.token_hash, created = excluded.created,"
                " last_seen = NULL",
                (description.device_id, description.name, description.model, description.firmware,
                 token_hash, created, named))
            self._connection.execute("UPDATE facts SET value = 1 WHERE key = 'ever_paired'")

    def rename(self, device_id: str, name: str) -> bool:
        """Change a device's name; False when there is no such device."""
        cursor = self._connection.execute("UPDATE devices SET name = ?, renamed = 1 WHERE id = ?", (name, device_id))
        return cursor.rowcount > 0

    def delete(self, device_id: str) -> bool:
        """Remove a device and its token; False when there is no such device."""
        return self._connection.execute("DELETE FROM devices WHERE id = ?", (device_id,)).rowcount > 0

    def seen(self, times: Mapping[str, float]) -> None:
        """Store when devices were last seen, in one write."""
        with _Transaction(self._connection):
            self._connection.executemany("UPDATE devices SET last_seen = ? WHERE id = ?",
                                         [(when, device_id) for device_id, when in times.items()])


class _Transaction:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._connection.execute("COMMIT")
        finally:
            # A commit that fails (a full disk) may leave the transaction open, and then no other could begin.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")


def _open_existing(path: Path, migrations: Sequence[Migration], readable_from: int) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
    try:
        try:
            _check(connection, path, len(migrations))
            _prepare(connection)
            _migrate(connection, migrations, readable_from)
            _check_tables(connection)
        except sqlite3.DatabaseError as error:
            # The low byte is the primary code: SQLITE_CORRUPT has several extended ones.
            if error.sqlite_errorcode & 0xFF in _DAMAGED:
                raise _Unusable("damaged", "is damaged") from None
            raise
    except BaseException:
        connection.close()
        raise
    return connection


def _check(connection: sqlite3.Connection, path: Path, newest: int) -> None:
    version = _pragma(connection, "user_version")
    if path.stat().st_size == 0 and version == 0:
        raise _Unusable("damaged", "is empty, which a database of devices never is")
    if connection.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",):
        raise _Unusable("damaged", "is damaged")
    if _pragma(connection, "application_id") != APPLICATION_ID:
        raise _Unusable("damaged", "is not a database of devices")
    if version > newest:
        since = _readable_from(connection)
        if since is None or since > newest:
            raise _Unusable("newer", f"is of a newer hotpind (schema {version}, known here: {newest})")


def _readable_from(connection: sqlite3.Connection) -> int | None:
    try:
        row = connection.execute("SELECT value FROM facts WHERE key = 'readable_from'").fetchone()
    except sqlite3.OperationalError as error:
        # A later schema need not have this table.
        if error.sqlite_errorcode == sqlite3.SQLITE_ERROR:
            return None
        raise
    return row[0] if row is not None and isinstance(row[0], int) else None


def _check_tables(connection: sqlite3.Connection) -> None:
    try:
        connection.execute(f"SELECT {_COLUMNS}, renamed FROM devices LIMIT 0")  # noqa: S608 - fixed
        connection.execute("SELECT key, value FROM facts LIMIT 0")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_ERROR:
            raise _Unusable("damaged", "lacks tables or columns") from None
        raise


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA wal_autocheckpoint = 100")


def _migrate(connection: sqlite3.Connection, migrations: Sequence[Migration], readable_from: int) -> None:
    version = _pragma(connection, "user_version")
    if version >= len(migrations):
        return
    with _Transaction(connection):
        for migration in migrations[version:]:
            for statement in migration:
                connection.execute(statement)
        connection.execute("INSERT OR REPLACE INTO facts VALUES ('readable_from', ?)", (readable_from,))
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(migrations)}")


def _create(path: Path, migrations: Sequence[Migration], readable_from: int) -> None:
    """Make a new database under another name and move it into place: a half-made one is never found."""
    draft = path.with_name(path.name + ".new")
    for file in (draft, *(draft.with_name(draft.name + suffix) for suffix in _COMPANIONS)):
        file.unlink(missing_ok=True)
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    connection = sqlite3.connect(draft, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous = FULL")
        _migrate(connection, migrations, readable_from)
        # An appliance whose database was set aside is not a new one, and must not take in whoever asks first.
        if _kept_files(path):
            connection.execute("UPDATE facts SET value = 1 WHERE key = 'ever_paired'")
    finally:
        connection.close()
    draft.replace(path)
    sync_directory(path.parent)


def _set_aside(path: Path, unusable: _Unusable) -> str:
    """Rename the database and what belongs to it; return the sentence for the operator."""
    target = _new_name(path, unusable.kind)
    # The database goes first: a crash in between leaves a log without a database, which is never replayed.
    path.rename(target)
    for suffix in _COMPANIONS:
        companion = path.with_name(path.name + suffix)
        if companion.exists():
            companion.rename(target.with_name(target.name + suffix))
    sync_directory(path.parent)
    advice = ("update hotpind and rename it back" if unusable.kind == "newer" else "pair the devices again")
    return (f"{path}: the database of devices {unusable}; it was kept as {target.name} "
            f"and an empty one took its place: {advice}")


def _set_aside_companions(path: Path) -> None:
    """Keep a log without its database from being replayed into a new one."""
    companions = [path.with_name(path.name + suffix) for suffix in _COMPANIONS]
    target = _new_name(path, "orphan")
    for companion, suffix in zip(companions, _COMPANIONS, strict=True):
        if companion.exists():
            companion.rename(target.with_name(target.name + suffix))


def _new_name(path: Path, kind: str) -> Path:
    """Return a name beside the database's under which nothing was kept yet."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    names = (path.with_name(f"{path.name}.{kind}-{stamp}" + (f"-{n}" if n else "")) for n in range(1000))
    return next(name for name in names
                if not any(name.with_name(name.name + suffix).exists() for suffix in ("", *_COMPANIONS)))


def _kept_files(path: Path) -> list[Path]:
    """Find what was set aside here and still lies there, oldest first: databases, and logs without one."""
    kept = []
    for file in path.parent.glob(f"{path.name}.*"):
        name = file.name.removeprefix(f"{path.name}.")
        # Of a log without its database the index is of no interest, nor is the log itself when it is empty.
        orphan = name.removesuffix("-wal").removesuffix("-journal")
        if _KEPT.fullmatch(name) or (orphan != name and orphan.startswith("orphan-") and _KEPT.fullmatch(orphan)
                                     and file.stat().st_size > 0):
            kept.append((orphan.partition("-")[2], file))
    return [file for _, file in sorted(kept)]


def _kept(path: Path) -> tuple[str, ...]:
    """Return a sentence about each of the newest files that were set aside."""
    return tuple(_about(path, file) for file in reversed(_kept_files(path)[-_MOST_NOTICES:]))


def _about(path: Path, file: Path) -> str:
    match file.name.removeprefix(f"{path.name}.").partition("-")[0]:
        case "newer":
            what, advice = "an earlier database of devices, of a newer hotpind,", "update hotpind and rename it back"
        case "damaged":
            what, advice = "an earlier database of devices, which was damaged,", "pair its devices again"
        case _:
            what, advice = "the log of a database of devices that was missing", "pair the devices again"
    return f"{path}: {what} is kept as {file.name}: {advice}, and delete that file when it is not needed any more"


def _named(notice: str) -> str:
    """Return the file's name in a sentence of `_about`."""
    return notice.partition(" is kept as ")[2].partition(":")[0]


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    row: Iterable[int] = connection.execute(f"PRAGMA {name}").fetchone()
    return next(iter(row))


def _words(error: sqlite3.Error | OSError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
