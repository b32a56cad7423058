"""The small model's examples: where they stand, for whom, and that the cache that is warmed fits what is asked."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from hotpind.chat.backend import Words
from hotpind.chat.coaching import coached
from hotpind.chat.completions import encoded_messages
from hotpind.chat.local_backend import LocalBackend
from hotpind.chat.lookup import NameLookup
from hotpind.chat.messages import ChatRequest, Message
from hotpind.chat.prompts import SMALL_MODEL_EXAMPLES, SYSTEM_PROMPT
from hotpind.chat.speakable import Speakable
from hotpind.config import load_config
from hotpind.config.paths import models_dir
from hotpind.engines.fleet import llama_spec
from hotpind.engines.local_model import LocalModel
from hotpind.engines.supervisor import Engine
from hotpind.models.catalogue import Role
from hotpind.models.store import ModelStore
from tests.chat.conftest import FakeEngine, MakeChain
from tests.chat.everyday import load_questions

CLOSED = {"fact", "sum", "conversion", "calendar", "spelling", "follow-up"}
"""Kinds of questions with one right answer."""
SMALL = "smollm2-135m-instruct"
ASKED = (Message("system", SYSTEM_PROMPT), Message("user", "Who are you?"), Message("assistant", "I'm Hotpin."),
         Message("user", "What is the capital of France?"))


@pytest.mark.parametrize("model", [SMALL, "/srv/models/SmolLM2-135M-Instruct.Q4_1.gguf"])
def test_the_small_model_sees_examples_before_the_conversation(model: str) -> None:
    told = coached(ASKED, model)
    assert told[0].role == "system"
    assert [message.text for message in told[1:-3]] == [text for pair in SMALL_MODEL_EXAMPLES for text in pair]
    assert [message.role for message in told[1:]] == ["user", "assistant"] * (len(told) // 2 - 1) + ["user"]
    assert told[-3:] == ASKED[1:]


def test_other_models_and_own_instructions_are_left_alone() -> None:
    own = (Message("system", "Antworte auf Deutsch."), ASKED[-1])
    assert coached(ASKED, "qwen2.5-0.5b-instruct") == ASKED
    assert coached(ASKED, "/home/smollm2-135m/other.gguf") == ASKED
    assert coached(own, SMALL) == own
    assert coached((), SMALL) == ()
    assert coached(ASKED[1:], SMALL) == ASKED[1:]


def test_no_example_gives_away_an_everyday_question() -> None:
    examples = {question for question, _ in SMALL_MODEL_EXAMPLES}
    questions = load_questions()
    assert len(questions) >= 40
    assert sum(question.check for question in questions) >= 20
    assert not examples & {question.ask for question in questions}
    given_away = [question.ask for question in questions if question.kind in CLOSED
                  and any(question.right(answer) for _, answer in SMALL_MODEL_EXAMPLES)]
    assert not given_away


async def test_what_was_warmed_is_the_beginning_of_what_is_asked(make_chain: MakeChain, engine: FakeEngine) -> None:
    engine.model = SMALL
    engine.server.models = [SMALL]
    async with make_chain(key=None) as chain:
        stream = await chain.ask(ChatRequest(ASKED, "kitchen"))
        async for _ in stream:
            pass
        await stream.aclose()
    sent = engine.server.chats[-1].body["messages"]
    warmed = encoded_messages(coached(ASKED[:-1], SMALL))
    assert sent[:-1] == warmed
    assert len(warmed) > len(ASKED)


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[tuple[LocalBackend, LocalModel]]:
    """The default model in its own process, and the backend that asks it, with the default settings."""
    config = load_config(None, {name: value for name, value in os.environ.items() if name == "HOTPIN_PATHS__MODELS"})
    settings = config.chat.local
    files = ModelStore(models_dir(config)).resolve(settings.model, Role.LLM)
    model = LocalModel(Engine(llama_spec(config, tmp_path, lambda: (files.main, None))), model=settings.model,
                       sees_images=False, idle_s=0)
    backend = LocalBackend(model, settings, lookup=NameLookup(), reader=None)
    yield backend, model
    await backend.close()
    await model.close()


async def say(backend: LocalBackend, messages: tuple[Message, ...]) -> str:
    spoken = Speakable(120)
    request = ChatRequest((Message("system", SYSTEM_PROMPT), *messages))
    said = [spoken.feed(event.text) async for event in backend.stream(request, quiet_s=30) if isinstance(event, Words)]
    return "".join([*said, spoken.finish()]).strip()


@pytest.mark.models
async def test_the_default_model_answers_easy_questions(local: tuple[LocalBackend, LocalModel]) -> None:
    easy = [question for question in load_questions() if question.easy]
    assert len(easy) >= 10
    async with asyncio.timeout(240):
        answers = {question.ask: await say(local[0], question.messages) for question in easy}
    wrong = {question.ask: answers[question.ask] for question in easy if not question.right(answers[question.ask])}
    # Processors round differently, so that one close decision may fall the other way.
    assert len(wrong) <= 2, wrong
    # Nobody wants to listen longer: one sentence each.
    assert sum(len(answer.split()) for answer in answers.values()) / len(easy) < 14, answers


@pytest.mark.models
async def test_the_engine_has_evaluated_the_examples_before_the_question_is_asked(
        local: tuple[LocalBackend, LocalModel]) -> None:
    _, model = local
    socket = await model.socket()
    known = encoded_messages(coached(ASKED[:-1], SMALL))
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))) as session:
        async with session.post("http://localhost/hotpind/warm", json={"messages": known}) as response:
            warm = await response.json()
        body = {"messages": encoded_messages(coached(ASKED, SMALL)), "temperature": 0, "max_tokens": 16}
        async with session.post("http://localhost/v1/chat/completions", json=body) as response:
            answer = (await response.json())["choices"][0]["message"]["content"]
    assert warm["warm"] is True
    assert warm["tokens"] > 100
    assert "Paris" in answer
