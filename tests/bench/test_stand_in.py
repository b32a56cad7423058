from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import aiohttp
import pytest

from hotpind.bench.own_appliance import environment
from hotpind.bench.stand_in import KEY, MODEL, StandIn, words
from hotpind.chat.groq_backend import GroqBackend
from hotpind.chat.key import KeySource
from hotpind.chat.lookup import NameLookup
from hotpind.config import Config
from hotpind.config.load import load_config_file


async def test_the_first_word_comes_when_it_was_asked_to() -> None:
    async with StandIn(0.2, answer_words=12).serving() as cloud, aiohttp.ClientSession() as session:
        began = time.monotonic()
        text, first = "", 0.0
        async with session.post(f"{cloud.url}/openai/v1/chat/completions", json={"messages": []}) as response:
            async for line in response.content:
                if line.startswith(b"data: {"):
                    first = first or time.monotonic() - began
                    text += json.loads(line[6:])["choices"][0]["delta"].get("content", "")
        assert 0.2 <= first < 2
        assert text.startswith("This is the stand-in of the benchmark")
        assert text.endswith(".")
        assert cloud.questions == 1


@pytest.mark.parametrize("count", [1, 14, 15, 100])
def test_answers_are_whole_sentences_of_the_length_asked_for(count: int) -> None:
    text = "".join(words(count))
    assert count <= len(text.split()) < count + 20
    assert text[-1] == "."
    assert "  " not in text


async def test_the_appliance_takes_it_for_its_cloud(tmp_path: Path) -> None:
    async with StandIn(0.0).serving() as cloud:
        environ = environment(Config(), tmp_path, tmp_path, cloud.settings(), {"HOME": str(tmp_path)})
        config = await asyncio.to_thread(load_config_file, None, environ)
        assert config.chat.groq.base_url == cloud.url
        keys = KeySource("", tmp_path, {"GROQ_API_KEY": KEY})
        backend = GroqBackend(config.chat.groq, keys, lookup=NameLookup(), clock=time.monotonic)
        try:
            assert await backend.refresh_key()
            assert backend.model == MODEL
        finally:
            await backend.close()


def test_the_environment_makes_a_private_appliance_of_any_settings(tmp_path: Path) -> None:
    given = {"HOME": "/home/ann", "HOTPIN_SERVER__PORT": "8000", "HOTPIN_STT__THREADS": "3", "NOTIFY_SOCKET": "/run/x",
             "HOTPIN_DISCOVERY__ENABLED": "true"}
    environ = environment(load_config_file(None, given), tmp_path, Path("/tmp/r"),
                          {"chat.backend": [], "server.max_devices": 64}, given)
    config = load_config_file(None, environ)
    assert (config.server.host, config.server.port, config.server.max_devices) == ("127.0.0.1", 0, 64)
    assert config.auth.mode == "open"
    assert not config.discovery.enabled
    assert config.stt.threads == 3
    assert config.paths.models == "/home/ann/.cache/hotpin/models"
    assert Path(config.paths.state).is_relative_to(tmp_path)
    assert "NOTIFY_SOCKET" not in environ
