"""The same happy path against independent servers: llama-cpp-python's own, and our engine's real process."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from PIL import Image

from hotpind.chat.chain import Chain
from hotpind.chat.key import Secret, store_key
from hotpind.chat.messages import ChatRequest, Message, Picture
from hotpind.config import load_config
from hotpind.config.paths import models_dir
from hotpind.config.schema import ChatSection
from hotpind.engines.fleet import QUIET_THREADS
from hotpind.models.catalogue import Role
from hotpind.models.store import ModelStore
from tests.side_venv import side_venv
from tests.waiting import until

pytestmark = [pytest.mark.models, pytest.mark.slow]

SERVER = ("fastapi>=0.115", "uvicorn>=0.30", "sse-starlette>=1.6.1", "starlette-context>=0.3.6,<0.5",
          "pydantic-settings>=2.0.1", "PyYAML>=5.1")
"""What the extra ``server`` of llama-cpp-python asks for."""
NAME, KEY = "smollm2-135m-instruct", "gsk_peer"
START_S = 60.0


@pytest.fixture(scope="module")
def model() -> Path:
    config = load_config(None, {name: value for name, value in os.environ.items() if name == "HOTPIN_PATHS__MODELS"})
    store = ModelStore(models_dir(config))
    if store.installed(NAME) is None:
        pytest.skip(f"{NAME} is not installed; fetch it with `hotpinctl models pull`")
    return store.resolve(NAME, Role.LLM).main


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[str]:
    """llama-cpp-python's server; gives its address."""
    python = side_venv("llama-server", *SERVER, with_ours=True)
    process = subprocess.Popen([str(python), str(Path(__file__).with_name("llama_server.py")), str(model), NAME, KEY],
                               stdout=subprocess.PIPE, text=True, env={**os.environ, **QUIET_THREADS})
    assert process.stdout is not None
    port = process.stdout.readline().strip()
    assert port, "the server did not start"
    yield f"http://127.0.0.1:{port}"
    process.send_signal(signal.SIGTERM)
    process.wait(30)


async def answer(chain: Chain, text: str, *pictures: Picture) -> tuple[str, str, str]:
    stream = await chain.ask(ChatRequest((Message("system", "You are a helpful voice assistant. Answer briefly."),
                                          Message("user", text, pictures))))
    pieces = [piece async for piece in stream]
    await stream.aclose()
    return "".join(pieces), stream.backend, stream.model


async def open_chain(state: Path, local: Any = None, **settings: Any) -> Chain:
    chain = Chain.from_config(ChatSection.model_validate({"first_token_deadline_s": 20.0, **settings}), state=state,
                              local=local, environ={})
    await chain.start()
    return chain


async def test_it_stands_in_for_groq(server: str, tmp_path: Path) -> None:
    store_key(tmp_path, Secret(KEY))
    chain = await open_chain(tmp_path, groq={"base_url": server, "models": [{"name": "gone"}, {"name": NAME}]})
    try:
        await until(lambda: chain.status()[0].retired == ["gone"])
        for _ in range(2):
            text, backend, used = await answer(chain, "What is the capital of France?")
            print(text)
            assert "Paris" in text
            assert (backend, used) == ("groq", NAME)
        assert chain.status()[0].state == "online"
    finally:
        await chain.close()


async def test_it_refuses_a_wrong_key(server: str, tmp_path: Path) -> None:
    store_key(tmp_path, Secret("gsk_wrong"))
    chain = await open_chain(tmp_path, groq={"base_url": server, "models": [{"name": NAME}]})
    try:
        await until(lambda: chain.status()[0].state == "key-rejected")
    finally:
        await chain.close()


async def test_it_stands_on_the_lan(server: str, tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.touch(0o600)
    key_file.write_text(KEY)
    chain = await open_chain(tmp_path, backend=[{"name": "nas", "url": f"{server}/v1", "model": NAME,
                                                 "key_file": str(key_file), "max_tokens": 40}])
    try:
        text, backend, used = await answer(chain, "What is the capital of France?")
        assert "Paris" in text
        assert (backend, used) == ("nas", NAME)
    finally:
        await chain.close()


class OwnEngine:
    """Our engine's process, without its keeper."""

    model = NAME
    state = "online"
    sees_images = False

    def __init__(self, path: Path) -> None:
        self.path = path

    def warm(self, messages: list[dict[str, Any]]) -> None:
        """Read nothing ahead."""

    async def socket(self, *, refused: bool = False) -> Path:
        return self.path


@pytest.fixture
async def engine(model: Path) -> AsyncIterator[OwnEngine]:
    directory = Path(tempfile.mkdtemp(prefix="hp-"))
    path = directory / "llama.sock"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hotpind.engines.llama", "--socket", str(path), "--model", str(model), "--parent",
        str(os.getpid()), stdout=subprocess.DEVNULL, env={**os.environ, **QUIET_THREADS})
    end = time.monotonic() + START_S
    while True:
        try:
            async with (aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
                        session.get("http://localhost/health")):
                break
        except aiohttp.ClientError:
            assert time.monotonic() < end, "the engine did not start"
            assert process.returncode is None
            await asyncio.sleep(0.05)
    yield OwnEngine(path)
    process.kill()
    await process.wait()


async def test_our_own_engine(engine: OwnEngine, tmp_path: Path) -> None:
    chain = await open_chain(tmp_path, local=engine)
    try:
        text, backend, used = await answer(chain, "What is the capital of France?")
        print(text)
        assert "Paris" in text
        assert (backend, used) == ("local", NAME)
        buffer = io.BytesIO()
        Image.new("RGB", (640, 480), "red").save(buffer, "JPEG")
        text, _, _ = await answer(chain, "What do you see?", Picture(buffer.getvalue(), 640, 480))
        print(text)
        assert text.startswith("I can't see the picture. ")
        stream = await chain.ask(ChatRequest((Message("user", "Tell me a very long story about a dragon."),)))
        await anext(aiter(stream))
        begun = time.monotonic()
        await stream.aclose()
        text, _, _ = await answer(chain, "What is the capital of France?")
        assert "Paris" in text
        print(f"an answer given up was out of the way of the next, which took {time.monotonic() - begun:.2f} s")
    finally:
        await chain.close()
