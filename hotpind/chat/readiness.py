"""Getting ready for a question while it is still being asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, Protocol, TypeVar

from hotpind.chat.blind import newest_pictured
from hotpind.chat.coaching import coached
from hotpind.chat.messages import ChatRequest, Message, Picture

T = TypeVar("T")

KEPT = 6
"""Pictures of which the result is kept: all of one question's, and another device's."""
KEPT_S = 60.0
"""How long a result is kept after its picture was last expected: a question is spoken in less."""


class Warmable(Protocol):
    """A local model that can read the beginning of a conversation ahead."""

    model: str
    sees_images: bool

    def warm(self, messages: list[dict[str, Any]]) -> None:
        """Read these messages ahead; returns at once."""

    def stand_by(self, messages: list[dict[str, Any]]) -> None:
        """Be loaded, and read these messages ahead; returns at once."""


class Preparable(Protocol):
    """A chain of backends that can be connected or loaded ahead."""

    def prepare(self, pictures: Sequence[Picture] = ()) -> None:
        """Get ready for a question that comes with these pictures; returns at once."""


class Readiness:
    """Connects to the cloud, or fills the local model's cache, before the question is complete."""

    def __init__(self, chain: Preparable, local: Warmable, cloud_answers: Callable[[], bool]) -> None:
        """``cloud_answers`` tells whether the local model will not be asked."""
        self._chain = chain
        self._local = local
        self._cloud_answers = cloud_answers

    def reads_ahead(self) -> bool:
        """Tell whether the local model reads what is known of a question: no model that sees does."""
        # A cache is of no use to one: its prompts are put together by its eyes.
        return not self._cloud_answers() and not self._local.sees_images

    def expect(self, request: ChatRequest) -> None:
        """Get ready for a question; its text may be incomplete, or not there yet."""
        question = request.messages[-1]
        at = newest_pictured(request.messages)
        # A question without a picture of its own may be about an earlier one, which a blind model has to be told of.
        pictures = () if at is None or (self._local.sees_images and not question.pictures) else (
            request.messages[at].pictures)
        self._chain.prepare(pictures)
        if self.reads_ahead():
            self._local.warm(self._plain(request.messages if question.text else request.messages[:-1]))

    def stand_by(self, request: ChatRequest | None) -> None:
        """Have the local model loaded although the cloud answers, and read the conversation whose next question is
        ``request``, if that has time: a turn has ended, and the next one may be the one that finds the line dead.
        """
        if self._cloud_answers():
            self._local.stand_by(self._plain(request.messages[:-1]) if request and not self._local.sees_images else [])

    def _plain(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        return [{"role": message.role, "content": message.text} for message in coached(messages, self._local.model)]


class Ahead(Generic[T]):
    """Work on pictures that may begin before their question: done once for each, its result kept for a while.

    It owns the tasks: `close` ends them.
    """

    def __init__(self, work: Callable[[Picture], Coroutine[Any, Any, T]], *, name: str, most: int,
                 keep_s: float = KEPT_S) -> None:
        """At most ``most`` pictures are worked on at a time; ``name`` is the tasks'."""
        self._work = work
        self._name = name
        self._most = most
        self._keep_s = keep_s
        self._running: set[asyncio.Task[T]] = set()
        self._kept: dict[Picture, tuple[asyncio.Task[T], asyncio.TimerHandle]] = {}
        self._closed = False

    @property
    def running(self) -> int:
        """Pictures that are worked on."""
        return len(self._running)

    def begin(self, picture: Picture) -> asyncio.Task[T] | None:
        """Return the work on a picture, begun now unless it was before; None when too much is under way.

        Others may wait for the same task, so wait with `asyncio.wait`, which does not cancel it.
        """
        kept = self._kept.get(picture)
        if kept is not None:
            task = kept[0]
        elif self._closed or len(self._running) >= self._most:
            return None
        else:
            task = asyncio.create_task(self._work(picture), name=self._name)
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        self.forget(picture)
        while len(self._kept) >= KEPT:
            self.forget(next(iter(self._kept)))
        self._kept[picture] = task, asyncio.get_running_loop().call_later(self._keep_s, self.forget, picture)
        return task

    def expected(self, picture: Picture) -> bool:
        """Whether the work on a picture is under way or done."""
        return picture in self._kept

    def forget(self, picture: Picture) -> None:
        """Keep the result no longer; work that is under way goes on to its end."""
        if (kept := self._kept.pop(picture, None)) is not None:
            kept[1].cancel()

    async def close(self) -> None:
        """End what is under way and forget every result; nothing can be begun any more."""
        self._closed = True
        for picture in list(self._kept):
            self.forget(picture)
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
