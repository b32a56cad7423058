"""What is announced: the service's names and the keys of its TXT record. Pure.

Names follow RFC 6763: an instance name is one DNS label of at most 63 bytes of UTF-8.
"""

from __future__ import annotations

from dataclasses import dataclass

SERVICE_TYPE = "_hotpin._tcp.local."
TXT_VERSION = "1"
LONGEST_KEY = 9
"""Characters of a TXT key, the limit that RFC 6763 (6.4) recommends and that an ESP32 copes with."""

_LABEL_BYTES = 63
_SUFFIX_BYTES = 4
"""Kept free for "-99" when the name is taken."""


@dataclass(frozen=True, slots=True)
class Service:
    """What the appliance says about itself. Holds nothing secret."""

    appliance_id: str
    host_name: str
    """``hotpin-<id>.local``, without the closing dot."""
    name: str
    """Friendly name, from `instance_name`."""
    port: int
    version: str
    auth: str
    """``paired`` or ``open``."""
    protocol: str = "1"
    path: str = "/ws"
    image_path: str = "/image"
    tls_port: int = 0
    """0 when there is no encrypted port."""
    fingerprint: str = ""
    """SHA-256 of the certificate in hexadecimal digits, when there is an encrypted port."""

    def txt(self, *, pairing_open: bool) -> dict[str, str]:
        """Return the TXT record."""
        record = {"txtvers": TXT_VERSION, "id": self.appliance_id, "ver": self.version, "proto": self.protocol,
                  "path": self.path, "img": self.image_path, "auth": self.auth,
                  "pair": "open" if pairing_open else "closed", "tls": str(self.tls_port)}
        if self.tls_port:
            record["fp"] = self.fingerprint
        return record


def instance_name(name: str, room: str = "") -> str:
    """Make the announced name of the configured one and the room ("Hotpin Kitchen").

    Dots separate labels in a domain name, so they become spaces here; what is too long is cut between
    characters.
    """
    words = f"{name} {room}".replace(".", " ").replace("\\", " ")
    clean = " ".join("".join(letter if letter.isprintable() else " " for letter in words).split()) or "Hotpin"
    cut = clean.encode("utf-8", "ignore")[:_LABEL_BYTES - _SUFFIX_BYTES].decode("utf-8", "ignore")
    return cut.strip()


def numbered(name: str, number: int) -> str:
    """Return the name to try when the one before it is taken; 1 is the name itself."""
    return name if number <= 1 else f"{name}-{number}"
