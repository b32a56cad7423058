"""The log: structured fields in the journal, readable lines on a terminal, never both.

Messages pass through a bounded queue to a thread of their own, so that neither a journal that is stuck nor a
terminal that is held stops the event loop. Only the appliance's own loggers follow ``log.level``: at their
debug level, HTTP and model libraries write whole requests, and with them what people said.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import queue
import sys
import threading
from collections.abc import Mapping
from logging.handlers import QueueHandler
from typing import Any, TextIO

FIELD_TURN = "HOTPIN_TURN"
FIELD_DEVICE = "HOTPIN_DEVICE"
FIELD_STAGE = "HOTPIN_STAGE"
TURN_STAGE = "turn"
"""Value of the stage field of the one line that each turn leaves."""
FIELD_PREFIX = "HOTPIN_"

QUEUE_LENGTH = 1000
"""Messages that wait for a journal that does not take them; further ones are dropped and counted."""

CLOSE_S = 2.0
"""Seconds that the last messages get at exit."""

_COLOURS = {logging.DEBUG: "\033[2m", logging.WARNING: "\033[33m", logging.ERROR: "\033[31m",
            logging.CRITICAL: "\033[1;31m"}
_RESET = "\033[0m"
_KEPT_FIELDS = frozenset({"PRIORITY", "LOGGER", "SYSLOG_IDENTIFIER", "CODE_FILE", "CODE_LINE", "CODE_FUNC"})


def fields(*, turn: str = "", device: str = "", stage: str = "", **more: object) -> dict[str, str]:
    """Make the ``extra=`` of a log call; ``more`` become fields too (``stt_ms=120`` is HOTPIN_STT_MS)."""
    named = {FIELD_TURN: turn, FIELD_DEVICE: device, FIELD_STAGE: stage}
    named.update({f"{FIELD_PREFIX}{key.upper()}": str(value) for key, value in more.items()})
    return {name: value for name, value in named.items() if value}


def on_journal(stderr: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether standard error is a stream of the journal.

    $JOURNAL_STREAM is that stream's device and inode, see systemd.exec(5).
    """
    try:
        stat = os.fstat(stderr.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"


class Log:
    """Where this process's messages go, from its making until `close`."""

    def __init__(self, level: str, *, stderr: TextIO | None = None,
                 environ: Mapping[str, str] = os.environ) -> None:
        """Send messages to the journal when standard error goes there, else to standard error.

        ``level`` is "debug", "info", "warning" or "error".
        """
        self._messages: queue.Queue[Any] = queue.Queue(QUEUE_LENGTH)
        self._handler = _Enqueue(self._messages)
        self._target = _make_target(stderr or sys.stderr, environ)
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        root = logging.getLogger()
        root.handlers[:] = [self._handler]
        root.setLevel(logging.WARNING)
        logging.captureWarnings(True)
        self.set_level(level)
        self._thread.start()
        atexit.register(self.close)

    def set_level(self, level: str) -> None:
        """Change the least severe message of the appliance that is written."""
        logging.getLogger("hotpind").setLevel(level.upper())

    def close(self) -> None:
        """Write what still waits, for two seconds at most, and end; later messages are lost."""
        atexit.unregister(self.close)
        logging.getLogger().removeHandler(self._handler)
        with contextlib.suppress(queue.Full):  # then nothing is being written, and waiting would not help
            self._messages.put_nowait(None)
            self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            # It is stuck in a write and holds the lock that logging's own exit handler would wait for.
            self._target.createLock()

    def _write(self) -> None:
        while (record := self._messages.get()) is not None:
            self._target.handle(record)


class _Enqueue(QueueHandler):
    """Puts messages into the queue; counts those that found it full and says so once there is room."""

    def __init__(self, messages: queue.Queue[Any]) -> None:
        super().__init__(messages)
        self._lost = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            if self._lost:
                text = f"{self._lost} messages were lost because the log took none"
                note = logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, None, None)
                self.queue.put_nowait(self.prepare(note))
                self._lost = 0
            self.queue.put_nowait(record)
        except queue.Full:
            self._lost += 1


def _make_target(stderr: TextIO, environ: Mapping[str, str]) -> logging.Handler:
    if on_journal(stderr, environ):
        try:
            from systemd import daemon, journal
        except ImportError:
            # Lines of a stream of the journal may begin with their priority (sd-daemon(3)).
            return _Descriptor(stderr.fileno(), _Prefixed())
        # Without a running journald the handler would lose every message silently.
        if daemon.booted():
            return _journal_handler(journal)
    return _Descriptor(stderr.fileno(), _Readable(colour=stderr.isatty() and "NO_COLOR" not in environ))


class _Descriptor(logging.Handler):
    """Writes lines to a file descriptor: sys.stderr's own locks would stop the exit of a stuck process."""

    def __init__(self, descriptor: int, formatter: logging.Formatter) -> None:
        super().__init__()
        self._descriptor = descriptor
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        left = memoryview(f"{self.format(record)}\n".encode(errors="replace"))
        with contextlib.suppress(OSError):  # nobody reads any more, and there is nowhere else to say so
            while left:
                left = left[os.write(self._descriptor, left):]


def _journal_handler(journal: Any) -> logging.Handler:
    def send(message: str, /, **values: object) -> None:
        # The handler offers every attribute of the record; kept are the standard fields and ours.
        kept = {name: value for name, value in values.items()
                if name in _KEPT_FIELDS or name.startswith(FIELD_PREFIX)}
        journal.send(message, **kept)

    handler: logging.Handler = journal.JournalHandler(sender_function=send, SYSLOG_IDENTIFIER="hotpind")
    return handler


class _Readable(logging.Formatter):
    """``12:30:05 warning engines: message [turn 4f device kitchen]``, coloured by severity on a terminal."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__("%(asctime)s %(level)s %(room)s: %(message)s", "%H:%M:%S")
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        record.level = record.levelname.lower()
        record.room = record.name.removeprefix("hotpind.")
        line = super().format(record)
        about = [f"{name.removeprefix(FIELD_PREFIX).lower()} {value}"
                 for name in (FIELD_TURN, FIELD_DEVICE, FIELD_STAGE) if (value := record.__dict__.get(name))]
        if about:
            line += f" [{', '.join(about)}]"
        colour = _COLOURS.get(record.levelno) if self._colour else None
        return f"{colour}{line}{_RESET}" if colour else line


class _Prefixed(logging.Formatter):
    """Each line with its syslog priority in angle brackets."""

    _PRIORITIES = ((logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3))

    def format(self, record: logging.LogRecord) -> str:
        priority = next((number for level, number in self._PRIORITIES if record.levelno <= level), 2)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())
