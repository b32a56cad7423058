"""Server-sent events as chat services send them, read with bounds and without trust.

The format is the WHATWG HTML standard's "Server-sent events": lines ended by CR LF, LF or CR, fields ``name:
value``, an empty line after each event. Chat services use ``data`` fields that hold one JSON object each, and
close with ``data: [DONE]``. Servers that leave out the empty lines, or that answer a request for a stream
with one plain JSON document, are understood as well.
"""

from __future__ import annotations

import json
from typing import Any

from hotpind.errors import BadAnswer

MAX_LINE_BYTES = 256 * 1024
"""An event carries one token and some statistics, a few hundred bytes; a whole unstreamed answer fits too."""
MAX_TOTAL_BYTES = 4 * 1024 * 1024
"""The longest answer that can be asked for (8192 tokens) is under 3 MB of events."""


class EventReader:
    """Takes bytes as they arrive and gives the JSON objects in them; `done` once the closing mark was
    seen.
    """

    def __init__(self, *, max_line: int = MAX_LINE_BYTES, max_total: int = MAX_TOTAL_BYTES) -> None:
        self.done = False
        self._max_line = max_line
        self._max_total = max_total
        self._total = 0
        self._line = bytearray()
        self._after_cr = False
        self._data: list[str] = []
        self._held = 0
        self._document: list[str] | None = None
        self._seen_any = False

    def feed(self, chunk: bytes) -> list[dict[str, Any]]:
        """Take the next bytes and return the events completed by them.

        Raises `BadAnswer` when a bound is passed or the text is not JSON.
        """
        self._total += len(chunk)
        if self._total > self._max_total:
            raise BadAnswer(f"the answer is longer than {self._max_total} bytes, which no chat answer is")
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        if chunk:
            self._after_cr = chunk.endswith(b"\r")
        lines = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        events: list[dict[str, Any]] = []
        for part in lines[:-1]:
            events += self._take(part, ended=True)
        self._take(lines[-1], ended=False)
        return events

    def finish(self) -> list[dict[str, Any]]:
        """Take the end of the body and return what was still incomplete.

        Raises `BadAnswer` when that is not JSON.
        """
        events = self._take(b"", ended=True) if self._line else []
        if self._document is not None:
            text, self._document = "\n".join(self._document), None
            return [*events, _parsed(text)]
        return events + self._flush()

    def _take(self, part: bytes, *, ended: bool) -> list[dict[str, Any]]:
        self._line += part
        if len(self._line) > self._max_line:
            raise BadAnswer(f"a line of the answer is longer than {self._max_line} bytes")
        if not ended:
            return []
        line = self._line.decode("utf-8", "replace")
        self._line.clear()
        return self._read(line)

    def _read(self, line: str) -> list[dict[str, Any]]:
        if self.done:
            return []
        if not self._seen_any:
            line = line.removeprefix("\ufeff")
            if line.lstrip().startswith("{"):
                self._document = []
            self._seen_any = bool(line.strip())
        if self._document is not None:
            self._hold(self._document, line)
            return []
        if not line:
            return self._flush()
        name, _, value = line.partition(":")
        if name != "data":
            return []
        value = value.removeprefix(" ")
        if value.strip() == "[DONE]":
            events = self._flush()
            self.done = True
            return events
        self._hold(self._data, value)
        # One object to a line is the rule, so an event need not wait for its empty line.
        if len(self._data) == 1 and value.endswith("}"):
            try:
                event = _parsed("\n".join(self._data))
            except BadAnswer:
                return []
            self._clear()
            return [event]
        return []

    def _hold(self, lines: list[str], line: str) -> None:
        self._held += len(line) + 1
        if self._held > self._max_line:
            raise BadAnswer(f"an event of the answer is longer than {self._max_line} bytes")
        lines.append(line)

    def _flush(self) -> list[dict[str, Any]]:
        text = "\n".join(self._data)
        self._clear()
        return [_parsed(text)] if text.strip() else []

    def _clear(self) -> None:
        self._data.clear()
        self._held = 0


def _parsed(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise BadAnswer("the answer's stream is malformed: an event is not JSON") from None
    if not isinstance(value, dict):
        raise BadAnswer("the answer's stream is malformed: an event is not a JSON object")
    return value
