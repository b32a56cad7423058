"""The pin over real connections: its bytes, its timing, its flow control, and what it reports."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

import pytest

from hotpind.errors import PinError, PinOfflineError, PinRefusedError
from hotpind.pin import client
from hotpind.pin.client import Pin, base_url
from hotpind.pin.turn import Limits, PinStage
from hotpind.speech.audio import read_wav, wav_header
from tests.pin.appliance import RATE, Answer, Appliance, Link, Recording, good_answer
from tests.waiting import until

TOKEN = "a-token-of-this-test"
SESSION = "esp32-cam-hotpin-001"
SECOND = bytes(range(256)) * 125
"""One second of sound, not silent, 32000 bytes."""
PATIENT = Limits(ack_s=5.0, ack_abort_s=10.0, transcription_s=10.0, cancel_s=5.0)
"""A machine that is busy with other tests is not what is tested here."""


@pytest.fixture
async def pin(appliance: Appliance) -> AsyncIterator[Pin]:
    async with Pin(appliance.url, SESSION, limits=PATIENT) as connected:
        yield connected
    assert appliance.complaints == []


async def test_a_question_and_its_answer(appliance: Appliance, pin: Pin) -> None:
    turn = await pin.ask(SECOND, realtime=False)
    assert turn.violations == ()
    assert turn.answered
    assert turn.error is None
    assert (turn.transcript, turn.response) == (f"Question of {SESSION}", f"Answer to {SESSION}")
    assert turn.extra == {"turn": "t-1", "backend": "test", "timings": {"stt": 0.1}}
    assert turn.wav == wav_header(RATE, RATE) + bytes(RATE)
    (recording,) = appliance.recordings[SESSION]
    assert recording.pcm == SECOND
    assert [len(frame) for frame in recording.frames] == [4096] * 7 + [32000 - 7 * 4096]
    times = turn.timings
    assert times.transcription is not None
    assert times.llm is not None
    assert times.tts is not None
    assert times.first_audio is not None
    assert times.last_audio is not None
    assert times.complete is not None
    assert (0 < times.transcription <= times.llm <= times.tts <= times.first_audio <= times.last_audio
            <= times.complete < 10)
    assert turn.ack_p50_s is not None
    assert turn.ack_max_s is not None
    assert turn.ack_p50_s <= turn.ack_max_s < PATIENT.ack_s
    assert turn.playback is not None
    assert turn.playback.received_s == pytest.approx(0.5)
    assert json.loads(json.dumps(turn.as_json()))["timings"]["complete"] == round(times.complete, 4)


async def test_the_bytes_that_a_pin_sends(appliance: Appliance, pin: Pin) -> None:
    await pin.ask(SECOND, realtime=False)
    await pin.reset()
    assert appliance.hellos == ['{"session_id":"esp32-cam-hotpin-001"}']
    assert appliance.texts == ['{"signal":"EOS"}', '{"signal":"RESET"}']


async def test_real_time_takes_the_time_of_speaking(appliance: Appliance, pin: Pin) -> None:
    began = time.monotonic()
    turn = await pin.ask(SECOND, tail_silence_s=0.4)
    assert turn.answered
    (recording,) = appliance.recordings[SESSION]
    assert 1.3 <= recording.times[-1] - began < 2.5
    assert 0.078 <= recording.times[0] - began < 1.2
    assert len(recording.pcm) == 32000 + 12800
    tail = recording.pcm[32000:]
    assert any(tail), "a room is never quite silent"


async def test_fast_keeps_20_ms_between_frames(appliance: Appliance, pin: Pin) -> None:
    await pin.ask(SECOND * 5, realtime=False)
    (recording,) = appliance.recordings[SESSION]
    took = recording.times[-1] - recording.times[0]
    assert took >= (len(recording.frames) - 1) * 0.0195
    assert took < 4.5, "less than it takes to say it"


async def test_nobody_is_asked_twice_at_once(appliance: Appliance, pin: Pin) -> None:
    first, second = await asyncio.gather(pin.ask(SECOND, realtime=False), pin.ask(SECOND[:8], realtime=False))
    assert first.answered
    assert second.answered
    assert [len(recording.pcm) for recording in appliance.recordings[SESSION]] == [32000, 8]


async def test_an_empty_recording(pin: Pin) -> None:
    turn = await pin.ask(b"")
    assert turn.error == "Could not understand audio. Please try again."
    assert turn.violations == ()
    assert not turn.answered


async def test_draining_waits_until_the_answer_was_played(appliance: Appliance, pin: Pin) -> None:
    async def two_seconds(link: Link, _: Recording) -> None:
        await whole(link, seconds=2.0)
        await link.complete()

    appliance.answer = two_seconds
    began = time.monotonic()
    fast = await pin.ask(SECOND[:4000], realtime=False)
    middle = time.monotonic()
    drained = await pin.ask(SECOND[:4000], realtime=False, drain="model")
    assert fast.answered
    assert drained.answered
    assert middle - began < 1.8, "all of it is sent at once"
    assert 2.0 <= time.monotonic() - middle < 5


async def test_an_acknowledgement_too_late_aborts_the_recording(appliance: Appliance) -> None:
    appliance.ack_delay_s = 0.5
    async with Pin(appliance.url, SESSION, limits=Limits(ack_abort_s=0.3)) as pin:
        turn = await pin.ask(SECOND, realtime=False)
    assert turn.aborted
    assert len(appliance.recordings[SESSION][0].frames) == 2
    assert any("the pin aborts its recording" in violation for violation in turn.violations)
    assert turn.answered, "the appliance answers what it has heard"


async def test_a_slow_acknowledgement_is_told_and_waited_for(appliance: Appliance) -> None:
    appliance.ack_delay_s = 0.2
    async with Pin(appliance.url, SESSION, limits=Limits(ack_abort_s=10.0)) as pin:
        strict = await pin.ask(SECOND[:9000], realtime=False)
    async with Pin(appliance.url, SESSION, limits=PATIENT) as pin:
        patient = await pin.ask(SECOND[:9000], realtime=False)
    assert not strict.aborted
    assert len([violation for violation in strict.violations if "longer than 100 ms" in violation]) == 1
    assert strict.ack_max_s is not None
    assert 0.19 <= strict.ack_max_s < 1.3
    assert patient.violations == ()
    assert appliance.complaints == []


async def whole(link: Link, header: bytes | None = None, *, paced: bool = True, end: bool = True,
                seconds: float = 0.5) -> None:
    await link.stage("transcription")
    await link.stage("llm")
    await link.stage("tts")
    await link.audio(seconds, header=header, paced=paced, end=end)


async def wrapped_size(link: Link, _: Recording) -> None:
    await whole(link, wav_header(RATE, None)[:40] + b"\xff\xff\xff\xff")
    await link.complete()


async def second_header(link: Link, _: Recording) -> None:
    await whole(link, end=False)
    await link.bytes(wav_header(RATE, None) + bytes(8000))
    await link.ws.send_bytes(b"")
    await link.complete()


async def no_zero_length_frame(link: Link, _: Recording) -> None:
    await whole(link, end=False)
    await link.complete()


async def no_idle(link: Link, _: Recording) -> None:
    await link.stage("transcription")
    await link.send(status="error", message="The engine broke.")


async def early_stage(link: Link, _: Recording) -> None:
    await link.stage("llm")
    await link.stage("tts")
    await link.audio(0.2)
    await link.complete()


async def late_stage(link: Link, recording: Recording) -> None:
    await asyncio.sleep(0.6)
    await whole(link)
    await link.complete()


async def hole(link: Link, _: Recording) -> None:
    await whole(link, end=False)
    await asyncio.sleep(0.7)
    await link.bytes(bytes(8000))
    await link.ws.send_bytes(b"")
    await link.complete()


async def twenty_seconds_at_once(link: Link, _: Recording) -> None:
    await whole(link, paced=False, seconds=20)
    await link.complete()


async def large_frame(link: Link, _: Recording) -> None:
    await whole(link, end=False)
    await link.ws.send_bytes(bytes(5000))
    await link.ws.send_bytes(b"")
    await link.complete()


async def large_message(link: Link, _: Recording) -> None:
    await whole(link)
    await link.complete(note="x" * 4000)


async def silent_complete(link: Link, _: Recording) -> None:
    await link.stage("transcription")
    await link.complete()


@pytest.mark.parametrize(("answer", "sentence"), [
    (wrapped_size, "wraps"), (wrapped_size, "ended playback early"), (second_header, "second WAV header"),
    (no_zero_length_frame, "zero-length frame"), (no_idle, "not followed by idle"),
    (early_stage, "Stage llm came while the pin was waiting"), (late_stage, "after EOS, later than 0.3 s"),
    (hole, "The sound stopped for"), (twenty_seconds_at_once, "buffer was full"),
    (large_frame, "5000 bytes"), (large_message, "a pin takes less than 4096"), (silent_complete, "without an answer"),
])
async def test_a_faulty_appliance_is_noticed(appliance: Appliance, answer: Answer, sentence: str) -> None:
    appliance.answer = answer
    async with Pin(appliance.url, SESSION, limits=Limits(ack_abort_s=10.0, transcription_s=0.3, idle_s=0.3)) as pin:
        turn = await pin.ask(SECOND[:6000], realtime=False)
        assert any(sentence in violation for violation in turn.violations), turn.violations
        assert pin.violations
    assert appliance.complaints == []


async def test_after_an_error_without_idle_the_pin_is_locked(appliance: Appliance) -> None:
    appliance.answer = no_idle
    async with Pin(appliance.url, SESSION, limits=Limits(ack_abort_s=10.0, idle_s=0.2, turn_s=2.5)) as pin:
        began = time.monotonic()
        first = await pin.ask(SECOND[:6000], realtime=False)
        assert time.monotonic() - began < 2.2
        second = await pin.ask(SECOND[:6000], realtime=False)
        assert first.error == second.error == "The engine broke."
        assert time.monotonic() - began >= 2.5


async def test_a_turn_is_given_up(appliance: Appliance) -> None:
    async def never(link: Link, _: Recording) -> None:
        await link.stage("transcription")

    appliance.answer = never
    async with Pin(appliance.url, SESSION, limits=Limits(turn_s=0.5)) as pin:
        turn = await pin.ask(SECOND[:6000], realtime=False)
        assert pin.connected
    assert turn.error == "The appliance gave no answer within 0.5 s."
    assert any("the pin gave it up" in violation for violation in turn.violations)


async def test_a_connection_lost_in_the_middle(appliance: Appliance, pin: Pin) -> None:
    async def hang_up(link: Link, _: Recording) -> None:
        await whole(link, end=False)
        await link.ws.close(code=1001)

    appliance.answer = hang_up
    turn = await pin.ask(SECOND[:6000], realtime=False)
    assert turn.error == "The appliance closed the connection (code 1001)."
    assert read_wav(turn.wav)[1] == RATE
    assert not turn.answered
    with pytest.raises(PinOfflineError, match="code 1001"):
        await pin.ask(SECOND)


async def test_a_connection_lost_while_talking(appliance: Appliance, pin: Pin) -> None:
    appliance.close_on_frame = 3
    turn = await pin.ask(SECOND, realtime=False)
    assert turn.error == "The appliance closed the connection (code 1012)."
    assert not appliance.recordings


async def test_it_can_connect_again(appliance: Appliance, pin: Pin) -> None:
    await appliance.links[0].ws.close()
    await asyncio.wait_for(pin.closed.wait(), 10)
    await pin.connect()
    assert (await pin.ask(SECOND[:4000], realtime=False)).answered
    assert len(appliance.hellos) == 2


async def test_token(appliance: Appliance) -> None:
    appliance.knows = TOKEN.__eq__
    with pytest.raises(PinRefusedError, match="401"):
        await Pin(appliance.url, SESSION).connect()
    async with Pin(appliance.url, SESSION, token=TOKEN) as pin:
        assert (await pin.ask(SECOND[:4000], realtime=False)).answered
        assert (await pin.send_image(b"\xff\xd8jpeg")).ok
    refused = await Pin(appliance.url, SESSION).send_image(b"\xff\xd8jpeg")
    assert (refused.status, refused.ok, refused.message) == (401, False, "Unknown token.")


async def test_nobody_there() -> None:
    with pytest.raises(PinOfflineError, match=r"http://127\.0\.0\.1:9/ cannot be reached"):
        await Pin("127.0.0.1:9", SESSION).connect()
    with pytest.raises(PinOfflineError, match="The picture did not reach"):
        await Pin("127.0.0.1:9", SESSION).send_image(b"jpeg")
    with pytest.raises(PinOfflineError, match="not connected"):
        await Pin("127.0.0.1:9", SESSION).ask(SECOND)


async def test_an_appliance_without_manners(appliance: Appliance) -> None:
    appliance.welcome = False
    pin = Pin(appliance.url, SESSION, limits=Limits(connected_s=0.3))
    with pytest.raises(PinOfflineError, match="did not answer"):
        await pin.connect()
    assert not pin.connected


async def test_a_message_beyond_the_pins_buffer_breaks_the_connection(appliance: Appliance, pin: Pin) -> None:
    async def flood(link: Link, _: Recording) -> None:
        await link.stage("transcription", note="x" * 70_000)

    appliance.answer = flood
    turn = await pin.ask(SECOND[:4000], realtime=False)
    assert turn.error is not None
    assert "broke" in turn.error or "closed" in turn.error


async def test_pings(appliance: Appliance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PING_S", 0.2)
    async with Pin(appliance.url, SESSION) as pin:
        await until(lambda: appliance.pings >= 5)
        assert pin.connected


async def test_an_appliance_that_died_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pong means that nobody is there; the connection itself would stand for hours."""
    monkeypatch.setattr(client, "PING_S", 0.05)
    monkeypatch.setattr(client, "CLOSE_WAIT_S", 0.1)

    async with Appliance() as server:
        pin = Pin(server.url, SESSION)
        await pin.connect()
        link = server.links[0]

        async def swallow(_: bytes = b"") -> None:
            return

        monkeypatch.setattr(link.ws, "pong", swallow)
        await asyncio.wait_for(pin.closed.wait(), 10)
        with pytest.raises(PinOfflineError, match="did not answer 3 pings"):
            await pin.ask(SECOND)
        await pin.close()


