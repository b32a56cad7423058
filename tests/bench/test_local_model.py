"""Peer and floor put to the local model what the appliance puts to it: else their times would not compare."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from hotpind.bench.floor import FloorMeter
from hotpind.bench.local_model import body_of, messages_for
from hotpind.bench.stand_in import StandIn
from hotpind.chat.local_backend import LocalBackend
from hotpind.chat.lookup import NameLookup
from hotpind.chat.messages import ChatRequest, Message
from hotpind.config import Config
from hotpind.conversation.assistant import Assistant

ASKED = "What is the capital of France?"
EVENT = b'data: {"choices": [{"delta": {"content": "Paris is, I think. "}}]}\n\n'


@dataclass
class Engine:
    """Says the same to everyone and keeps what it was asked."""

    path: Path
    model: str = Config().chat.local.model
    state: str = "online"
    sees_images: bool = False
    warmed: list[dict[str, Any]] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)

    async def socket(self, *, refused: bool = False) -> Path:
        assert not refused
        return self.path

    def warm(self, messages: list[dict[str, Any]]) -> None:
        raise AssertionError("there is no picture to look at")

    async def read_ahead(self, request: web.Request) -> web.Response:
        self.warmed.append(await request.json())
        return web.json_response({"warm": True})

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(await request.json())
        return web.Response(body=EVENT + b"data: [DONE]\n\n", content_type="text/event-stream")


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    engine = Engine(tmp_path / "engine-llama.sock")
    app = web.Application()
    app.add_routes([web.post("/hotpind/warm", engine.read_ahead), web.post("/v1/chat/completions", engine.answer)])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(engine.path)).start()
    yield engine
    await runner.cleanup()


async def asked_by_the_appliance(engine: Engine, config: Config) -> dict[str, Any]:
    """Return the request that a question becomes in the appliance."""
    prompt = Assistant.system_prompt.fget(_Settings(config))  # type: ignore[attr-defined]  # the property of a whole assistant
    backend = LocalBackend(engine, config.chat.local, lookup=NameLookup(), reader=None)
    try:
        request = ChatRequest((Message("system", prompt), Message("user", ASKED)))
        assert [event async for event in backend.stream(request, quiet_s=60)]
    finally:
        await backend.close()
    return engine.asked.pop()


@dataclass
class _Settings:
    config: Config


CONFIGS = [Config(), Config.model_validate({"chat": {"system_prompt": "Be brief."}})]


@pytest.mark.parametrize("config", CONFIGS, ids=["as delivered", "own instructions"])
async def test_the_peer_s_request_is_the_appliance_s(engine: Engine, config: Config) -> None:
    ours = await asked_by_the_appliance(engine, config)
    theirs = json.loads(json.dumps(body_of(config, messages_for(config, ASKED))))
    assert {key: ours[key] for key in theirs} == theirs
    assert len(theirs["messages"]) > 2 or config.chat.system_prompt, "the small model's examples belong to it"


@pytest.mark.parametrize("known", [False, True])
async def test_the_floor_s_requests_are_the_appliance_s(engine: Engine, tmp_path: Path, known: bool) -> None:
    config = Config()
    messages = (await asked_by_the_appliance(engine, config))["messages"]
    _, _, clause = await FloorMeter(config, tmp_path, None)._think(ASKED, known=known)
    assert clause.startswith("Paris is,")
    assert [body["messages"] for body in engine.asked] == [messages]
    assert [body["messages"] for body in engine.warmed] == [messages if known else messages[:-1]]


async def test_the_cloud_s_stand_in_gets_the_cloud_s_instructions(tmp_path: Path) -> None:
    async with StandIn(0.0, answer_words=5).serving() as cloud:
        await FloorMeter(Config(), tmp_path, cloud)._think(ASKED, known=False)
        assert cloud.questions == 1
    assert len(messages_for(Config(), ASKED, cloud=True)) == 2
