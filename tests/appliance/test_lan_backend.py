"""Servers on the network in the chain, from the settings file: before Groq, after it, and an independent one."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from hotpind.config import load_config
from hotpind.config.paths import models_dir
from hotpind.engines.fleet import QUIET_THREADS
from hotpind.models.catalogue import Role
from hotpind.models.store import ModelStore
from hotpind.pin.client import Pin
from tests.appliance.clouded import Clouded, ask, assert_heard, clouded, history, visitor
from tests.fakes.groq import FakeGroq
from tests.side_venv import side_venv

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

LAN_KEY, MODEL = "gsk_lan", "smollm2-135m-instruct"
NEAR = "The nearby server says that it will rain in the morning and be sunny later."
CLOUD = "The cloud says that you should buy some bread and milk on your way home."
FAR = "The far server says that your train leaves at nine and the last bus at ten."
SERVER = Path(__file__).parents[1] / "chat" / "llama_server.py"
SERVER_PACKAGES = ("fastapi>=0.115", "uvicorn>=0.30", "sse-starlette>=1.6.1", "starlette-context>=0.3.6,<0.5",
                   "pydantic-settings>=2.0.1", "PyYAML>=5.1")
"""As tests/chat/test_peer.py, so that the environment is made once."""


def table(name: str, url: str, key_file: Path, *, model: str = "turnip-7b", before: bool = False) -> str:
    return (f'[[chat.backend]]\nname = "{name}"\nurl = "{url}"\nmodel = "{model}"\nkey_file = "{key_file}"\n'
            f"before_groq = {str(before).lower()}\nmax_tokens = 40\n")


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "lan"
    path.touch(0o600)
    path.write_text(LAN_KEY)
    return path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(key_file: Path) -> AsyncIterator[tuple[FakeGroq, Clouded, FakeGroq]]:
    """A server before Groq, the appliance with its Groq, and a server after it."""
    async with FakeGroq(key=LAN_KEY) as near, FakeGroq(key=LAN_KEY) as far:
        near.models = far.models = ["turnip-7b"]
        near.answer, far.answer = NEAR, FAR
        toml = table("far", far.openai_url, key_file) + table("near", near.openai_url, key_file, before=True)
        async with clouded(toml=toml) as made:
            made.fake.answer = CLOUD
            yield near, made, far


async def until_online(appliance: Clouded, name: str, seconds: float = 60.0) -> None:
    end = asyncio.get_running_loop().time() + seconds
    while (await asyncio.to_thread(appliance.backend, name))["state"] != "online":
        assert asyncio.get_running_loop().time() < end, appliance.daemon.log
        await asyncio.sleep(0.05)


async def test_the_order_of_the_settings_is_the_order_of_the_answers(
        house: tuple[FakeGroq, Clouded, FakeGroq]) -> None:
    near, appliance, far = house
    for server in (near, far):
        server.behave()
        server.requests.clear()
    await appliance.fresh()
    for name in ("near", "far"):
        await until_online(appliance, name)
    appliance.fake.requests.clear()
    names = [row["name"] for row in appliance.daemon.status()["backends"]]
    assert names == ["near", "groq", "far", "local"]
    spoken: list[tuple[str, str]] = []
    async with Pin(appliance.daemon.url, visitor("neighbour")) as pin:
        async def expect(backend: str, text: str, reason: str) -> None:
            turn = await ask(pin)
            assert_heard(appliance.daemon, turn)
            assert (turn.extra["backend"], turn.extra["reason"]) == (backend, reason)
            assert turn.response == text or not text
            spoken.append((turn.transcript, turn.response))

        await expect("near", NEAR, "")
        assert not appliance.fake.questions
        assert not far.questions
        near.behave("error", status=503)
        await expect("groq", CLOUD, "near is in trouble")
        appliance.fake.behave("error", status=500)
        await expect("far", FAR, "near is degraded")
        far.behave("reset", words=0)
        await expect("local", "", "near is degraded")
        # One conversation, whoever answered; and each server saw its own key only.
        for server, count in ((near, 1), (appliance.fake, 2), (far, 3)):
            asked = [request for request in server.questions if len(history(request.body["messages"])) == count]
            assert asked or server is near
            for request in asked:
                assert history(request.body["messages"]) == spoken[:count]
        assert {request.headers["authorization"] for request in [*near.requests, *far.requests]} == {
            f"Bearer {LAN_KEY}"}
        assert f"Bearer {LAN_KEY}" not in {request.headers["authorization"] for request in appliance.fake.requests}
        assert {request.path for request in near.chats} == {"/v1/chat/completions"}
        assert near.questions[0].body["model"] == "turnip-7b"
        assert near.questions[0].body["stream"] is True
        # The first one is well again: it is asked again.
        near.behave("ok")
        await until_online(appliance, "near")
        await expect("near", NEAR, "")
    shown = appliance.daemon.log + str(appliance.daemon.status())
    assert LAN_KEY not in shown


@pytest.fixture(scope="module")
def independent() -> Iterator[str]:
    """llama-cpp-python's own server; gives its address."""
    environ = {name: value for name, value in os.environ.items() if name == "HOTPIN_PATHS__MODELS"}
    model = ModelStore(models_dir(load_config(None, environ))).resolve(MODEL, Role.LLM).main
    python = side_venv("llama-server", *SERVER_PACKAGES, with_ours=True)
    process = subprocess.Popen([str(python), str(SERVER), str(model), MODEL, LAN_KEY], stdout=subprocess.PIPE,
                               text=True, env={**os.environ, **QUIET_THREADS})
    assert process.stdout is not None
    port = process.stdout.readline().strip()
    assert port, "the server did not start"
    yield f"http://127.0.0.1:{port}"
    process.send_signal(signal.SIGTERM)
    process.wait(30)


async def test_an_independent_server_answers_as_a_server_on_the_network(independent: str, key_file: Path) -> None:
    toml = table("nas", f"{independent}/v1", key_file, model=MODEL, before=True)
    async with clouded({"CHAT__FIRST_TOKEN_DEADLINE_S": "15"}, toml=toml) as appliance, \
            Pin(appliance.daemon.url, "neighbour") as pin:
        await until_online(appliance, "nas")
        for _ in range(2):
            turn = await ask(pin, holes=True)
            assert turn.answered, turn.error
            print(turn.response)
            assert (turn.extra["backend"], turn.extra["reason"]) == ("nas", "")
            assert len(turn.response.split()) >= 2
        assert not appliance.fake.questions


async def test_an_independent_server_stands_in_for_groq(independent: str) -> None:
    toml = f'[chat.groq]\nbase_url = "{independent}"\n[[chat.groq.models]]\nname = "{MODEL}"\nmax_tokens = 40\n'
    async with FakeGroq(key=LAN_KEY) as unused:
        settings = {"CHAT__GROQ__BASE_URL": independent, "CHAT__FIRST_TOKEN_DEADLINE_S": "15"}
        async with clouded(settings, toml=toml, fake=unused) as appliance, \
                Pin(appliance.daemon.url, "neighbour") as pin:
            assert appliance.groq()["model"] == MODEL
            turn = await ask(pin, holes=True)
            assert turn.answered, turn.error
            assert (turn.extra["backend"], turn.extra["reason"]) == ("groq", "")
            assert appliance.groq()["state"] == "online"
            appliance.assert_nothing_secret(turn)