async def test_an_answer_can_be_cut_short(appliance: Appliance, pin: Pin) -> None:
    async def long_answer(link: Link, _: Recording) -> None:
        await whole(link, seconds=20)
        await link.complete()

    appliance.answer = long_answer
    question = asyncio.create_task(pin.ask(SECOND[:4000], realtime=False))
    await until(lambda: pin.model.turn is not None and len(pin.model.turn.audio) > 1.6 * RATE * 2)
    await pin.cancel()
    turn = await asyncio.wait_for(question, 10)
    assert turn.violations == ()
    assert turn.error == "The turn was ended without an answer."
    assert turn.playback is not None
    assert 1.5 < turn.playback.received_s < 10
    appliance.answer = good_answer
    assert (await pin.ask(SECOND[:4000], realtime=False)).answered


async def test_a_reset_during_an_answer(appliance: Appliance, pin: Pin) -> None:
    go_on = asyncio.Event()

    async def slow_answer(link: Link, _: Recording) -> None:
        await link.stage("transcription")
        await go_on.wait()
        await link.send(status="idle")

    appliance.answer = slow_answer
    question = asyncio.create_task(pin.ask(SECOND[:4000], realtime=False))
    await until(lambda: pin.model.stage == PinStage.TRANSCRIBING)
    await pin.reset()
    go_on.set()
    assert (await asyncio.wait_for(question, 10)).violations == ()


