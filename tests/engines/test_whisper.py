"""Both bindings of whisper.cpp, held to one contract with real speech; and the rules around them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hotpind.config import Config
from hotpind.engines.recognizer import (
    FLOOR,
    FULL_WINDOW,
    LEAD_S,
    LONGEST_S,
    POOR_LOGPROB,
    SAMPLE_RATE,
    STEP,
    Audio,
    Decode,
    Recognizer,
    fitted_window,
    loops,
    recognise,
    split_long,
    token_cap,
    without_loop,
)
from hotpind.engines.whisper import load
from hotpind.engines.whisper_bindings import BINDINGS
from hotpind.errors import ModelFileError
from hotpind.models.catalogue import Role
from hotpind.models.store import ModelStore
from hotpind.pin.room import room_silence
from hotpind.speech.listener import LEAD_IN, TAIL
from hotpind.speech.vad import SpeechTracker, VoiceDetector
from tests.appliance.recordings import cards, librivox, word_error_rate
from tests.places import models_path

MODELS = models_path()

never = lambda: False  # noqa: E731 - a constant that is a function


WHISPERS_OWN = 1500
"""Encoder positions of 30 s."""


def samples(pcm: bytes) -> Audio:
    return np.frombuffer(pcm, "<i2").astype(np.float32) / np.float32(32768)


@pytest.fixture(scope="module", params=sorted(BINDINGS))
def recognizer(request: pytest.FixtureRequest) -> Recognizer:
    """Each binding with the default model."""
    return load(request.param, ModelStore(MODELS).resolve(Config().stt.model, Role.STT).main, "en",
                # The threads of the old whisper.cpp spin while they wait: with other work on the cores, one is faster.
                2 if request.param == "pywhispercpp" else 1)


@pytest.mark.models
class TestContract:
    """What every binding has to do."""

    def test_people_are_understood(self, recognizer: Recognizer) -> None:
        recordings = [*librivox(), *cards()]
        heard = [recognise(recognizer, samples(each.pcm)) for each in recordings]
        assert word_error_rate([(each.text, text) for each, text in zip(recordings, heard, strict=True)]) <= 0.15

    def test_a_fitted_window_is_as_good_as_the_full_one(self, recognizer: Recognizer) -> None:
        clip = samples(librivox()[1].pcm)
        for window in (fitted_window(len(clip)), FULL_WINDOW):
            decode = recognizer.decode(clip, audio_ctx=window, max_tokens=60, cancelled=never)
            assert decode.text.rstrip(".?").endswith("young man")
            assert POOR_LOGPROB < decode.logprob <= 0

    def test_the_same_clip_gives_the_same_text_again(self, recognizer: Recognizer) -> None:
        clip = samples(cards()[4].pcm)
        assert len({recognise(recognizer, clip) for _ in range(3)}) == 1

    @pytest.mark.parametrize("count", [1, 100, 8000])
    def test_very_short_clips_are_no_error(self, recognizer: Recognizer, count: int) -> None:
        recognise(recognizer, np.zeros(count, dtype=np.float32))

    def test_tokens_are_capped(self, recognizer: Recognizer) -> None:
        decode = recognizer.decode(samples(librivox()[0].pcm), audio_ctx=FULL_WINDOW, max_tokens=4, cancelled=never)
        assert len(decode.text.split()) <= 6


@pytest.fixture(scope="module")
def usual() -> Recognizer:
    return load("pywhispercpp", ModelStore(MODELS).resolve(Config().stt.model, Role.STT).main, "en", 2)


def as_cut(pcm: bytes) -> Audio:
    """What the listener gives to the engine of a recording in a quiet room."""
    room = room_silence(0.4)
    tracker = SpeechTracker()
    for probability in VoiceDetector().probabilities(room + pcm + room):
        tracker.feed(probability)
    assert tracker.first_speech is not None
    return samples(room + pcm + room)[max(0, tracker.first_speech - LEAD_IN):tracker.speech_end + TAIL]


@pytest.mark.models
@pytest.mark.slow
def test_fitting_the_window_costs_hardly_any_accuracy(usual: Recognizer) -> None:
    random = np.random.default_rng(5)
    fitted, full = [], []
    for each in [*librivox(), *cards()]:
        clear = as_cut(each.pcm)
        noise = random.normal(0, 0.05 * np.sqrt(np.mean(clear * clear)), len(clear)).astype(np.float32)
        for clip in (clear, 0.4 * clear, clear + noise):
            fitted.append((each.text, recognise(usual, clip)))
            led = np.concatenate([np.zeros(int(LEAD_S * SAMPLE_RATE), dtype=np.float32), clip])
            whole = usual.decode(led, audio_ctx=WHISPERS_OWN, max_tokens=token_cap(len(clip)), cancelled=never)
            full.append((each.text, whole.text))
    rates = word_error_rate(fitted), word_error_rate(full)
    print(f"word error rate: fitted window {rates[0]:.3f}, whisper's own 30 s {rates[1]:.3f}")
    assert rates[0] <= rates[1] + 0.015


@pytest.mark.models
@pytest.mark.parametrize("recording", [1, 2, 6])
def test_what_was_heard_before_makes_no_difference(usual: Recognizer, recording: int) -> None:
    clip = samples([*librivox(), *cards()][recording].pcm)
    window = fitted_window(len(clip))
    heard = set()
    for before in (librivox()[0], cards()[4], librivox()[3]):
        usual.decode(samples(before.pcm), audio_ctx=FULL_WINDOW, max_tokens=60, cancelled=never)
        heard.add(usual.decode(clip, audio_ctx=window, max_tokens=60, cancelled=never))
    assert len(heard) == 1, heard


@pytest.mark.models
@pytest.mark.parametrize("engine", sorted(BINDINGS))
@pytest.mark.parametrize("content", [b"", b"not a model", b"lmgg" + bytes(200)])
def test_a_broken_model_is_refused_in_a_sentence(engine: str, content: bytes, tmp_path: Path) -> None:
    model = tmp_path / "broken.bin"
    model.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"broken\.bin"):
        load(engine, model, "en", 1)


@pytest.mark.models
def test_quantised_weights_are_refused_by_the_engine_that_aborts_on_them(tmp_path: Path) -> None:
    model = ModelStore(MODELS).resolve("whisper-tiny.en", Role.STT).main
    quantised = bytearray(model.read_bytes())
    quantised[44:48] = (7).to_bytes(4, "little")
    (tmp_path / "q8.bin").write_bytes(quantised)
    with pytest.raises(ModelFileError, match="quantised"):
        BINDINGS["whisper-cpp-python"](tmp_path / "q8.bin", language="en", threads=1)


def test_the_window_fits_the_clip_with_margin_and_floor() -> None:
    assert fitted_window(0) == FLOOR
    assert fitted_window(16_000 * 3) >= 150 + 200
    assert fitted_window(16_000 * 6) < FULL_WINDOW
    assert fitted_window(16_000 * 30) == FULL_WINDOW
    windows = [fitted_window(count) for count in range(0, 16_000 * 30, 8_000)]
    assert windows == sorted(windows)


@pytest.mark.parametrize(("text", "is_loop"), [
    ("", False), ("The cat sat on the mat and then the cat sat down.", False),
    ("I said no, no, no and I meant it.", False), ("thank you " * 12, True),
    ("and the dog and the dog and the dog and the dog and the dog", True), ("you you you you you", True),
    ("five five", False), ("He was not an ill-disposed young man.", False)])
def test_loops_are_told_from_speech(text: str, is_loop: bool) -> None:
    assert loops(text) is is_loop


@pytest.mark.parametrize(("text", "speech_s", "said"), [
    ("4. Queen of Clubs 4. Queen of Clubs 4. Queen of Clubs 4. Queen of", 1.5, "4. Queen of Clubs"),
    ("Seven of clubs seven of clubs, seven of clubs", 1.0, "Seven of clubs"),
    ("Five, five, five, five, five, five, five, five", 1.0, ""),
    ("It is late it is late it is late it is late", 3.0, ""),
    ("It is late it is late it is late it is late", 0.3, ""),
    ("He was not an old man an old man an old man an old man", 2.0, ""), ("", 1.0, ""), ("you", 1.0, "")])
def test_a_loop_is_undone_only_when_its_words_fit_the_time_just_once(text: str, speech_s: float, said: str) -> None:
    assert without_loop(text, speech_s) == said


class Scripted:
    """A recogniser that gives what it is told, pass by pass."""

    def __init__(self, *passes: Decode) -> None:
        self.windows: list[int] = []
        self._passes = passes

    def decode(self, audio: Audio, *, audio_ctx: int, max_tokens: int, cancelled: Callable[[], bool]) -> Decode:
        self.windows.append(audio_ctx)
        assert max_tokens == token_cap(len(audio))
        return self._passes[len(self.windows) - 1]


CLIP = np.zeros(16_000 * 3, dtype=np.float32)
NO = Decode("no, no, no, no, no", -0.1)
LOOP, BETTER, MUMBLE = Decode("so " * 30, -0.1), Decode("better", -0.1), Decode("mumble", -1.5)


@pytest.mark.parametrize(("passes", "text", "windows"), [
    ((Decode("fine", -0.2),), "fine", [FLOOR]),
    ((MUMBLE, BETTER), "better", [FLOOR, FLOOR + STEP]),
    ((MUMBLE, Decode("worse", -2.0)), "mumble", [FLOOR, FLOOR + STEP]),
    ((Decode("is there a bus to town " * 4 + "is", -0.1),), "is there a bus to town", [FLOOR]),
    ((Decode("so yes " * 12, -0.1), BETTER), "better", [FLOOR, FLOOR + STEP]),
    ((NO, NO), "no, no, no, no, no", [FLOOR, FLOOR + STEP]),
    ((LOOP, BETTER), "better", [FLOOR, FLOOR + STEP]),
    ((LOOP, LOOP, BETTER), "better", [FLOOR, FLOOR + STEP, FULL_WINDOW]),
    ((LOOP, LOOP, LOOP), "", [FLOOR, FLOOR + STEP, FULL_WINDOW]),
    ((MUMBLE, LOOP, LOOP), "mumble", [FLOOR, FLOOR + STEP, FULL_WINDOW]),
    ((Decode("", math.nan),), "", [FLOOR]),
])
def test_a_doubtful_result_is_redone_with_more_room(passes: tuple[Decode, ...], text: str, windows: list[int]) -> None:
    recognizer = Scripted(*passes)
    assert recognise(recognizer, CLIP) == text
    assert recognizer.windows == windows


@pytest.mark.parametrize(("seconds", "tried"), [(17, [1024, FULL_WINDOW]), (24, [FULL_WINDOW])])
def test_no_window_is_tried_twice(seconds: int, tried: list[int]) -> None:
    recognizer = Scripted(*[LOOP] * 4)
    recognise(recognizer, np.zeros(16_000 * seconds, dtype=np.float32))
    assert recognizer.windows == tried


def test_a_cancelled_clip_is_not_redone() -> None:
    recognizer = Scripted(MUMBLE, BETTER)
    assert recognise(recognizer, CLIP, lambda: True) == "mumble"
    assert recognizer.windows == [FLOOR]


def test_long_recordings_are_cut_at_quiet_places_and_nothing_is_lost() -> None:
    random = np.random.default_rng(3)
    audio = random.normal(0, 0.2, 16_000 * 70).astype(np.float32)
    audio[16_000 * 24:16_000 * 24 + 8000] = 0
    clips = split_long(audio)
    assert np.array_equal(np.concatenate(clips), audio)
    assert all(len(clip) <= 16_000 * LONGEST_S for clip in clips)
    assert abs(len(clips[0]) - (16_000 * 24 + 4000)) < 4000
