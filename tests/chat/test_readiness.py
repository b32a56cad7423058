"""What is done while a question is still being asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from hotpind.chat.messages import ChatRequest, Message, Picture
from hotpind.chat.readiness import Readiness
from hotpind.engines.local_model import LocalModel
from hotpind.engines.supervisor import EngineState
from hotpind.errors import EngineUnavailable
from tests.waiting import until


@dataclass
class Local:
    """Notes what it is to read ahead."""

    model: str = "some-model"
    sees_images: bool = False
    warmed: list[list[dict[str, Any]]] = field(default_factory=list)
    standing_by: list[list[dict[str, Any]]] = field(default_factory=list)

    def stand_by(self, messages: list[dict[str, Any]]) -> None:
        self.standing_by.append(messages)

    def warm(self, messages: list[dict[str, Any]]) -> None:
        self.warmed.append(messages)


@dataclass
class Chain:
    """Notes that it was told."""

    prepared: list[tuple[Picture, ...]] = field(default_factory=list)

    def prepare(self, pictures: Sequence[Picture] = ()) -> None:
        self.prepared.append(tuple(pictures))


def asked(text: str, *pictures: Picture) -> ChatRequest:
    return ChatRequest((Message("system", "Be brief."), Message("user", text, pictures)), device="pin")


@pytest.mark.parametrize(("text", "roles"), [("", ["system"]), ("What is", ["system", "user"])])
def test_without_a_cloud_the_local_model_reads_ahead_what_is_known(text: str, roles: list[str]) -> None:
    local, chain = Local(), Chain()
    readiness = Readiness(chain, local, lambda: False)
    assert readiness.reads_ahead()
    readiness.expect(asked(text))
    assert chain.prepared == [()]
    assert [[message["role"] for message in each] for each in local.warmed] == [roles]


@pytest.mark.parametrize(("cloud", "sees"), [(True, False), (False, True)])
def test_nothing_is_read_ahead_for_a_model_that_will_not_use_it(*, cloud: bool, sees: bool) -> None:
    local, chain = Local(sees_images=sees), Chain()
    readiness = Readiness(chain, local, lambda: cloud)
    assert not readiness.reads_ahead()
    readiness.expect(asked("What is"))
    assert chain.prepared == [()]
    assert not local.warmed


@pytest.mark.parametrize(("cloud", "sees", "time", "told"), [
    (True, False, True, [[{"role": "system", "content": "Be brief."}]]), (True, False, False, [[]]),
    (True, True, True, [[]]), (False, False, True, [])])
def test_the_local_model_stands_by_while_the_cloud_answers(*, cloud: bool, sees: bool, time: bool,
                                                           told: list[list[dict[str, Any]]]) -> None:
    local, chain = Local(sees_images=sees), Chain()
    Readiness(chain, local, lambda: cloud).stand_by(asked("") if time else None)
    assert local.standing_by == told
    assert not local.warmed
    assert not chain.prepared


def test_the_chain_is_told_of_the_picture_in_waiting() -> None:
    local, chain, shot = Local(), Chain(), Picture(b"jpeg", 4, 3)
    Readiness(chain, local, lambda: False).expect(asked("", shot))
    assert chain.prepared == [(shot,)]


@dataclass
class Warmth:
    """A loaded model on a unix socket that takes its time to read ahead."""

    path: Path
    begun: list[str] = field(default_factory=list)
    may_end: asyncio.Event = field(default_factory=asyncio.Event)
    loaded: asyncio.Event = field(default_factory=asyncio.Event)
    unusable: bool = False

    async def warm(self, request: web.Request) -> web.Response:
        """Note the conversation."""
        self.begun.append((await request.json())["messages"][0]["content"])
        await self.may_end.wait()
        return web.json_response({"warm": True})

    async def stop(self) -> None:
        """Nothing to stop."""

    async def ready(self, _: float) -> Path:
        """Wait until it is loaded."""
        await self.loaded.wait()
        if self.unusable:
            raise EngineUnavailable("no such file")
        return self.path


@pytest.fixture
async def warmth(tmp_path: Path) -> AsyncIterator[Warmth]:
    warmth = Warmth(tmp_path / "llama.sock")
    app = web.Application()
    app.add_routes([web.post("/hotpind/warm", warmth.warm)])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(warmth.path)).start()
    yield warmth
    warmth.may_end.set()
    await runner.cleanup()


def model_at(warmth: Warmth, state: EngineState = EngineState.READY, *, room: bool = True) -> LocalModel:
    if state is EngineState.READY:
        warmth.loaded.set()
    engine: Any = SimpleNamespace(state=state, spec=SimpleNamespace(socket=warmth.path), stop=warmth.stop,
                                  ready=warmth.ready)

    def start() -> None:
        engine.state = EngineState.STARTING

    engine.start = start
    return LocalModel(engine, model="some-model", sees_images=False, idle_s=0, has_room=lambda: room)


def history(of: str) -> list[dict[str, Any]]:
    return [{"role": "system", "content": of}]


async def test_of_two_devices_that_speak_at_once_the_latest_is_read_ahead_as_well(warmth: Warmth) -> None:
    model = model_at(warmth)
    model.warm(history("kitchen"))
    await until(lambda: warmth.begun == ["kitchen"])
    model.warm(history("hall"))
    model.warm(history("attic"))
    assert warmth.begun == ["kitchen"], "one at a time"
    warmth.may_end.set()
    await until(lambda: warmth.begun == ["kitchen", "attic"])
    await until(lambda: model._warming is not None and model._warming.done())
    model.warm(history("cellar"))
    await until(lambda: warmth.begun == ["kitchen", "attic", "cellar"])
    await model.close()


async def test_a_model_that_is_being_loaded_reads_ahead_as_soon_as_it_can(warmth: Warmth) -> None:
    model = model_at(warmth, EngineState.STARTING)
    model.warm(history("kitchen"))
    model.warm(history("hall"))
    await asyncio.sleep(0.1)
    assert not warmth.begun
    warmth.loaded.set()
    await until(lambda: warmth.begun == ["hall"])
    await model.close()


async def test_nothing_is_read_ahead_by_a_model_that_is_not_wanted_or_cannot_be_loaded(warmth: Warmth) -> None:
    idle = model_at(warmth, EngineState.STOPPED)
    idle.warm(history("kitchen"))
    assert idle._warming is None
    broken = model_at(warmth, EngineState.STARTING)
    broken.warm(history("kitchen"))
    warmth.unusable = True
    warmth.loaded.set()
    await until(lambda: broken._warming is not None and broken._warming.done())
    assert broken._warming is not None
    assert broken._warming.exception() is None
    assert not warmth.begun
    await broken.close()


async def test_what_waits_to_be_read_ahead_ends_with_the_model(warmth: Warmth) -> None:
    model = model_at(warmth)
    model.warm(history("kitchen"))
    await until(lambda: warmth.begun == ["kitchen"])
    model.warm(history("hall"))
    await model.close()
    warmth.may_end.set()
    await asyncio.sleep(0.1)
    assert warmth.begun == ["kitchen"]
    assert model._warming is not None
    assert model._warming.cancelled()


@pytest.mark.parametrize("room", [True, False])
async def test_a_model_stands_by_where_there_is_room(warmth: Warmth, *, room: bool) -> None:
    model = model_at(warmth, EngineState.STOPPED, room=room)
    model.stand_by(history("kitchen"))
    model.stand_by(history("hall"))
    assert model._standing_by is not None
    await model._standing_by
    assert model.state == ("loading" if room else "idle")
    warmth.loaded.set()
    if room:
        await until(lambda: warmth.begun == ["kitchen"])
    assert (model._warming is not None) == room
    await model.close()


async def test_a_model_that_stands_by_goes_on_reading(warmth: Warmth) -> None:
    model = model_at(warmth)
    model.stand_by([])
    assert model._warming is None
    model.stand_by(history("kitchen"))
    await until(lambda: warmth.begun == ["kitchen"])
    assert model._standing_by is None
    await model.close()


async def test_a_model_that_stands_by_is_not_unloaded_between_questions() -> None:
    clock = [0.0]
    stopped: list[float] = []

    async def stop() -> None:
        stopped.append(clock[0])
        engine.state = EngineState.STOPPED

    engine: Any = SimpleNamespace(state=EngineState.READY, stop=stop)
    model = LocalModel(engine, model="some-model", sees_images=False, idle_s=100, may_unload=lambda: True,
                       clock=lambda: clock[0])
    for clock[0] in (90.0, 180.0, 270.0):
        model.stand_by([])
        assert not await model.unload_if_unused()
    clock[0] = 371.0
    assert await model.unload_if_unused()
    assert stopped == [371.0]
