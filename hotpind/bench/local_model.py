"""Asks a language model as the appliance does: with the same instructions and settings, so that times compare."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from hotpind.chat.coaching import coached
from hotpind.chat.completions import encoded_messages
from hotpind.chat.messages import Message
from hotpind.chat.prompts import SYSTEM_PROMPT
from hotpind.config import Config


def messages_for(config: Config, question: str, *, cloud: bool = False) -> list[dict[str, Any]]:
    """Return the messages that put ``question``, the last of them, to the local model or to a cloud's."""
    messages = (Message("system", config.chat.system_prompt or SYSTEM_PROMPT), Message("user", question))
    return encoded_messages(messages if cloud else coached(messages, config.chat.local.model))


def body_of(config: Config, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the request for an answer to them, in pieces as they come."""
    local = config.chat.local
    return {"messages": messages, "stream": True, "max_tokens": local.max_tokens, "temperature": local.temperature,
            "repeat_penalty": local.repeat_penalty}


async def words(lines: aiohttp.StreamReader) -> AsyncIterator[str]:
    """Yield the pieces of a streamed answer that hold text."""
    async for line in lines:
        if line.startswith(b"data: {"):
            text = json.loads(line[6:])["choices"][0]["delta"].get("content")
            if text:
                yield text
