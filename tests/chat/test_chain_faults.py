"""The failure table, line by line, through the whole chain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from hotpind.chat import chain as chain_module
from hotpind.chat import contest as contest_module
from hotpind.chat import race as race_module
from hotpind.chat import streaming
from hotpind.errors import NoAnswer, StreamBroke
from tests.chat.asking import IMMEDIATE, QUICK, ask, collect_into, question, settled, status
from tests.chat.conftest import LOCAL_ANSWER, FakeEngine, MakeChain
from tests.fakes.groq import ANSWER, KEY, FakeGroq
from tests.waiting import until


@pytest.mark.parametrize(("kind", "options", "state", "reason"), IMMEDIATE)
async def test_a_fault_is_answered_locally_at_once(make_chain: MakeChain, cloud: FakeGroq, kind: str,
                                                   options: dict[str, Any], state: str, reason: str) -> None:
    async with make_chain() as chain:
        await settled(chain)
        cloud.behave(kind, **options)
        text, answer, taken = await ask(chain)
        assert text == LOCAL_ANSWER
        assert (answer.backend, answer.reason) == ("local", reason)
        assert taken < 2.3, "the local model did not wait for the deadline"
        assert status(chain).state == state
        asked = len(cloud.questions)
        text, answer, taken = await ask(chain)
        assert text == LOCAL_ANSWER
        if state != "online":
            assert len(cloud.questions) == asked, "the circuit is open: no question goes there"
            assert answer.reason in (f"groq is {state}", "groq has its key rejected")
            assert status(chain).detail


async def test_nobody_there_is_found_out_once(make_chain: MakeChain, cloud: FakeGroq) -> None:
    async with make_chain() as chain:
        await settled(chain)
        await cloud.unplug()
        text, answer, taken = await ask(chain)
        assert (text, answer.reason) == (LOCAL_ANSWER, "groq cannot be reached")
        assert taken < 2.3
        assert status(chain).state == "offline"
        assert (await ask(chain))[1].reason == "groq is offline"


@pytest.mark.parametrize(("kind", "options"), [
    ("late", {}), ("silent", {}), ("think_aloud", {}), ("late", {"after": 6.0})])
async def test_a_late_cloud_is_overtaken_at_the_deadline(make_chain: MakeChain, cloud: FakeGroq, engine: FakeEngine,
                                                         kind: str, options: dict[str, Any]) -> None:
    async with make_chain(first_token_deadline_s=1.2) as chain:
        await settled(chain)
        cloud.behave(kind, **options)
        text, answer, taken = await ask(chain)
        assert text == LOCAL_ANSWER
        assert answer.reason == "groq was late"
        assert taken > 1.15
        assert engine.server.questions[0].at - cloud.questions[0].at < 1.1, "it began before the deadline"
        assert status(chain).state == "degraded"
        await until(lambda: cloud.questions[0].dropped)
        text, answer, taken = await ask(chain)
        assert (text, answer.reason) == (LOCAL_ANSWER, "groq is degraded"), "later turns pay nothing"
        assert len(cloud.questions) == 1


async def test_a_cloud_that_is_nearly_late_still_answers(make_chain: MakeChain, cloud: FakeGroq, engine: FakeEngine,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race_module, "HEAD_START_S", 3.0)
    async with make_chain(first_token_deadline_s=4.0) as chain:  # of which the local model has half
        await settled(chain)
        cloud.behave("late", after=2.8)
        text, answer, _ = await ask(chain)
        assert (text, answer.backend, answer.reason) == (ANSWER, "groq", "")
        assert len(engine.server.questions) == 1, "the local model had begun"
        assert status(chain).state == "online"


async def test_the_local_model_is_loaded_when_the_cloud_is_slower_than_usual(
        make_chain: MakeChain, cloud: FakeGroq, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest_module, "SLOW_S", 1.5)
    async with make_chain(first_token_deadline_s=4.0) as chain:
        await settled(chain)
        await ask(chain)
        assert engine.asked == 0
        cloud.behave("late", after=2.2)
        assert (await ask(chain))[1].backend == "groq"
        assert engine.asked == 1
        assert engine.server.questions == [], "it has not been asked"


async def test_the_cloud_answers_late_when_the_local_model_cannot(make_chain: MakeChain, cloud: FakeGroq,
                                                                  engine: FakeEngine) -> None:
    engine.broken = True
    async with make_chain(**QUICK) as chain:
        await settled(chain)
        cloud.behave("late", after=0.6)
        text, answer, taken = await ask(chain)
        assert (text, answer.backend) == (ANSWER, "groq")
        assert taken > 0.5
        assert status(chain).state == "degraded", "late is late"


async def test_everything_fails(make_chain: MakeChain, cloud: FakeGroq, engine: FakeEngine) -> None:
    engine.broken = True
    async with make_chain() as chain:
        cloud.behave("error")
        for _ in range(3):
            with pytest.raises(NoAnswer) as caught:
                await ask(chain)
            assert KEY not in str(caught.value)
            assert "capital" not in str(caught.value)
        assert "llama engine does not start" in str(caught.value)


async def test_a_deadline_above_the_last_hope_is_kept(make_chain: MakeChain, cloud: FakeGroq,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest_module, "LAST_HOPE_S", 0.3)
    async with make_chain(first_token_deadline_s=4.0, local=False) as chain:
        await settled(chain)
        cloud.behave("late", after=1.0)
        text, answer, _ = await ask(chain)
        assert (text, answer.backend) == (ANSWER, "groq")
        assert status(chain).state == "online"


async def test_everybody_silent_has_an_end(make_chain: MakeChain, cloud: FakeGroq, engine: FakeEngine,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest_module, "PATIENCE_S", 0.5)
    monkeypatch.setattr(contest_module, "LAST_HOPE_S", 0.5)
    cloud.behave("late")
    engine.server.behave("late")
    async with make_chain(**QUICK) as chain:
        with pytest.raises(NoAnswer):
            await asyncio.wait_for(ask(chain), 30)


@pytest.mark.parametrize(("kind", "options"), [
    ("reset", {"words": 8}), ("stall", {"words": 8}), ("truncated", {"words": 8}), ("malformed", {"words": 8}),
    ("error_in_stream", {"words": 8})])
async def test_a_stream_that_breaks_is_not_begun_again(make_chain: MakeChain, cloud: FakeGroq, engine: FakeEngine,
                                                       kind: str, options: dict[str, Any]) -> None:
    async with make_chain(next_token_deadline_s=1.0) as chain:
        await settled(chain)
        cloud.behave(kind, **options)
        answer = await chain.ask(question())
        said: list[str] = []
        with pytest.raises(StreamBroke):
            await collect_into(said, answer)
        assert "".join(said) == "Paris is the capital of France.", "whole sentences, once"
        assert [piece async for piece in answer] == []
        await answer.aclose()
        assert engine.server.questions == []
        assert len(cloud.questions) == 1
        assert status(chain).state == "offline"
        assert (await ask(chain))[0] == LOCAL_ANSWER


async def test_a_dripping_stream_is_given_up(make_chain: MakeChain, cloud: FakeGroq,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hotpind.chat.runner.SLOW_GRACE_S", 0.5)
    monkeypatch.setattr("hotpind.chat.runner.SLOWEST_WORDS_PER_S", 8.0)
    cloud.answer = "one two three four five six seven eight nine ten " * 12
    async with make_chain() as chain:
        await settled(chain)
        cloud.behave("drip", every=0.25)
        begun = time.monotonic()
        with pytest.raises(StreamBroke, match="too slowly"):
            await ask(chain)
        assert time.monotonic() - begun < 20, "all words would take 30 s"


@pytest.mark.parametrize(("kind", "options", "expected"), [
    ("repeat", {}, "I am a helpful assistant and I am here to help you."),
    ("loop", {}, None), ("long", {}, None)])
async def test_an_answer_without_end_is_cut_and_stopped(make_chain: MakeChain, cloud: FakeGroq, kind: str,
                                                        options: dict[str, Any], expected: str | None) -> None:
    async with make_chain(max_answer_words=30) as chain:
        await settled(chain)
        cloud.behave(kind, **options)
        text, answer, _ = await ask(chain)
        assert answer.backend == "groq"
        assert expected is None or text == expected
        assert text.endswith(".")
        assert len(text.split()) < 50
        await until(lambda: cloud.questions[0].dropped or cloud.questions[0].finished)
        assert status(chain).state == "online"


async def test_a_dead_line_at_the_start_costs_no_turn(make_chain: MakeChain, cloud: FakeGroq) -> None:
    await cloud.unplug()
    async with make_chain() as chain:
        await settled(chain)
        text, answer, _ = await ask(chain)
        assert (text, answer.reason) == (LOCAL_ANSWER, "groq is offline")
    assert cloud.requests == []


@pytest.mark.parametrize(("kind", "options"), [
    ("stall_at_end", {}), ("reset_at_end", {}), ("reset_at_end", {"closing_mark": True}),
    ("reset_at_end", {"after": 0.0, "closing_mark": True})])
@pytest.mark.parametrize("where", ["groq", "box"])
async def test_what_happens_after_the_last_word_costs_nothing(
        make_chain: MakeChain, cloud: FakeGroq, nothing_left: Callable[[], Awaitable[None]], kind: str,
        options: dict[str, Any], where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "DRAIN_S", 1.0)
    await nothing_left()
    async with FakeGroq(key=None) as box:
        box.models = ["qwen"]
        tables = [{"name": "box", "url": box.openai_url, "model": "qwen", "before_groq": where == "box"}]
        service = box if where == "box" else cloud
        async with make_chain(backend=tables) as chain:
            await settled(chain)
            service.behave(kind, **options, times=1)
            begun = time.monotonic()
            text, answer, _ = await ask(chain)
            assert (text, answer.backend) == (ANSWER, where)
            if kind == "stall_at_end":
                # The end of the connection is waited for (DRAIN_S) by nobody who listens.
                assert not service.questions[0].dropped
                assert chain._runners
                assert time.monotonic() - begun < 10
            await until(lambda: not chain._runners)
            assert status(chain, where).state == "online", "a whole answer is no fault"
            assert (await ask(chain))[1].backend == where
    await nothing_left()


async def test_a_chain_does_not_leave_a_connection_that_was_still_to_end(
        make_chain: MakeChain, cloud: FakeGroq, nothing_left: Callable[[], Awaitable[None]]) -> None:
    await nothing_left()
    async with make_chain() as chain:
        cloud.behave("stall_at_end")
        await ask(chain)
        running = set(chain._runners)
    assert running
    assert all(runner.task.done() for runner in running)
    await nothing_left()


async def test_answers_that_cannot_be_spoken_count_although_the_list_of_models_comes(
        make_chain: MakeChain, cloud: FakeGroq, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_module, "FRESH_S", 0.0)
    async with make_chain() as chain:
        await settled(chain)
        cloud.behave("empty")
        for _ in range(3):
            chain.prepare()
            await settled(chain)
            assert (await ask(chain))[1].reason == "groq gave no usable answer"
        assert status(chain).state == "degraded"
