"""The voice, with its real model: it speaks, and stops in the middle of a sentence that nobody wants any more."""

from __future__ import annotations

import threading
import time

import pytest
from piper import PiperVoice, SynthesisConfig

from hotpind.config import Config
from hotpind.engines.piper import FrugalSession, load, sentences_of
from hotpind.models.catalogue import Role
from hotpind.models.store import ModelStore
from tests.places import models_path

pytestmark = pytest.mark.models

LONG = "It goes on and on and on, without a full stop anywhere, " * 12 + "until here."


@pytest.fixture(scope="module")
def voice() -> PiperVoice:
    return load(ModelStore(models_path()).resolve(Config().tts.voice, Role.TTS).main, 2)


def spoken(voice: PiperVoice, text: str, gone: threading.Event | None = None) -> int:
    return sum(len(audio) for audio in sentences_of(voice, text, SynthesisConfig(), gone or threading.Event()))


def test_a_sentence_that_nobody_wants_any_more_is_stopped_in_its_middle(voice: PiperVoice) -> None:
    session = voice.session
    assert isinstance(session, FrugalSession)
    began = time.monotonic()
    assert spoken(voice, LONG) > 500_000
    whole_s = time.monotonic() - began
    gone, other = threading.Event(), threading.Event()

    def leave() -> None:
        session.stop(other)
        gone.set()
        session.stop(gone)

    timer = threading.Timer(whole_s / 8, leave)
    timer.start()
    began = time.monotonic()
    assert spoken(voice, LONG, gone) == 0
    stopped_s = time.monotonic() - began
    timer.join()
    print(f"a sentence of {whole_s:.2f} s was stopped after {stopped_s:.2f} s")
    assert stopped_s < whole_s * 0.7
    assert spoken(voice, "And the next one is spoken.") > 20_000


def test_somebody_elses_leaving_stops_nothing(voice: PiperVoice) -> None:
    session = voice.session
    assert isinstance(session, FrugalSession)
    timer = threading.Timer(0.1, session.stop, (threading.Event(),))
    timer.start()
    assert spoken(voice, LONG) > 500_000
    timer.join()


def test_a_failure_of_a_sentence_that_is_wanted_is_no_silence(voice: PiperVoice) -> None:
    session = voice.session
    assert isinstance(session, FrugalSession)
    gone = threading.Event()
    timer = threading.Timer(0.1, session.stop, (gone,))
    timer.start()
    with pytest.raises(Exception, match="terminate"):
        spoken(voice, LONG, gone)
    timer.join()
