"""A name server that knows one name (RFC 1035), as a process of its own, in a network namespace for example.

``python -m tests.fakes.names ADDRESS NAME ITS_ADDRESS`` prints "ready" when it answers on port 53 of ADDRESS.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys

A, IN = 1, 1
NAME_ERROR, ANSWERED = 0x8183, 0x8180


def answer(query: bytes, name: str, address: str) -> bytes:
    """Answer a query: the address of the name, nothing for another type, and an error for another name."""
    labels, at = [], 12
    while size := query[at]:
        labels.append(query[at + 1:at + 1 + size].decode("ascii", "replace").lower())
        at += 1 + size
    kind, _ = struct.unpack_from("!HH", query, at + 1)
    question = query[12:at + 5]
    known = ".".join(labels) == name
    record = b""
    if known and kind == A:
        record = struct.pack("!HHHIH", 0xC00C, A, IN, 1, 4) + ipaddress.IPv4Address(address).packed
    head = struct.pack("!HHHHH", ANSWERED if known else NAME_ERROR, 1, bool(record), 0, 0)
    return query[:2] + head + question + record


def main() -> None:
    """Answer until killed."""
    host, name, address = sys.argv[1:]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((host, 53))
        print("ready", flush=True)
        while True:
            query, asker = server.recvfrom(512)
            server.sendto(answer(query, name, address), asker)


if __name__ == "__main__":
    main()
