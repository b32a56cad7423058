"""Questions put to a chain, and what is known of it meanwhile."""

from __future__ import annotations

import time
from typing import Any

import pytest

from hotpind.chat import router as router_module
from hotpind.chat.chain import Chain
from hotpind.chat.messages import AnswerStream, BackendStatus, Brain, ChatRequest, Message, Picture
from tests.fakes.groq import MODELS
from tests.waiting import until

SCOUT, QWEN = MODELS

QUICK: dict[str, Any] = {"first_token_deadline_s": 0.4, "next_token_deadline_s": 0.4}

IMMEDIATE: list[tuple[str, dict[str, Any], str, str]] = [
    ("error", {"status": 500}, "degraded", "groq is in trouble"),
    ("error", {"status": 503}, "degraded", "groq is in trouble"),
    ("error", {"status": 498}, "degraded", "groq is in trouble"),
    ("error_in_stream", {}, "degraded", "groq is in trouble"),
    ("huge", {"status": 500}, "degraded", "groq is in trouble"),
    ("rate_limited", {"retry_after": 60}, "rate-limited", "groq is rate-limited"),
    ("unauthorized", {}, "key-rejected", "groq rejected the key"),
    ("forbidden", {}, "key-rejected", "groq rejected the key"),
    ("reset", {"words": 0}, "offline", "groq cannot be reached"),
    ("retired", {}, "degraded", "groq has no model left"),
    ("malformed", {}, "online", "groq gave no usable answer"),
    ("redirect", {"to": "http://127.0.0.1:1/"}, "online", "groq gave no usable answer"),
    ("huge", {}, "online", "groq gave no usable answer"),
    ("html", {}, "online", "groq gave no usable answer"),
    ("empty", {}, "online", "groq gave no usable answer"),
    ("think", {}, "online", "groq gave no usable answer"),
    ("think", {"closed": True}, "online", "groq gave no usable answer"),
    ("says", {"text": "** ... \U0001f600"}, "online", "groq gave no usable answer"),
    ("bad_request", {}, "online", "groq gave no usable answer"),
]


def question(text: str = "What is the capital of France?", *pictures: Picture) -> ChatRequest:
    return ChatRequest((Message("system", "You are a voice."), Message("user", text, pictures)), "kitchen", "turn")


async def ask(brain: Brain, request: ChatRequest | None = None) -> tuple[str, AnswerStream, float]:
    """Return the whole text, the stream, and the seconds until its first piece."""
    begun = time.monotonic()
    answer = await brain.ask(request or question())
    taken = time.monotonic() - begun
    try:
        return "".join([piece async for piece in answer]), answer, taken
    finally:
        await answer.aclose()


async def collect_into(said: list[str], answer: AnswerStream) -> None:
    async for piece in answer:
        said.append(piece)  # noqa: PERF401  # what came before the break is wanted


async def collect(answer: AnswerStream) -> list[str]:
    return [piece async for piece in answer]


def status(chain: Chain, name: str = "groq") -> BackendStatus:
    return next(row for row in chain.status() if row.name == name)


async def settled(chain: Chain) -> None:
    """Wait until the checks made at the start are over."""
    await until(lambda: not any(circuit.probing for circuit in chain._router.circuits.values()))


def fast_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shrink the probes' schedule fifty times."""
    for name in ("FIRST_PROBE_S", "NETWORK_PROBE_MOST_S", "SERVER_PROBE_MOST_S", "BROKEN_PROBE_S"):
        monkeypatch.setattr(router_module, name, getattr(router_module, name) / 50)
