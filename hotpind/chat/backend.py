"""What every language model backend offers to the chain."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from hotpind.chat.messages import ChatRequest, Picture

DRAIN_S = 0.5
"""How long the end of a whole answer's body is waited for, so that its connection can be used again."""


@dataclass(frozen=True, slots=True)
class Using:
    """The model that is answering; comes before its first words."""

    model: str


@dataclass(frozen=True, slots=True)
class Aside:
    """A fixed sentence to be said before the answer's first words, should any come."""

    text: str


@dataclass(frozen=True, slots=True)
class Words:
    """The next piece of the answer as the model wrote it; empty while it thinks."""

    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer is whole."""

    truncated: bool = False
    """The model ran into its limit of tokens, so the last sentence is not finished."""


Event = Using | Aside | Words | Ended
"""What a backend's stream is made of, in this order; one that stops without `Ended` broke, and one that fails after it
did not.
"""


class Probe(StrEnum):
    """How to find out whether a backend is well again."""

    REACH = "reach"
    """Ask for something free: name, route, TLS and key are in order."""
    ANSWER = "answer"
    """Ask for one token: it also thinks, and in time."""


class Backend(Protocol):
    """A language model somewhere."""

    @property
    def name(self) -> str:
        """Name in the status and in turn records."""

    @property
    def model(self) -> str:
        """The model that would be asked now; empty when there is none."""

    @property
    def ready(self) -> bool:
        """Whether it is set up: a service that needs a key has one."""

    @property
    def note(self) -> str:
        """One sentence for the status, such as why its key is not used; empty when there is nothing to
        say.
        """

    @property
    def retired(self) -> list[str]:
        """Models of the settings that the service no longer has."""

    def stream(self, request: ChatRequest, *, quiet_s: float) -> AsyncGenerator[Event, None]:
        """Ask for an answer; closing the generator closes the connection, so nothing more is generated.

        ``quiet_s``: longest silence on the connection, in seconds. Raises a `hotpind.errors.BackendError`.
        """

    async def probe(self, kind: Probe, *, quiet_s: float) -> float:
        """Find out in the background whether the backend works; returns the seconds that it thought (``ANSWER``), from
        the request to the first sign of an answer.

        Raises a `hotpind.errors.BackendError` when it does not.
        """

    def expect(self, pictures: Sequence[Picture]) -> None:
        """Begin the work on the pictures of a question that is still being asked; returns at once."""

    async def refresh_key(self) -> bool:
        """Look for the key again and return whether it is another one than before."""

    async def close(self) -> None:
        """Close every connection."""


class RemoteBackend(Backend, Protocol):
    """A backend beyond this machine, which may want a key."""

    @property
    def key_problem(self) -> str:
        """Why a key is not used, such as a file that cannot be read; empty when nothing is wrong."""
