"""Servers on the LAN in the chain: their order, their keys, and what not all of them offer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hotpind.chat import chain as chain_module
from hotpind.chat.key import CREDENTIAL, Secret, store_key
from tests.chat.asking import ask, fast_probes, settled, status
from tests.chat.conftest import FakeEngine, MakeChain
from tests.fakes.groq import FakeGroq
from tests.waiting import until


async def test_a_lan_server_before_groq_and_one_after(make_chain: MakeChain, cloud: FakeGroq, engine: FakeEngine,
                                                      tmp_path: Path) -> None:
    key_file = tmp_path / "nas-key"
    store_key(tmp_path, Secret("nas-secret"))
    (tmp_path / CREDENTIAL).rename(key_file)
    async with FakeGroq(key="nas-secret") as nas, FakeGroq(key=None) as box:
        nas.answer, nas.models = "This is the NAS.", ["llama3"]
        box.answer, box.models = "This is the box.", ["qwen"]
        tables = [{"name": "box", "url": box.openai_url, "model": "qwen"},
                  {"name": "nas", "url": nas.openai_url, "model": "llama3", "before_groq": True,
                   "key_file": str(key_file), "max_tokens": 77}]
        async with make_chain(backend=tables) as chain:
            await settled(chain)
            assert [row.name for row in chain.status()] == ["nas", "groq", "box", "local"]

            async def who() -> tuple[str, str]:
                _, answer, _ = await ask(chain)
                return answer.backend, answer.reason

            assert await who() == ("nas", "")
            sent = nas.questions[0]
            assert sent.path == "/v1/chat/completions"
            assert (sent.body["model"], sent.body["max_tokens"]) == ("llama3", 77)
            await nas.unplug()
            assert await who() == ("groq", "nas cannot be reached")
            assert await who() == ("groq", "nas is offline")
            cloud.behave("error")
            assert await who() == ("box", "nas is offline")
            box.behave("error")
            assert await who() == ("local", "nas is offline")
            await nas.plug()
            chain.interface_up()
            await until(lambda: status(chain, "nas").state == "online")
            assert await who() == ("nas", "")


async def test_the_second_in_line_is_not_called_late_for_beginning_late(make_chain: MakeChain,
                                                                        cloud: FakeGroq) -> None:
    async with FakeGroq(key=None) as box:
        box.models = ["qwen"]
        box.behave("late", after=10.0)
        tables = [{"name": "box", "url": box.openai_url, "model": "qwen"}]
        # It is asked a second later, and at the deadline it has not had its own time yet.
        async with make_chain(backend=tables, first_token_deadline_s=2.0) as chain:
            await settled(chain)
            cloud.behave("late")
            assert (await ask(chain))[1].backend == "local"
            assert status(chain).state == "degraded"
            assert status(chain, "box").state == "online"


async def test_a_better_backend_gets_the_floor_at_the_deadline(make_chain: MakeChain, cloud: FakeGroq) -> None:
    async with FakeGroq(key=None) as box:
        box.models, box.answer = ["qwen"], "This is the box."
        tables = [{"name": "box", "url": box.openai_url, "model": "qwen"}]
        async with make_chain(backend=tables, first_token_deadline_s=2.0) as chain:
            await settled(chain)
            cloud.behave("late")
            text, answer, _ = await ask(chain)
            assert (text, answer.reason) == ("This is the box.", "groq was late")


def box_table(box: FakeGroq, **more: Any) -> dict[str, Any]:
    box.models, box.answer = ["qwen"], "This is the box."
    return {"name": "box", "url": box.openai_url, "model": "qwen", "before_groq": True, **more}


@pytest.mark.parametrize("status_of_list", [404, 405])
async def test_a_server_without_a_list_of_models_is_as_good_as_any(
        make_chain: MakeChain, monkeypatch: pytest.MonkeyPatch, status_of_list: int) -> None:
    monkeypatch.setattr(chain_module, "FRESH_S", 0.0)
    async with FakeGroq(key=None) as box:
        box.list_status = status_of_list
        async with make_chain(backend=[box_table(box)]) as chain:
            await settled(chain)
            assert box.requests, "it was looked for at the start"
            for _ in range(2):
                assert status(chain, "box").state == "online"
                assert (await ask(chain))[1].backend == "box"
                chain.prepare()
                await settled(chain)


@pytest.mark.parametrize("kind", ["unauthorized", "forbidden"])
async def test_a_server_that_was_given_no_key_and_wants_one_is_asked_again(
        make_chain: MakeChain, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fast_probes(monkeypatch)
    async with FakeGroq(key=None) as box, make_chain(backend=[box_table(box)]) as chain:
        await settled(chain)
        box.behave(kind)
        assert (await ask(chain))[1].reason == "box is in trouble"
        assert status(chain, "box").state == "degraded"
        assert 'key_file of [[chat.backend]] "box"' in status(chain, "box").detail
        assert "hotpinctl key set" not in status(chain, "box").detail, "that key is sent to Groq"
        box.behave()
        await until(lambda: status(chain, "box").state == "online")
        assert (await ask(chain))[1].backend == "box"


async def test_a_servers_rejected_key_is_named_by_its_own_setting(make_chain: MakeChain, tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_module, "KEY_POLL_S", 0.1)
    key_file = tmp_path / "box-key"
    key_file.touch(mode=0o600)
    key_file.write_text("box-wrong")
    async with FakeGroq(key="box-secret") as box, make_chain(backend=[box_table(box, key_file=str(key_file))]) as chain:
        await settled(chain)
        row = status(chain, "box")
        assert row.state == "key-rejected"
        assert str(key_file) in row.detail
        assert 'key_file of [[chat.backend]] "box"' in row.detail
        assert "hotpinctl key set" not in row.detail
        assert row.fault == row.detail
        key_file.chmod(0o644)
        await until(lambda: "others can read" in status(chain, "box").fault)
        key_file.chmod(0o600)
        key_file.write_text("box-secret")
        # Online it is also for a moment after any change of its key, until that was tried.
        await until(lambda: status(chain, "box").state == "online" and status(chain, "box").fault == "")
        assert (await ask(chain))[1].backend == "box"


async def test_a_servers_missing_key_file_is_named(make_chain: MakeChain, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_module, "KEY_POLL_S", 0.1)
    key_file = tmp_path / "none"
    async with FakeGroq(key=None) as box, make_chain(backend=[box_table(box, key_file=str(key_file))]) as chain:
        await settled(chain)
        row = status(chain, "box")
        assert row.state == "online", "it may do without"
        assert row.fault == f"box: {row.detail}"
        assert str(key_file) in row.detail
        assert 'key_file of [[chat.backend]] "box"' in row.detail
        key_file.touch(mode=0o600)
        key_file.write_text("box-secret")
        await until(lambda: status(chain, "box").detail == "")
        assert status(chain, "box").fault == ""


async def test_a_server_that_closed_its_idle_connection_is_asked_all_the_same(make_chain: MakeChain,
                                                                              cloud: FakeGroq) -> None:
    async with FakeGroq(key=None) as box, make_chain(backend=[box_table(box)]) as chain:
        await settled(chain)
        assert (await ask(chain))[1].backend == "box"
        box.behave("reset", words=0, times=1)  # what a connection looks like that was closed while a question was sent
        assert (await ask(chain))[1].backend == "box"
        assert len(box.questions) == 3
        box.behave("reset", words=0)
        assert (await ask(chain))[1].reason == "box cannot be reached"
        assert len(box.questions) == 5, "once"
        assert len(cloud.questions) == 1
