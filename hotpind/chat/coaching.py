"""Showing a very small model what an answer looks like.

A model of 135 M parameters follows examples far better than instructions (docs/local-model.md has the numbers). So its
system prompt is followed by a few invented exchanges, as if they had been said before. They stand at the very
beginning, where the engine's key-value cache keeps them from one question to the next.
"""

from __future__ import annotations

from collections.abc import Sequence

from hotpind.chat.messages import Message
from hotpind.chat.prompts import SMALL_MODEL_EXAMPLES, SMALL_MODEL_PROMPT, SYSTEM_PROMPT

COACHED = ("smollm2-135m",)
"""Beginnings of the names of models that were measured to answer better with examples."""


def coached(messages: Sequence[Message], model: str) -> tuple[Message, ...]:
    """Return the messages as they are put to ``model``, a catalogue name or the path of a file.

    Other models, and instructions that somebody wrote in the settings, are left as they are. What is warmed and what
    is asked both go through this, or the cache would not fit the question.
    """
    name = model.rpartition("/")[2].lower()
    if not name.startswith(COACHED) or not messages or messages[0] != Message("system", SYSTEM_PROMPT):
        return tuple(messages)
    examples = (message for question, answer in SMALL_MODEL_EXAMPLES
                for message in (Message("user", question), Message("assistant", answer)))
    return (Message("system", SMALL_MODEL_PROMPT), *examples, *messages[1:])
