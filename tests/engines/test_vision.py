"""Pictures through the real language model engine: a vision model with random weights, loaded by llama.cpp.

What it answers means nothing, but at temperature 0 it is a function of everything that reached the model.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from hotpind.chat.backend import Aside, Words
from hotpind.chat.chain import Chain
from hotpind.chat.completions import encoded_messages
from hotpind.chat.local_backend import LocalBackend
from hotpind.chat.lookup import NameLookup
from hotpind.chat.messages import ChatRequest, Message, Picture
from hotpind.chat.pictures import QUALITIES, shrink
from hotpind.config.schema import ChatSection, Config, LocalSection
from hotpind.engines.fleet import llama_spec
from hotpind.engines.local_model import LocalModel
from hotpind.engines.supervisor import Engine, EngineState
from tests.engines.tiny_vision import PLAIN_TEMPLATE, TYPED_TEMPLATE, VisionModel, make_vision_model
from tests.pictures import noise

pytestmark = pytest.mark.asyncio(loop_scope="module")
WORDS = 24
"""Tokens of an answer."""
PATIENCE_S = 90.0
"""For an engine to start, and for an answer: both take about a second on a machine that does nothing else."""
BROKEN = b"\xff\xd8\xff\xe0 this is no picture"


def picture(seed: int, side: int = 512) -> Picture:
    """Make a picture of noise: details that a smaller copy cannot have."""
    return Picture(noise(side, side, seed=seed), side, side)


def url(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def shown(image_url: str, text: str = "What is this?") -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": text},
                                         {"type": "image_url", "image_url": {"url": image_url}}]}]


def said(*texts: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant") * len(texts), texts,
                                                                  strict=False)]


@dataclass(slots=True)
class Reply:
    status: int
    pieces: list[str] = field(default_factory=list)
    error: str = ""

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class Asker:
    """Talks to the engine over its unix socket, as any OpenAI client."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def __call__(self, messages: list[dict[str, Any]], **options: Any) -> Reply:
        body = {"messages": messages, "stream": True, "temperature": 0.0, "max_tokens": WORDS, **options}
        socket = await self.engine.ready(PATIENCE_S)
        async with (aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))) as session,
                    session.post("http://localhost/v1/chat/completions", json=body,
                                 timeout=aiohttp.ClientTimeout(total=PATIENCE_S)) as response):
            if response.status != 200:
                return Reply(response.status, error=(await response.json())["error"]["message"])
            reply = Reply(200)
            async for line in response.content:
                if line.startswith(b"data: {"):
                    event = json.loads(line[6:])
                    reply.error = event.get("error", {}).get("message", reply.error)
                    reply.pieces += [choice["delta"]["content"] for choice in event.get("choices", ())
                                     if choice["delta"].get("content")]
            return reply


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> VisionModel:
    return make_vision_model(tmp_path_factory.mktemp("vision"))


def engine_of(files: VisionModel, runtime: Path, **local: Any) -> Engine:
    config = Config.model_validate({"chat": {"local": {"threads": 1, **local}}})
    return Engine(llama_spec(config, runtime, lambda: (files.model, files.mmproj)))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(files: VisionModel, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Engine]:
    """One process for all tests; what one of them leaves in its memory must not matter to the next."""
    engine = engine_of(files, tmp_path_factory.mktemp("run"))
    engine.start()
    yield engine
    await engine.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def ask(engine: Engine) -> Asker:
    # The test before may have stopped it.
    engine.start()
    return Asker(engine)


async def test_pictures_and_plain_questions_are_answered(engine: Engine, ask: Asker) -> None:
    first = await ask(shown(url(picture(1).jpeg)))
    assert engine.facts["sees_images"] is True
    assert (first.status, first.error) == (200, "")
    assert len(first.pieces) > 1, "the answer was not streamed"
    assert len(first.text) == WORDS

    assert (await ask(shown(url(picture(1).jpeg)))).text == first.text
    assert (await ask(shown(url(picture(2).jpeg)))).text != first.text
    assert (await ask(shown(url(picture(1).jpeg), "Who is this?"))).text != first.text
    plain = await ask(said("What is this?"))
    assert (plain.status, len(plain.text)) == (200, WORDS)
    assert plain.text != first.text
    # Nothing of a plain question is left in the model's memory either.
    assert (await ask(shown(url(picture(1).jpeg)))).text == first.text


@pytest.mark.parametrize("template", [TYPED_TEMPLATE, PLAIN_TEMPLATE], ids=["parts only", "either form"])
async def test_text_reaches_the_model_in_the_form_its_template_knows(template: str, tmp_path: Path) -> None:
    engine = engine_of(make_vision_model(tmp_path, template), tmp_path)
    engine.start()
    ask = Asker(engine)
    try:
        assert (await ask(said("Hello."))).text != (await ask(said("Goodbye."))).text
        briefed = [{"role": "system", "content": "Be short."}, *shown(url(picture(1).jpeg))]
        assert (await ask(briefed)).text != (await ask(briefed[1:])).text
        as_parts = [{"role": "user", "content": [{"type": "text", "text": "Hello."}]}]
        assert (await ask(as_parts)).text == (await ask(said("Hello."))).text
    finally:
        await engine.stop()


