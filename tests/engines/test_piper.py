"""The voice, with its real model: it speaks in pieces without seams, and stops when nobody wants it any more."""

from __future__ import annotations

import itertools
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from hotpind.config import Config
from hotpind.engines import prepared as prepared_voices
from hotpind.engines import speaker
from hotpind.engines import voice as voices
from hotpind.engines.child import stay_on
from hotpind.engines.onnx_cut import cut
from hotpind.engines.prepared import FACTS, FRAMES, SOUND, Shelf
from hotpind.engines.speaker import (
    LARGEST_FRAMES,
    QUICK,
    SLOW,
    STEADY,
    Pieces,
    Sound,
    Speaker,
    Steps,
    latents_of,
    peak_of,
    steps_for,
)
from hotpind.engines.voice import ALIKE, NEIGHBOURS, WARM_UP, load, recipe
from hotpind.errors import ModelFileError
from hotpind.models.catalogue import Role
from hotpind.models.store import ModelStore
from tests.places import models_path

pytestmark = pytest.mark.models

LONG = "It goes on and on and on, without a full stop anywhere, " * 12 + "until here."
SENTENCE = "The sky is blue because of the way that light is scattered."


def model() -> Path:
    return ModelStore(models_path()).resolve(Config().tts.voice, Role.TTS).main


@pytest.fixture(scope="module")
def voice() -> Speaker:
    return load(model(), 2)


@pytest.fixture(scope="module")
def pieces(voice: Speaker) -> Pieces:
    assert voice._pieces is not None, "the default voice can be cut"
    return voice._pieces


def spoken(voice: Speaker, text: str, gone: threading.Event | None = None) -> int:
    return sum(len(audio) for audio in voice.speak(text, gone or threading.Event()))


def samples(voice: Speaker, text: str) -> list[Sound]:
    return [np.frombuffer(piece, "<i2").astype(np.float32) for piece in voice.speak(text, threading.Event())]


def latents(voice: Speaker, text: str) -> Sound:
    return latents_of(voice._voice.phoneme_ids_to_audio(
        voice._voice.phonemes_to_ids(voice._voice.phonemize(text)[0]), voice._style))


def test_a_voice_that_uses_all_cores_has_a_thread_on_each() -> None:
    def allowed() -> dict[str, set[int]]:
        return {each.name: os.sched_getaffinity(int(each.name)) for each in Path("/proc/self/task").iterdir()}

    cores = sorted(os.sched_getaffinity(os.getpid()))
    before = allowed()
    everywhere = load(model(), len(cores))
    bound = [each for thread, each in allowed().items() if thread not in before and each != set(cores)]
    assert sorted(bound, key=min) == sorted([{core} for core in cores[1:]] * 2, key=min), "two halves of a voice"
    before = allowed()
    alone = load(model(), 1)
    assert all(each == set(cores) for thread, each in allowed().items() if thread not in before)
    assert spoken(everywhere, SENTENCE)
    assert spoken(alone, SENTENCE)


def test_a_thread_stays_on_its_core() -> None:
    first = min(os.sched_getaffinity(os.getpid()))
    with ThreadPoolExecutor(1, initializer=stay_on, initargs=([first],)) as worker:
        assert worker.submit(os.sched_getaffinity, 0).result() == {first}
    with ThreadPoolExecutor(1, initializer=stay_on, initargs=([],)) as worker:
        assert worker.submit(os.sched_getaffinity, 0).result() == os.sched_getaffinity(os.getpid())


