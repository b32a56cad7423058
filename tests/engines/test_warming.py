"""Reading a conversation's beginning ahead: in steps that let a real request in, and only what is not known yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hotpind.engines.llama import LEAST_WARM_STEP, WARM_STEP, ChatServer


class Model:
    """Remembers which prompts it was given, and takes ``token_s`` seconds for each new token of one."""

    def __init__(self, token_s: float) -> None:
        self.input_ids: list[int] = []
        self.now = 0.0
        self.steps: list[int] = []
        self._token_s = token_s

    @property
    def n_tokens(self) -> int:
        return len(self.input_ids)

    def n_ctx(self) -> int:
        return 2048

    def longest_token_prefix(self, one: Sequence[int], other: Sequence[int]) -> int:
        return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
                    min(len(one), len(other)))

    def generate(self, tokens: list[int], temp: float) -> Iterator[int]:
        assert temp == 0.0
        new = len(tokens) - self.longest_token_prefix(self.input_ids, tokens)
        self.steps.append(new)
        self.now += new * self._token_s
        self.input_ids = list(tokens)
        yield 0


def server(model: Model, tokens: int) -> ChatServer:
    return ChatServer(model, "model", sees_images=False, prompt=lambda _: list(range(tokens)),
                      timer=lambda: model.now)


def evaluate(server: ChatServer) -> int:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]
    return server._evaluate(messages)


def test_a_quick_machine_reads_in_large_steps_and_nothing_twice() -> None:
    model = Model(token_s=0.001)
    it = server(model, 250)
    assert evaluate(it) == 250
    assert model.steps == [WARM_STEP, WARM_STEP, 250 - 2 * WARM_STEP]
    assert evaluate(it) == 250
    assert len(model.steps) == 3


def test_on_a_slow_machine_a_real_request_waits_for_a_small_step_only() -> None:
    model = Model(token_s=0.06)
    assert evaluate(server(model, 400)) == 400
    assert model.steps[:4] == [96, 48, 24, 12]
    assert set(model.steps[4:-1]) == {LEAST_WARM_STEP}


def test_a_request_that_waits_ends_the_reading() -> None:
    model = Model(token_s=0.001)
    it = server(model, 300)
    it._waiting = 1
    assert evaluate(it) == 0
    assert not model.steps


def test_a_conversation_too_long_for_the_context_is_left_alone() -> None:
    model = Model(token_s=0.001)
    assert evaluate(server(model, 2000)) == 0
    assert not model.steps
