"""What is known about a device, and what counts as a valid description of one."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from hotpind.errors import DeviceError

TOKEN_BYTES = 32
"""Randomness of a token: 256 bits, written as 64 hexadecimal digits."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,63}", re.ASCII)
_LONGEST_TEXT = 64


@dataclass(frozen=True, slots=True)
class Description:
    """What a device says about itself when it asks to be paired."""

    device_id: str
    """Also the only ``session_id`` that the device may use."""
    name: str
    model: str = ""
    firmware: str = ""


@dataclass(frozen=True, slots=True)
class Device:
    """A registered device."""

    id: str
    name: str
    model: str
    firmware: str
    created: float
    """Unix time, seconds."""
    last_seen: float | None
    """Unix time, seconds; None until its first authenticated request."""


def describe(device_id: object, name: object = "", model: object = "", firmware: object = "") -> Description:
    """Check what came from outside and make a description of it.

    An empty name becomes the id. Raises `DeviceError`.
    """
    checked = check_id(device_id)
    return Description(checked, check_text(name, "name") or checked,
                       check_text(model, "model"), check_text(firmware, "firmware"))


def check_id(value: object) -> str:
    """Return a valid device id. Raises `DeviceError`."""
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise DeviceError("device_id has to be 1 to 64 letters, digits or . _ : @ + -, "
                          "and begin with a letter or digit")
    return value


def check_text(value: object, key: str) -> str:
    """Return a short text for people, on one line, without control characters. Raises `DeviceError`."""
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT:
        raise DeviceError(f"{key} has to be text of at most {_LONGEST_TEXT} characters")
    return "".join(letter for letter in value if letter.isprintable()).strip()


def hash_token(token: str) -> bytes:
    """Return what is kept of a token, 32 bytes.

    A plain SHA-256 is enough: 256 random bits cannot be guessed, so a slow hash would protect nothing.
    """
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
