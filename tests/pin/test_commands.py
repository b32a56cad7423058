"""`hotpinctl ask` and `hotpinctl simulate`, run as a user runs them, against an appliance on a thread of its own."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from hotpind.cli import ask, simulate
from hotpind.config import Config
from hotpind.config.paths import models_dir
from hotpind.models.store import ModelStore
from hotpind.pin import question
from hotpind.speech.audio import read_wav, wav_header
from tests.pin.appliance import Appliance, Link, Recording
from tests.wav import write_wav

app = typer.Typer(pretty_exceptions_enable=False)
ask.register(app)
simulate.register(app)

Run = Callable[..., Result]
LATE = ("The acknowledgement of", "The transcription stage came")
"""How breaches begin that a machine makes which is busy with other tests."""


@pytest.fixture
def served() -> Iterator[Appliance]:
    """An appliance whose event loop is not the command's."""
    loop = asyncio.new_event_loop()
    appliance = Appliance()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def on_loop(future: Future[object]) -> None:
        future.result(10)

    on_loop(asyncio.run_coroutine_threadsafe(appliance.__aenter__(), loop))
    yield appliance
    on_loop(asyncio.run_coroutine_threadsafe(appliance.__aexit__(), loop))
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in a home of its own, with no daemon on this machine."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HOTPIN_PATHS__RUNTIME", str(tmp_path / "run"))
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(each) for each in arguments])

    return invoke


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    """A quarter of a second of stereo at 44.1 kHz."""
    path = tmp_path / "question.wav"
    mono = write_wav((8000 * np.sin(np.arange(22050) / 20)).astype(np.int16), 44100)
    header = bytearray(mono[:44])
    header[22:24], header[32:34] = b"\2\0", b"\4\0"
    path.write_bytes(bytes(header) + mono[44:])
    return path


def test_a_question_in_text_form(served: Appliance, run: Run, wav: Path, tmp_path: Path) -> None:
    out = tmp_path / "answer.wav"
    result = run("ask", "--wav", wav, "--url", served.url, "--session", "me", "--out", out, "--fast", "--silence", 0.5)
    assert result.exit_code == 0, result.output
    assert "Heard   Question of me" in result.output
    assert "Answer  Answer to me" in result.output
    assert "first sound" in result.output
    assert "Played 0.5 s at 16000 Hz, at most 0.5 s ahead, without a gap." in result.output
    told = [line for line in result.output.splitlines() if "Protocol:" in line]
    assert not [line for line in told if not any(late in line for late in LATE)], told
    pcm, rate = read_wav(out.read_bytes())
    assert (len(pcm), rate) == (8000, 16000)
    (recording,) = served.recordings["me"]
    assert len(recording.pcm) == (4000 + 8000) * 2
    assert np.abs(np.frombuffer(recording.pcm, "<i2")[:4000]).max() == pytest.approx(8000, rel=0.02)


def test_a_question_as_json(served: Appliance, run: Run, wav: Path) -> None:
    result = run("ask", "--wav", wav, "--url", served.url, "--json", "--fast")
    assert result.exit_code == 0, result.output
    content = json.loads(result.output)
    assert content["answered"] is True
    assert content["error"] is None
    assert content["session"] == "hotpinctl"
    assert content["transcript"] == "Question of hotpinctl"
    assert not [each for each in content["violations"] if not each.startswith(LATE)]
    assert 0 < content["timings"]["first_audio"] < 10
    assert content["playback"]["received_s"] == 0.5
    assert content["complete"]["turn"] == "t-1"
    assert content["image"] is None


def test_a_picture_goes_with_the_question(served: Appliance, run: Run, wav: Path, tmp_path: Path) -> None:
    picture = tmp_path / "x.jpg"
    picture.write_bytes(b"\xff\xd8picture\xff\xd9")
    result = run("ask", "--wav", wav, "--image", picture, "--url", served.url, "--json", "--fast")
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["image"]["ok"] is True
    assert picture.read_bytes() in served.images[0][1]


