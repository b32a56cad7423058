"""What is left after answers, closed, given up, and broken in every way: nothing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from hotpind.chat import contest as contest_module
from hotpind.chat.router import State
from hotpind.errors import NoAnswer, StreamBroke
from tests.chat.asking import IMMEDIATE, QUICK, ask, collect, fast_probes, question, settled
from tests.chat.conftest import FakeEngine, MakeChain
from tests.fakes.groq import FakeGroq
from tests.waiting import until


async def test_an_answer_may_be_closed_at_any_time(make_chain: MakeChain, cloud: FakeGroq,
                                                   nothing_left: Callable[[], Awaitable[None]]) -> None:
    cloud.token_s = 0.01
    cloud.behave("long")
    await nothing_left()
    async with make_chain() as chain:
        for pieces in range(4):
            answer = await chain.ask(question())
            for _ in range(pieces):
                await anext(aiter(answer))
            await answer.aclose()
            await answer.aclose()
            assert [piece async for piece in answer] == []
        await until(lambda: all(request.dropped for request in cloud.questions))
        left = await chain.ask(question())
        assert left.backend == "groq"
    with pytest.raises(StreamBroke):
        await asyncio.wait_for(collect(left), 10)
    await nothing_left()


async def test_a_finished_answer_keeps_its_connection(make_chain: MakeChain, cloud: FakeGroq) -> None:
    async with make_chain() as chain:
        await settled(chain)
        for _ in range(5):
            await ask(chain)
        assert cloud.connections == 1


async def test_nothing_is_left_after_questions_that_were_given_up(make_chain: MakeChain, cloud: FakeGroq,
                                                                  engine: FakeEngine,
                                                                  nothing_left: Callable[[], Awaitable[None]]) -> None:
    await nothing_left()
    async with make_chain(**QUICK) as chain:
        for kind in ("late", "silent", "stall", "huge", "ok", "error"):
            cloud.behave(kind)
            for delay in (0.01, 0.42):
                chain._router.circuits["groq"].renewed(0.0, on=True, verify=False)
                task = asyncio.ensure_future(ask(chain))
                await asyncio.sleep(delay)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await until(lambda: not chain._runners)
    await nothing_left()


async def test_random_faults_never_say_a_thing_twice_and_leave_nothing(
        make_chain: MakeChain, cloud: FakeGroq, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch,
        nothing_left: Callable[[], Awaitable[None]]) -> None:
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    chance = random.Random(seed)
    fast_probes(monkeypatch)
    monkeypatch.setattr(contest_module, "PATIENCE_S", 1.0)
    monkeypatch.setattr(contest_module, "LAST_HOPE_S", 1.0)
    kinds = [(kind, options) for kind, options, _, _ in IMMEDIATE if kind != "huge"]
    kinds += [("ok", {})] * 12
    kinds += [("late", {}), ("silent", {}), ("stall", {"words": 7}), ("reset", {"words": 5}), ("reset_at_end", {}),
              ("repeat", {}), ("truncated", {"words": 9}), ("long", {}), ("gzip", {}), ("late", {"after": 0.15}),
              ("drip", {"every": 0.02})]
    local_kinds: list[tuple[str, dict[str, Any]]] = [("ok", {}), ("ok", {}), ("reset", {"words": 0}), ("error", {}),
                                                     ("stall", {"words": 9}), ("think", {})]
    await nothing_left()
    outcomes: dict[str, int] = {}
    async with make_chain(first_token_deadline_s=0.2, next_token_deadline_s=0.2) as chain:
        for _ in range(40):
            kind, options = chance.choice(kinds)
            cloud.behave(kind, **options, times=2)
            local_kind, local_options = chance.choice(local_kinds)
            engine.server.behave(local_kind, **local_options, times=1)
            if chance.random() < 0.1:
                await cloud.unplug()
            circuit = chain._router.circuits["groq"]
            if circuit.state in (State.KEY_REJECTED, State.RATE_LIMITED) or chance.random() < 0.5:
                circuit.renewed(0.0, on=True, verify=False)
            said: list[str] = []
            try:
                answer = await asyncio.wait_for(chain.ask(question()), 20)
                try:
                    async for piece in answer:
                        said.append(piece)
                        if chance.random() < 0.02:
                            break
                finally:
                    await answer.aclose()
                outcome = f"{answer.backend}"
            except StreamBroke:
                outcome = "broke"
            except NoAnswer:
                outcome = "nobody"
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            sentences = [sentence for sentence in "".join(said).split(". ") if sentence]
            assert len(sentences) == len(set(sentences))
            if cloud._runner is None:
                await cloud.plug()
        await until(lambda: not chain._runners)
    print(outcomes)
    assert outcomes["groq"] >= 1
    assert outcomes["local"] >= 1
    await nothing_left()


async def test_the_loser_is_stopped(make_chain: MakeChain, cloud: FakeGroq, engine: FakeEngine) -> None:
    engine.server.token_s = 0.05
    engine.server.behave("long")
    async with make_chain(first_token_deadline_s=2.0) as chain:
        await settled(chain)
        cloud.behave("late", after=1.5)
        await ask(chain)
        await until(lambda: engine.server.questions[0].dropped)
        assert engine.server.questions[0].sent_words < 200


async def test_questions_are_counted_while_they_wait(make_chain: MakeChain, cloud: FakeGroq) -> None:
    async with make_chain(**QUICK) as chain:
        await settled(chain)
        cloud.behave("silent")
        asking = [asyncio.create_task(chain.ask(question())) for _ in range(2)]
        await until(lambda: chain.waiting == 2)
        asking[0].cancel()
        answer = await asking[1]
        assert chain.waiting == 0, "the local model speaks, and the other question was given up"
        await answer.aclose()
