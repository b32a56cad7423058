"""A chain between a fake cloud and a stand-in for the local engine, with everything that must not be left
behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from hotpind.chat.chain import Chain
from hotpind.chat.key import CREDENTIAL
from hotpind.config.schema import ChatSection
from hotpind.errors import EngineUnavailable
from tests.fakes.groq import KEY, FakeGroq

LOCAL_ANSWER = "This is the local model speaking. It has little to say."


class FakeEngine:
    """What the engine's keeper offers, in front of a server on a unix socket."""

    def __init__(self, server: FakeGroq, path: Path) -> None:
        self.server = server
        self.path = path
        self.model = "tiny"
        self.state = "online"
        self.sees_images = False
        self.load_s = 0.0
        self.broken = False
        self.asked = 0
        self.warmed: list[list[dict[str, Any]]] = []

    def warm(self, messages: list[dict[str, Any]]) -> None:
        """Note what is to be read ahead."""
        self.warmed.append(messages)

    async def socket(self, *, refused: bool = False) -> Path:
        """Return the socket, after loading."""
        self.asked += 1
        await asyncio.sleep(self.load_s)
        if self.broken:
            raise EngineUnavailable("the llama engine does not start")
        return self.path


@pytest.fixture
async def cloud() -> AsyncIterator[FakeGroq]:
    async with FakeGroq() as fake:
        yield fake


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[FakeEngine]:
    path = tmp_path / "llama.sock"
    async with FakeGroq(socket=path, key=None) as server:
        server.answer = LOCAL_ANSWER
        server.models = ["tiny"]
        yield FakeEngine(server, path)


MakeChain = Callable[..., AbstractAsyncContextManager[Chain]]


@pytest.fixture
def make_chain(cloud: FakeGroq, engine: FakeEngine, tmp_path: Path) -> MakeChain:
    """Build a started chain: ``async with make_chain(first_token_deadline_s=0.5) as chain``."""
    state = tmp_path / "state"
    state.mkdir()

    @contextlib.asynccontextmanager
    async def make(*, key: str | None = KEY, groq: dict[str, Any] | None = None, local: bool = True,
                   environ: dict[str, str] | None = None, **chat: Any) -> AsyncIterator[Chain]:
        if key is not None:
            path = state / CREDENTIAL
            path.write_text(key)
            path.chmod(0o600)
        config = ChatSection.model_validate({"groq": {"base_url": cloud.url, **(groq or {})}, **chat})
        chain = Chain.from_config(config, state=state, local=engine if local else None, environ=environ or {})
        await chain.start()
        try:
            yield chain
        finally:
            await chain.close()

    return make


@pytest.fixture
def nothing_left() -> Callable[[], Awaitable[None]]:
    """Give a function that waits until no task, thread of a lookup or descriptor is left over from its first
    call.
    """
    before: list[int] = []

    async def check() -> None:
        if not before:
            before.append(_descriptors())
            return
        for attempt in range(1500):
            others = asyncio.all_tasks() - {asyncio.current_task()}
            ours = [task for task in others if "chat" in task.get_name() or "hotpind" in repr(task.get_coro())]
            lookups = [thread for thread in threading.enumerate() if thread.name == "name-lookup"]
            if attempt % 50 == 49:
                gc.collect()
            if not ours and not lookups and _descriptors() <= before[0]:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"left over: tasks {ours}, threads {lookups}, "
                             f"descriptors {before[0]} before and {_descriptors()} now")

    return check


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
