"""The failure table through the whole appliance: a real daemon, real speech, a real local model, and a pin that asks.

After each fault the same pin asks again: the cloud is told what was spoken, no more and no less.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest
import pytest_asyncio

from hotpind.conversation.prompts import BROKEN_OFF, NO_ANSWER
from hotpind.pin.client import Pin
from hotpind.pin.result import PinTurn
from tests.appliance.clouded import KEYS, QUESTION, Clouded, ask, assert_heard, clouded, history, visitor
from tests.fakes.groq import MODELS, FakeGroq
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

SCOUT, QWEN = MODELS
FACT = "Turnips grow well in cool weather, and many gardeners like them. They are round."
"""What the cloud says: nothing that the local model would say by itself."""
LATE_S = 2.5
PATIENT_S = 30.0
"""For what takes a few seconds, unless the machine has other things to do."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def appliance() -> AsyncIterator[Clouded]:
    async with clouded() as made:
        made.fake.answer = FACT
        made.fake.behave("error", times=1)
        async with Pin(made.daemon.url, "first") as pin:
            # What every engine does once is no matter of faults.
            await pin.ask(QUESTION.pcm, realtime=False)
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def healthy(appliance: Clouded) -> Clouded:
    await appliance.fresh()
    return appliance


@dataclass(frozen=True)
class Fault:
    """What the cloud does, and what is to come of it."""

    kind: str
    state: str
    """Groq's, afterwards."""
    reason: str
    options: dict[str, Any] = field(default_factory=dict)
    late: bool = False
    """The local answer comes at the deadline, not at once."""

    def __str__(self) -> str:
        return "-".join([self.kind, *map(str, self.options.values())]).replace("/", "")


LOCAL = [
    Fault("reset", "offline", "groq cannot be reached", {"words": 0}),
    Fault("garbage", "offline", "groq cannot be reached"),
    Fault("error", "degraded", "groq is in trouble", {"status": 500}),
    Fault("error", "degraded", "groq is in trouble", {"status": 503}),
    Fault("error", "degraded", "groq is in trouble", {"status": 498}),
    Fault("error_in_stream", "degraded", "groq is in trouble"),
    Fault("late", "degraded", "groq was late", late=True),
    Fault("silent", "degraded", "groq was late", late=True),
    Fault("think_aloud", "degraded", "groq was late", late=True),
    # A word is known to be whole when the next one begins.
    Fault("drip", "degraded", "groq was late", {"every": 3.0}, late=True),
    Fault("rate_limited", "rate-limited", "groq is rate-limited", {"retry_after": 90}),
    Fault("unauthorized", "key-rejected", "groq rejected the key"),
    Fault("forbidden", "key-rejected", "groq rejected the key"),
    Fault("malformed", "online", "groq gave no usable answer"),
    Fault("html", "online", "groq gave no usable answer"),
    Fault("empty", "online", "groq gave no usable answer"),
    Fault("think", "online", "groq gave no usable answer"),
    Fault("bad_request", "online", "groq gave no usable answer"),
]


async def next_history(appliance: Clouded, pin: Pin) -> list[tuple[str, str]]:
    """Return what the cloud is told of the past when it answers again."""
    await appliance.fresh()
    assert not [fault for fault in appliance.daemon.status()["faults"] if "engine" not in fault]
    turn = await ask(pin)
    assert (turn.extra["backend"], turn.response) == ("groq", FACT)
    return history(appliance.fake.questions[-1].body["messages"])


def assert_local(appliance: Clouded, turn: PinTurn, reason: str) -> None:
    """Fail unless the local model answered, at once or at the deadline, for a reason."""
    assert_heard(appliance.daemon, turn)
    assert (turn.extra["backend"], turn.extra["reason"]) == ("local", reason)
    assert "urnip" not in turn.response
    assert BROKEN_OFF not in turn.response
    last = appliance.daemon.status()["last_turn"]
    assert (last["backend"], last["reason"], last["outcome"]) == ("local", reason, "answered")