BAD = {
    url(BROKEN): "a picture cannot be decoded",
    url(picture(1).jpeg[:40]): "a picture cannot be decoded",
    url(b""): "a picture cannot be decoded",
    "data:image/jpeg;base64": "a picture cannot be decoded",
    "data:image/jpeg;base64,?": "a picture's data is not base64",
    "file:///etc/hostname": "a picture must be a data:image/...;base64, URL",
    "http://127.0.0.1:1/a.jpg": "a picture must be a data:image/...;base64, URL",
}


async def test_a_bad_picture_is_an_error_and_the_engine_goes_on(engine: Engine, ask: Asker) -> None:
    good = shown(url(picture(1).jpeg))
    before = await ask(good)
    pid = engine.pid
    for bad, sentence in BAD.items():
        reply = await ask(shown(bad))
        assert (reply.status, reply.error) == (400, sentence), bad[:60]
    assert (await ask(good)).text == before.text
    assert (engine.pid, engine.restarts) == (pid, 0)


async def test_a_picture_is_not_blown_up(files: VisionModel, tmp_path: Path) -> None:
    """A tile and an overview are 128 tokens; at the projector's own 2048 px a picture would be a thousand."""
    engine = engine_of(files, tmp_path, context_tokens=512)
    engine.start()
    try:
        ask = Asker(engine)
        for size in (512, 512), (512, 384), (288, 512), (64, 48), (1600, 1200):
            reply = await ask(shown(url(noise(*size))))
            assert (reply.status, reply.error, len(reply.text)) == (200, "", WORDS), size
    finally:
        await engine.stop()


async def test_a_long_history_is_shortened_before_a_picture(files: VisionModel, tmp_path: Path) -> None:
    engine = engine_of(files, tmp_path, context_tokens=512)
    engine.start()
    try:
        ask = Asker(engine)
        question = shown(url(picture(1).jpeg))
        # The vocabulary has little more than bytes: each of these turns is 200 tokens and more.
        reply = await ask([*said("a" * 200, "b" * 200, "c" * 200, "d" * 200), *question])
        assert (reply.status, len(reply.text)) == (200, WORDS)
        assert reply.text == (await ask(question)).text
        too_long = await ask(said("a" * 600))
        assert too_long.status == 400
        assert "512" in too_long.error
    finally:
        await engine.stop()


async def test_no_text_leaves_the_engine_but_the_answer(engine: Engine, ask: Asker,
                                                        caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await ask(shown(url(picture(1).jpeg), "My secret is 4711."))
    await ask(said("My secret is 4711."))
    await engine.stop()
    assert "4711" not in caplog.text


async def test_a_broken_projector_is_told_in_one_sentence(files: VisionModel, tmp_path: Path) -> None:
    broken = tmp_path / "mmproj.gguf"
    broken.write_bytes(files.mmproj.read_bytes()[:100_000])
    engine = engine_of(VisionModel(files.model, broken), tmp_path)
    engine.start()
    try:
        with pytest.raises(Exception, match="mmproj"):
            await engine.ready(PATIENCE_S)
        assert engine.state is EngineState.UNUSABLE
        assert "\n" not in engine.detail
        assert "Traceback" not in engine.detail
    finally:
        await engine.stop()


def asked(shot: Picture) -> ChatRequest:
    return ChatRequest((Message("system", "Be short."), Message("user", "What is this?", (shot,))), device="hall")


def small(shot: Picture) -> Picture:
    return shrink(shot, side=512, quality=QUALITIES[0])


async def test_the_local_backend_sends_the_picture_at_512_pixels(engine: Engine, ask: Asker) -> None:
    shot = picture(3, 1024)
    settings = LocalSection(max_tokens=WORDS)
    model = LocalModel(engine, model="tiny-vision", sees_images=True, idle_s=0)
    backend = LocalBackend(model, settings, lookup=NameLookup(), reader=None)
    try:
        events = [event async for event in backend.stream(asked(shot), quiet_s=PATIENCE_S)]
    finally:
        await backend.close()
        await model.close()
    assert not [event for event in events if isinstance(event, Aside)], "it says that it cannot see"
    answer = "".join(event.text for event in events if isinstance(event, Words))

    engine.start()
    options = {"repeat_penalty": settings.repeat_penalty}
    sent = {name: (await ask(encoded_messages(asked(each).messages), **options)).text
            for name, each in {"as taken": shot, "at 512": small(shot)}.items()}
    assert sent["at 512"] != sent["as taken"], "the model cannot tell the sizes apart"
    assert answer == sent["at 512"]


async def test_the_chain_answers_a_question_with_a_picture(engine: Engine, ask: Asker, tmp_path: Path) -> None:
    shot = picture(3, 1024)
    config = ChatSection.model_validate({"local": {"max_tokens": WORDS}})
    model = LocalModel(engine, model="tiny-vision", sees_images=True, idle_s=0)
    chain = Chain.from_config(config, state=tmp_path, local=model, environ={})
    await chain.start()
    try:
        stream = await chain.ask(asked(shot))
        text = "".join([piece async for piece in stream])
        assert stream.backend == "local"
        direct = await ask(encoded_messages(asked(small(shot)).messages), repeat_penalty=config.local.repeat_penalty)
        # The chain closes an unfinished sentence with a full stop.
        assert text.strip(" .") == direct.text.strip()
    finally:
        await chain.close()
        await model.close()
