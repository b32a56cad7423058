"""How a backend comes back: probes, the end of a limit, another key, an interface."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hotpind.chat import chain as chain_module
from hotpind.chat.key import CREDENTIAL, Secret, remove_key, store_key
from tests.chat.asking import QUICK, SCOUT, ask, fast_probes, settled, status
from tests.chat.conftest import FakeEngine, MakeChain
from tests.fakes.groq import ANSWER, KEY, FakeGroq
from tests.waiting import until


async def test_the_cloud_comes_back_by_itself(make_chain: MakeChain, cloud: FakeGroq,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    fast_probes(monkeypatch)
    async with make_chain(**QUICK) as chain:
        await settled(chain)
        await cloud.unplug()
        assert (await ask(chain))[1].backend == "local"
        await asyncio.sleep(0.3)
        assert status(chain).state == "offline"
        await cloud.plug()
        await until(lambda: status(chain).state == "online")
        assert (await ask(chain))[0] == ANSWER


async def test_a_cloud_that_was_late_must_think_in_time_to_come_back(make_chain: MakeChain, cloud: FakeGroq,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    fast_probes(monkeypatch)
    async with make_chain(first_token_deadline_s=0.4, next_token_deadline_s=0.4) as chain:
        await settled(chain)
        cloud.behave("late", after=2.0)
        assert (await ask(chain))[1].backend == "local"
        await until(lambda: len(cloud.chats) > len(cloud.questions) + 1)
        assert status(chain).state == "degraded", "the list of models came quickly, the token did not"
        assert (await ask(chain))[1].reason == "groq is degraded", "it is not even asked"
        cloud.behave()
        await until(lambda: status(chain).state == "online")
        assert len(cloud.questions) == 1
        probe = cloud.chats[-1].body
        assert probe["max_completion_tokens"] == 1
        assert "capital" not in str(probe), "a probe does not carry anybody's question"


async def test_a_slow_list_of_models_is_no_slow_answer(make_chain: MakeChain, cloud: FakeGroq,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    fast_probes(monkeypatch)
    async with make_chain(first_token_deadline_s=1.0, next_token_deadline_s=6.0) as chain:
        await settled(chain)
        cloud.behave("error", times=1)
        cloud.list_s = 1.5
        assert (await ask(chain))[1].backend == "local"
        assert status(chain).state == "degraded"
        await until(lambda: status(chain).state == "online")


async def test_a_late_cloud_whose_list_is_silent_too_is_out_of_reach(make_chain: MakeChain, cloud: FakeGroq,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    fast_probes(monkeypatch)
    async with make_chain(**QUICK) as chain:
        await settled(chain)
        cloud.behave("late", models_too=True)
        assert (await ask(chain))[1].backend == "local"
        assert status(chain).state == "degraded"
        await until(lambda: status(chain).state == "offline")
        cloud.behave()
        await until(lambda: status(chain).state == "online")


async def test_a_rate_limit_ends_by_itself(make_chain: MakeChain, cloud: FakeGroq) -> None:
    async with make_chain() as chain:
        await settled(chain)
        cloud.behave("rate_limited", retry_after=1, times=1)
        assert (await ask(chain))[1].reason == "groq is rate-limited"
        asked = len(cloud.requests)
        assert (await ask(chain))[1].backend == "local"
        await until(lambda: status(chain).state == "online")
        assert len(cloud.requests) == asked, "nothing was asked meanwhile, not even by a probe"
        assert (await ask(chain))[1].backend == "groq"


async def test_an_answer_under_way_does_not_end_a_rate_limit(make_chain: MakeChain, cloud: FakeGroq) -> None:
    async with make_chain() as chain:
        await settled(chain)
        cloud.behave("late", after=1.2, times=1)
        slow = asyncio.ensure_future(ask(chain))
        await until(lambda: len(cloud.questions) == 1)
        cloud.behave("rate_limited", retry_after=60, times=1)
        assert (await ask(chain))[1].reason == "groq is rate-limited"
        assert (await slow)[1].backend == "groq"
        assert status(chain).state == "rate-limited"
        assert (await ask(chain))[1].backend == "local"
        assert len(cloud.questions) == 2, "the service said when it may be asked again"


async def test_a_network_interface_ends_the_wait(make_chain: MakeChain, cloud: FakeGroq) -> None:
    async with make_chain() as chain:
        await settled(chain)
        await cloud.unplug()
        await ask(chain)
        await cloud.plug()
        assert status(chain).state == "offline"
        chain.interface_up()
        await until(lambda: status(chain).state == "online", 4.5)  # the next probe would be due after 5 s


async def test_a_rejected_key_waits_for_another(make_chain: MakeChain, cloud: FakeGroq, tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with make_chain(key="gsk_wrong") as chain:
        await settled(chain)
        assert status(chain).state == "key-rejected"
        assert status(chain).fault == status(chain).detail != ""
        assert (await ask(chain))[1].backend == "local"
        chain.interface_up()
        asked = len(cloud.requests)
        await asyncio.sleep(0.2)
        assert len(cloud.requests) == asked
        store_key(state, Secret(KEY))
        chain.key_changed()
        await until(lambda: status(chain).state == "online")
        await settled(chain)
        assert (await ask(chain))[1].backend == "groq"
        remove_key(state)
        chain.key_changed()
        await until(lambda: status(chain).state == "off")
        assert status(chain).fault == "", "to have no key is no fault"
        assert (await ask(chain))[1].backend == "local"


async def test_a_changed_key_is_noticed_without_being_told(make_chain: MakeChain, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_module, "KEY_POLL_S", 0.1)
    async with make_chain(key=None) as chain:
        assert status(chain).state == "off"
        store_key(tmp_path / "state", Secret(KEY))
        await until(lambda: status(chain).state == "online")
        assert "state directory" in status(chain).detail
        (tmp_path / "state" / CREDENTIAL).chmod(0o640)
        await until(lambda: status(chain).state == "off")
        assert "others can read" in status(chain).detail


async def test_going_offline_loads_the_local_model_before_the_next_question(
        make_chain: MakeChain, cloud: FakeGroq, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_module, "FRESH_S", 0.0)
    async with make_chain() as chain:
        await settled(chain)
        assert engine.asked == 0
        await cloud.unplug()
        chain.prepare()
        await until(lambda: engine.asked == 1)
        assert status(chain).state == "offline"


async def test_the_list_of_models_is_asked_for_now_and_then(make_chain: MakeChain, cloud: FakeGroq,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    assert chain_module.LIST_EVERY_S == 6 * 3600
    monkeypatch.setattr(chain_module, "LIST_EVERY_S", 0.2)
    async with make_chain() as chain:
        await settled(chain)

        def lists() -> int:
            return sum(request.path.endswith("/models") for request in cloud.requests)

        await until(lambda: lists() >= 3)
        cloud.models.remove(SCOUT)
        await until(lambda: status(chain).retired == [SCOUT])
        assert cloud.chats == [], "it costs no answer"
        cloud.models.append(SCOUT)
        await until(lambda: status(chain).retired == [])