@pytest.mark.parametrize("fault", LOCAL, ids=str)
async def test_the_local_model_answers(healthy: Clouded, fault: Fault) -> None:
    lines = len(healthy.changes())
    # What is out of reach is looked for again soon, and would be found well before the second question.
    healthy.fake.behave(fault.kind, models_too=fault.state == "offline", **fault.options)
    async with Pin(healthy.daemon.url, visitor(f"user of {fault}")) as pin:
        before = len(healthy.fake.questions)
        turn = await ask(pin)
        assert_local(healthy, turn, fault.reason)
        stages = turn.extra["timings"]
        # A model that was asked as well, in case, may have had its first token long before it got the floor.
        thought = stages["first_clause"] - stages["transcript"]
        print(f"{fault}: local words after {thought:.2f} s")
        if fault.late:
            assert LATE_S - 0.1 < thought < LATE_S + 4
        else:
            assert thought < LATE_S - 0.2, "the local model did not wait for the deadline"
        # A reset of an idle connection may be the connection's fault, so that one is tried once more.
        assert len(healthy.fake.questions) - before <= (2 if fault.kind in {"reset", "garbage"} else 1)
        row = healthy.groq()
        assert row["state"] == fault.state
        assert bool(row["detail"]) is True
        # Only a person can mend a key; the rest passes.
        faults = [row["detail"]] if fault.state == "key-rejected" else []
        assert healthy.daemon.status()["faults"] == faults
        assert row["fault"] == "".join(faults)
        told = healthy.changes()[lines:]
        assert [line for line in told if f"groq is {fault.state} (was online)" in line] == \
            (told[-1:] if fault.state != "online" else [])
        if fault.state != "online":
            asked = len(healthy.fake.questions)
            again = await ask(pin)
            assert again.extra["backend"] == "local"
            assert again.extra["reason"] in {f"groq is {fault.state}", "groq has its key rejected"}
            assert len(healthy.fake.questions) == asked, "nobody's question is the one that finds out"
            assert len(healthy.changes()) == lines + len(told), "one line for each change"
            turns = [turn, again]
        else:
            turns = [turn]
        assert await next_history(healthy, pin) == [(each.transcript, each.response) for each in turns]
    if fault.late:
        await until(lambda: all(request.finished or request.dropped for request in healthy.fake.questions), PATIENT_S)
    healthy.assert_nothing_secret(*turns)


BREAKS = [Fault("reset", "offline", "", {"words": 10}), Fault("truncated", "offline", "", {"words": 12}),
          Fault("malformed", "offline", "", {"words": 10}), Fault("error_in_stream", "offline", "", {"words": 12}),
          Fault("stall", "offline", "", {"words": 10}, late=True)]


@pytest.mark.parametrize("fault", BREAKS, ids=str)
async def test_a_stream_that_breaks_ends_in_one_closing_sentence(healthy: Clouded, fault: Fault) -> None:
    healthy.fake.behave(fault.kind, **fault.options)
    async with Pin(healthy.daemon.url, visitor(f"user of {fault}")) as pin:
        begun = time.monotonic()
        before = len(healthy.fake.questions)
        turn = await ask(pin, holes=fault.late)
        taken = time.monotonic() - begun
        assert_heard(healthy.daemon, turn)
        assert turn.extra["backend"] == "groq"
        said, closing = turn.response[:-len(BROKEN_OFF)].rstrip(), turn.response[-len(BROKEN_OFF):]
        print(f"{fault}: {said!r} and the closing sentence, {taken:.1f} s")
        assert closing == BROKEN_OFF
        assert said
        assert FACT.startswith(said)
        assert taken < (60 if fault.late else 30)
        assert len(healthy.fake.questions) == before + 1
        assert healthy.groq()["state"] in {"offline", "online"}, healthy.changes()  # a probe may have found it well
        assert [line for line in healthy.changes() if "groq is offline (was online)" in line]
        assert await next_history(healthy, pin) == [(turn.transcript, turn.response)]
    healthy.assert_nothing_secret(turn)


@pytest.mark.parametrize("fault", [Fault("reset", "offline", "", {"words": 2}),
                                   Fault("stall", "offline", "", {"words": 2}, late=True),
                                   Fault("drip", "offline", "", {"every": 2.0}, late=True)], ids=str)
async def test_a_stream_that_breaks_before_a_word_was_spoken_is_as_if_it_had_never_been(
        healthy: Clouded, fault: Fault) -> None:
    healthy.fake.behave(fault.kind, **fault.options)
    async with Pin(healthy.daemon.url, visitor(f"user of early {fault}")) as pin:
        turn = await ask(pin)
        assert_heard(healthy.daemon, turn)
        assert turn.extra["backend"] == "local"
        assert BROKEN_OFF not in turn.response
        assert not turn.response.startswith(FACT.split(maxsplit=1)[0])
        assert await next_history(healthy, pin) == [(turn.transcript, turn.response)]


async def test_a_compressed_answer_is_heard_as_any_other(healthy: Clouded) -> None:
    healthy.fake.behave("gzip")
    async with Pin(healthy.daemon.url, visitor("user of gzip")) as pin:
        turn = await ask(pin)
    assert_heard(healthy.daemon, turn)
    assert (turn.extra["backend"], turn.extra["reason"], turn.response) == ("groq", "", FACT)