@pytest.mark.parametrize("form", [["--json"], []])
def test_a_refused_picture_ends_it(served: Appliance, run: Run, wav: Path, tmp_path: Path, form: list[str]) -> None:
    picture = tmp_path / "x.jpg"
    picture.write_bytes(b"text")
    served.image_reply = (415, b'{"status":"error","message":"This is not a picture."}')
    result = run("ask", "--wav", wav, "--image", picture, "--url", served.url, *form)
    assert result.exit_code == 1
    assert "The picture was not taken (415): This is not a picture." in result.output
    assert served.recordings == {}


def test_an_error_is_shown_and_no_success(served: Appliance, run: Run, wav: Path, tmp_path: Path) -> None:
    async def sorry(link: Link, _: Recording) -> None:
        await link.stage("transcription")
        await link.sorry()

    served.answer = sorry
    out = tmp_path / "answer.wav"
    result = run("ask", "--wav", wav, "--url", served.url, "--fast", "--out", out)
    assert result.exit_code == 1
    assert "Could not understand audio. Please try again." in result.output
    assert "Nothing was played." in result.output
    assert not out.exists()
    assert json.loads(run("ask", "--wav", wav, "--url", served.url, "--fast", "--json").output)["answered"] is False


def test_breaches_of_the_protocol_are_shown(served: Appliance, run: Run, wav: Path) -> None:
    async def no_end(link: Link, _: Recording) -> None:
        for stage in ("transcription", "llm", "tts"):
            await link.stage(stage)
        await link.audio(0.1, end=False)
        await link.complete()

    served.answer = no_end
    result = run("ask", "--wav", wav, "--url", served.url, "--fast")
    assert result.exit_code == 0, "an answer was heard all the same"
    assert "Protocol: The zero-length frame that ends the audio is missing." in result.output


def test_what_was_said_is_not_taken_for_markup(served: Appliance, run: Run, wav: Path) -> None:
    async def markup(link: Link, _: Recording) -> None:
        await link.stage("transcription")
        await link.stage("llm", transcript="[bold]loud[/nonsense]")
        await link.stage("tts")
        await link.audio(0.1)
        await link.send(status="complete", timings={"[/b]": 0.5})

    served.answer = markup
    result = run("ask", "--wav", wav, "--url", served.url, "--fast")
    assert result.exit_code == 0, result.output
    assert "[bold]loud[/nonsense]" in result.output


def test_it_pairs_when_it_has_to_and_says_who_must_agree(served: Appliance, run: Run, wav: Path) -> None:
    served.knows = lambda _: False
    result = run("ask", "--wav", wav, "--url", served.url)
    assert result.exit_code == 1
    assert "Pairing." in result.output
    assert "does not pair" in result.output


@pytest.mark.parametrize("form", [["--json"], []])
@pytest.mark.parametrize(("arguments", "sentence"), [
    (["--url", "127.0.0.1:9"], "http://127.0.0.1:9/ cannot be reached: Connect call failed"),
    (["--url", "gopher://x"], "is no address of an appliance"),
    (["--url", "127.0.0.1:9", "--token", "x" * 600], "holds 512 bytes"),
    (["--url", "https://127.0.0.1:9", "--fingerprint", "xyz"], "64 hexadecimal digits"),
    (["--image", "/nonexistent.jpg"], "/nonexistent.jpg: cannot be read: No such file or directory"),
])
def test_troubles_are_one_sentence(run: Run, wav: Path, arguments: list[str], sentence: str, form: list[str]) -> None:
    result = run("ask", "--wav", wav, *arguments, *form)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    said = json.loads(result.output)["error"] if form else result.output.strip()
    assert sentence in said
    assert "\n" not in said