async def test_hello_extra_and_the_messages_that_come(appliance: Appliance) -> None:
    seen: list[str] = []
    pin = Pin(appliance.url, SESSION, hello_extra={"features": ["endpointing"]},
              on_message=lambda _, message: seen.append(message["status"]))
    async with pin:
        await pin.ask(SECOND[:9000], realtime=False)
    assert appliance.hellos == ['{"session_id":"esp32-cam-hotpin-001","features":["endpointing"]}']
    assert seen == ["connected", "receiving", "processing", "processing", "processing", "complete"]


async def test_closing_leaves_nothing_behind(appliance: Appliance) -> None:
    before = asyncio.all_tasks()
    pin = Pin(appliance.url, SESSION)
    await pin.connect()
    question = asyncio.create_task(pin.ask(SECOND))
    await asyncio.sleep(0.2)
    question.cancel()
    await asyncio.gather(question, return_exceptions=True)
    await pin.close()
    await pin.close()
    await until(lambda: not [task for task in asyncio.all_tasks() - before if "pin" in task.get_name()], 2)


PICTURE = b"\xff\xd8\xff\xe0 not quite a JPEG \r\n--x\xff\xd9"


async def test_the_picture_goes_out_as_the_firmware_sends_it(appliance: Appliance, pin: Pin) -> None:
    reply = await pin.send_image(PICTURE)
    assert reply.violations == ()
    assert reply.ok
    assert reply.body["size_bytes"] == len(PICTURE)
    ((content_type, body),) = appliance.images
    assert content_type == b"multipart/form-data; boundary=----HotPinESP32CamBoundary"
    assert body == (
        b"------HotPinESP32CamBoundary\r\n"
        b'Content-Disposition: form-data; name="session"\r\n'
        b"\r\n"
        b"esp32-cam-hotpin-001\r\n"
        b"------HotPinESP32CamBoundary\r\n"
        b'Content-Disposition: form-data; name="file"; filename="image.jpg"\r\n'
        b"Content-Type: image/jpeg\r\n"
        b"\r\n" + PICTURE + b"\r\n"
        b"------HotPinESP32CamBoundary--\r\n")


