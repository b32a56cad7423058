"""Who goes first when several wait for the same ears, and addresses that are none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hotpind.errors import EngineUnavailable
from hotpind.speech.endpoint import RemoteEndpoint, Ticket, Turnstile
from hotpind.speech.listener import Listener
from hotpind.speech.stt import Transcriber, Urgency
from hotpind.speech.tts import Synthesizer
from tests.appliance.recordings import cards, librivox, without_pauses
from tests.fakes.wyoming import FakeSpeech
from tests.waiting import until

PAUSE = bytes(2 * 16_000)


async def pass_through(turnstile: Turnstile, ticket: Ticket, name: str, passed: list[str]) -> None:
    async with turnstile.passage(ticket):
        passed.append(name)


async def test_the_most_urgent_goes_first_and_a_ticket_may_become_more_urgent_while_it_waits() -> None:
    turnstile, passed = Turnstile(1), list[str]()
    tickets = {name: Ticket(urgency) for name, urgency in (("a", 1), ("b", 1), ("c", 1), ("d", 0.5), ("e", 1))}
    async with turnstile.passage(Ticket(0)):
        waiting = {name: asyncio.create_task(pass_through(turnstile, ticket, name, passed))
                   for name, ticket in tickets.items()}
        await until(lambda: turnstile.waiting == len(tickets))
        tickets["c"].urgency = 0
        waiting["b"].cancel()
    await asyncio.gather(*waiting.values(), return_exceptions=True)
    assert passed == ["c", "d", "a", "e"]
    assert not turnstile.in_use
    assert not turnstile.waiting


async def test_a_request_that_is_called_and_cancelled_at_once_passes_its_place_on() -> None:
    turnstile, passed = Turnstile(1), list[str]()
    async with turnstile.passage(Ticket(0)):
        waiting = [asyncio.create_task(pass_through(turnstile, Ticket(1), name, passed)) for name in "ab"]
        await until(lambda: turnstile.waiting == 2)
    waiting[0].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert passed == ["b"]
    assert not turnstile.in_use


@pytest.fixture
async def ears(tmp_path: Path) -> AsyncIterator[FakeSpeech]:
    async with FakeSpeech(tmp_path / "ears.sock", held=True, held_voice=True) as fake:
        yield fake


async def test_who_let_go_of_the_button_goes_before_those_who_still_talk(ears: FakeSpeech) -> None:
    transcriber = Transcriber(RemoteEndpoint("speech-to-text", ears.uri), language="en", deadline_s=30)
    with ThreadPoolExecutor(1) as workers:
        listeners = []
        for number, recording in enumerate(cards()[:3]):
            listener = Listener(transcriber, workers, ahead=True, pause_s=0.16)
            listeners.append(listener)
            clip = recording.pcm + PAUSE
            listener.feed(clip)
            # Each has been heard to its end, and waits: the first in the engine, the others in the queue.
            await until(lambda heard=listener, clip=clip, number=number:  # type: ignore[misc]
                        heard.tracker.position > len(clip) / 2 - 512 and transcriber.queue.waiting == number)
        await until(lambda: len(ears.heard) >= 1)
        before, interrupted = len(ears.heard), ears.hung_up
        third = asyncio.create_task(listeners[2].finish())
        # Nothing is released: what runs for somebody who still talks is broken off.
        await until(lambda: len(ears.heard) > before)
        assert ears.hung_up == interrupted + 1
        ears.release.release()
        async with asyncio.timeout(30):
            assert await third == str(ears.heard[before])
        assert not listeners[2].ready_ahead
        # What was broken off is begun again, and heard to its end.
        await until(lambda: len(ears.heard) > before + 1)
        first = asyncio.create_task(listeners[0].finish())
        await until(lambda: ears.heard[-1] == ears.heard[before - 1])
        assert ears.hung_up <= interrupted + 2
        for _ in listeners:
            ears.release.release()
        async with asyncio.timeout(30):
            assert await first == str(ears.heard[before - 1])
        await asyncio.gather(*(each.cancel() for each in listeners))
    assert not transcriber.queue.in_use
    assert not transcriber.queue.waiting


@pytest.mark.parametrize("urgency", [Urgency.AHEAD, Urgency.FINAL])
async def test_a_glance_makes_way_for_whoever_pauses_or_is_done_and_is_given_up(
        ears: FakeSpeech, urgency: Urgency) -> None:
    transcriber = Transcriber(RemoteEndpoint("speech-to-text", ears.uri), language="en", deadline_s=30)
    async with asyncio.timeout(60):
        glance = asyncio.create_task(transcriber.transcribe(bytes(200), Urgency.GLANCE))
        await until(lambda: len(ears.heard) == 1)
        urgent = asyncio.create_task(transcriber.transcribe(bytes(400), urgency))
        assert await glance == ""
        await until(lambda: len(ears.heard) == 2)
        assert ears.hung_up == 1
        ears.release.release()
        assert await urgent == "400"
    assert not transcriber.queue.in_use


async def test_two_glances_do_not_disturb_each_other(ears: FakeSpeech) -> None:
    transcriber = Transcriber(RemoteEndpoint("speech-to-text", ears.uri), language="en", deadline_s=30)
    async with asyncio.timeout(60):
        glances = [asyncio.create_task(transcriber.transcribe(bytes(size), Urgency.GLANCE)) for size in (200, 400)]
        await until(lambda: transcriber.queue.waiting == 1)
        for _ in glances:
            ears.release.release()
        assert await asyncio.gather(*glances) == ["200", "400"]
    assert ears.hung_up == 0


@pytest.mark.parametrize(("glances", "ahead"), [(True, True), (False, True), (True, False)])
async def test_speech_without_a_pause_is_glanced_at_when_that_is_of_use(
        ears: FakeSpeech, glances: bool, ahead: bool) -> None:
    transcriber = Transcriber(RemoteEndpoint("speech-to-text", ears.uri), language="en", deadline_s=30)
    told: list[str] = []
    clip = without_pauses(librivox()[0].pcm)
    with ThreadPoolExecutor(1) as workers:
        listener = Listener(transcriber, workers, ahead=ahead, pause_s=0.16, glances=glances,
                            on_progress=lambda _, text: told.append(text))
        listener.feed(clip)
        await until(lambda: listener.tracker.position > len(clip) / 2 - 512)
        if glances and ahead:
            await until(lambda: len(ears.heard) == 1)
            # What comes at the pause has all that the glance would have had.
            listener.feed(PAUSE)
            await until(lambda: len(ears.heard) == 2)
            assert ears.hung_up == 1
            assert ears.heard[1] > ears.heard[0]
        else:
            assert ears.heard == []
        ears.release.release()
        async with asyncio.timeout(30):
            assert await listener.finish()
    assert len(ears.heard) == 1 + (glances and ahead)
    assert not transcriber.queue.in_use


@pytest.mark.parametrize("uri", ["nas:10300", "tcp://nas", "tcp://a..b:10300"])
async def test_an_address_that_is_none_is_an_engine_that_is_not_there(uri: str) -> None:
    transcriber = Transcriber(RemoteEndpoint("speech-to-text", uri), language="en", deadline_s=5)
    with pytest.raises(EngineUnavailable, match="not an address"):
        await transcriber.transcribe(bytes(3200))


TWO_SENTENCES = "The library opens at nine. On weekdays it stays open until eight."


async def test_a_text_that_is_read_out_makes_way_for_an_answer_and_is_whole_all_the_same(ears: FakeSpeech) -> None:
    voice = Synthesizer(RemoteEndpoint("text-to-speech", ears.uri), deadline_s=10)
    reading = asyncio.create_task(voice.read_out(TWO_SENTENCES))
    await until(lambda: len(ears.asked) == 1)
    ears.release.release()
    await until(lambda: len(ears.asked) == 2)
    answer = asyncio.create_task(voice.whole("It is blue.", due=5.0))
    await until(lambda: len(ears.asked) == 3)
    assert ears.hung_up == 1
    ears.release.release()
    one = len(await answer)
    await until(lambda: len(ears.asked) == 4)
    ears.release.release()
    assert len(await reading) == 2 * one > 0
    first, second = TWO_SENTENCES.split(". ")
    assert [each.text for each in ears.asked] == [f"{first}.", second, "It is blue.", second]
    assert [bool(each.context) for each in ears.asked] == [True, True, False, True]
    assert not voice.queue.in_use


async def test_a_text_that_nobody_wants_read_out_any_more_leaves_the_voice_free(ears: FakeSpeech) -> None:
    voice = Synthesizer(RemoteEndpoint("text-to-speech", ears.uri), deadline_s=10)
    reading = asyncio.create_task(voice.read_out(TWO_SENTENCES))
    await until(lambda: len(ears.asked) == 1)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert not voice.queue.in_use
    await until(lambda: ears.hung_up == 1)


async def test_a_text_without_words_is_left_to_the_voice(ears: FakeSpeech) -> None:
    voice = Synthesizer(RemoteEndpoint("text-to-speech", ears.uri), deadline_s=10)
    ears.release.release()
    assert await voice.read_out("...")
    assert [each.text for each in ears.asked] == ["..."]
