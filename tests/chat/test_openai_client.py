"""The client for OpenAI-compatible servers, against each way a server can fail."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from hotpind.chat import streaming
from hotpind.chat.backend import Ended, Event, Using, Words
from hotpind.chat.completions import Service
from hotpind.chat.key import Secret
from hotpind.chat.lookup import NameLookup
from hotpind.chat.openai_client import ChatClient
from hotpind.errors import (
    BackendError,
    BackendRateLimited,
    BackendTooLate,
    BackendUnreachable,
    BadAnswer,
    KeyRejected,
    ModelRetired,
    PayloadTooLarge,
)
from tests.fakes.groq import ANSWER, KEY, MODELS, FakeGroq
from tests.waiting import until

BODY = {"model": MODELS[0], "messages": [{"role": "user", "content": "Hello?"}], "stream": True, "max_tokens": 50}


def client(url: str, *, socket: Path | None = None, lookup: NameLookup | None = None) -> ChatClient:
    return ChatClient(url, Service("nas", "look into its key file"), lookup=lookup or NameLookup(),
                      connect_timeout_s=0.5, socket=socket, key=lambda: Secret(KEY))


async def ask(of: ChatClient, *, quiet_s: float = 1.0) -> list[Event]:
    return [event async for event in of.stream(BODY, model=MODELS[0], quiet_s=quiet_s)]


def text(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Words))


async def test_an_answer_over_tcp_with_the_key(cloud: FakeGroq) -> None:
    nas = client(cloud.openai_url)
    events = await ask(nas)
    assert text(events) == ANSWER
    assert events[-1] == Ended()
    assert not any(isinstance(event, Using) for event in events)
    (request,) = cloud.requests
    assert request.body == BODY
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert await nas.models(quiet_s=1) == list(MODELS)
    await nas.close()


async def test_a_connection_is_used_again(cloud: FakeGroq) -> None:
    nas = client(cloud.openai_url)
    for _ in range(5):
        await ask(nas)
    assert cloud.connections == 1
    await nas.close()


async def test_a_reset_before_the_answer_is_tried_once_more(cloud: FakeGroq) -> None:
    nas = client(cloud.openai_url)
    cloud.behave("reset", words=0, times=1)
    assert text(await ask(nas)) == ANSWER
    cloud.behave("reset", words=0)
    with pytest.raises(BackendUnreachable):
        await ask(nas)
    cloud.behave("reset", words=1)
    with pytest.raises(BackendUnreachable):
        await ask(nas)
    assert len(cloud.chats) == 5, "an answer under way is never begun again"
    await nas.close()


async def test_the_end_of_an_answer_is_not_waited_for_long(cloud: FakeGroq, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "DRAIN_S", 0.1)
    nas = client(cloud.openai_url)
    for kind in ("stall_at_end", "reset_at_end"):
        cloud.behave(kind, times=1)
        assert (await asyncio.wait_for(ask(nas, quiet_s=60), 10))[-1] == Ended()
    assert text(await ask(nas)) == ANSWER
    await nas.close()


async def test_a_server_may_have_no_list_of_models(cloud: FakeGroq) -> None:
    nas = client(cloud.openai_url)
    for status in (404, 405):
        cloud.list_status = status
        assert await nas.models(quiet_s=1) == []
    cloud.list_status = 500
    with pytest.raises(BackendUnreachable):
        await nas.models(quiet_s=1)
    await nas.close()


async def test_an_answer_over_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "engine.sock"
    async with FakeGroq(socket=path):
        engine = client("http://localhost/v1", socket=path)
        assert text(await ask(engine)) == ANSWER
        await engine.close()


FAULTS: list[tuple[str, dict[str, Any], type[BackendError]]] = [
    ("late", {}, BackendTooLate), ("silent", {}, BackendTooLate), ("stall", {}, BackendTooLate),
    ("reset", {}, BackendUnreachable), ("truncated", {}, BackendUnreachable), ("malformed", {}, BadAnswer),
    ("error_in_stream", {}, BackendUnreachable),
    ("error_in_stream", {"code": "rate_limit_exceeded"}, BackendRateLimited),
    ("redirect", {"to": "http://127.0.0.1:1/"}, BadAnswer), ("huge", {}, BadAnswer),
    ("huge", {"shape": "events"}, BadAnswer), ("huge", {"status": 500}, BackendUnreachable),
    ("rate_limited", {}, BackendRateLimited), ("retired", {}, ModelRetired), ("decommissioned", {}, ModelRetired),
    ("too_large", {}, PayloadTooLarge), ("unauthorized", {}, KeyRejected),
    ("forbidden", {}, KeyRejected), ("error", {"status": 503}, BackendUnreachable),
    ("error", {"status": 498}, BackendUnreachable), ("html", {}, BadAnswer), ("garbage", {}, BadAnswer),
    ("bad_request", {}, BadAnswer)]


@pytest.mark.parametrize(("kind", "options", "expected"), FAULTS)
async def test_each_fault_has_its_error(cloud: FakeGroq, nothing_left: Callable[[], Awaitable[None]], kind: str,
                                        options: dict[str, Any], expected: type[BackendError]) -> None:
    nas = client(cloud.openai_url)
    await nothing_left()
    cloud.behave(kind, **options)
    begun = time.monotonic()
    with pytest.raises(BackendError) as caught:
        await ask(nas, quiet_s=0.3)
    assert type(caught.value) is expected
    assert time.monotonic() - begun < 30
    assert KEY not in str(caught.value)
    cloud.behave()
    assert text(await ask(nas)) == ANSWER, "and the client is as good as before"
    await nas.close()
    await nothing_left()


async def test_a_compressed_answer_is_understood(cloud: FakeGroq) -> None:
    nas = client(cloud.openai_url)
    cloud.behave("gzip")
    assert text(await ask(nas)) == ANSWER
    await nas.close()


async def test_the_key_does_not_follow_a_redirect(cloud: FakeGroq) -> None:
    nas = client(cloud.openai_url)
    async with FakeGroq() as elsewhere:
        cloud.behave("redirect", to=f"{elsewhere.openai_url}/chat/completions")
        with pytest.raises(BadAnswer, match="redirects"):
            await ask(nas)
        assert elsewhere.requests == []
    await nas.close()


async def test_nobody_there(tmp_path: Path) -> None:
    async with FakeGroq() as fake:
        gone = client(fake.openai_url)
        await fake.unplug()
        with pytest.raises(BackendUnreachable) as caught:
            await ask(gone)
        assert not caught.value.server_fault
        await gone.close()
    absent = client("http://localhost/v1", socket=tmp_path / "none.sock")
    with pytest.raises(BackendUnreachable):
        await ask(absent)
    await absent.close()


async def test_a_name_that_is_not_found() -> None:
    def nowhere(*_: object, **__: object) -> list[object]:
        raise OSError(-2, "Name or service not known")

    lost = client("http://nas.invalid:11434/v1", lookup=NameLookup(nowhere))
    with pytest.raises(BackendUnreachable):
        await ask(lost)
    await lost.close()


@pytest.mark.parametrize("tls", ["self-signed", "wrong-name"])
async def test_a_wrong_certificate(tls: Any) -> None:
    async with FakeGroq(tls=tls) as fake:
        nas = client(fake.openai_url)
        with pytest.raises(BackendUnreachable, match="certificate"):
            await ask(nas)
        assert fake.requests == []
        await nas.close()


async def test_a_connection_that_is_not_taken() -> None:
    """A full accept queue: connecting itself hangs."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    port = listener.getsockname()[1]
    blockers = [asyncio.ensure_future(asyncio.open_connection("127.0.0.1", port)) for _ in range(4)]
    await asyncio.sleep(0.5)
    nas = client(f"http://127.0.0.1:{port}/v1")
    begun = time.monotonic()
    with pytest.raises(BackendUnreachable):
        await ask(nas)
    assert 0.4 < time.monotonic() - begun < 20
    await nas.close()
    for blocker in blockers:
        blocker.cancel()
    for result in await asyncio.gather(*blockers, return_exceptions=True):
        if not isinstance(result, BaseException):
            result[1].close()
    listener.close()