@pytest.mark.parametrize("text", ["Yes.", SENTENCE, LONG])
@pytest.mark.parametrize("steps", [QUICK, STEADY, SLOW])
def test_pieces_are_what_the_whole_would_be(voice: Speaker, pieces: Pieces, text: str, steps: Steps) -> None:
    frames = latents(voice, text)
    alone = replace(pieces, steps=steps)
    parts = list(alone.of(frames))
    whole = pieces.sound(frames)
    assert sum(map(len, parts)) == len(whole) == frames.shape[-1] * pieces.hop
    assert peak_of(np.concatenate(parts) - whole) <= 2 * ALIKE
    lengths = [len(part) // pieces.hop for part in parts]
    assert max(lengths) < LARGEST_FRAMES + steps.first
    if len(lengths) > 1:
        assert lengths[0] == steps.first
        assert all(later <= steps.growth * earlier + steps.first for earlier, later in itertools.pairwise(lengths))


def test_a_seam_would_be_noticed(voice: Speaker, pieces: Pieces) -> None:
    frames = latents(voice, SENTENCE)
    assert peak_of(np.concatenate(list(replace(pieces, neighbours=0).of(frames))) - pieces.sound(frames)) > 0.02


def test_the_first_piece_is_short_and_comes_alone(voice: Speaker, pieces: Pieces) -> None:
    assert pieces.steps in {QUICK, STEADY}
    first, *others = samples(voice, SENTENCE)
    assert len(first) == pieces.steps.first * pieces.hop
    assert others
    assert sum(map(len, others)) > len(first)


@pytest.mark.parametrize(("seconds", "steps"), [(0.0, QUICK), (1000.0, SLOW)])
def test_how_large_pieces_are_is_the_machines_to_say(seconds: float, steps: Steps) -> None:
    ticks = itertools.count(step=seconds)
    measured = load(model(), 2, cpu_clock=lambda: next(ticks))
    assert measured._pieces is not None
    assert measured._pieces.steps == steps
    assert spoken(measured, SENTENCE) > 20_000


@pytest.mark.parametrize("share", [0.02, 0.12, 0.13, 0.3, 0.32])
def test_a_piece_is_computed_before_the_one_before_it_was_heard(share: float) -> None:
    steps, both_sides = steps_for(share), 2 * max(NEIGHBOURS)
    size = steps.first
    for _ in range(3):
        following = min(steps.growth * size, LARGEST_FRAMES)
        assert (following + both_sides) * share <= size
        size = following


def test_a_voice_that_cannot_be_cut_speaks_by_sentence(monkeypatch: pytest.MonkeyPatch, voice: Speaker) -> None:
    monkeypatch.setattr(voices, "cut", lambda _: None)
    whole = load(model(), 2)
    assert whole._pieces is None
    sentences = samples(whole, f"{SENTENCE} {WARM_UP[1]}")
    assert len(sentences) == 2
    assert all(len(sentence) > 20_000 for sentence in sentences)
    assert whole._gain == pytest.approx(voice._gain, rel=0.5)


@pytest.fixture
def settled(tmp_path: Path) -> Path:
    """The directory of a voice that was prepared."""
    shelf = Shelf(tmp_path / "prepared", recipe(model(), 0, 1.0))
    made = load(model(), 2, shelf=shelf)
    assert shelf.find() is None, "nothing is there before it is on the disk"
    shelf.settle()
    assert made._pieces is not None
    return tmp_path / "prepared"


def again(settled: Path, monkeypatch: pytest.MonkeyPatch, *, length_scale: float = 1.0) -> tuple[Speaker, int]:
    """Load from what was prepared; return the speaker and how often the voice was cut for it."""
    cutting = Mock(wraps=cut)
    monkeypatch.setattr(voices, "cut", cutting)
    speaking = load(model(), 2, length_scale=length_scale,
                    shelf=Shelf(settled, recipe(model(), 0, length_scale)))
    return speaking, cutting.call_count


def test_a_prepared_voice_is_the_same_without_being_cut(
        settled: Path, voice: Speaker, pieces: Pieces, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, cuts = again(settled, monkeypatch)
    assert not cuts
    assert prepared._pieces is not None
    assert replace(prepared._pieces, session=pieces.session) == pieces
    assert prepared._gain == pytest.approx(voice._gain, rel=0.2)
    frames = latents(voice, SENTENCE)
    assert peak_of(prepared._pieces.sound(frames) - pieces.sound(frames)) <= ALIKE
    assert peak_of(np.concatenate(samples(prepared, SENTENCE))) > 0.3 * 32767


@pytest.mark.parametrize("name", [FRAMES, SOUND, FACTS])
@pytest.mark.parametrize("harm", ["flipped", "short", "gone"])
def test_a_prepared_voice_that_was_damaged_is_made_again(
        settled: Path, name: str, harm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = settled / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xff
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(content if harm == "flipped" else content[:len(content) // 2])
    speaking, cuts = again(settled, monkeypatch)
    assert cuts == 1
    assert speaking._pieces is not None
    assert spoken(speaking, "Yes.")


def test_other_settings_prepare_the_voice_anew(settled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, cuts = again(settled, monkeypatch, length_scale=1.2)
    assert cuts == 1
    assert not list(settled.glob("*.onnx")), "what cannot be used any more makes room"


def test_a_disk_without_room_costs_nothing_but_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared_voices, "RESERVE_BYTES", 1 << 60)
    shelf = Shelf(tmp_path / "prepared", recipe(model(), 0, 1.0))
    speaking = load(model(), 2, shelf=shelf)
    shelf.settle()
    assert speaking._pieces is not None
    assert not list((tmp_path / "prepared").iterdir())


def test_a_directory_that_cannot_be_made_costs_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    shelf = Shelf(tmp_path / "file" / "prepared", recipe(model(), 0, 1.0))
    assert load(model(), 2, shelf=shelf)._pieces is not None
    shelf.settle()


def test_every_sentence_is_about_as_loud_and_none_is_cut_off(voice: Speaker) -> None:
    peaks = [peak_of(np.concatenate(samples(voice, text))) / 32767 for text in (SENTENCE, *WARM_UP[1:], LONG)]
    assert all(0.4 < peak <= 1.0 for peak in peaks), peaks


def test_a_piece_that_would_be_too_loud_is_made_softer_and_so_is_the_rest(voice: Speaker) -> None:
    loud = Speaker(voice._voice, voice._style, voice._pieces, voice._gain * 4)
    parts = samples(loud, SENTENCE)
    settled = int(speaker.SOFTEN_S * loud.rate)
    assert all(np.abs(part[settled:]).max() <= 32767 for part in parts)
    flat = sum(int((np.abs(part[settled:]) >= 32767).sum()) for part in parts)
    assert flat <= len(parts), "samples at full scale: one a piece at most, its loudest"


def test_a_speaker_that_the_voice_does_not_have_is_named() -> None:
    with pytest.raises(ModelFileError, match=r"tts\.speaker is 3, but the voice .* has speakers 0 to 0"):
        load(model(), 1, speaker=3)


def test_a_sentence_that_nobody_wants_any_more_is_stopped_in_its_middle(voice: Speaker) -> None:
    began = time.monotonic()
    assert spoken(voice, LONG) > 500_000
    whole_s = time.monotonic() - began
    gone, other = threading.Event(), threading.Event()

    def leave() -> None:
        voice.stop(other)
        gone.set()
        voice.stop(gone)

    timer = threading.Timer(whole_s / 8, leave)
    timer.start()
    began = time.monotonic()
    assert spoken(voice, LONG, gone) == 0
    stopped_s = time.monotonic() - began
    timer.join()
    print(f"a sentence of {whole_s:.2f} s was stopped after {stopped_s:.2f} s")
    assert stopped_s < whole_s * 0.7
    assert spoken(voice, "And the next one is spoken.") > 20_000


def test_a_voice_nobody_wants_any_more_is_stopped_between_pieces_too(voice: Speaker) -> None:
    gone = threading.Event()
    parts = voice.speak(LONG, gone)
    assert next(parts)
    gone.set()
    assert list(parts) == []


def test_somebody_elses_leaving_stops_nothing(voice: Speaker) -> None:
    timer = threading.Timer(0.1, voice.stop, (threading.Event(),))
    timer.start()
    assert spoken(voice, LONG) > 500_000
    timer.join()


def test_a_failure_of_a_sentence_that_is_wanted_is_no_silence(voice: Speaker) -> None:
    gone = threading.Event()
    timer = threading.Timer(0.1, voice.stop, (gone,))
    timer.start()
    with pytest.raises(Exception, match="terminate"):
        spoken(voice, LONG, gone)
    timer.join()
