"""Making pictures small enough for the model that is to see them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image

from hotpind.chat.messages import ChatRequest, Message, Picture

QUALITIES = (85, 70, 50)
"""JPEG qualities tried in turn; below 50 text in a picture becomes unreadable, so it gets smaller instead."""
SMALLEST_SIDE = 128
"""Pixels; nothing can be made out in less."""


@dataclass(frozen=True, slots=True)
class PictureLimits:
    """What a service takes in one request."""

    count: int = 5
    base64_bytes: int = 4_000_000
    """Bytes of all pictures together, base64 encoded."""
    pixels: int = 33_000_000
    """Pixels of one picture."""
    side: int = 0
    """Longest side in pixels; 0: as it is."""


GROQ_LIMITS = PictureLimits()
"""https://console.groq.com/docs/vision: 5 pictures, 4 MB of base64, 33 megapixels."""


def base64_size(jpeg_bytes: int) -> int:
    """Return how many bytes so many bytes take in base64."""
    return (jpeg_bytes + 2) // 3 * 4


def has_pictures(messages: Sequence[Message]) -> bool:
    """Whether any of the messages has a picture."""
    return any(message.pictures for message in messages)


def newest_pictures(messages: Sequence[Message], count: int) -> tuple[Message, ...]:
    """Return the messages with only the ``count`` newest pictures left; the older ones' texts stay."""
    kept: list[Message] = []
    for message in reversed(messages):
        pictures = message.pictures[max(0, len(message.pictures) - count):] if count else ()
        count -= len(pictures)
        kept.append(message if pictures == message.pictures else replace(message, pictures=pictures))
    return tuple(reversed(kept))


def shrink(picture: Picture, *, side: int, quality: int) -> Picture:
    """Re-encode a picture so that its longest side has at most ``side`` pixels.

    Takes tens of milliseconds; call it in a thread. Raises OSError or ValueError when it is no picture.
    """
    with Image.open(io.BytesIO(picture.jpeg), formats=("JPEG",)) as image:
        # Lets the JPEG decoder itself skip detail, which is several times faster than decoding all of it.
        image.draft("RGB", (side, side))
        rgb = image.convert("RGB")
    rgb.thumbnail((side, side))
    buffer = io.BytesIO()
    rgb.save(buffer, "JPEG", quality=quality)
    return Picture(buffer.getvalue(), rgb.width, rgb.height)


def fit(request: ChatRequest, limits: PictureLimits) -> ChatRequest:
    """Return the request with pictures that a service takes: the newest ones, re-encoded smaller where
    needed.

    Does nothing costly when they fit already; else takes up to a second, so call it in a thread. A picture
    that cannot be decoded is left out.
    """
    messages = newest_pictures(request.messages, limits.count)
    pictures = [picture for message in messages for picture in message.pictures]
    if not pictures:
        return replace(request, messages=messages)
    share = limits.base64_bytes // len(pictures)
    if sum(base64_size(len(picture.jpeg)) for picture in pictures) <= limits.base64_bytes:
        share = limits.base64_bytes
    return replace(request, messages=tuple(
        replace(message, pictures=tuple(small for picture in message.pictures
                                        if (small := _fitted(picture, limits, share)) is not None))
        if message.pictures else message for message in messages))


def _fitted(picture: Picture, limits: PictureLimits, share: int) -> Picture | None:
    longest = max(picture.width, picture.height)
    side = min(longest, limits.side or longest)
    while picture.width * picture.height * (side / longest) ** 2 > limits.pixels:
        side = side * 9 // 10
    if side == longest and base64_size(len(picture.jpeg)) <= share:
        return picture
    try:
        while True:
            for quality in QUALITIES:
                smaller = shrink(picture, side=side, quality=quality)
                if base64_size(len(smaller.jpeg)) <= share:
                    return smaller
            side = side * 7 // 10
            if side < SMALLEST_SIDE:
                return None
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
