"""Looks at pictures with llama.cpp and random weights, in a process of its own, and tells what happened as JSON.

Not in the tests' process: whisper.cpp's library, which other tests load there, brings symbols of the same names.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

from hotpind.engines.llama import ChatServer, load, prompt_of
from hotpind.engines.vision import PICTURES_KEPT
from tests.engines.tiny_vision import make_vision_model
from tests.pictures import noise


def url(seed: int) -> str:
    """Return a picture of noise."""
    return "data:image/jpeg;base64," + base64.b64encode(noise(512, 512, seed=seed)).decode()


def shown(*urls: str) -> list[dict[str, Any]]:
    """Return a question with pictures."""
    return [{"role": "user", "content": [{"type": "text", "text": "What is this?"},
                                         *({"type": "image_url", "image_url": {"url": each}} for each in urls)]}]


def look(directory: Path) -> dict[str, Any]:
    """Do all of it; returns answers, and how many tiles each step encoded."""
    files = make_vision_model(directory)
    llm = load(files.model, files.mmproj, context=512, threads=1, gpu_layers=0)
    eyes = llm.chat_handler
    steps: dict[str, int] = {}

    def ask(step: str, *urls: str) -> str:
        before = eyes._memory.encoded
        text = "".join(piece["choices"][0]["delta"].get("content") or "" for piece in llm.create_chat_completion(
            shown(*urls), stream=True, temperature=0.0, max_tokens=16))
        steps[step] = eyes._memory.encoded - before
        return text

    said = {"first": ask("first", url(1))}
    steps["look at the first again"] = eyes.look_at(url(1))
    steps["look at the second"] = eyes.look_at(url(2))
    said["second"] = ask("second", url(2))
    said["first again"] = ask("first again", url(1))
    said["both"], said["both turned round"] = ask("both", url(1), url(2)), ask("both turned round", url(2), url(1))
    eyes._memory._kept.clear()
    said["second, never seen"] = ask("second, never seen", url(2))
    said["both, never seen"] = ask("both, never seen", url(1), url(2))

    for seed in range(10, 10 + PICTURES_KEPT + 1):
        eyes.look_at(url(seed))
    steps["the newest of many"] = eyes.look_at(url(10 + PICTURES_KEPT))
    steps["the oldest of many"] = eyes.look_at(url(10))
    kept = len({picture for picture, _ in eyes._memory._kept})

    server = ChatServer(llm, "tiny", sees_images=True, prompt=prompt_of(llm))
    warm = [server._look(messages) for messages in (
        shown(url(31), url(32)), shown(url(31), url(32)), [{"role": "user", "content": "no picture"}],
        shown("http://example.org/a.jpg"), shown("data:image/jpeg;base64," + base64.b64encode(b"none").decode()),
        [{"role": "user", "content": [{"type": "image_url"}]}])]
    return {"said": said, "steps": steps, "kept": kept, "most": PICTURES_KEPT, "warm": warm,
            "threads": threads_while_answering(files.model)}


def threads_while_answering(model: Path) -> list[list[int]]:
    """Answer the same question twice; return how many threads worked on each piece of text."""
    import llama_cpp

    llm = load(model, None, context=512, threads=2, gpu_layers=0)
    return [[llama_cpp.llama_n_threads(llm._ctx.ctx)
             for piece in llm.create_chat_completion([{"role": "user", "content": "Why?"}], stream=True, max_tokens=40,
                                                     temperature=0.0, logit_bias={llm.token_eos(): -100.0})
             if piece["choices"][0]["delta"].get("content")] for _ in range(2)]


if __name__ == "__main__":
    print(json.dumps(look(Path(sys.argv[1]))))
