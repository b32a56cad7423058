"""The OpenAI chat completions API: what is sent, what its events mean, and what its errors mean.

Groq, Ollama, vLLM, llama-server and the appliance's own engine all speak it, so this is shared and free of
I/O. No text of a service's error message is passed on: it may quote the question or the key.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from hotpind.chat.backend import Ended, Event, Words
from hotpind.chat.messages import Message, Picture
from hotpind.chat.sse import EventReader
from hotpind.errors import (
    BackendError,
    BackendRateLimited,
    BackendUnreachable,
    BadAnswer,
    KeyRejected,
    ModelRetired,
    PayloadTooLarge,
)

RETRY_AFTER_DEFAULT_S = 30.0
"""Without a retry-after header: half of the minute over which chat services count."""
RETRY_AFTER_MOST_S = 24 * 3600.0
"""A limit per day is the longest there is; another key ends the wait at once."""
NOTHING_ENCODED: Mapping[Picture, str] = {}
CAPACITY_EXCEEDED = 498
"""Groq's own status for a flex-tier request that found no free capacity."""

_RETIRED = {"model_not_found", "model_decommissioned", "model_terms_required"}
_LIMITED = {"rate_limit_exceeded", "insufficient_quota"}
_REJECTED = {"invalid_api_key", "unauthorized", "permission_denied"}
_TOO_LARGE = {"context_length_exceeded", "request_too_large"}
_CODE = re.compile(r"[a-z][a-z0-9_]{2,40}")


@dataclass(frozen=True, slots=True)
class Service:
    """Who is asked, as its errors name it."""

    name: str
    """Name in the status."""
    key_advice: str
    """What a person does when the service refuses the key, or wants one: the end of a sentence."""
    has_key: bool = True
    """Whether it is set up with a key, so that a refusal lasts until there is another one; without, it is a fault of
    the server, which may pass.
    """


def content(message: Message, urls: Mapping[Picture, str]) -> str | list[dict[str, Any]]:
    """Return the ``content`` of a message: plain text, or parts when it has pictures.

    ``urls`` holds those of pictures that were encoded before. Encodes base64; call it in a thread when there are
    pictures.
    """
    if not message.pictures:
        return message.text
    text = [{"type": "text", "text": message.text}] if message.text else []
    images = [{"type": "image_url", "image_url": {"url": urls.get(picture) or data_url(picture)}}
              for picture in message.pictures]
    return [*text, *images]


def data_url(picture: Picture) -> str:
    """Return a picture as a ``data:`` URL (RFC 2397)."""
    return "data:image/jpeg;base64," + base64.b64encode(picture.jpeg).decode("ascii")


def encoded_messages(messages: Sequence[Message], urls: Mapping[Picture, str] = NOTHING_ENCODED
                     ) -> list[dict[str, Any]]:
    """Return the ``messages`` of a request; see `content`."""
    return [{"role": message.role, "content": content(message, urls)} for message in messages]


def read_event(event: Mapping[str, Any], *, service: Service, model: str) -> list[Event]:
    """Translate one event of the stream (or a whole unstreamed answer).

    Raises what `status_error` would raise when the event holds an error object, and `BadAnswer` when its
    shape is wrong.
    """
    name = service.name
    if event.get("error"):
        raise object_error(event["error"], service=service, model=model)
    extra = event.get("x_groq")
    if isinstance(extra, Mapping) and extra.get("error"):
        raise BackendUnreachable(f"{name} stopped its answer with an error", server_fault=True)
    choices = event.get("choices", [])
    if not isinstance(choices, list):
        raise BadAnswer(f"{name} sent an event that is not of the chat completions API")
    if not choices:
        return []
    choice = choices[0]
    if not isinstance(choice, Mapping):
        raise BadAnswer(f"{name} sent an event that is not of the chat completions API")
    delta = choice.get("delta") or choice.get("message") or {}
    events: list[Event] = [Words(_text(delta.get("content") if isinstance(delta, Mapping) else None))]
    reason = choice.get("finish_reason")
    if reason == "content_filter":
        raise BadAnswer(f"{name} withheld its answer (content filter)")
    if reason:
        events.append(Ended(truncated=reason == "length"))
    return events


