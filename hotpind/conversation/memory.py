"""What is remembered of each device's conversation: the exchanges as they were spoken, and pictures in waiting.

Pure: time is passed in. Everything is bounded, and nothing is written to disk.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from hotpind.chat.messages import Message, Picture

MOST_CONVERSATIONS = 64
"""Conversations kept; the longest unused is forgotten. A household has a handful of devices."""
FOLLOW_UPS = 4
"""Questions without a picture of their own that are asked with the one shown last, so that people can ask on about it.
More pictures than one would cost the free plan's tokens of a minute, and seconds on a slow line."""
MOST_PICTURES = 5
"""Pictures that wait for a question, which is as many as the cloud takes with one; the oldest gives way."""
DROPPED_SHARE = 0.4
"""Part of the exchanges that is dropped at once when there are too many. The local model has read the beginning of a
conversation already and keeps it for the next question, as long as that begins in the same way."""
LONGEST_TEXT = 4000
"""Characters kept of a question or an answer."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question and what was spoken in answer to it."""

    question: str
    answer: str
    picture: Picture | None = None
    picture_until: float = 0.0


@dataclass(slots=True)
class Conversation:
    """One device's conversation."""

    turns: int
    """Exchanges kept at most."""
    exchanges: deque[Exchange] = field(default_factory=deque)
    last_used: float = 0.0
    _waiting: deque[tuple[Picture, float]] = field(default_factory=lambda: deque(maxlen=MOST_PICTURES))
    """Pictures for the next question, oldest first, each with the time at which it expires."""
    _taken_until: float = 0.0

    def add(self, question: str, answer: str, now: float, pictures: Sequence[Picture] = ()) -> None:
        """Remember an exchange and the last of its pictures; an answer of which nothing was heard is not remembered."""
        self.last_used = now
        if not answer or not self.turns:
            return
        picture = pictures[-1] if pictures else None
        if picture is not None:
            self._drop_pictures(len(self.exchanges))
        self.exchanges.append(Exchange(question[:LONGEST_TEXT], answer[:LONGEST_TEXT], picture, self._taken_until))
        self._drop_pictures(len(self.exchanges) - FOLLOW_UPS)
        if len(self.exchanges) > self.turns:
            for _ in range(len(self.exchanges) - self.turns + int(self.turns * DROPPED_SHARE)):
                self.exchanges.popleft()

    def after(self, question: str, answer: str, now: float, pictures: Sequence[Picture] = ()) -> Conversation:
        """Return the conversation as it would be with one exchange more; this one stays as it is."""
        future = Conversation(self.turns, self.exchanges.copy(), _taken_until=self._taken_until)
        future.add(question, answer, now, pictures)
        return future

    def forget_if_idle(self, now: float, idle_s: float) -> None:
        """Begin a new conversation after a long silence (0: never)."""
        if idle_s and now - self.last_used > idle_s:
            self.exchanges.clear()

    def forget_old_pictures(self, now: float) -> None:
        """Drop the pictures of earlier questions that are as old as one in waiting may become."""
        self._drop_pictures(len(self.exchanges), now)

    def _drop_pictures(self, end: int, now: float = math.inf) -> None:
        """Drop the pictures of the exchanges before ``end`` that are not wanted at ``now``."""
        for at in range(end):
            exchange = self.exchanges[at]
            if exchange.picture is not None and now >= exchange.picture_until:
                self.exchanges[at] = replace(exchange, picture=None)

    def keep_picture(self, picture: Picture, until: float) -> None:
        """Hold a picture for the next question that is understood, beside those that wait already."""
        self._waiting.append((picture, until))

    def pictures(self, now: float) -> tuple[Picture, ...]:
        """Look at the pictures in waiting that have not expired, oldest first."""
        for each in [each for each in self._waiting if now >= each[1]]:
            self._waiting.remove(each)
        return tuple(picture for picture, _ in self._waiting)

    def take_pictures(self, now: float) -> tuple[Picture, ...]:
        """Take the pictures in waiting: they come with one question, and the last goes into the history with that."""
        pictures = self.pictures(now)
        if pictures:
            self._taken_until = self._waiting[-1][1]
        self._waiting.clear()
        return pictures

    def reset(self) -> None:
        """Forget everything."""
        self.exchanges.clear()
        self._waiting.clear()

    def messages(self, system_prompt: str, question: str, pictures: tuple[Picture, ...] = ()) -> tuple[Message, ...]:
        """Put a request together: instructions, history oldest first, the question."""
        history = [message for exchange in self.exchanges for message in (
            Message("user", exchange.question, (exchange.picture,) if exchange.picture and not pictures else ()),
            Message("assistant", exchange.answer))]
        return (Message("system", system_prompt), *history, Message("user", question, pictures))


class Memory:
    """The conversations of all devices, by session id; they survive a reconnect."""

    def __init__(self, turns: int) -> None:
        """Keep ``turns`` exchanges of each conversation."""
        self._turns = turns
        self._conversations: OrderedDict[str, Conversation] = OrderedDict()

    def __len__(self) -> int:
        """Conversations kept."""
        return len(self._conversations)

    def of(self, session_id: str) -> Conversation:
        """Return a device's conversation, a new one if need be."""
        found = self._conversations.get(session_id)
        if found is None:
            found = self._conversations[session_id] = Conversation(self._turns)
            if len(self._conversations) > MOST_CONVERSATIONS:
                self._conversations.popitem(last=False)
        self._conversations.move_to_end(session_id)
        return found

    def forget(self, session_id: str) -> None:
        """Drop a device's conversation."""
        self._conversations.pop(session_id, None)

    def keep_turns(self, turns: int) -> None:
        """Change how many exchanges are kept."""
        self._turns = turns
        for conversation in self._conversations.values():
            conversation.turns = turns