async def assert_brain(appliance: Clouded, brain: str) -> None:
    """Fail unless everybody who asks is told this condition: a pin that connects, anybody, and the operator."""
    told: list[dict[str, Any]] = []
    async with Pin(appliance.daemon.url, "newcomer", on_message=lambda _, message: told.append(message)):
        assert [message["brain"] for message in told if message.get("status") == "connected"] == [brain]
    health = await asyncio.to_thread(appliance.daemon.call, "GET", "/health")
    shown = await asyncio.to_thread(appliance.daemon.ctl, "status", "--json")
    assert (health["brain"], json.loads(shown.stdout)["brain"]) == (brain, brain)
    seen = (await asyncio.to_thread(appliance.daemon.ctl, "status")).stdout
    assert f" groq {appliance.groq()['state']} " in " ".join(seen.split()), seen


async def test_nobody_is_there(healthy: Clouded) -> None:
    await assert_brain(healthy, "online")
    await healthy.fake.unplug()
    async with Pin(healthy.daemon.url, visitor("user of nobody")) as pin:
        first, second = await ask(pin), await ask(pin)
        assert_local(healthy, second, "groq is offline")
        # Getting ready for the question may have found the dead line before the question did.
        assert first.extra["backend"] == "local"
        assert first.extra["reason"] in {"groq cannot be reached", "groq is offline"}
        assert healthy.groq()["state"] == "offline"
        await assert_brain(healthy, "offline")
        await healthy.fake.plug()
        await healthy.until_state("online", 45)
        await assert_brain(healthy, "online")
        turn = await ask(pin)
        assert (turn.extra["backend"], turn.extra["reason"]) == ("groq", "")
        assert history(healthy.fake.questions[-1].body["messages"]) == [
            (each.transcript, each.response) for each in (first, second)]


async def test_the_clouds_name_is_not_found() -> None:
    # No name of .invalid exists anywhere (RFC 2606); whether the network says so or is silent, it is offline.
    async with clouded({"CHAT__GROQ__BASE_URL": "http://groq.invalid"}) as appliance, \
            Pin(appliance.daemon.url, "user of no name") as pin:
        await appliance.until_state("offline")
        assert_local(appliance, await ask(pin), "groq is offline")
        assert "the name groq.invalid could not be looked up" in appliance.groq()["detail"]
        status = appliance.daemon.status()
        assert (status["brain"], status["faults"]) == ("offline", [])
        assert appliance.fake.connections == 0


@pytest.mark.parametrize("as_date", [False, True], ids=["seconds", "date"])
async def test_a_rate_limit_ends_when_the_service_said(healthy: Clouded, as_date: bool) -> None:
    healthy.fake.behave("rate_limited", retry_after=20, as_date=as_date, times=1)
    async with Pin(healthy.daemon.url, visitor(f"user of 429 {as_date}")) as pin:
        limited = time.monotonic()
        assert_local(healthy, await ask(pin), "groq is rate-limited")
        asked = len(healthy.fake.questions)
        assert healthy.groq()["state"] == "rate-limited"
        assert (await ask(pin)).extra["reason"] == "groq is rate-limited"
        assert len(healthy.fake.questions) == asked
        await healthy.until_state("online", 45)
        over = time.monotonic() - limited
        print(f"asked again {over:.1f} s after a limit of 20 s")
        # A date has no parts of a second.
        assert 18.5 < over < 45
        assert (await ask(pin)).extra["backend"] == "groq"


@pytest.mark.parametrize("kind", ["retired", "decommissioned"])
async def test_a_retired_models_place_is_taken_within_the_turn(healthy: Clouded, kind: str) -> None:
    told = [line for line in healthy.daemon.lines if f"no longer serves the model {SCOUT}" in line]
    healthy.fake.behave(kind, times=1)
    async with Pin(healthy.daemon.url, visitor(f"user of {kind}")) as pin:
        turn = await ask(pin)
        assert_heard(healthy.daemon, turn)
        assert (turn.extra["backend"], turn.extra["reason"], turn.response) == ("groq", "", FACT)
        assert [request.body["model"] for request in healthy.fake.questions[-2:]] == [SCOUT, QWEN]
        assert healthy.fake.questions[-1].body["reasoning_effort"] == "none"
        row = healthy.groq()
        assert (row["state"], row["model"], row["retired"]) == ("online", QWEN, [SCOUT])
        asked = len(healthy.fake.questions)
        await ask(pin)
        assert [request.body["model"] for request in healthy.fake.questions[asked:]] == [QWEN]
    lines = [line for line in healthy.daemon.lines if f"no longer serves the model {SCOUT}" in line]
    assert len(lines) == 1, "said once in the appliance's life"
    assert len(told) <= 1


async def test_no_model_left(healthy: Clouded) -> None:
    healthy.fake.behave("retired")
    async with Pin(healthy.daemon.url, visitor("user of no model")) as pin:
        assert_local(healthy, await ask(pin), "groq has no model left")
    row = healthy.groq()
    assert (row["state"], row["retired"]) == ("degraded", [SCOUT, QWEN])


