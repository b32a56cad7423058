"""The devices that may talk, for the event loop.

Reads come from memory; every change is on disk before it returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import secrets
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from hotpind.devices.database import DeviceDatabase, Row
from hotpind.devices.device import TOKEN_BYTES, Description, Device, hash_token
from hotpind.errors import DeviceError, StateError

DATABASE_NAME = "devices.sqlite3"
MOST_DEVICES = 1000
SEEN_INTERVAL = 600.0
"""Seconds between writes of when devices were last seen; it spares SD cards and nobody needs it sharper."""
LOOK_INTERVAL = 60.0
"""Seconds between looks at which devices are connected: so sharp is the time of a device that left."""
WRITE_DEADLINE = 10.0
"""Seconds a change may take; an SD card that is dying takes longer, and the request must not hang with it."""

_LOGGER = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _View:
    """An immutable picture of the table; replaced as a whole after each change."""

    devices: MappingProxyType[str, Device]
    tokens: MappingProxyType[bytes, tuple[bytes, str]]
    ever_paired: bool


class DeviceRegistry:
    """The registered devices.

    Made with `open`. All methods belong to the event loop that opened it.
    """

    def __init__(self, database: DeviceDatabase, executor: ThreadPoolExecutor, view: _View,
                 clock: Callable[[], float], new_token: Callable[[], str]) -> None:
        self._database = database
        self._executor = executor
        self._view = view
        self._clock = clock
        self._new_token = new_token
        self._loop = asyncio.get_running_loop()
        self._seen: dict[str, float] = {}
        self._unwritten: set[str] = set()
        self._listeners: list[Callable[[str], None]] = []
        self.connected: Callable[[], Iterable[str]] = tuple
        """Gives the ids that are connected now: a device may stay for days after it showed its token."""
        self._writer = asyncio.create_task(self._write_seen(), name="devices: last seen")
        self.notices = database.notices
        """Sentences for the status: what had to be set aside when the registry was opened."""

    @classmethod
    async def open(cls, directory: Path, *, clock: Callable[[], float] = time.time,
                   new_token: Callable[[], str] = lambda: secrets.token_hex(TOKEN_BYTES)) -> DeviceRegistry:
        """Open or make the registry in the state directory.

        A damaged or newer database is renamed, logged and named in `notices`. Raises `StateError`.
        """
        executor = ThreadPoolExecutor(1, thread_name_prefix="devices")

        def open_and_read() -> tuple[DeviceDatabase, _View]:
            database = DeviceDatabase.open(directory / DATABASE_NAME)
            return database, _read(database)

        try:
            database, view = await asyncio.get_running_loop().run_in_executor(executor, open_and_read)
        except BaseException:
            executor.shutdown(wait=False)
            raise
        for notice in database.notices:
            _LOGGER.error("%s", notice)
        return cls(database, executor, view, clock, new_token)

    async def close(self) -> None:
        """Write what is outstanding and close the file."""
        self._see_connected()
        self._writer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._writer
        try:
            await self._flush_seen()
            await self._run(self._database.close)
        except StateError as error:
            _LOGGER.warning("%s", error)
        self._executor.shutdown(wait=False)

    def devices(self) -> tuple[Device, ...]:
        """Every device, oldest first."""
        return tuple(self._dated(device) for device in self._view.devices.values())

    @property
    def ever_paired(self) -> bool:
        """Whether the appliance has, or once had, a device; true as well after a database was set aside."""
        return self._view.ever_paired

    @property
    def ids(self) -> Collection[str]:
        """The ids of all devices."""
        return self._view.devices.keys()

    def authenticate(self, token: str) -> Device | None:
        """Return the device whose token this is. Costs no disk access."""
        given = hash_token(token)
        stored, device_id = self._view.tokens.get(given, (bytes(len(given)), ""))
        return self._view.devices.get(device_id) if hmac.compare_digest(given, stored) else None

    def seen(self, device_id: str) -> None:
        """Note that the device talked just now; written some minutes later."""
        if device_id in self._view.devices:
            self._seen[device_id] = self._clock()
            self._unwritten.add(device_id)

    def on_token_ended(self, listener: Callable[[str], None]) -> None:
        """Call ``listener(device_id)`` when a device's token stops being valid (revoked or replaced).

        It is called on the event loop as soon as the change is on disk, to close the device's connections.
        """
        self._listeners.append(listener)

    async def add(self, description: Description, *, named: bool = False) -> str:
        """Register a device, or give one that is known a new token; return the token, which is kept nowhere.

        ``named``: its name comes from a person, and so stays when the device asks under another one.
        Raises `DeviceError` (507) when there are too many devices, `StateError` when it cannot be stored.
        """
        if description.device_id not in self._view.devices and len(self._view.devices) >= MOST_DEVICES:
            raise DeviceError(f"there are already {MOST_DEVICES} devices; revoke some first", status=507)
        token = self._new_token()
        token_hash = hash_token(token)

        def put() -> None:
            known = description.device_id in self._view.devices
            self._database.put(description, token_hash, self._clock(), named=named)
            self._refresh()
            if known:
                self._announce_end(description.device_id)

        await self._run(put)
        return token

    async def rename(self, device_id: str, name: str) -> None:
        """Change the name shown to people. Raises `DeviceError` (404) for an unknown id, `StateError`."""
        def rename() -> bool:
            found = self._database.rename(device_id, name)
            self._refresh()
            return found

        if not await self._run(rename):
            raise _unknown(device_id)

    async def revoke(self, device_id: str) -> None:
        """Forget a device and its token. Raises `DeviceError` (404) for an unknown id, `StateError`."""
        def revoke() -> bool:
            found = self._database.delete(device_id)
            self._refresh()
            if found:
                self._announce_end(device_id)
            return found

        if not await self._run(revoke):
            raise _unknown(device_id)

    def _dated(self, device: Device) -> Device:
        seen = self._seen.get(device.id)
        return device if seen is None else replace(device, last_seen=seen)

    def _refresh(self) -> None:
        self._view = _read(self._database)

    def _announce_end(self, device_id: str) -> None:
        # From the worker thread, so that it happens even when the request that asked for it was cancelled.
        # A closed loop means that nobody is connected any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._tell_end, device_id)

    def _tell_end(self, device_id: str) -> None:
        self._seen.pop(device_id, None)
        self._unwritten.discard(device_id)
        for listener in self._listeners:
            listener(device_id)

    async def _run(self, work: Callable[[], _T]) -> _T:
        """Run ``work`` on the thread that owns the database; it finishes even if the caller is cancelled."""
        future = self._loop.run_in_executor(self._executor, work)
        # Keeps asyncio from reporting a failure that nobody waits for any more.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            async with asyncio.timeout(WRITE_DEADLINE):
                return await asyncio.shield(future)
        except TimeoutError:
            raise StateError(f"the database of devices did not answer within {WRITE_DEADLINE:.0f} s; "
                             "check the disk that holds the state directory") from None
        except sqlite3.Error as error:
            raise StateError(f"the database of devices could not be written ({error}); "
                             "check the space and health of the disk with the state directory") from None

    async def _write_seen(self) -> None:
        written = self._loop.time()
        while True:
            await asyncio.sleep(min(LOOK_INTERVAL, SEEN_INTERVAL))
            self._see_connected()
            if self._loop.time() - written < SEEN_INTERVAL:
                continue
            written = self._loop.time()
            try:
                await self._flush_seen()
            except StateError as error:
                _LOGGER.warning("%s", error)

    def _see_connected(self) -> None:
        for device_id in self.connected():
            self.seen(device_id)

    async def _flush_seen(self) -> None:
        times = {device_id: self._seen[device_id] for device_id in self._unwritten}
        if times:
            await self._run(lambda: self._database.seen(times))
            self._unwritten -= {known for known, when in times.items() if self._seen.get(known) == when}


def _read(database: DeviceDatabase) -> _View:
    rows: Iterable[Row] = database.rows()
    devices: dict[str, Device] = {}
    tokens: dict[bytes, tuple[bytes, str]] = {}
    for row in rows:
        known = row.description
        devices[known.device_id] = Device(known.device_id, known.name, known.model, known.firmware,
                                          row.created, row.last_seen)
        tokens[row.token_hash] = (row.token_hash, known.device_id)
    return _View(MappingProxyType(devices), MappingProxyType(tokens), database.ever_paired())


def _unknown(device_id: str) -> DeviceError:
    return DeviceError(f"there is no device {device_id!r}; `hotpinctl devices list` shows the ones there are",
                       status=404)
