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


def question_pictures(request: ChatRequest) -> tuple[Picture, ...]:
    """Return the pictures that came with the question itself."""
    return request.messages[-1].pictures if request.messages else ()


def for_the_blind(request: ChatRequest, text_found: Sequence[str] = ()) -> tuple[ChatRequest, str]:
    """Return the request as a model without eyes can take it, and the sentence with which its answer has to begin
    (empty when the question came without a picture).
    """
    pictures = len(question_pictures(request))
    aside = clause(pictures, read=bool(text_found)) if pictures else ""
    return without_pictures(request, text_found), aside


def without_pictures(request: ChatRequest, text_found: Sequence[str]) -> ChatRequest:
    """Return the request without any picture; the question says what was read in its own."""
    *before, question = request.messages
    messages = [replace(message, pictures=()) if message.pictures else message for message in before]
    if question.pictures:
        found = " ".join(" ".join(text_found).split())[:LONGEST_TEXT]
        note = (f"Text read in the attached picture: \"{found}\". Nothing else in the picture can be seen."
                if found else "The attached picture cannot be seen.")
        question = Message(question.role, f"{question.text}\n\n({note})".strip())
    return replace(request, messages=(*messages, question))


def clause(pictures: int, *, read: bool) -> str:
    """Return the sentence with which the answer begins. ``read``: text was found in a picture."""
    what = "picture" if pictures == 1 else "pictures"
    text = "of its text" if pictures == 1 else "text in them"
    rest = f", but I can read some {text}" if read else ""
    return f"I can't see the {what}{rest}."
