"""What is asked of a language model, independent of who answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class Picture:
    """A re-encoded JPEG, upright and without metadata."""

    jpeg: bytes
    width: int
    """Pixels."""
    height: int
    """Pixels."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    text: str
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A question with all that a model needs to answer it."""

    messages: tuple[Message, ...]
    """The system prompt first, then the history, oldest first, then the question."""
    device: str = ""
    """Whose conversation this is: a hint which cached prefix to use, never sent off the machine."""
    turn: str = ""
    """The turn's id, for the log."""


class AnswerStream(Protocol):
    """Text of an answer as it arrives; iterate to the end or call `aclose`, which stops the work behind it.

    Iterating raises a `hotpind.errors.BackendError`: `StreamBroke` once text was given out.
    """

    backend: str
    """Name of the backend that answers ("groq", "local", or a configured name)."""
    model: str
    reason: str
    """Why this backend: empty for the first of the chain, else one short phrase such as "groq is offline"."""

    token_at: float | None
    """When the model's first token came, in seconds on the monotonic clock: before its word is whole. None when that is
    not known."""

    def __aiter__(self) -> AsyncIterator[str]:
        """Pieces of text, in order."""

    async def aclose(self) -> None:
        """Stop generating; may be called at any time and more than once."""


class Brain(Protocol):
    """Answers questions, whichever backend is alive."""

    async def ask(self, request: ChatRequest) -> AnswerStream:
        """Return the stream of the first backend that gave its first words.

        Raises `hotpind.errors.NoAnswer` when every backend failed.
        """


@dataclass(slots=True)
class BackendStatus:
    """A backend's condition as shown to people: no secrets."""

    name: str
    state: str
    """online, degraded, offline, key-rejected, rate-limited, off, loading or idle."""
    model: str = ""
    detail: str = ""
    retired: list[str] = field(default_factory=list)
    fault: str = ""
    """What a person should mend about its key, a sentence; empty when nothing."""
