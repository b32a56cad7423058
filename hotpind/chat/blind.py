"""Asking a model without eyes a question that came with a picture, honestly.

The model gets the text that was read in the picture, if any, and is told that it cannot see it. Small models
forget that, so the answer begins with a fixed clause that says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hotpind.chat.messages import ChatRequest, Message, Picture

LONGEST_TEXT = 600
"""Letters of a picture's text that are passed on: a label or a sign, not a page; a small model reads
slowly.
"""

ASIDE = "I can't see the"
"""How that sentence begins."""


def question_pictures(request: ChatRequest) -> tuple[Picture, ...]:
    """Return the pictures that came with the question itself."""
    return request.messages[-1].pictures if request.messages else ()


def newest_pictured(messages: Sequence[Message]) -> int | None:
    """Return the place of the newest message with pictures: the question itself, or an earlier one that it may be
    about; None when there is none.
    """
    return next((at for at in reversed(range(len(messages))) if messages[at].pictures), None)


def for_the_blind(request: ChatRequest, text_found: Sequence[str] = ()) -> tuple[ChatRequest, str]:
    """Return the request as a model without eyes can take it, and the sentence with which its answer has to begin
    (empty when there is no picture, or when it was said of that picture before).
    """
    at = newest_pictured(request.messages)
    if at is None:
        return request, ""
    said = any(message.role == "assistant" and message.text.startswith(ASIDE) for message in request.messages[at:])
    aside = "" if said else clause(len(request.messages[at].pictures), read=bool(text_found))
    return without_pictures(request, text_found), aside


def without_pictures(request: ChatRequest, text_found: Sequence[str]) -> ChatRequest:
    """Return the request without any picture; the newest message that had some says what was read in them."""
    newest = newest_pictured(request.messages)
    messages = [replace(message, pictures=()) if message.pictures else message for message in request.messages]
    if newest is not None:
        found = " ".join(" ".join(text_found).split())[:LONGEST_TEXT]
        note = (f"Text read in the attached picture: \"{found}\". Nothing else in the picture can be seen."
                if found else "The attached picture cannot be seen.")
        messages[newest] = replace(messages[newest], text=f"{messages[newest].text}\n\n({note})".strip())
    return replace(request, messages=tuple(messages))


def clause(pictures: int, *, read: bool) -> str:
    """Return the sentence with which the answer begins. ``read``: text was found in a picture."""
    what = "picture" if pictures == 1 else "pictures"
    text = "of its text" if pictures == 1 else "text in them"
    rest = f", but I can read some {text}" if read else ""
    return f"{ASIDE} {what}{rest}."