async def test_the_key_does_not_follow_a_redirect(healthy: Clouded) -> None:
    async with FakeGroq(key=None) as elsewhere:
        healthy.fake.behave("redirect", to=f"{elsewhere.url}/openai/v1/chat/completions")
        async with Pin(healthy.daemon.url, visitor("user of redirect")) as pin:
            turn = await ask(pin)
        assert_local(healthy, turn, "groq gave no usable answer")
        assert elsewhere.connections == 0
        assert elsewhere.requests == []


@pytest.mark.parametrize(("status", "shape"), [(200, "line"), (200, "events"), (500, "line"), (200, "bomb"),
                                               (500, "bomb")])
async def test_a_hundred_megabytes_are_not_taken(healthy: Clouded, status: int, shape: str) -> None:
    healthy.fake.behave("huge", status=status, shape=shape)
    before = psutil.Process(healthy.daemon.process.pid).memory_info().rss
    async with Pin(healthy.daemon.url, visitor(f"user of much {status} {shape}")) as pin:
        turn = await ask(pin)
    assert_heard(healthy.daemon, turn)
    assert turn.extra["backend"] == "local"
    await until(lambda: healthy.fake.questions[-1].dropped, PATIENT_S)
    grown = psutil.Process(healthy.daemon.process.pid).memory_info().rss - before
    print(f"{healthy.fake.questions[-1].sent_words / 1e6:.1f} MB sent, {grown / 1e6:.1f} MB grown")
    assert healthy.fake.questions[-1].sent_words < 20_000_000
    assert grown < 60_000_000


@pytest.mark.parametrize("kind", ["repeat", "loop"])
async def test_an_answer_without_end_is_cut_to_something_speakable(healthy: Clouded, kind: str) -> None:
    healthy.fake.behave(kind)
    async with Pin(healthy.daemon.url, visitor(f"user of {kind}")) as pin:
        turn = await ask(pin)
    assert turn.answered, turn.error
    print(f"{kind}: {turn.response}")
    assert 3 <= len(turn.response.split()) <= 40
    await until(lambda: healthy.fake.questions[-1].dropped, PATIENT_S)


async def test_two_thousand_words_are_cut_to_as_many_as_are_wanted() -> None:
    async with clouded({"CHAT__MAX_ANSWER_WORDS": "24"}) as appliance:
        appliance.fake.behave("long", words=2000)
        async with Pin(appliance.daemon.url, "user of long") as pin:
            turn = await ask(pin)
        assert turn.answered, turn.error
        sentences = turn.response.split(". ")
        print(turn.response)
        assert len(sentences) == 4, "the sentence that passes 24 words is the last"
        assert sentences[-1] == "Sentence number 3 is about thing 3."
        assert turn.playback is not None
        assert turn.playback.received_s > 0.12 * len(turn.response.split())
        assert appliance.daemon.status()["last_turn"]["outcome"] == "answered"


async def test_when_everything_fails_one_plain_sentence_is_spoken() -> None:
    async with clouded({"CHAT__LOCAL__MODEL": "/nonexistent.gguf", "CHAT__LOCAL__PRELOAD": "auto"}) as appliance:
        appliance.fake.answer = FACT
        async with Pin(appliance.daemon.url, "unlucky") as pin:
            before = await ask(pin)
            await appliance.fake.unplug()
            turn = await ask(pin)
            assert_heard(appliance.daemon, turn)
            assert turn.error is None
            assert turn.response == NO_ANSWER
            stages = turn.extra["timings"]
            print(stages)
            assert stages["first_audio"] - stages["transcript"] < 2, "it was made at the start, and needs no engine"
            assert appliance.daemon.status()["last_turn"]["outcome"] == "canned"
            assert await next_history(appliance, pin) == [(before.transcript, FACT)], "an apology answers nothing"
        appliance.assert_nothing_secret(turn)


@pytest.mark.parametrize(("tls", "backend"), [("good", "groq"), ("wrong-name", "local"), ("self-signed", "local")])
async def test_a_certificate_that_does_not_match_never_sees_the_key(monkeypatch: pytest.MonkeyPatch, tls: Any,
                                                                    backend: str) -> None:
    async with FakeGroq(tls=tls, key=next(KEYS)) as fake:
        fake.answer = FACT
        if fake.ca_file:
            monkeypatch.setenv("SSL_CERT_FILE", str(fake.ca_file))
        async with clouded(fake=fake) as appliance, Pin(appliance.daemon.url, "careful") as pin:
            await appliance.until_state("online" if backend == "groq" else "offline")
            turn = await ask(pin)
            assert_heard(appliance.daemon, turn)
            assert turn.extra["backend"] == backend
            if backend == "local":
                assert "certificate" in appliance.groq()["detail"]
                assert fake.requests == []
            appliance.assert_nothing_secret(turn)