class AnswerReader:
    """Translates the body of an answer, in pieces of any size."""

    def __init__(self, service: Service, *, model: str) -> None:
        self._service = service
        self._model = model
        self._reader = EventReader()
        self._seen = False
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether the answer is whole; what may still come (statistics, the closing mark) adds nothing to it."""
        return self._ended

    def feed(self, chunk: bytes) -> list[Event]:
        """Take the next bytes; raises as `read_event`, and `BadAnswer` for what is not a stream of events."""
        events = self._translated(self._reader.feed(chunk))
        if self._reader.done and not self._ended:
            self._ended = True
            events.append(Ended())
        return events

    def finish(self) -> list[Event]:
        """Take the end of the body; raises `BackendUnreachable` when the answer was not whole."""
        events = self._translated(self._reader.finish())
        if not self._seen:
            raise BadAnswer(f"{self._service.name} sent something that is not a chat answer; "
                            "is a login page in between?")
        if not self._ended:
            raise BackendUnreachable(f"{self._service.name} ended the connection too early")
        return events

    def _translated(self, objects: list[dict[str, Any]]) -> list[Event]:
        events: list[Event] = []
        self._seen = self._seen or bool(objects) or self._reader.done
        for item in objects:
            if self._ended:
                break
            found = read_event(item, service=self._service, model=self._model)
            self._ended = any(isinstance(event, Ended) for event in found)
            events += found
        return events


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(part["text"] for part in value
                       if isinstance(part, Mapping) and isinstance(part.get("text"), str))
    return ""


def status_error(status: int, headers: Mapping[str, str], body: Any, *, service: Service, model: str,
                 now: datetime) -> BackendError:
    """Return the error that an HTTP status other than 200 stands for.

    ``headers`` must be case-insensitive; ``body`` is the decoded JSON or anything else; ``now`` is aware.
    """
    name = service.name
    code, text = _code_and_text(body)
    if status == 403 and (code.startswith("model_") or f"`{model.lower()}`" in text):
        # The key may use others: https://console.groq.com/docs/model-permissions
        return ModelRetired(f"{name} does not let this key use the model {model}; allow it there or choose another one "
                            "in the settings", model=model)
    if status in (401, 403):
        return _rejected(service, f"HTTP {status}")
    if status == 429:
        return BackendRateLimited(f"{name} has had enough requests for now (HTTP 429)",
                                  retry_after=retry_after(headers, now))
    if status == 413 or code in _TOO_LARGE:
        return PayloadTooLarge(f"{name} finds the request too large (HTTP {status})")
    if code in _RETIRED or (status in (400, 404, 410) and "model" in text
                            and re.search(r"not found|does not exist|decommission|no longer", text)):
        return _retired(name, model)
    if status >= 500 or status in (CAPACITY_EXCEEDED, 408):
        return BackendUnreachable(f"{name} answers with HTTP {status}", server_fault=True)
    if 300 <= status < 400:
        return BadAnswer(f"{name} redirects to another address (HTTP {status}), which is not followed; "
                         "check the address in the settings")
    if status == 404:
        return BadAnswer(f"{name} has no chat service at this address (HTTP 404); "
                         "check the address in the settings")
    return BadAnswer(f"{name} refused the request (HTTP {status}{', ' + code if code else ''})")


def object_error(error: Any, *, service: Service, model: str) -> BackendError:
    """Return the error that an ``error`` object inside a 200 answer stands for."""
    name = service.name
    code, text = _code_and_text({"error": error})
    if code in _RETIRED or "decommission" in text:
        return _retired(name, model)
    if code in _LIMITED:
        return BackendRateLimited(f"{name} has had enough requests for now ({code})",
                                  retry_after=RETRY_AFTER_DEFAULT_S)
    if code in _REJECTED:
        return _rejected(service, code)
    return BackendUnreachable(f"{name} sent an error instead of an answer{f' ({code})' if code else ''}",
                              server_fault=True)


def _retired(name: str, model: str) -> ModelRetired:
    return ModelRetired(f"{name} no longer serves the model {model}; choose another one in the settings",
                        model=model)


def _rejected(service: Service, why: str) -> BackendError:
    if service.has_key:
        return KeyRejected(f"{service.name} rejected the API key ({why}); {service.key_advice}")
    return BackendUnreachable(f"{service.name} refuses to answer without an API key ({why}); {service.key_advice}",
                              server_fault=True)


def _code_and_text(body: Any) -> tuple[str, str]:
    """Return the error's code (one word or empty) and its message in lower case, for recognising it only."""
    error = body.get("error") if isinstance(body, Mapping) else None
    if isinstance(error, str):
        return "", error.lower()
    if not isinstance(error, Mapping):
        return "", ""
    code = error.get("code") or error.get("type")
    message = error.get("message")
    return (code if isinstance(code, str) and _CODE.fullmatch(code) else "",
            message.lower()[:500] if isinstance(message, str) else "")


def retry_after(headers: Mapping[str, str], now: datetime) -> float:
    """Return how many seconds to stay away, between 1 and `RETRY_AFTER_MOST_S`.

    ``retry-after`` holds seconds or an HTTP date (RFC 9110, section 10.2.3).
    """
    value = headers.get("retry-after", "").strip()
    seconds = RETRY_AFTER_DEFAULT_S
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
            if date.tzinfo is None:
                date = date.replace(tzinfo=UTC)
            seconds = (date - now).total_seconds()
        except (ValueError, TypeError, OverflowError, IndexError):
            pass
    if math.isnan(seconds):
        seconds = RETRY_AFTER_DEFAULT_S
    return min(max(seconds, 1.0), RETRY_AFTER_MOST_S)
