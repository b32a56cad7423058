"""A pure model of how a pin plays an answer: its 512 KiB buffer, its decoder, and what can go wrong there.

The rules are those that pins in the field follow (docs/protocol.md). Time is passed in, in seconds of any
clock that never goes back.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass

from hotpind.speech.audio import HEADER_BYTES, SAMPLE_BYTES, UNKNOWN_DATA_BYTES

BUFFER_BYTES = 512 * 1024
FULL_WAIT_S = 1.0
"""A frame that finds the buffer full for this long is dropped for good."""
HEADER_WAIT_S = 5.0
"""The decoder, started by the tts stage, waits this long for the WAV header."""
HOLE_S = 0.001
"""Shorter holes cannot be told from the clock's own noise, and the sound hardware's buffer bridges them."""
GAP_S = 10.0
"""The decoder ends when no audio came for this long."""

_WRAP = 1 << 32
_LOWEST_RATE, _HIGHEST_RATE = 8_000, 48_000
_LATER_HEADER = 12
"""Bytes of "RIFF", a size and "WAVE", by which a second header is known."""


@dataclass(frozen=True, slots=True)
class Underrun:
    """A hole in the sound: the buffer ran dry although more was to come."""

    at_s: float
    """Seconds of sound that had been played before it."""
    duration_s: float


@dataclass(frozen=True, slots=True)
class PlaybackReport:
    """What became of one answer in the pin."""

    sample_rate: int
    """Hertz; 0 when no header could be read."""
    data_size: int | None
    """Bytes of samples that the header promised."""
    received_bytes: int
    """Bytes of samples that reached the buffer."""
    received_s: float
    """The same in seconds of sound."""
    most_ahead_s: float
    """Most sound ever waiting in the buffer, in seconds."""
    longest_gap_s: float
    """Longest time between two audio frames."""
    underruns: tuple[Underrun, ...]
    dropped_frames: int
    """Frames lost because the buffer was full."""
    dropped_bytes: int
    cut_bytes: int
    """Bytes lost because the header's size made the decoder end early."""
    ended: bool
    """The zero-length frame came."""
    faults: tuple[str, ...]
    """One sentence for each breach of the protocol; an underrun or overflow is one."""

    @property
    def underrun_s(self) -> float:
        """All holes together, in seconds."""
        return sum(hole.duration_s for hole in self.underruns)


