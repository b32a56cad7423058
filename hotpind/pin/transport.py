"""What the pin's connections have in common: how the other side is known, and why it cannot be reached."""

from __future__ import annotations

from ssl import SSLContext

import aiohttp

Tls = SSLContext | aiohttp.Fingerprint | bool
"""How an https address is checked: True for a certificate that is valid here, else the one to expect."""


def why(error: BaseException) -> str:
    """Say in a few words why a request failed."""
    match error:
        case aiohttp.ServerFingerprintMismatch():
            return "it shows another certificate than the one this pin knows (wrong fingerprint)"
        case aiohttp.ClientConnectorCertificateError():
            return "its certificate is not one that is valid here; give its fingerprint with --fingerprint"
        case TimeoutError():
            return "no answer in time"
        case aiohttp.ClientConnectorError():
            return error.os_error.strerror or str(error.os_error)
        case _:
            return str(error).rstrip(".") or type(error).__name__
