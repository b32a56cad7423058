"""A picture is encoded while its question is still being asked, and once: with llama.cpp and random weights."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from hotpind.engines.llama import ChatServer, load, prompt_of
from hotpind.engines.vision import PICTURES_KEPT
from tests.engines.tiny_vision import make_vision_model
from tests.pictures import noise


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    files = make_vision_model(tmp_path_factory.mktemp("vision"))
    return load(files.model, files.mmproj, context=512, threads=1, gpu_layers=0)


def url(seed: int) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(noise(512, 512, seed=seed)).decode()


def shown(*urls: str, text: str = "What is this?") -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": text},
                                         *({"type": "image_url", "image_url": {"url": each}} for each in urls)]}]


def ask(llm: Any, messages: list[dict[str, Any]]) -> str:
    return "".join(piece["choices"][0]["delta"].get("content") or ""
                   for piece in llm.create_chat_completion(messages, stream=True, temperature=0.0, max_tokens=16))


def encoded(llm: Any) -> int:
    count: int = llm.chat_handler._memory.encoded
    return count


def test_what_was_looked_at_is_not_encoded_again_and_makes_no_difference(llm: Any) -> None:
    answer = ask(llm, shown(url(1)))
    tiles = encoded(llm)
    assert tiles
    assert llm.chat_handler.look_at(url(1)) == 0
    new = llm.chat_handler.look_at(url(2))
    assert new == tiles
    before = encoded(llm)
    other = ask(llm, shown(url(2)))
    assert ask(llm, shown(url(1))) == answer != other
    assert encoded(llm) == before
    # Two pictures in one question, in this order and in the other.
    one, two = ask(llm, shown(url(1), url(2))), ask(llm, shown(url(2), url(1)))
    assert one != two
    assert encoded(llm) == before
    # A model that has never seen them says the same.
    llm.chat_handler._memory._kept.clear()
    assert [ask(llm, shown(url(2))), ask(llm, shown(url(1), url(2)))] == [other, one]
    assert encoded(llm) == before + 2 * tiles


def test_the_memory_of_pictures_is_bounded(llm: Any) -> None:
    for seed in range(10, 10 + PICTURES_KEPT + 1):
        assert llm.chat_handler.look_at(url(seed))
    assert llm.chat_handler.look_at(url(10 + PICTURES_KEPT)) == 0
    assert llm.chat_handler.look_at(url(10)) > 0
    assert len({picture for picture, _ in llm.chat_handler._memory._kept}) == PICTURES_KEPT


def test_warming_looks_at_a_conversation_s_pictures_and_stumbles_over_none(llm: Any, tmp_path: Path) -> None:
    server = ChatServer(llm, "tiny", sees_images=True, prompt=prompt_of(llm))
    assert server._look(shown(url(31), url(32))) > 0
    assert server._look(shown(url(31), url(32))) == 0
    assert server._look([{"role": "user", "content": "no picture"}]) == 0
    assert server._look(shown("http://example.org/a.jpg")) == 0
    assert server._look(shown("data:image/jpeg;base64," + base64.b64encode(b"none").decode())) == 0
    assert server._look([{"role": "user", "content": [{"type": "image_url"}]}]) == 0