class Playback:
    """Plays one answer. Feed it in order of time; ask for `report` at the end."""

    def __init__(self, started_at: float, *, capacity: int = BUFFER_BYTES) -> None:
        """Start the decoder, as the tts stage does; ``capacity`` is the buffer's size in bytes."""
        self._started_at = started_at
        self._capacity = capacity
        self._now = started_at
        self._head = bytearray()
        self._tail = b""
        self._rate = 0
        self._data_size: int | None = None
        self._level = 0.0
        self._dry_since: float | None = None
        self._begun = False
        self._last_frame_at: float | None = None
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._total = 0
        self._finished_by_size = False
        self._ended = False
        self._most_ahead_s = 0.0
        self._longest_gap_s = 0.0
        self._played = 0.0
        self._underruns: list[Underrun] = []
        self._dropped_frames = 0
        self._dropped_bytes = 0
        self._cut_bytes = 0
        self._faults: list[str] = []

    @property
    def begun(self) -> bool:
        """Some sound came, be it only a part of the header."""
        return self._begun

    @property
    def ended(self) -> bool:
        """The zero-length frame came."""
        return self._ended

    @property
    def last_frame_at(self) -> float | None:
        """When the last binary frame came, the zero-length one included."""
        return self._last_frame_at

    @property
    def plays_until(self) -> float:
        """When the sound that has arrived will have been played."""
        if not self._rate:
            return self._now
        waiting = sum(len(data) for _, data in self._waiting)
        return self._now + (self._level + waiting) / self._byte_rate

    @property
    def sample_rate(self) -> int:
        """Hertz; 0 as long as no header was read."""
        return self._rate

    def frame(self, at: float, data: bytes) -> None:
        """Take a binary frame at time ``at``; an empty one ends the audio."""
        self._advance(at)
        self._time_frame(at)
        self._begun = self._begun or bool(data)
        if self._ended:
            self._fault("Audio came after the zero-length frame that ends it.")
        elif not data:
            self._ended = True
            if len(self._head) < HEADER_BYTES:
                self._fault("The audio ended before its WAV header was complete.")
        elif self._waiting or self._level + len(data) > self._capacity:
            self._waiting.append((at, data))
        else:
            self._admit(at, data)

    def report(self, at: float) -> PlaybackReport:
        """Sum up, with the turn over at time ``at``; what still waits for room is played or lost by then."""
        self._advance(max(at, self._waiting[-1][0] + FULL_WAIT_S) if self._waiting else at)
        faults = list(self._faults)
        if not self._begun and not self._ended:
            faults.append("No audio came after the tts stage.")
        elif not self._ended:
            faults.append("The zero-length frame that ends the audio is missing.")
        faults += [f"The sound stopped for {hole.duration_s * 1000:.0f} ms after {hole.at_s:.2f} s."
                   for hole in self._underruns]
        if self._dropped_frames:
            faults.append(f"The playback buffer was full for {FULL_WAIT_S:.0f} s: {self._dropped_frames} "
                          f"frames ({self._dropped_bytes} bytes) were dropped.")
        if self._cut_bytes:
            faults.append(f"The header's size ended playback early: {self._cut_bytes} bytes were not played.")
        faults += self._size_faults()
        return PlaybackReport(
            sample_rate=self._rate, data_size=self._data_size, received_bytes=self._samples_total,
            received_s=self._samples_total / self._byte_rate if self._rate else 0.0,
            most_ahead_s=self._most_ahead_s, longest_gap_s=self._longest_gap_s,
            underruns=tuple(self._underruns), dropped_frames=self._dropped_frames,
            dropped_bytes=self._dropped_bytes, cut_bytes=self._cut_bytes, ended=self._ended,
            faults=tuple(faults))

    @property
    def _byte_rate(self) -> int:
        return self._rate * SAMPLE_BYTES

    @property
    def _samples_total(self) -> int:
        return max(0, self._total - HEADER_BYTES)

    def _fault(self, sentence: str) -> None:
        if sentence not in self._faults:
            self._faults.append(sentence)

    def _time_frame(self, at: float) -> None:
        if self._last_frame_at is None:
            waited = at - self._started_at
            if waited > HEADER_WAIT_S:
                self._fault(f"The WAV header came {waited:.1f} s after the tts stage, "
                            f"later than {HEADER_WAIT_S:.0f} s.")
        else:
            gap = at - self._last_frame_at
            self._longest_gap_s = max(self._longest_gap_s, gap)
            if gap > GAP_S:
                self._fault(f"No audio came for {gap:.1f} s, longer than {GAP_S:.0f} s.")
        self._last_frame_at = at

    def _advance(self, to: float) -> None:
        """Play up to time ``to``; waiting frames go in as room is made, or are lost after too long."""
        while self._waiting:
            arrived, data = self._waiting[0]
            excess = self._level + len(data) - self._capacity
            room_at = self._now + max(0.0, excess) / self._byte_rate if self._rate else float("inf")
            deadline = arrived + FULL_WAIT_S
            if room_at <= min(to, deadline):
                self._waiting.popleft()
                self._drain(room_at)
                self._admit(room_at, data)
            elif deadline <= to:
                self._waiting.popleft()
                self._drain(deadline)
                self._dropped_frames += 1
                self._dropped_bytes += len(data)
            else:
                break
        self._drain(to)

    def _drain(self, to: float) -> None:
        if to <= self._now:
            return
        played = min(self._level, (to - self._now) * self._byte_rate)
        if self._rate and self._dry_since is None and played == self._level:
            self._dry_since = self._now + self._level / self._byte_rate
        self._level -= played
        self._played += played
        self._now = to

    def _admit(self, at: float, data: bytes) -> None:
        """Put a frame into the buffer: the decoder takes the header at once, the samples at their rate."""
        if self._finished_by_size:
            self._cut_bytes += len(data)
            return
        self._total += len(data)
        if len(self._head) < HEADER_BYTES:
            missing = HEADER_BYTES - len(self._head)
            self._head += data[:missing]
            data = data[missing:]
            if len(self._head) == HEADER_BYTES:
                self._read_header()
        self._look_for_header(data)
        if data and self._dry_since is not None:
            if at - self._dry_since >= HOLE_S and self._played:
                self._underruns.append(Underrun(self._played / self._byte_rate, at - self._dry_since))
            self._dry_since = None
        self._level += len(data)
        if self._rate:
            self._most_ahead_s = max(self._most_ahead_s, self._level / self._byte_rate)
        if self._data_size is not None and self._total >= (self._data_size + HEADER_BYTES) % _WRAP:
            self._finished_by_size = True

    def _read_header(self) -> None:
        riff, riff_size, wave, fmt, fmt_size = struct.unpack_from("<4sI4s4sI", self._head)
        code, channels, rate, byte_rate, align, bits = struct.unpack_from("<HHIIHH", self._head, 20)
        mark, size = struct.unpack_from("<4sI", self._head, 36)
        if (riff, wave, fmt, fmt_size, mark) != (b"RIFF", b"WAVE", b"fmt ", 16, b"data"):
            self._fault("The audio does not begin with a 44-byte RIFF/WAVE header.")
            return
        if (code, channels, bits) != (1, 1, 16):
            self._fault(f"The WAV header says format {code}, {channels} channels, {bits} bits; "
                        "a pin plays format 1, one channel, 16 bits.")
        if not _LOWEST_RATE <= rate <= _HIGHEST_RATE:
            self._fault(f"The WAV header says {rate} Hz, which a pin cannot play.")
            return
        if (byte_rate, align) != (rate * SAMPLE_BYTES, SAMPLE_BYTES):
            self._fault("The WAV header's byte rate or block size does not fit its sample rate.")
        if riff_size != (size + HEADER_BYTES - 8) % _WRAP:
            self._fault("The WAV header's RIFF size does not fit its data size.")
        self._rate, self._data_size = rate, size

    def _look_for_header(self, data: bytes) -> None:
        window = self._tail + data
        found = window.find(b"RIFF")
        while found >= 0:
            if window[found + 8:found + _LATER_HEADER] == b"WAVE":
                self._fault("A second WAV header came in the middle of the audio and is played as noise.")
            found = window.find(b"RIFF", found + 1)
        self._tail = window[-(_LATER_HEADER - 1):]

    def _size_faults(self) -> list[str]:
        if self._data_size is None:
            return []
        faults = []
        if self._data_size + HEADER_BYTES >= _WRAP:
            faults.append(f"The header's data size 0x{self._data_size:08X} wraps when a pin adds 44 to it.")
        came = self._samples_total + self._dropped_bytes + self._cut_bytes
        if self._data_size < UNKNOWN_DATA_BYTES and self._ended and came != self._data_size:
            faults.append(f"The header promised {self._data_size} bytes of samples, but {came} came.")
        if self._ended and came % SAMPLE_BYTES:
            faults.append("The audio ended in the middle of a sample.")
        return faults