@pytest.mark.parametrize(("content", "sentence"), [
    (b"this is no sound", "this is no sound.wav: This is not a WAV file"),
    (wav_header(16000, None)[:30], "cut short"),
])
def test_a_file_that_is_no_sound(run: Run, tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "this is no sound.wav"
    path.write_bytes(content)
    result = run("ask", "--wav", path)
    assert result.exit_code == 1
    assert sentence in result.output
    assert result.output.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["--wav", "x.wav", "--text", "Hello?"]])
def test_one_question_at_a_time(run: Run, arguments: list[str]) -> None:
    result = run("ask", *arguments)
    assert result.exit_code == 2
    assert "either as a recording with --wav or as text with --text" in result.output


def test_an_answer_that_cannot_be_stored(served: Appliance, run: Run, wav: Path, tmp_path: Path) -> None:
    result = run("ask", "--wav", wav, "--url", served.url, "--fast", "--out", tmp_path / "no" / "answer.wav")
    assert result.exit_code == 1
    assert "cannot be written: No such file or directory" in result.output


def test_too_large_a_file(tmp_path: Path, run: Run, wav: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(question, "LARGEST_FILE_BYTES", 1000)
    result = run("ask", "--wav", wav)
    assert result.exit_code == 1
    assert "give a smaller file" in result.output


def test_a_voice_that_is_not_installed(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOTPIN_PATHS__MODELS", str(tmp_path / "none"))
    result = run("ask", "--text", "Hello?", "--url", "127.0.0.1:9")
    assert result.exit_code == 1
    assert "hotpinctl models pull" in result.output


@pytest.mark.models
def test_a_spoken_question(served: Appliance, run: Run) -> None:
    assert ModelStore(models_dir(Config())).installed("piper-en_US-joe-medium")
    result = run("ask", "--text", "What is the capital of France?", "--url", served.url, "--fast", "--silence", 0)
    assert result.exit_code == 0, result.output
    (recording,) = served.recordings["hotpinctl"]
    sound = np.frombuffer(recording.pcm, "<i2").astype(float)
    assert 1.0 < len(sound) / 16000 < 4.0
    assert sound.std() > 300


@pytest.mark.models
def test_a_text_without_words(run: Run) -> None:
    result = run("ask", "--text", "   ", "--url", "127.0.0.1:9")
    assert result.exit_code == 1
    assert "There is nothing to say" in result.output


def test_many_pins(served: Appliance, run: Run, wav: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.wav"
    other.write_bytes(write_wav(np.zeros(3200, np.int16), 16000))
    result = run("simulate", "--count", 6, "--turns", 2, "--wav", wav, "--wav", other, "--url", served.url, "--fast",
                 "--pause", 0, "--spread", 0.3, "--json")
    assert result.exit_code == 0, result.output
    sums = json.loads(result.output)
    assert (sums["pins"], sums["turns_wanted"], sums["answered"], sums["failed"]) == (6, 12, 12, 0)
    assert not [each for each in sums["violations"] if not each.startswith(LATE)]
    assert sums["playback"]["underruns"] == 0
    assert sorted(served.recordings) == [f"sim-00{number}" for number in range(1, 7)]
    lengths = {session: [len(each.pcm) - 12800 for each in recordings]
               for session, recordings in served.recordings.items()}
    assert lengths["sim-001"] == [8000, 6400]
    assert lengths["sim-002"] == [6400, 8000]
    assert served.complaints == []


def test_a_crowd_that_is_not_served(run: Run, wav: Path) -> None:
    result = run("simulate", "--count", 2, "--turns", 1, "--wav", wav, "--url", "127.0.0.1:9", "--patience", 1,
                 "--spread", 0)
    assert result.exit_code == 1
    assert "0 of 2 turns, 0 answered" in result.output
    assert "2 x http://127.0.0.1:9/ cannot be reached" in result.output


def test_a_crowd_with_a_bad_address(run: Run, wav: Path) -> None:
    result = run("simulate", "--wav", wav, "--url", "gopher://x")
    assert result.exit_code == 1
    assert "is no address of an appliance" in result.output
