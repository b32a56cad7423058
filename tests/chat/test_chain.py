"""The chain when nothing is wrong, between a fake cloud and a server on a unix socket as the engine."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from hotpind.chat import chain as chain_module
from hotpind.chat import contest as contest_module
from hotpind.chat.messages import Picture
from hotpind.config.schema import ChatSection
from hotpind.errors import NoAnswer
from tests.chat.asking import QWEN, SCOUT, ask, question, settled, status
from tests.chat.conftest import LOCAL_ANSWER, FakeEngine, MakeChain
from tests.fakes.groq import ANSWER, KEY, FakeGroq
from tests.waiting import until


async def test_the_cloud_answers(make_chain: MakeChain, cloud: FakeGroq, engine: FakeEngine,
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest_module, "SLOW_S", 5.0)
    async with make_chain(first_token_deadline_s=10.0) as chain:
        text, answer, _ = await ask(chain)
        assert text == ANSWER
        assert (answer.backend, answer.model, answer.reason) == ("groq", SCOUT, "")
        assert engine.server.requests == []
        assert engine.asked == 0, "the local model is not even loaded"
        assert status(chain).state == "online"
        assert status(chain).model == SCOUT
        assert KEY not in repr(chain.status())


async def test_the_answer_streams(make_chain: MakeChain, cloud: FakeGroq) -> None:
    cloud.token_s = 0.02
    async with make_chain() as chain:
        answer = await chain.ask(question())
        times = [time.monotonic() async for _ in answer]
        assert len(times) > 5
        assert times[-1] - times[0] > 0.1


async def test_without_a_key_it_is_quietly_local(make_chain: MakeChain, cloud: FakeGroq,
                                                 caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with make_chain(key=None) as chain:
        text, answer, _ = await ask(chain)
        assert text == LOCAL_ANSWER
        assert (answer.backend, answer.model, answer.reason) == ("local", "tiny", "")
        assert status(chain).state == "off"
        assert "hotpinctl key set" in status(chain).detail
    assert cloud.requests == []
    assert not [record for record in caplog.records if record.name.startswith("hotpind")]


async def test_groq_can_be_switched_off(make_chain: MakeChain, cloud: FakeGroq) -> None:
    async with make_chain(groq={"enabled": False}) as chain:
        assert (await ask(chain))[0] == LOCAL_ANSWER
        assert [row.name for row in chain.status()] == ["local"]
    assert cloud.requests == []


async def test_what_comes_out_can_be_spoken(make_chain: MakeChain, cloud: FakeGroq) -> None:
    cloud.answer = ("<think>hm</think># Paris\n\n"
                    "- **Paris** is [the capital](https://x.example) \U0001f600\n- It is `big`")
    async with make_chain() as chain:
        assert (await ask(chain))[0] == "Paris. Paris is the capital. It is big"


async def test_settings_change_while_running(make_chain: MakeChain, cloud: FakeGroq) -> None:
    async with make_chain() as chain:
        await settled(chain)
        chain.reconfigure(ChatSection.model_validate({"first_token_deadline_s": 0.2, "max_answer_words": 10}))
        cloud.behave("long")
        assert len((await ask(chain))[0].split()) < 20
        cloud.behave("late")
        assert (await ask(chain))[2] < 2, "the deadline was 2.5 s before"


async def test_many_questions_at_once(make_chain: MakeChain, cloud: FakeGroq) -> None:
    cloud.answer = lambda body: f"You asked {body['messages'][-1]['content']}."
    cloud.token_s = 0.01
    async with make_chain() as chain:
        texts = await asyncio.gather(*(ask(chain, question(f"number {index}")) for index in range(12)))
        assert [text for text, _, _ in texts] == [f"You asked number {index}." for index in range(12)]


async def test_what_the_engine_is_told(make_chain: MakeChain, engine: FakeEngine) -> None:
    async with make_chain(key=None) as chain:
        await ask(chain)
    body = engine.server.questions[0].body
    assert (body["max_tokens"], body["temperature"], body["repeat_penalty"], body["stream"]) == (80, 0.0, 1.1, True)
    assert body["user"] == "kitchen"


async def test_an_engine_that_dies_is_asked_once_more(make_chain: MakeChain, engine: FakeEngine) -> None:
    async with make_chain(key=None) as chain:
        engine.server.behave("reset", words=0, times=1)
        assert (await ask(chain))[0] == LOCAL_ANSWER
        engine.server.behave("reset", words=0)
        with pytest.raises(NoAnswer):
            await ask(chain)
        assert len(engine.server.questions) == 4


async def test_nobody_at_all(make_chain: MakeChain) -> None:
    async with make_chain(key=None, local=False) as chain:
        with pytest.raises(NoAnswer):
            await ask(chain)


async def test_a_retired_model_is_replaced_within_the_turn(make_chain: MakeChain, cloud: FakeGroq, engine: FakeEngine,
                                                           caplog: pytest.LogCaptureFixture) -> None:
    async with make_chain() as chain:
        await settled(chain)
        cloud.models.remove(SCOUT)
        text, answer, _ = await ask(chain)
        assert (text, answer.backend, answer.model, answer.reason) == (ANSWER, "groq", QWEN, "")
        await ask(chain)
        assert status(chain).retired == [SCOUT]
        assert status(chain).state == "online"
        assert engine.server.requests == []
    assert caplog.text.count("no longer serves") == 1


async def test_the_list_of_models_is_asked_for_at_the_start(make_chain: MakeChain, cloud: FakeGroq) -> None:
    cloud.models.remove(SCOUT)
    async with make_chain() as chain:
        await settled(chain)
        await ask(chain)
        assert [chat.body["model"] for chat in cloud.questions] == [QWEN]


async def test_getting_ready_finds_a_dead_line_before_the_question(make_chain: MakeChain, cloud: FakeGroq,
                                                                   engine: FakeEngine,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_module, "FRESH_S", 0.0)
    async with make_chain() as chain:
        await settled(chain)
        await cloud.unplug()
        chain.prepare()
        await until(lambda: status(chain).state == "offline")
        asked = engine.asked
        chain.prepare([Picture(b"jpeg", 4, 3)])
        await until(lambda: engine.asked > asked)
        assert (await ask(chain))[1].reason == "groq is offline"


async def test_getting_ready_does_nothing_when_it_was_heard_from(make_chain: MakeChain, cloud: FakeGroq) -> None:
    async with make_chain() as chain:
        await settled(chain)
        asked = len(cloud.requests)
        for _ in range(5):
            chain.prepare()
        await asyncio.sleep(0.1)
        assert len(cloud.requests) == asked


@pytest.mark.parametrize("answers", [True, False])
async def test_a_line_in_doubt_has_the_local_model_loaded(make_chain: MakeChain, cloud: FakeGroq, engine: FakeEngine,
                                                          monkeypatch: pytest.MonkeyPatch, *, answers: bool) -> None:
    monkeypatch.setattr(chain_module, "FRESH_S", 0.0)
    monkeypatch.setattr(chain_module, "DOUBT_S", 0.3)
    async with make_chain() as chain:
        await settled(chain)
        if not answers:
            cloud.behave("silent", models_too=True)
        for _ in range(5):
            chain.prepare()
        if answers:
            await asyncio.sleep(0.6)
            assert engine.asked == 0
        else:
            await until(lambda: engine.asked == 1)
            assert status(chain).state == "online", "nothing is known yet"


async def test_one_line_for_each_change(make_chain: MakeChain, cloud: FakeGroq,
                                        caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with make_chain() as chain:
        await settled(chain)
        await cloud.unplug()
        for _ in range(3):
            await ask(chain, question("my secret illness"))
        await cloud.plug()
        chain.interface_up()
        await until(lambda: status(chain).state == "online", 4.5)
        await ask(chain)
    lines = [record.getMessage() for record in caplog.records if record.name == "hotpind.chat.chain"]
    assert lines == ["groq is online (was off)", "groq is offline (was online): groq cannot be reached",
                     "groq is online (was offline)"]
    for secret in (KEY, "illness", "capital", "Paris"):
        assert secret not in caplog.text
