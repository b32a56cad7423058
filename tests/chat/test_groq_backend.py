"""The cloud brain: what it sends, byte for byte, and what it makes of everything that can come back."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import groq
import httpx
import pytest
from PIL import Image

from hotpind.chat import completions, streaming
from hotpind.chat import groq_backend as groq_module
from hotpind.chat.backend import Aside, Ended, Event, Probe, Using, Words
from hotpind.chat.groq_backend import GroqBackend, check_key
from hotpind.chat.key import CREDENTIAL, KeySource, Secret, store_key
from hotpind.chat.lookup import NameLookup
from hotpind.chat.messages import ChatRequest, Message, Picture
from hotpind.config.schema import GroqSection
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
from tests.fakes.groq import ANSWER, KEY, MODELS, FakeGroq, request_tokens
from tests.waiting import until

SCOUT, QWEN = MODELS
HISTORY = (Message("system", "You are a voice."), Message("user", "Hello?"), Message("assistant", "Hi."))
REQUEST = ChatRequest((*HISTORY, Message("user", "What is the capital of France?")), "kitchen", "turn-1")


def jpeg(width: int = 64, height: int = 48, colour: str = "red") -> Picture:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "JPEG")
    return Picture(buffer.getvalue(), width, height)


MakeGroq = Callable[..., Awaitable[GroqBackend]]


@pytest.fixture
async def make(cloud: FakeGroq, tmp_path: Path) -> AsyncIterator[MakeGroq]:
    made: list[GroqBackend] = []

    async def build(*, key: str | None = KEY, lookup: NameLookup | None = None, **settings: Any) -> GroqBackend:
        if key:
            store_key(tmp_path, Secret(key))
        section = GroqSection.model_validate({"base_url": cloud.url, **settings})
        backend = GroqBackend(section, KeySource("", tmp_path, {}), lookup=lookup or NameLookup(),
                              clock=asyncio.get_running_loop().time)
        await backend.refresh_key()
        made.append(backend)
        return backend

    yield build
    for backend in made:
        await backend.close()


async def ask(backend: GroqBackend, request: ChatRequest = REQUEST, *, quiet_s: float = 1.0) -> list[Event]:
    return [event async for event in backend.stream(request, quiet_s=quiet_s)]


def text(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Words))


async def test_a_request_is_what_groq_documents(make: MakeGroq, cloud: FakeGroq) -> None:
    picture = jpeg()
    question = Message("user", "What is this?", (picture, jpeg(colour="blue")))
    backend = await make()
    events = await ask(backend, ChatRequest((*HISTORY, question), "kitchen", "turn-1"))
    assert events[0] == Using(SCOUT)
    assert text(events) == ANSWER
    assert events[-1] == Ended()
    (request,) = cloud.requests
    assert (request.method, request.path) == ("POST", "/openai/v1/chat/completions")
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["accept-encoding"] == "identity"
    body = request.body
    assert set(body) == {"model", "messages", "stream", "max_completion_tokens"}
    assert (body["model"], body["stream"], body["max_completion_tokens"]) == (SCOUT, True, 300)
    assert body["messages"][:3] == [{"role": message.role, "content": message.text} for message in HISTORY]
    first, *images = body["messages"][3]["content"]
    assert first == {"type": "text", "text": "What is this?"}
    assert [base64.b64decode(image["image_url"]["url"].removeprefix("data:image/jpeg;base64,"), validate=True)
            for image in images] == [item.jpeg for item in question.pictures]
    assert b"kitchen" not in request.raw
    assert b"turn-1" not in request.raw


async def test_the_clients_own_patience_is_not_used(make: MakeGroq) -> None:
    backend = await make(connect_timeout_s=1.25)
    await ask(backend)
    client = backend._client
    assert client is not None
    assert isinstance(client.groq, groq.AsyncGroq)
    assert client.groq.max_retries == 0
    assert client.groq._client.follow_redirects is False
    sent: list[httpx.Request] = []

    async def note(request: httpx.Request) -> None:
        sent.append(request)

    client.groq._client.event_hooks["request"].append(note)
    await ask(backend, quiet_s=3.0)
    assert sent[0].extensions["timeout"] == {"connect": 1.25, "pool": 1.25, "read": 3.0, "write": 3.0}


async def test_the_parameters_of_each_model(make: MakeGroq, cloud: FakeGroq) -> None:
    backend = await make(models=[{"name": QWEN, "reasoning_effort": "none", "max_tokens": 64}])
    await ask(backend)
    assert (cloud.chats[0].body["reasoning_effort"], cloud.chats[0].body["max_completion_tokens"]) == ("none", 64)


async def test_one_connection_for_everything(make: MakeGroq, cloud: FakeGroq) -> None:
    backend = await make()
    await backend.probe(Probe.REACH, quiet_s=1)
    for _ in range(4):
        await ask(backend)
    await backend.probe(Probe.ANSWER, quiet_s=1)
    assert cloud.connections == 1


async def test_a_connection_that_the_service_closed_meanwhile_is_replaced(tmp_path: Path) -> None:
    store_key(tmp_path, Secret(KEY))
    async with FakeGroq(idle_s=0.1) as fake:
        backend = GroqBackend(GroqSection.model_validate({"base_url": fake.url}), KeySource("", tmp_path, {}),
                              lookup=NameLookup(), clock=time.monotonic)
        await backend.refresh_key()
        for _ in range(3):
            assert text(await ask(backend)) == ANSWER
            await asyncio.sleep(0.25)
        await backend.close()


async def test_a_reset_before_the_answer_is_tried_once_more(make: MakeGroq, cloud: FakeGroq) -> None:
    backend = await make()
    cloud.behave("reset", words=0, times=1)
    assert text(await ask(backend)) == ANSWER
    cloud.behave("reset", words=0)
    with pytest.raises(BackendUnreachable):
        await ask(backend)
    assert len(cloud.chats) == 4


async def test_an_answer_under_way_is_never_begun_again(make: MakeGroq, cloud: FakeGroq) -> None:
    backend = await make()
    cloud.behave("reset", words=3)
    with pytest.raises(BackendUnreachable):
        await ask(backend)
    assert len(cloud.chats) == 1


FAULTS: list[tuple[str, dict[str, Any], type[BackendError]]] = [
    ("late", {}, BackendTooLate), ("silent", {}, BackendTooLate), ("stall", {}, BackendTooLate),
    ("truncated", {}, BackendUnreachable), ("malformed", {}, BadAnswer), ("error_in_stream", {}, BackendUnreachable),
    ("error_in_stream", {"code": "rate_limit_exceeded"}, BackendRateLimited), ("huge", {}, BadAnswer),
    ("error_in_stream", {"code": "invalid_api_key"}, KeyRejected),
    ("huge", {"status": 503}, BackendUnreachable),
    ("huge", {"status": 401}, KeyRejected), ("rate_limited", {}, BackendRateLimited), ("retired", {}, ModelRetired),
    ("decommissioned", {}, ModelRetired), ("too_large", {}, PayloadTooLarge), ("unauthorized", {}, KeyRejected),
    ("forbidden", {}, KeyRejected), ("error", {"status": 500}, BackendUnreachable),
    ("error", {"status": 502}, BackendUnreachable), ("error", {"status": 503}, BackendUnreachable),
    ("error", {"status": 498}, BackendUnreachable), ("html", {}, BadAnswer), ("garbage", {}, BackendUnreachable),
    ("bad_request", {}, BadAnswer)]


@pytest.mark.parametrize(("kind", "options", "expected"), FAULTS)
async def test_each_fault_has_its_error_and_leaves_nothing(
        make: MakeGroq, cloud: FakeGroq, nothing_left: Callable[[], Awaitable[None]], kind: str,
        options: dict[str, Any], expected: type[BackendError], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    backend = await make()
    await nothing_left()
    cloud.behave(kind, **options)
    begun = time.monotonic()
    with pytest.raises(BackendError) as caught:
        await ask(backend, quiet_s=0.3)
    assert type(caught.value) is expected
    assert time.monotonic() - begun < 30
    await backend.close()
    await nothing_left()
    for leaked in (KEY, "capital of France"):
        assert leaked not in str(caught.value)
        assert leaked not in caplog.text
    assert caught.value.__cause__ is None, "a chained traceback would show the request"


async def test_retry_after_as_seconds_and_as_a_date(make: MakeGroq, cloud: FakeGroq) -> None:
    backend = await make()
    for as_date in (False, True):
        cloud.behave("rate_limited", retry_after=42, as_date=as_date)
        with pytest.raises(BackendRateLimited) as caught:
            await ask(backend)
        assert caught.value.retry_after == pytest.approx(42, abs=2)


async def test_a_hundred_megabytes_are_not_read(make: MakeGroq, cloud: FakeGroq) -> None:
    backend = await make()
    for options in ({}, {"shape": "events"}, {"status": 500}):
        cloud.behave("huge", **options)
        with pytest.raises(BackendError):
            await ask(backend)
        assert cloud.chats[-1].sent_words < 20_000_000


async def test_a_compressed_answer_is_understood(make: MakeGroq, cloud: FakeGroq) -> None:
    backend = await make()
    cloud.behave("gzip")
    assert text(await ask(backend)) == ANSWER


async def test_the_key_does_not_follow_a_redirect(make: MakeGroq, cloud: FakeGroq) -> None:
    backend = await make()
    async with FakeGroq() as elsewhere:
        for path in ("/openai/v1/chat/completions", "/openai/v1/models"):
            cloud.behave("redirect", to=f"{elsewhere.url}{path}", models_too=True)
            with pytest.raises(BadAnswer, match="redirects"):
                await ask(backend)
            with pytest.raises(BadAnswer, match="redirects"):
                await backend.probe(Probe.REACH, quiet_s=1)
        assert elsewhere.requests == []
        assert elsewhere.connections == 0


async def test_nobody_there(make: MakeGroq, cloud: FakeGroq) -> None:
    backend = await make()
    await cloud.unplug()
    for asking in (ask(backend), backend.probe(Probe.REACH, quiet_s=1)):
        with pytest.raises(BackendUnreachable) as caught:
            await asking
        assert not caught.value.server_fault
    await cloud.plug()
    assert text(await ask(backend)) == ANSWER


@pytest.mark.parametrize("tls", ["self-signed", "wrong-name"])
async def test_a_wrong_certificate_never_sees_the_key(make: MakeGroq, tls: Any) -> None:
    async with FakeGroq(tls=tls) as fake:
        backend = await make(base_url=fake.url)
        with pytest.raises(BackendUnreachable, match="certificate"):
            await ask(backend)
        assert fake.requests == []


async def test_a_right_certificate(make: MakeGroq, monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeGroq(tls="good") as fake:
        monkeypatch.setenv("SSL_CERT_FILE", str(fake.ca_file))
        backend = await make(base_url=fake.url)
        assert text(await ask(backend)) == ANSWER


async def test_a_name_that_cannot_be_found_or_hangs(make: MakeGroq) -> None:
    def unknown(*_: object, **__: object) -> list[object]:
        raise OSError(-2, "Name or service not known")

    let_go = threading.Event()

    def hanging(*_: object, **__: object) -> list[object]:
        let_go.wait(60)
        return []

    for getaddrinfo in (unknown, hanging):
        backend = await make(base_url="https://api.groq.invalid", lookup=NameLookup(getaddrinfo), connect_timeout_s=0.2)
        begun = time.monotonic()
        with pytest.raises(BackendUnreachable, match=r"api\.groq\.invalid"):
            await ask(backend)
        assert time.monotonic() - begun < 20
    let_go.set()


@pytest.mark.parametrize("address", ["not an address", "http://[::1", "ftp://example.com"])
async def test_an_address_that_is_none(make: MakeGroq, address: str) -> None:
    backend = await make(base_url=address)
    with pytest.raises((BadAnswer, BackendUnreachable)):
        await ask(backend)


async def test_the_address_may_end_in_the_apis_path(make: MakeGroq, cloud: FakeGroq) -> None:
    backend = await make(base_url=f"{cloud.url}/openai/v1/")
    assert text(await ask(backend)) == ANSWER


async def test_a_retired_model_is_passed_over_and_named_once(make: MakeGroq, cloud: FakeGroq,
                                                             caplog: pytest.LogCaptureFixture) -> None:
    backend = await make()
    cloud.models.remove(SCOUT)
    for _ in range(3):
        events = await ask(backend)
        assert events[0] == Using(QWEN)
        assert text(events) == ANSWER
    assert [chat.body["model"] for chat in cloud.chats] == [SCOUT, QWEN, QWEN, QWEN]
    assert backend.retired == [SCOUT]
    assert backend.model == QWEN
    assert caplog.text.count(f"no longer serves the model {SCOUT}; {QWEN} is asked instead") == 1


async def test_the_live_list_spares_the_first_question(make: MakeGroq, cloud: FakeGroq,
                                                       caplog: pytest.LogCaptureFixture) -> None:
    backend = await make()
    cloud.models.remove(SCOUT)
    await backend.probe(Probe.REACH, quiet_s=1)
    await backend.probe(Probe.REACH, quiet_s=1)
    assert backend.retired == [SCOUT]
    await ask(backend)
    assert [chat.body["model"] for chat in cloud.chats] == [QWEN]
    assert caplog.text.count("no longer serves") == 1
    cloud.models.append(SCOUT)
    await backend.probe(Probe.REACH, quiet_s=1)
    assert backend.retired == [], "what is listed again is asked again"


async def test_models_refused_by_a_passing_fault_come_back(make: MakeGroq, cloud: FakeGroq) -> None:
    backend = await make()
    cloud.behave("retired")
    with pytest.raises(ModelRetired):
        await ask(backend)
    assert backend.retired == [SCOUT, QWEN]
    with pytest.raises(ModelRetired):
        await backend.probe(Probe.ANSWER, quiet_s=1)
    cloud.behave()
    await backend.probe(Probe.ANSWER, quiet_s=1)
    assert backend.retired == []
    cloud.behave("retired", times=1)
    await ask(backend)
    await backend.probe(Probe.ANSWER, quiet_s=1)
    assert backend.retired == [SCOUT], "but not while another one answers"


async def test_an_empty_list_retires_nothing(make: MakeGroq, cloud: FakeGroq) -> None:
    backend = await make()
    cloud.models.clear()
    await backend.probe(Probe.REACH, quiet_s=1)
    assert backend.retired == []


async def test_no_model_left(make: MakeGroq, cloud: FakeGroq) -> None:
    backend = await make()
    cloud.models[:] = ["something-else"]
    with pytest.raises(ModelRetired, match=r"chat\.groq\.models"):
        await ask(backend)
    with pytest.raises(ModelRetired):
        await backend.probe(Probe.REACH, quiet_s=1)
    assert backend.model == ""


async def test_something_else_than_a_list(make: MakeGroq, cloud: FakeGroq) -> None:
    backend = await make()
    for kind in ("html", "huge", "empty"):
        cloud.behave(kind, models_too=True)
        with pytest.raises(BadAnswer):
            await backend.probe(Probe.REACH, quiet_s=1)


@pytest.mark.parametrize("status", [200, 429, 500])
async def test_a_compressed_bomb_is_not_unpacked(make: MakeGroq, cloud: FakeGroq, status: int) -> None:
    backend = await make()
    cloud.behave("huge", status=status, shape="bomb", models_too=True)
    tracemalloc.start()
    try:
        for asking in (backend.probe(Probe.REACH, quiet_s=5), ask(backend)):
            with pytest.raises(BackendError):
                await asking
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 30_000_000, f"{most / 1e6:.0f} MB"


async def test_what_says_it_is_compressed_and_is_not(make: MakeGroq, cloud: FakeGroq) -> None:
    backend = await make()
    cloud.behave("packed_badly")
    with pytest.raises(BadAnswer, match="unpacked"):
        await ask(backend)


async def test_a_model_that_the_key_may_not_use_is_passed_over(make: MakeGroq, cloud: FakeGroq) -> None:
    backend = await make()
    cloud.behave("forbidden", model=True, times=1)
    assert text(await ask(backend)) == ANSWER
    assert [chat.body["model"] for chat in cloud.chats] == [SCOUT, QWEN]
    cloud.behave("forbidden")
    with pytest.raises(KeyRejected):
        await ask(backend)


async def test_the_address_in_the_environment_may_end_in_the_apis_path(make: MakeGroq, cloud: FakeGroq,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    for address in (cloud.url, f"{cloud.url}/", f"{cloud.url}/openai/v1", f"{cloud.url}/openai/v1/"):
        monkeypatch.setenv("GROQ_BASE_URL", address)
        backend = await make(base_url="")
        assert text(await ask(backend)) == ANSWER
    assert {chat.path for chat in cloud.chats} == {"/openai/v1/chat/completions"}


async def test_a_silent_list_is_the_lines_fault(make: MakeGroq, cloud: FakeGroq) -> None:
    backend = await make()
    cloud.behave("late", models_too=True)
    for kind in Probe:
        with pytest.raises(BackendUnreachable):
            await backend.probe(kind, quiet_s=0.2)
    assert cloud.chats == []


async def test_a_probe_tells_how_long_the_answer_took_without_the_list(make: MakeGroq, cloud: FakeGroq) -> None:
    backend = await make()
    cloud.list_s = 2.0
    cloud.behave("late", after=0.1)
    assert 0.05 < await backend.probe(Probe.ANSWER, quiet_s=10) < 1.8


async def test_a_question_about_an_earlier_picture_goes_to_the_model_with_eyes(make: MakeGroq, cloud: FakeGroq) -> None:
    backend = await make(models=[{"name": QWEN, "images": False}, {"name": SCOUT}])
    await ask(backend, ChatRequest((Message("user", "And this?", (jpeg(),)), Message("assistant", "A cat."),
                                    Message("user", "What colour is it?"))))
    assert [chat.body["model"] for chat in cloud.chats] == [SCOUT]
    assert "image_url" in str(cloud.chats[0].body["messages"][0])


LONG_TALK = tuple(message for number in range(10) for message in (
    Message("user", f"Question {number} " + "is long " * 60), Message("assistant", "So is its answer. " * 40)))


async def test_a_plan_of_8000_tokens_a_minute_is_used_up_without_a_refusal(make: MakeGroq, cloud: FakeGroq) -> None:
    cloud.tokens_per_minute = 8000
    backend = await make()
    sent: list[int] = []
    while True:
        shot = jpeg(1500, 1100) if len(sent) == 2 else None
        asked = Message("user", "And now?", (shot,) if shot else ())
        await ask(backend, ChatRequest((HISTORY[0], *LONG_TALK, asked)))
        sent.append(request_tokens(cloud.chats[-1].body))
        if float(cloud.limits["x-ratelimit-remaining-tokens"]) < 500:
            break  # even the question alone costs that much with its answer
    print(sent)
    assert sent[0] > 2500
    assert sum(sent) > 7000
    assert len(sent) >= 3
    assert sent[-1] < sent[0]
    assert len({len(chat.body["messages"]) for chat in cloud.chats}) > 1, "old history was dropped"


async def test_questions_at_the_same_time_share_what_is_left(make: MakeGroq, cloud: FakeGroq) -> None:
    cloud.tokens_per_minute = 8000
    backend = await make()
    request = ChatRequest((HISTORY[0], *LONG_TALK, Message("user", "And now?")))
    await ask(backend, request)
    answers = await asyncio.gather(*(ask(backend, request) for _ in range(3)))
    assert [text(answer) for answer in answers] == [ANSWER] * 3


async def test_a_refusal_tells_what_is_left_too(make: MakeGroq, cloud: FakeGroq) -> None:
    backend = await make()
    cloud.limits = {"x-ratelimit-limit-tokens": "8000", "x-ratelimit-remaining-tokens": "700",
                    "x-ratelimit-reset-tokens": "55s"}
    cloud.behave("rate_limited", times=1)
    request = ChatRequest((HISTORY[0], *LONG_TALK, Message("user", "And now?")))
    with pytest.raises(BackendRateLimited):
        await ask(backend, request)
    await ask(backend, request)
    assert len(cloud.chats[-1].body["messages"]) < len(request.messages)


async def test_a_picture_is_encoded_while_its_question_is_asked(make: MakeGroq, cloud: FakeGroq,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    backend = await make()
    encoded: list[Picture] = []
    real = completions.data_url

    def note(picture: Picture) -> str:
        encoded.append(picture)
        return real(picture)

    monkeypatch.setattr(groq_module, "data_url", note)
    monkeypatch.setattr(completions, "data_url", note)
    shots = tuple(jpeg(80 + number, 60) for number in range(5))
    backend.expect(shots)
    backend.expect(shots)
    await until(lambda: len(encoded) == 5)
    await ask(backend, ChatRequest((*HISTORY, Message("user", "And these?", shots))))
    assert len(encoded) == 5, "not again when the question was complete"
    _, *images = cloud.chats[-1].body["messages"][-1]["content"]
    assert [image["image_url"]["url"] for image in images] == [real(shot) for shot in shots]
    await backend.close()
    assert not backend._encoding.running


async def test_a_probe_for_an_answer_costs_one_token(make: MakeGroq, cloud: FakeGroq) -> None:
    backend = await make()
    await backend.probe(Probe.ANSWER, quiet_s=1)
    assert cloud.chats[0].body["max_completion_tokens"] == 1
    assert len(cloud.chats[0].raw) < 200
    assert cloud.questions == []


async def test_a_picture_goes_to_the_model_with_eyes(make: MakeGroq, cloud: FakeGroq) -> None:
    backend = await make(models=[{"name": QWEN, "images": False}, {"name": SCOUT}])
    await ask(backend)
    await ask(backend, ChatRequest((*HISTORY, Message("user", "And this?", (jpeg(),)))))
    assert [chat.body["model"] for chat in cloud.chats] == [QWEN, SCOUT]


async def test_without_eyes_it_is_honest(make: MakeGroq, cloud: FakeGroq) -> None:
    backend = await make(models=[{"name": QWEN, "images": False}])
    events = await ask(backend, ChatRequest((*HISTORY, Message("user", "And this?", (jpeg(),)))))
    assert events[1] == Aside("I can't see the picture.")
    assert b"image_url" not in cloud.chats[0].raw


async def test_pictures_are_made_to_fit(make: MakeGroq, cloud: FakeGroq) -> None:
    pictures = tuple(jpeg(colour=colour) for colour in ("red", "green", "blue", "white", "black", "pink", "brown"))
    backend = await make()
    await ask(backend, ChatRequest((Message("user", "1", pictures[:3]), Message("assistant", "2"),
                                    Message("user", "3", pictures[3:]))))
    sent = [part["image_url"]["url"] for message in cloud.chats[0].body["messages"]
            if isinstance(message["content"], list) for part in message["content"] if part["type"] == "image_url"]
    assert [base64.b64decode(url.split(",")[1]) for url in sent] == [item.jpeg for item in pictures[2:]]


def noisy(side: int) -> Picture:
    buffer = io.BytesIO()
    Image.effect_noise((side, side), 120).convert("RGB").save(buffer, "JPEG", quality=95)
    return Picture(buffer.getvalue(), side, side)


async def test_four_megabytes_are_never_passed(make: MakeGroq, cloud: FakeGroq) -> None:
    picture = noisy(1500)
    assert len(picture.jpeg) * 3 > 3_000_000
    backend = await make()
    await ask(backend, ChatRequest((Message("user", "x", (picture,) * 5),)), quiet_s=5)
    assert len(cloud.chats[0].raw) <= 4_000_000 + 2000


async def test_too_large_is_sent_again_smaller_once(make: MakeGroq, cloud: FakeGroq) -> None:
    backend = await make()
    request = ChatRequest((*HISTORY, Message("user", "What is this?", (noisy(1200),))))
    cloud.behave("too_large", most=400_000)
    assert text(await ask(backend, request)) == ANSWER
    assert len(cloud.chats) == 2
    assert len(cloud.chats[1].raw) < 400_000 < len(cloud.chats[0].raw)
    cloud.behave("too_large")
    with pytest.raises(PayloadTooLarge):
        await ask(backend, request)
    assert len(cloud.chats) == 4


async def test_too_large_without_pictures_drops_the_history_once(make: MakeGroq, cloud: FakeGroq) -> None:
    backend = await make()
    history = tuple(Message("user" if index % 2 == 0 else "assistant", "blah " * 200) for index in range(10))
    cloud.behave("too_large", most=2000)
    await ask(backend, ChatRequest((HISTORY[0], *history, Message("user", "And now?"))))
    assert [message["content"] for message in cloud.chats[1].body["messages"]] == ["You are a voice.", "And now?"]


async def test_a_tight_budget_drops_history_then_shrinks_pictures(make: MakeGroq, cloud: FakeGroq) -> None:
    backend = await make()
    history = tuple(Message("user" if index % 2 == 0 else "assistant", "blah " * 200) for index in range(20))
    picture = noisy(1200)
    request = ChatRequest((HISTORY[0], *history, Message("user", "What is this?", (picture,))))
    cloud.limits = {"x-ratelimit-limit-tokens": "8000", "x-ratelimit-remaining-tokens": "3000",
                    "x-ratelimit-reset-tokens": "37.5s"}
    await ask(backend, request)
    assert len(cloud.chats[0].body["messages"]) == 22, "nothing is known yet"
    cloud.limits["x-ratelimit-remaining-tokens"] = "900"
    await ask(backend, request)
    second = cloud.chats[1].body["messages"]
    assert 2 <= len(second) < 8
    assert base64.b64decode(second[-1]["content"][1]["image_url"]["url"].split(",")[1]) == picture.jpeg
    await ask(backend, request)
    third = cloud.chats[2].body["messages"]
    assert len(third) == 2
    with Image.open(io.BytesIO(base64.b64decode(third[-1]["content"][1]["image_url"]["url"].split(",")[1]))) as sent:
        assert max(sent.size) <= 512


async def test_without_a_key_nothing_is_asked(make: MakeGroq, cloud: FakeGroq) -> None:
    backend = await make(key=None)
    assert not backend.ready
    assert "hotpinctl key set" in backend.note
    with pytest.raises(KeyRejected):
        await ask(backend)
    assert cloud.requests == []


async def test_another_key_is_used_at_once(make: MakeGroq, cloud: FakeGroq, tmp_path: Path) -> None:
    backend = await make(key="gsk_old")
    with pytest.raises(KeyRejected) as caught:
        await ask(backend)
    assert "gsk_old" not in str(caught.value)
    assert await backend.refresh_key() is False
    store_key(tmp_path, Secret(KEY))
    assert await backend.refresh_key() is True
    assert text(await ask(backend)) == ANSWER
    (tmp_path / CREDENTIAL).chmod(0o644)
    assert await backend.refresh_key() is True
    assert not backend.ready
    assert "chmod 600" in backend.note


async def test_a_key_can_be_checked(cloud: FakeGroq) -> None:
    assert await check_key(Secret(KEY), cloud.url, connect_timeout_s=1) == sorted(MODELS)
    with pytest.raises(KeyRejected):
        await check_key(Secret("gsk_wrong"), cloud.url, connect_timeout_s=1)
    await cloud.unplug()
    with pytest.raises(BackendUnreachable):
        await check_key(Secret(KEY), cloud.url, connect_timeout_s=1)


async def test_large_pictures_are_worked_on_beside_the_event_loop(make: MakeGroq, cloud: FakeGroq,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    for name in ("fit", "_encoded"):
        work = getattr(groq_module, name)

        def noted(*arguments: Any, work: Callable[..., Any] = work) -> Any:
            threads.append(threading.get_ident())
            return work(*arguments)

        monkeypatch.setattr(groq_module, name, noted)
    backend = await make()
    await ask(backend, ChatRequest((Message("user", "x", (jpeg(),) * 4),)))
    assert len(threads) == 2
    assert threading.get_ident() not in threads


@pytest.mark.parametrize(("kind", "options"), [
    ("stall_at_end", {}), ("reset_at_end", {}), ("reset_at_end", {"closing_mark": True})])
async def test_the_end_of_an_answer_is_not_waited_for_long(make: MakeGroq, cloud: FakeGroq, kind: str,
                                                           options: dict[str, Any],
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    backend = await make()
    monkeypatch.setattr(streaming, "DRAIN_S", 0.1)
    cloud.behave(kind, **options, times=1)
    events = await asyncio.wait_for(ask(backend, quiet_s=60), 10)
    assert (text(events), events[-1]) == (ANSWER, Ended())
    assert text(await ask(backend)) == ANSWER
