from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hotpind.bench.recordings import TEST_DATA, recordings, with_room_silence
from hotpind.config import Config
from hotpind.errors import HotpinError
from hotpind.pin.room import ROOM_NOISE
from tests.wav import write_wav


def wav(path: Path, seconds: float, rate: int = 16_000) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(write_wav(np.arange(round(seconds * rate)).astype(np.int16), rate))
    return path


def test_files_that_were_named_are_taken_as_they_are(tmp_path: Path) -> None:
    long, short = wav(tmp_path / "long.wav", 12), wav(tmp_path / "short.wav", 0.5, 8_000)
    found = recordings([long, short], Config())
    assert [(each.name, each.seconds) for each in found] == [("long", 12), ("short", 0.5)]


def test_of_the_test_data_what_is_as_long_as_a_question(tmp_path: Path) -> None:
    for name, seconds in (("a", 0.9), ("b", 2.5), ("c", 6.5), ("d", 11.0)):
        wav(tmp_path / "cards" / f"{name}.wav", seconds)
    assert [each.name for each in recordings([], Config(), test_data=tmp_path)] == ["b", "c"]


@pytest.mark.skipif(not TEST_DATA.is_dir(), reason="needs Debian's pocketsphinx-testdata")
def test_debians_recordings_are_found() -> None:
    found = recordings([], Config())
    assert len(found) >= 5
    assert all(1.8 <= each.seconds <= 7.5 for each in found)
    assert len({each.name for each in found}) == len(found)


def test_an_empty_recording_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HotpinError, match="no sound in it"):
        recordings([wav(tmp_path / "empty.wav", 0)], Config())


def test_the_room_is_quiet_and_always_the_same() -> None:
    sound = with_room_silence(b"\1\0" * 100, 0.4)
    assert sound == with_room_silence(b"\1\0" * 100, 0.4)
    assert len(sound) == 200 + 12_800
    room = np.frombuffer(sound[200:], "<i2")
    assert ROOM_NOISE / 2 < room.std() < ROOM_NOISE * 2
    assert with_room_silence(b"\1\0", 0) == b"\1\0"
