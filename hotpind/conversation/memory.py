"""What is remembered of each device's conversation: the exchanges as they were spoken, and a picture in waiting.

Pure: time is passed in. Everything is bounded, and nothing is written to disk.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field, replace

from hotpind.chat.messages import Message, Picture

MOST_CONVERSATIONS = 64
"""Conversations kept; the longest unused is forgotten. A household has a handful of devices."""
FOLLOW_UPS = 4
"""Questions without a picture of their own that are asked with the one shown last, so that people can ask on about it.
More pictures than one would cost the free plan's tokens of a minute, and seconds on a slow line."""
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
    """Exchanges kept."""
    exchanges: deque[Exchange] = field(default_factory=deque)
    last_used: float = 0.0
    _picture: Picture | None = None
    _picture_until: float = 0.0
    _taken_until: float = 0.0

    def add(self, question: str, answer: str, now: float, picture: Picture | None = None) -> None:
        """Remember an exchange and its picture; an answer of which nothing was heard is not remembered."""
        self.last_used = now
        if not answer or not self.turns:
            return
        if picture is not None:
            self._drop_pictures(len(self.exchanges))
        self.exchanges.append(Exchange(question[:LONGEST_TEXT], answer[:LONGEST_TEXT], picture, self._taken_until))
        self._drop_pictures(len(self.exchanges) - FOLLOW_UPS)
        while len(self.exchanges) > self.turns:
            self.exchanges.popleft()

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
        """Hold a picture for the next question that is understood; it replaces an earlier one."""
        self._picture, self._picture_until = picture, until

    def picture(self, now: float) -> Picture | None:
        """Look at the picture in waiting, if it has not expired."""
        if self._picture is not None and now >= self._picture_until:
            self._picture = None
        return self._picture

    def take_picture(self, now: float) -> Picture | None:
        """Take the picture in waiting: it comes with one question, and goes into the history with that."""
        picture = self.picture(now)
        self._picture, self._taken_until = None, self._picture_until
        return picture

    def reset(self) -> None:
        """Forget everything."""
        self.exchanges.clear()
        self._picture = None

    def messages(self, system_prompt: str, question: str, picture: Picture | None) -> tuple[Message, ...]:
        """Put a request together: instructions, history oldest first, the question."""
        history = [message for exchange in self.exchanges for message in (
            _asked(exchange.question, None if picture else exchange.picture), Message("assistant", exchange.answer))]
        return (Message("system", system_prompt), *history, _asked(question, picture))


def _asked(question: str, picture: Picture | None) -> Message:
    return Message("user", question, (picture,) if picture else ())


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