@pytest.mark.parametrize(("status", "body", "sentence"), [
    (200, b"{" + b" " * 1023 + b"}", "takes less than 1024"),
    (200, b"fine", "not a JSON object"),
    (200, b'{"status":"success"}', "has no size_bytes"),
    (200, b'{"status":"success","session":"other"}', "has session 'other'"),
])
async def test_a_faulty_reply_to_a_picture(appliance: Appliance, pin: Pin, status: int, body: bytes,
                                           sentence: str) -> None:
    appliance.image_reply = (status, body)
    reply = await pin.send_image(PICTURE)
    assert any(sentence in violation for violation in reply.violations), reply.violations


@pytest.mark.parametrize(("address", "url"), [
    ("192.168.1.20", "http://192.168.1.20:8000/"),
    ("hotpin.local:9000", "http://hotpin.local:9000/"),
    ("ws://hotpin.local:8000/ws", "http://hotpin.local:8000/"),
    ("wss://hotpin.local/ws/", "https://hotpin.local:8443/"),
    ("https://hotpin.local:443/pin", "https://hotpin.local/pin"),
    (" http://[::1]:8000/ ", "http://[::1]:8000/"),
])
def test_addresses(address: str, url: str) -> None:
    assert str(base_url(address)) == url


@pytest.mark.parametrize("address", ["", "ftp://x", "http://", "http://x:99999", "://", "/dev/null"])
def test_nonsense_for_an_address(address: str) -> None:
    with pytest.raises(PinError, match="is no address of an appliance"):
        base_url(address)
