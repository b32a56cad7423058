"""Staying inside a plan's tokens per minute by sending less, before the service refuses.

Groq tells with every answer what is left (https://console.groq.com/docs/rate-limits):
``x-ratelimit-limit-tokens``, ``x-ratelimit-remaining-tokens``, and ``x-ratelimit-reset-tokens``, the time
until all of it is back, as in "7.66s" or "2m59.56s". Free of I/O; time is passed in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace

from hotpind.chat.messages import ChatRequest, Message, Picture

LETTERS_PER_TOKEN = 3.5
"""English has about four, most other languages fewer."""
TOKENS_PER_MESSAGE = 5
"""Role and separators."""
PIXELS_PER_TOKEN = 784
"""Vision models of today see patches of 28 by 28 pixels."""
SMALL_SIDES = (1024, 768, 512, 384)
"""Longest sides, in pixels, that pictures are tried at when tokens are short; 384 still shows what it is."""

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:([\d.]+)s)?(?:([\d.]+)ms)?")


def duration(text: str) -> float | None:
    """Return the seconds that a text such as "2m59.56s" or "120ms" means; None when it means none."""
    found = _DURATION.fullmatch(text.strip())
    if not found or not any(found.groups()):
        return None
    try:
        hours, minutes, seconds, milliseconds = (float(part or 0) for part in found.groups())
    except ValueError:
        return None
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


class TokenBudget:
    """How many tokens may be spent now, from what the service last said."""

    def __init__(self) -> None:
        self._limit = math.inf
        self._left = math.inf
        self._refill = 0.0
        self._at = 0.0

    def update(self, headers: Mapping[str, str], now: float) -> None:
        """Take the headers of an answer that came at ``now`` seconds; headers without numbers change
        nothing.
        """
        try:
            left = float(headers.get("x-ratelimit-remaining-tokens", ""))
            limit = float(headers.get("x-ratelimit-limit-tokens", ""))
        except ValueError:
            return
        if not (math.isfinite(left) and math.isfinite(limit)) or limit <= 0:
            return
        reset = duration(headers.get("x-ratelimit-reset-tokens", ""))
        self._limit, self._left, self._at = limit, max(0.0, left), now
        # Without a time, the limit is per minute, as its documentation says.
        self._refill = (limit - left) / reset if reset else limit / 60

    def spend(self, tokens: float, now: float) -> None:
        """Note that a request of so many tokens is sent at ``now`` seconds: others may be before its answer comes."""
        if not math.isinf(self._left):
            self._left, self._at = max(0.0, self.available(now) - tokens), now

    def available(self, now: float) -> float:
        """Return the tokens that may be spent at ``now`` seconds; infinite before anything is known."""
        if math.isinf(self._left):
            return math.inf
        return min(self._limit, self._left + self._refill * max(0.0, now - self._at))


def picture_tokens(picture: Picture, side: int = 0) -> int:
    """Estimate what a picture costs, when scaled down to ``side`` pixels (0: as it is)."""
    scale = min(1.0, side / max(picture.width, picture.height)) if side else 1.0
    return math.ceil(picture.width * picture.height * scale * scale / PIXELS_PER_TOKEN)


def estimate(messages: tuple[Message, ...], *, side: int = 0) -> int:
    """Estimate the tokens of messages, their pictures scaled down to ``side`` pixels (0: as they are)."""
    return sum(TOKENS_PER_MESSAGE + math.ceil(len(message.text) / LETTERS_PER_TOKEN)
               + sum(picture_tokens(picture, side) for picture in message.pictures) for message in messages)


def without_oldest(messages: tuple[Message, ...]) -> tuple[Message, ...] | None:
    """Return the messages without their oldest turn; None when only instructions and question are left."""
    first = 1 if messages and messages[0].role == "system" else 0
    last = len(messages) - 1
    if last - first < 1:
        return None
    # A question goes together with its answer: no conversation begins with an answer.
    end = first + 1
    while end < last and messages[end].role == "assistant":
        end += 1
    return messages[:first] + messages[end:]


def economise(request: ChatRequest, available: float, *, answer: int) -> tuple[ChatRequest, int]:
    """Make a request fit ``available`` tokens: the oldest history goes first, then pictures shrink.

    ``answer`` is what the answer may cost. Returns the request and the longest side its pictures should get
    (0: as they are). What cannot be made to fit is sent at its smallest; the service then has the last word.
    """
    room = available - answer
    messages = request.messages
    if estimate(messages) <= room:
        return request, 0
    while (shorter := without_oldest(messages)) is not None:
        messages = shorter
        if estimate(messages) <= room:
            return replace(request, messages=messages), 0
    smaller = replace(request, messages=messages)
    if not any(message.pictures for message in messages):
        return smaller, 0
    for side in SMALL_SIDES:
        if estimate(messages, side=side) <= room:
            return smaller, side
    return smaller, SMALL_SIDES[-1]