async def test_closing_a_stream_stops_the_server(cloud: FakeGroq) -> None:
    cloud.token_s = 0.02
    cloud.behave("long")
    nas = client(cloud.openai_url)
    async with contextlib.aclosing(nas.stream(BODY, model=MODELS[0], quiet_s=1)) as events:
        async for _ in events:
            break
    await until(lambda: cloud.requests[0].dropped)
    assert cloud.requests[0].sent_words < 20
    await nas.close()


async def test_a_cancelled_question_leaves_nothing(cloud: FakeGroq,
                                                   nothing_left: Callable[[], Awaitable[None]]) -> None:
    await nothing_left()
    nas = client(cloud.openai_url)
    for kind in ("late", "silent", "stall", "huge", "ok"):
        cloud.behave(kind)
        for delay in (0.0, 0.005, 0.03):
            task = asyncio.ensure_future(ask(nas))
            await asyncio.sleep(delay)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    await nas.close()
    await nothing_left()


async def test_something_else_than_a_list_of_models(cloud: FakeGroq) -> None:
    nas = client(cloud.openai_url)
    for kind in ("html", "empty", "huge"):
        cloud.behave(kind, models_too=True)
        with pytest.raises(BadAnswer):
            await nas.models(quiet_s=1)
    await nas.close()
